"""Replies under constraints, without an engine around them."""

from collections.abc import Sequence

from deltamem_agents import DeltaMemModel, GenerationOptions
from deltamem_agents.backbone.calls import HERMES, CallSyntax
from deltamem_agents.backbone.tools import ToolUse
from deltamem_agents.generation import Lane, Piece, Row, TextStream, constrain, feed, reply_grammar
from tests.chat import byte_tokenizer

ENDS = (0, 2)
LLAMA = CallSyntax('{"name": "', '", "parameters": ', "}", None)
OFF = ToolUse()


def lane(
    model: DeltaMemModel, prompt: Sequence[int], use: ToolUse = OFF, syntax: CallSyntax = HERMES, **options: object
) -> Lane:
    """A reply that is about to be decoded."""
    parsed = GenerationOptions.parse(options)
    row, logits = feed(model, Row(model.zero_state()), [Piece(tuple(prompt), False)])
    stream = TextStream(byte_tokenizer(), parsed.stop)
    made = Lane(row, logits, parsed, stream, False, lambda text: None, lambda: False)
    grammar = reply_grammar(parsed.response_format, use, syntax)
    made.constraint = None if grammar is None else constrain(byte_tokenizer(), ENDS, grammar)
    return made


def schema_format(schema: dict[str, object], **more: object) -> dict[str, object]:
    """A `response_format`."""
    return {"type": "json_schema", "json_schema": {"schema": schema, **more}}
