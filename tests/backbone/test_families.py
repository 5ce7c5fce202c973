"""Prompts are what transformers makes of them, token by token, on templates and tokenizers of all families served."""

import copy
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from tests.backbone.families import GEMMA_2, KINDS, LLAMA_2, MISTRAL_1, MISTRAL_3, QWEN_2, QWEN_3, TEMPLATES, tokenizer
from tests.backbone.test_template import ids_of, talk

NO_SYSTEM = {"Gemma 2", "Mistral 0.1"}
TALK = (
    "user: My name is Nora.\n",
    "assistant:  Hello, Nora! 12 + 30 = 42",
    "user: [really] What is my name?",
    "assistant: é漢🦊",
    "user: the cat",
)


@cache
def made(name: str, kind: str) -> ChatTemplate:
    tokens = copy.deepcopy(tokenizer(kind))
    tokens.chat_template = TEMPLATES.get(name, name)
    return ChatTemplate(tokens)


def applied(chat: ChatTemplate, messages: list[Message], *, opened: bool) -> list[int]:
    plain = [{"role": m.role, "content": m.content} for m in messages]
    encoded = chat.tokenizer.apply_chat_template(plain, tokenize=True, add_generation_prompt=opened)
    return list(encoded["input_ids"])


def by_message(chat: ChatTemplate, messages: list[Message]) -> dict[int | None, str]:
    texts: dict[int | None, str] = {}
    for segment in chat.render(messages, opened=True):
        said = str(chat.tokenizer.decode(segment.ids, clean_up_tokenization_spaces=False))
        texts[segment.message] = texts.get(segment.message, "") + said
    return texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers_token_by_token(name: str, kind: str) -> None:
    chat = made(name, kind)
    for system in ([], ["system: Be brief."]):
        for length in range(1, len(TALK) + 1):
            messages = talk(*system, *TALK[:length])
            if system and name in NO_SYSTEM:
                continue
            for opened in {False, messages[-1].role == "user"}:  # what ends with a reply is not well-formed when opened
                assert list(ids_of(chat.render(messages, opened=opened))) == applied(chat, messages, opened=opened)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_message_has_its_own_tokens(name: str, kind: str) -> None:
    chat = made(name, kind)
    system = [] if name in NO_SYSTEM else ["system: sys zero"]
    said = ("user: cat one", "assistant: mat two", "user: sat three", "assistant: hat four", "user: five")
    messages = talk(*system, *said)
    texts = by_message(chat, messages)
    for number, message in enumerate(messages):
        assert [owner for owner, text in texts.items() if message.content.split()[-1] in text] == [number], texts


MALFORMED = {
    "two users": ("user: cat one", "user: mat two"),
    "three users": ("user: cat one", "user: mat two", "user: sat three"),
    "the assistant first": ("assistant: cat one", "user: mat two"),
    "the assistant alone": ("assistant: cat one",),
    "two assistants": ("user: cat one", "assistant: mat two", "assistant: sat three"),
    "the assistant last": ("user: cat one", "assistant: mat two"),
    "a system prompt": ("system: cat one", "user: mat two"),
    "two system prompts": ("system: cat one", "system: mat two", "user: sat three"),
    "a late system prompt": ("user: cat one", "system: mat two", "assistant: sat three", "user: hat four"),
    "a system prompt alone": ("system: cat one",),
    "a system prompt and the assistant": ("system: cat one", "assistant: mat two", "user: sat three"),
    "a tool": ("user: cat one", "assistant: mat two", "tool: sat three"),
    "an empty message": ("user: cat one", "assistant: ", "user: sat three"),
}


@pytest.mark.parametrize("shape", MALFORMED)
@pytest.mark.parametrize("name", TEMPLATES)
def test_lists_that_are_no_conversations_lose_nothing(name: str, shape: str) -> None:
    messages = talk(*MALFORMED[shape])
    texts = by_message(made(name, "bytes"), messages)
    for number, message in enumerate(messages):
        for word in message.content.split()[-1:]:
            assert [owner for owner, text in texts.items() if word in text] == [number], texts


def test_a_prompt_for_mistral_keeps_the_memory_of_each_message_apart() -> None:
    """Its system prompt stands in the last question, out of order."""
    messages = talk("system: Be brief.", "user: one", "assistant: two", "user: three")
    texts = by_message(made("Mistral 0.3", "bytes"), messages)
    assert texts == {None: "<s>", 1: "[INST] one[/INST]", 2: " two</s>", 0: "[INST] Be brief.", 3: "\n\nthree[/INST]"}


def test_what_stands_between_is_nobodys() -> None:
    chat = made("Gemma 2", "bytes")
    segments = chat.render(talk("assistant: hi", "user: ho"), opened=True)
    assert [(s.message, str(chat.tokenizer.decode(s.ids))) for s in segments] == [
        (None, "<s>"),
        (None, "<start_of_turn>user\n<end_of_turn>\n"),
        (0, "<start_of_turn>model\nhi<end_of_turn>\n"),
        (1, "<start_of_turn>user\nho<end_of_turn>\n"),
        (None, "<start_of_turn>model\n"),
    ]
    assert 0 < len(segments[1].ids) <= chat.filler
    assert made("Llama 3", "bytes").filler == 0


def test_where_nothing_opens_an_answer_the_user_says_nothing_first() -> None:
    texts = by_message(made("Mistral 0.1", "bytes"), talk("user: hi", "assistant: ho"))
    assert texts == {None: "<s>[INST]  [/INST]", 0: "[INST] hi [/INST]", 1: "ho</s>"}


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    roles=st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=6),
)
def test_every_message_of_any_list_is_shown_once(name: str, roles: list[str]) -> None:
    messages = talk(*(f"{role}: word{number}x" for number, role in enumerate(roles)))
    segments = made(name, "bytes").render(messages, opened=True)
    whole = made(name, "bytes").tokenizer.decode([i for s in segments for i in s.ids])
    hidden = name == "Mistral 0.3" and "system" in roles  # shown with the last question only
    for number in range(len(roles)):
        assert hidden or whole.count(f"word{number}x") == 1


def test_a_tokenizer_without_offsets() -> None:
    """A message each is what it can do."""
    tokens = ByT5Tokenizer()
    tokens.chat_template = QWEN_3
    chat = ChatTemplate(tokens)
    messages = talk("user: hi", "assistant: ho", "user: bye")
    assert list(ids_of(chat.render(messages, opened=True))) == applied(chat, messages, opened=True)
    assert [s.message for s in chat.render(messages)] == [0, 1, 2]


@pytest.mark.parametrize("template", [QWEN_2, QWEN_3, GEMMA_2, LLAMA_2, MISTRAL_1, MISTRAL_3])
def test_rendering_is_work_that_grows_with_the_messages(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in messages that go through the template; `deltamem bench` has the times."""
    chat = ChatTemplate(copy.deepcopy(made(template, "bytes").tokenizer))
    plain, seen = chat.tokenizer.apply_chat_template, list[int]()

    def counted(conversation: list[object], *args: object, **options: object) -> object:
        seen.append(len(conversation))
        return plain(conversation, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(chat.tokenizer, "apply_chat_template", counted)

    def work(count: int) -> int:
        said = talk(*(f"{('user', 'assistant')[n % 2]}: word {n} {'' if n % 7 else '?'}" for n in range(count)))
        seen.clear()
        chat.render(said)
        return sum(seen)

    work(10)
    few = work(500)
    assert few >= 500
    assert work(2000) < 8 * few
