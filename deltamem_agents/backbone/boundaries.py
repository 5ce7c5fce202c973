"""Where each message ends in a rendered conversation, in time that grows with its length."""

import json
from collections.abc import Callable, Sequence
from itertools import accumulate

from deltamem_agents.backbone.blocks import MARK, Block

Render = Callable[[Sequence[Block], bool], str]
"""Renders blocks, with marks or without; empty where the template refuses."""
Kind = tuple[object, ...]


def ends(blocks: Sequence[Block], whole: str, marked: str, render: Render) -> list[int]:
    """Where in `whole` each part of each block ends, the markers that close it included; the last one ends with it.

    A conversation cut after a block shows what closes it. That is looked up once for each kind of neighbours, and for
    a block where something else stands. Its text need not be how the whole conversation starts: templates strip the
    thinking from earlier turns, so the end is looked for behind the block's own content.

    Args:
        blocks: the conversation.
        whole: its text.
        marked: its text with a mark behind each part.
        render: renders other blocks.
    """
    pieces, sizes = marked.split(MARK), [len(block.texts) for block in blocks]
    exact = len(pieces) == sum(sizes) + 1 and "".join(pieces) == whole  # else the mark changed what the template does
    contents = list(accumulate(len(piece) for piece in pieces[:-1])) if exact else []
    closings: dict[Kind, tuple[str, str]] = {}
    found: list[int] = []
    for number, block in enumerate(blocks):
        start = found[-1] if found else 0
        places = contents[len(found) : len(found) + len(block.texts)] if exact else _searched(block, whole, start)
        found += places[:-1]
        if number == len(blocks) - 1:
            found.append(len(whole))
            continue
        kind, arguments = _kind(block, blocks[number + 1]), _arguments(block)
        before, after = closings.get(kind, ("", ""))
        closing = before + arguments + after
        if kind in closings and whole.startswith(closing, places[-1]):
            found.append(places[-1] + len(closing))
            continue
        found.append(_cut(blocks[: number + 1], whole, places[-1] if exact else None, render))
        closing = whole[places[-1] : found[-1]]
        if arguments in closing:
            before, _, after = closing.partition(arguments) if arguments else (closing, "", "")
            closings[kind] = (before, after)
    return found


def common_prefix(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(blocks: Sequence[Block], whole: str, content: int | None, render: Render) -> int:
    """Where the last of these blocks ends in the whole conversation; `content`: where its content does, if known."""
    if content is None:
        return common_prefix(render(blocks, False), whole)
    _, mark, closing = render(blocks, True).rpartition(MARK)
    return content + common_prefix(closing if mark else "", whole[content : content + len(closing)])


def _searched(block: Block, whole: str, start: int) -> list[int]:
    """Where the parts' contents seem to end."""
    places = []
    for text in block.texts:
        bare = text.strip()
        at = whole.find(bare, start)
        start = at + len(bare) if at >= 0 else start
        places.append(start)
    return places


def _kind(block: Block, following: Block) -> Kind:
    return tuple((b.message.role, bool(b.message.tool_calls)) for b in (block, following))


def _arguments(block: Block) -> str:
    """What stands between the mark and the end of a block with calls, as templates write it."""
    calls = block.message.tool_calls
    return json.dumps(calls[-1].arguments, ensure_ascii=False) if calls else ""
