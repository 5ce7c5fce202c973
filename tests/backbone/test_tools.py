"""Tools in prompts and replies: described, called and answered as each chat template has it."""

import json
import re
import warnings
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.backbone.calls import HERMES, CallSyntax
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.backbone.tools import Tool, ToolUse
from deltamem_agents.errors import ConfigError
from deltamem_agents.messages import Message, ToolCall
from tests.backbone.test_template import ALTERNATING, CHATML, DEFAULT_SYSTEM, INST, ids_of, talk, tokenizer

ADD = Tool(
    name="add",
    description="Adds.",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
)
NOW = Tool(name="now", description="The time.")
TOOLS = (ADD, NOW)

OWN = (  # as Qwen's: tools in the system prompt, calls behind the content, answers grouped in a message of the user's
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}TOOLS\n"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif not (loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if m.content or not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONE_CALL = (  # as Llama 3.1's: bare JSON, another name for the arguments, and one call at most
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.first and tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AS_XML = OWN.replace("{{ c.function.arguments | tojson }}", "{% for k in c.function.arguments %}<{{ k }}>{% endfor %}")
SPECIAL_MARKERS = OWN.replace("<tool_call>", "<bos>")


@cache
def template(text: str) -> ChatTemplate:
    return ChatTemplate(tokenizer(text))


def call(*names: str, content: str = "", **arguments: object) -> Message:
    calls = tuple(ToolCall(name=name, arguments=arguments, id=f"{name}{n}") for n, name in enumerate(names))
    return Message(role="assistant", content=content, tool_calls=calls)


def answer(content: str, to: str = "add0") -> Message:
    return Message(role="tool", content=content, tool_call_id=to)


def rendered(text: str, messages: list[Message], tools: tuple[Tool, ...] = TOOLS) -> list[tuple[int | None, str]]:
    made = template(text)
    return [(s.message, made.tokenizer.decode(s.ids)) for s in made.render(messages, tools)]


class TestTools:
    def test_in_the_style_of_openai(self) -> None:
        function = {"name": "add", "description": "Adds.", "parameters": ADD.parameters, "strict": True}
        for tool in ({"type": "function", "function": function}, function, ADD, ADD.plain):
            assert ToolUse.parse([tool]).tools == (ADD,)
        assert ToolUse.parse([{"name": "now", "description": None, "parameters": None}]).tools[0].parameters == {
            "type": "object",
            "properties": {},
        }

    @pytest.mark.parametrize(
        ("tool", "words"),
        [
            ({"name": "two words"}, "name: .*'two words' is no tool name"),
            ({"name": ""}, "name: .*'' is no tool name"),
            ({"type": "web_search"}, "type: Extra inputs.*name: Field required|name: Field required.*type: Extra"),
            ({"function": {"description": "x"}}, "name: Field required"),
            ({"name": "a", "parameters": {"type": "string"}}, "arguments are an object, but the schema's type is 'str"),
            ({"name": "a", "parameters": {"properties": {"x": {"type": "strin"}}}}, "Invalid type: strin"),
            (
                {"name": "a", "parameters": {"properties": {"x": {"enum": []}}, "required": ["x"]}},
                "Unsatisfiable schema: required property .x. is",
            ),
            ({"name": "a", "parameters": {"properties": {"x": {"$ref": "#/$defs/no"}}}}, "/no' does not exist"),
            ("add", "tool: "),
        ],
    )
    def test_bad_ones_are_named_by_position(self, tool: object, words: str) -> None:
        with pytest.raises(ConfigError, match=rf"(?s)^tool 1 is not valid \(.*({words}).*expected {{'type': 'func"):
            ToolUse.parse([ADD, tool])

    def test_two_of_a_name(self) -> None:
        with pytest.raises(ConfigError, match="two tools are called 'add'"):
            ToolUse.parse([ADD, ADD])

    @pytest.mark.parametrize(
        ("schema", "words"),
        [
            ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
            ({"type": "array", "contains": {"const": 1}}, '"contains"'),
            ({"if": {"type": "string"}, "then": {"minLength": 3}}, '"if", "then"'),
            ({"type": "string", "pattern": "^a(?!b)"}, "pattern '^a(?!b)'"),
            ({"type": "object", "patternProperties": {"^(?!_)": True}}, "names '^(?!_)'"),
        ],
        ids=["uniqueItems", "contains", "if", "pattern", "names"],
    )
    def test_what_cannot_be_enforced_passes_and_is_said_once(
        self, request: pytest.FixtureRequest, schema: dict[str, object], words: str
    ) -> None:
        """A tool from elsewhere stays usable; what it gets is held to the rest."""
        name = f"of_{request.node.callspec.id}"
        described = {"name": name, "parameters": {"properties": {"x": schema}}}
        with pytest.warns(UserWarning, match=f"tool '{name}'.*{re.escape(words)}"):
            ToolUse.parse([described])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ToolUse.parse([described])
            ToolUse.parse([{**described, "name": "another", "strict": False}])
        with pytest.raises(ConfigError, match=rf"strict, but calls cannot be held to .*{re.escape(words)}"):
            ToolUse.parse([{"type": "function", "function": {**described, "strict": True}}])

    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            (None, ("auto", None)),
            ("auto", ("auto", None)),
            ("none", ("none", None)),
            (False, ("none", None)),
            ("required", ("required", None)),
            ("any", ("required", None)),
            (True, ("required", None)),
            ("now", ("required", "now")),
            ({"type": "function", "function": {"name": "now"}}, ("required", "now")),
            ({"name": "now"}, ("required", "now")),
        ],
    )
    def test_choices(self, choice: object, expected: tuple[str, str | None]) -> None:
        use = ToolUse.parse(TOOLS, choice)
        assert (use.choice, use.named) == expected
        assert use.shown == (() if use.choice == "none" else TOOLS)
        assert use.callable == ((NOW,) if use.named else use.shown)

    @pytest.mark.parametrize("choice", ["sub", 5, ["add"], {"type": "function"}, {"function": 3}])
    def test_bad_choices(self, choice: object) -> None:
        with pytest.raises(ConfigError, match=r"tool_choice is .*expected 'auto', .*\(add, now\)"):
            ToolUse.parse(TOOLS, choice)

    @pytest.mark.parametrize("choice", ["required", True, "add"])
    def test_no_tools_to_choose_from(self, choice: object) -> None:
        with pytest.raises(ConfigError, match="none is"):
            ToolUse.parse([], choice)


class TestPrompts:
    def test_without_a_system_prompt_tools_join_the_default_one(self) -> None:
        (owner, text), *rest = rendered(DEFAULT_SYSTEM, talk("user: hi"))
        assert owner is None
        assert text.startswith("<|im_start|>system\nBe good.\n\n# Tools")
        assert f"<tools>\n{json.dumps(ADD.plain)}\n{json.dumps(NOW.plain)}\n</tools>" in text
        assert rest == [(0, "<|im_start|>user\nhi<|im_end|>\n")]

    def test_a_system_prompt_stays(self) -> None:
        (owner, text), *_ = rendered(DEFAULT_SYSTEM, talk("system: Be brief.", "user: hi"))
        assert owner == 0
        assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
        assert "Be good." not in text

    def test_a_template_without_a_system_prompt_of_its_own(self) -> None:
        (owner, text), *_ = rendered(CHATML, talk("user: hi"))
        assert owner is None
        assert text.startswith("<|im_start|>system\n# Tools")

    def test_a_system_prompt_inside_the_first_user_message(self) -> None:
        segments = rendered(ALTERNATING, talk("user: hi", "assistant: hello", "user: bye"))
        assert [m for m, _ in segments] == [None, 0, 1, 2]
        assert "# Tools" in segments[0][1]
        assert segments[1][1] == "\n\nhi<|im_end|>\n"

    def test_calls_and_answers_as_text(self) -> None:
        messages = [*talk("user: 1+2?"), call("add", "now", content="Let me.", a=1), answer("3"), answer("9", "now1")]
        assert rendered(CHATML, messages, ()) == [
            (0, "<|im_start|>user\n1+2?<|im_end|>\n"),
            (
                1,
                '<|im_start|>assistant\nLet me.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
                '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n',
            ),
            (2, "<|im_start|>tool\n<tool_response>\n3\n</tool_response><|im_end|>\n"),
            (3, "<|im_start|>tool\n<tool_response>\n9\n</tool_response><|im_end|>\n"),
        ]

    def test_a_template_that_knows_no_tool_role_has_the_user_answer(self) -> None:
        messages = [*talk("user: 1+2?"), call("add", a=1), answer("3")]
        *_, (owner, text) = rendered(ALTERNATING, messages, ())
        assert (owner, text) == (2, "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n")

    def test_a_template_with_tools_of_its_own(self) -> None:
        messages = [*talk("system: Be brief.", "user: 1+2?"), call("add", "now", a=1), answer("3"), answer("9", "now1")]
        messages += talk("assistant: 3", "user: thanks")
        plain = f"TOOLS\n{json.dumps(ADD.plain)}\n{json.dumps(NOW.plain)}\n"
        assert rendered(OWN, messages) == [
            (0, f"<|im_start|>system\nBe brief.\n\n{plain}<|im_end|>\n"),
            (1, "<|im_start|>user\n1+2?<|im_end|>\n"),
            (
                2,
                '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
                '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n',
            ),
            (3, "<|im_start|>user\n<tool_response>\n3\n</tool_response>"),
            (4, "\n<tool_response>\n9\n</tool_response><|im_end|>\n"),
            (5, "<|im_start|>assistant\n3<|im_end|>\n"),
            (6, "<|im_start|>user\nthanks<|im_end|>\n"),
        ]
        assert rendered(OWN, messages[1:])[0] == (None, f"<|im_start|>system\n{plain}<|im_end|>\n")

    def test_a_trimmed_history_may_begin_with_an_answer(self) -> None:
        for text in (CHATML, OWN):
            segments = rendered(text, [answer("3"), *talk("assistant: It is 3.", "user: thanks")])
            assert [m for m, _ in segments] == [None, 0, 1, 2]

    def test_what_a_template_refuses_to_show_as_calls_is_text(self) -> None:
        *_, (owner, text) = rendered(ONE_CALL, [*talk("user: hi"), call("add", "now")], ())
        assert owner == 1
        assert text.count("<tool_call>") == 2

    @pytest.mark.parametrize("text", [CHATML, DEFAULT_SYSTEM, OWN])
    @settings(deadline=None, max_examples=30)
    @given(data=st.data())
    def test_a_longer_talk_starts_with_the_tokens_of_a_shorter_one(self, text: str, data: st.DataObject) -> None:
        """But for a last reply, which this template opens with an empty thought, and answers that it groups."""
        said = st.text("ab <é", max_size=5)
        turn = st.one_of(
            said.map(lambda t: [Message(role="user", content=t)]),
            st.tuples(said, said, said).map(lambda t: [call("add", content=t[0], a=t[1]), answer(t[2])]),
            st.tuples(said, said).map(lambda t: [Message(role="user", content=t[0]), *talk("assistant: ok " + t[1])]),
        )
        groups = [talk("user: hi"), *data.draw(st.lists(turn, min_size=1, max_size=4))]
        cut = data.draw(st.integers(1, len(groups)))
        shorter, longer = ([m for group in part for m in group] for part in (groups[:cut], groups))
        made = template(text)
        start, whole = made.render(shorter, TOOLS), made.render(longer, TOOLS)
        compared = len(start) - (shorter[-1].role == "assistant") if text == OWN else len(start)
        assert whole[:compared] == start[:compared]
        assert [s.message for s in whole] == [None, *range(len(longer))]
        opened = made.generation_prompt(longer, TOOLS)
        assert made.tokenizer.decode(ids_of(whole) + opened).endswith("<|im_start|>assistant\n")


class TestSyntax:
    @pytest.mark.parametrize("text", [CHATML, DEFAULT_SYSTEM, INST, AS_XML, SPECIAL_MARKERS])
    def test_what_is_not_understood_is_hermes(self, text: str) -> None:
        assert template(text).syntax is HERMES

    def test_a_template_of_its_own(self) -> None:
        assert template(OWN).syntax == HERMES
        assert template(OWN).syntax is not HERMES
        assert template(ONE_CALL).syntax == CallSyntax('{"name": "', '", "parameters": ', "}", None)

    @pytest.mark.parametrize("text", [CHATML, OWN])
    @given(content=st.text("ab \n<{", max_size=6), value=st.recursive(st.text(max_size=5) | st.integers(), st.lists))
    def test_replies_are_read_as_they_are_written(self, text: str, content: str, value: object) -> None:
        made, said = template(text), call("add", "now", content=content.strip(), a=value)
        reply = "\n".join(part for part in (said.content, made.syntax.text(said.tool_calls)) if part)
        read, calls = made.parse_reply(reply, TOOLS)
        assert read == said.content
        assert [(c.name, c.arguments) for c in calls] == [(c.name, c.arguments) for c in said.tool_calls]
        shown = rendered(text, [*talk("user: hi"), said])[-1][1]
        assert reply in shown

    def test_bare_json(self) -> None:
        content, calls = template(ONE_CALL).parse_reply('So {x} {"name": "add", "parameters": {"a": {"b": 1}}}', TOOLS)
        assert content == "So {x}"
        assert [(c.name, c.arguments) for c in calls] == [("add", {"a": {"b": 1}})]

    @pytest.mark.parametrize(
        "reply",
        [
            "no call",
            "<tool_call>",
            '<tool_call>\n{"name": "add"}\n</tool_call>',
            '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>',
            '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>',
            '<tool_call>\n{"name": "add", "arguments": {"a": 1\n</tool_call> ',
            '<tool_call>\n{"name": 5, "arguments": {}}\n</tool_call>',
            "<tool_call>\nadd(1)\n</tool_call>",
            "  spaces stay  ",
        ],
    )
    def test_what_is_no_valid_call_stays_text(self, reply: str) -> None:
        assert template(CHATML).parse_reply(reply, TOOLS) == (reply, ())

    def test_valid_calls_beside_invalid_ones(self) -> None:
        bad = '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'
        content, calls = template(CHATML).parse_reply(f'a {bad} <tool_call>{{"name": "add", "arguments": {{}}}}', TOOLS)
        assert content == f"a {bad}"
        assert [c.name for c in calls] == ["add"]

    def test_without_tools_nothing_is_read(self) -> None:
        reply = HERMES.text(call("add").tool_calls)
        assert template(CHATML).parse_reply(reply, ()) == (reply, ())

    def test_a_tokenizer_that_reads_its_own_replies(self) -> None:
        made = tokenizer(OWN)
        made.response_template = {
            "start_anchor": "<|im_start|>assistant\n",
            "defaults": {"role": "assistant"},
            "fields": {
                "content": {},
                "tool_calls": {
                    "open": "<tool_call>",
                    "close": "</tool_call>",
                    "content": "json",
                    "repeats": True,
                    "transform": {"type": "function", "function": "{content}"},
                },
            },
        }
        chat = ChatTemplate(made)
        opening = chat.generation_prompt(talk("user: hi"), TOOLS)
        for reply, expected in (
            ('Hm. <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', ("Hm.", ["add"])),
            ('<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>', (None, [])),
            ("<tool_call>\nadd\n</tool_call>", (None, [])),
            ("just text", (None, [])),
        ):
            ids = made.encode(reply, add_special_tokens=False)
            content, calls = chat.parse_reply(reply, TOOLS, ids=ids, opening=opening)
            assert (content, [c.name for c in calls]) == (reply if expected[0] is None else expected[0], expected[1])
