"""Which tokens belong to which message, under the habits of the chat templates in use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deltamem_agents.backbone.blocks import mark
from deltamem_agents.backbone.bundled import bundled_is_cached, bundled_path
from deltamem_agents.backbone.template import ChatTemplate, Segment
from deltamem_agents.errors import MessageError
from deltamem_agents.messages import Message

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
ALTERNATING = (  # as Gemma's: roles take turns, and the system prompt moves into the first user message
    "<bos>{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ (prefix if loop.first else '') + m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
WANTS_A_USER = (
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}{{ raise_exception('no user') }}{% endif %}"
)
STRIPPING = (  # as Qwen3's: an assistant's thinking stays only after the last question of the user
    "{% set last = namespace(user=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and '</think>' in m['content'] and loop.index0 < last.user %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # as Mistral's: no marker opens an answer
    "<bos>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)

contents = st.text("ab \n<é🙂", max_size=12)
messages_of_any_role = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), content=contents),
    min_size=1,
    max_size=5,
)


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the markers of the templates above."""
    inner = Tokenizer(BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>", "<bos>", "<eos>"])
    made = PreTrainedTokenizerFast(tokenizer_object=inner)
    made.chat_template = template
    return made


TOKENIZERS = {t: tokenizer(t) for t in (CHATML, DEFAULT_SYSTEM, TRIMMING, ALTERNATING, STRIPPING, INST)}


def talk(*turns: str) -> list[Message]:
    """`talk("user: hi", "assistant: hello")`."""
    return [Message(role=role, content=content) for role, content in (turn.split(": ", 1) for turn in turns)]


def rendered(template: str, messages: list[Message]) -> list[tuple[int | None, str]]:
    made = TOKENIZERS.get(template) or tokenizer(template)
    return [(s.message, made.decode(s.ids)) for s in ChatTemplate(made).render(messages)]


def whole(template: str, messages: list[Message]) -> str:
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return str(TOKENIZERS[template].apply_chat_template(plain, tokenize=False))


class TestSegments:
    def test_a_segment_each(self) -> None:
        assert rendered(CHATML, talk("system: Be brief.", "user: hi", "assistant: hello", "user: bye")) == [
            (0, "<|im_start|>system\nBe brief.<|im_end|>\n"),
            (1, "<|im_start|>user\nhi<|im_end|>\n"),
            (2, "<|im_start|>assistant\nhello<|im_end|>\n"),
            (3, "<|im_start|>user\nbye<|im_end|>\n"),
        ]

    def test_a_default_system_prompt_belongs_to_nobody(self) -> None:
        assert rendered(DEFAULT_SYSTEM, talk("user: hi", "user: bye")) == [
            (None, "<|im_start|>system\nBe good.<|im_end|>\n"),
            (0, "<|im_start|>user\nhi<|im_end|>\n"),
            (1, "<|im_start|>user\nbye<|im_end|>\n"),
        ]
        assert [m for m, _ in rendered(DEFAULT_SYSTEM, talk("system: Be bad.", "user: hi"))] == [0, 1]

    def test_a_start_token_belongs_to_nobody(self) -> None:
        assert rendered(INST, talk("user: hi", "assistant: hello", "user: bye")) == [
            (None, "<bos>"),
            (0, "[INST] hi[/INST]"),
            (1, " hello<eos>"),
            (2, "[INST] bye[/INST]"),
        ]

    def test_roles_that_must_alternate(self) -> None:
        assert rendered(ALTERNATING, talk("user: hi", "assistant: hello", "user: bye")) == [
            (None, "<bos>"),
            (0, "<|im_start|>user\nhi<|im_end|>\n"),
            (1, "<|im_start|>assistant\nhello<|im_end|>\n"),
            (2, "<|im_start|>user\nbye<|im_end|>\n"),
        ]
        assert rendered(ALTERNATING, talk("user: hi", "user: bye")) == [
            (None, "<bos>"),
            (0, "<|im_start|>user\nhi"),
            (1, "\n\nbye<|im_end|>\n"),
        ]

    def test_a_system_prompt_inside_the_first_user_message(self) -> None:
        found = rendered(ALTERNATING, talk("system: Be brief.", "user: hi", "assistant: hello"))
        assert found == [
            (0, "<bos><|im_start|>user\nBe brief."),
            (1, "\n\nhi<|im_end|>\n"),
            (2, "<|im_start|>assistant\nhello<|im_end|>\n"),
        ]

    def test_a_template_that_wants_a_user_takes_a_system_prompt_before_it(self) -> None:
        found = rendered(WANTS_A_USER + CHATML, talk("system: Be brief.", "user: hi"))
        assert "".join(text for _, text in found) == whole(CHATML, talk("system: Be brief.", "user: hi"))
        assert next(m for m, text in found if "Be brief." in text) == 0
        assert next(m for m, text in found if "hi" in text) == 1
        assert rendered(WANTS_A_USER + CHATML, talk("system: Be brief.")) == [
            (0, "<|im_start|>user\nBe brief.<|im_end|>\n")
        ]

    def test_thinking_that_is_stripped_later(self) -> None:
        history = talk("user: q1", "assistant: <think>\nhm\n</think>\n\na1", "user: q2")
        assert rendered(STRIPPING, history) == [
            (0, "<|im_start|>user\nq1<|im_end|>\n"),
            (1, "<|im_start|>assistant\na1<|im_end|>\n"),
            (2, "<|im_start|>user\nq2<|im_end|>\n"),
        ]
        assert rendered(STRIPPING, history[:2])[1] == (
            1,
            "<|im_start|>assistant\n<think>\nhm\n</think>\n\na1<|im_end|>\n",
        )

    def test_thinking_that_is_stripped_from_several_messages_at_once(self) -> None:
        turns = ("user: q1", "assistant: <think>x</think>a1", "tool: r", "assistant: <think>y</think>a2", "user: q2")
        assert [text for _, text in rendered(STRIPPING, talk(*turns))] == [
            "<|im_start|>user\nq1<|im_end|>\n",
            "<|im_start|>assistant\na1<|im_end|>\n",
            "<|im_start|>tool\nr<|im_end|>\n",
            "<|im_start|>assistant\na2<|im_end|>\n",
            "<|im_start|>user\nq2<|im_end|>\n",
        ]

    def test_trailing_space_that_is_stripped(self) -> None:
        found = rendered(TRIMMING, talk("user: hi  \n", "assistant:   ", "user: bye"))
        assert [text for _, text in found] == [
            "<|im_start|>user\nhi<|im_end|>\n",
            "<|im_start|>assistant\n<|im_end|>\n",
            "<|im_start|>user\nbye<|im_end|>\n",
        ]

    @pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, INST])
    def test_contents_that_hold_the_mark(self, template: str) -> None:
        history = talk(f"user: {mark(0)}a{mark(0)}", "assistant: b", f"user: c{mark(1)}")
        assert "".join(text for _, text in rendered(template, history)) == whole(template, history)
        assert [m for m, _ in rendered(template, history) if m is not None] == [0, 1, 2]

    def test_templates_that_look_at_the_end_of_a_content(self) -> None:
        """Where the mark would change what the template does, prefixes of the conversation decide."""
        picky = CHATML.replace("m['content']", "m['content'] + (' (asked)' if m['content'].endswith('?') else '')")
        assert [text for _, text in rendered(picky, talk("user: why?", "assistant: so"))] == [
            "<|im_start|>user\nwhy? (asked)<|im_end|>\n",
            "<|im_start|>assistant\nso<|im_end|>\n",
        ]

    def test_nothing_to_render(self) -> None:
        assert ChatTemplate(tokenizer(CHATML)).render([]) == []

    def test_no_template(self) -> None:
        with pytest.raises(MessageError, match="has no chat template: set"):
            ChatTemplate(tokenizer(None))

    @pytest.mark.parametrize("broken", ["{{ messages[0]['content'] + 1 }}", "{{ nothing.at.all }}", "{% for %}"])
    def test_templates_that_break(self, broken: str) -> None:
        with pytest.raises(MessageError, match=r"refuses messages with roles \['user'\]"):
            rendered(broken, talk("user: hi"))


class TestProperties:
    @pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, TRIMMING, INST, STRIPPING])
    @given(messages=messages_of_any_role)
    def test_segments_make_up_the_whole(self, template: str, messages: list[Message]) -> None:
        found = rendered(template, messages)
        assert "".join(text for _, text in found) == whole(template, messages)
        assert [m for m, _ in found if m is not None] == list(range(len(messages)))
        assert [m for m, _ in found[1:]].count(None) == 0

    @pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, TRIMMING, INST, STRIPPING])
    @given(messages=messages_of_any_role)
    def test_a_content_is_in_its_own_segment(self, template: str, messages: list[Message]) -> None:
        unique = [m.model_copy(update={"content": f"{m.content} ({n})"}) for n, m in enumerate(messages)]
        for message, text in rendered(template, unique):
            inside = [n for n in range(len(unique)) if f"({n})" in text]
            assert inside == ([] if message is None else [message])

    @pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, TRIMMING, INST])
    @given(messages=messages_of_any_role, data=st.data())
    def test_a_longer_conversation_starts_with_the_tokens_of_a_shorter_one(
        self, template: str, messages: list[Message], data: st.DataObject
    ) -> None:
        """But for templates that rewrite the past, as `STRIPPING` does: those cannot have it."""
        shorter = messages[: data.draw(st.integers(1, len(messages)))]
        made = ChatTemplate(TOKENIZERS[template])
        segments = made.render(shorter)
        assert made.render(messages)[: len(segments)] == segments

    @given(messages=messages_of_any_role)
    def test_the_generation_prompt_goes_on_where_the_messages_end(self, messages: list[Message]) -> None:
        made = ChatTemplate(TOKENIZERS[DEFAULT_SYSTEM])
        tokens = made.tokenizer
        assert tokens.decode(made.generation_prompt(messages)) == "<|im_start|>assistant\n"
        plain = [{"role": m.role, "content": m.content} for m in messages]
        opened = tokens.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        assert tokens.decode(ids_of(made.render(messages)) + made.generation_prompt(messages)) == opened


def ids_of(segments: list[Segment]) -> tuple[int, ...]:
    return tuple(i for s in segments for i in s.ids)


@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model is not on this machine")
class TestBundled:
    @pytest.fixture(scope="class")
    def template(self) -> ChatTemplate:
        return ChatTemplate(AutoTokenizer.from_pretrained(bundled_path()))

    def test_segments_are_the_tokens_of_the_whole(self, template: ChatTemplate) -> None:
        history = talk("user: My dog is Rex.\n\nHe is 12.", "assistant: Nice!", "user: 1 + 1 = ?", "tool: 2")
        plain = [{"role": m.role, "content": m.content} for m in history]
        together = template.tokenizer.apply_chat_template(plain, tokenize=True, return_dict=False)
        segments = template.render(history)
        assert ids_of(segments) == tuple(together)
        assert [s.message for s in segments] == [None, 0, 1, 2, 3]

    def test_generation_prompt(self, template: ChatTemplate) -> None:
        assert template.tokenizer.decode(template.generation_prompt(talk("user: hi"))) == "<|im_start|>assistant\n"
