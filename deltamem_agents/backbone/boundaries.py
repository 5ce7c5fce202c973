"""Where each message ends in a rendered conversation, in time that grows with its length."""

import json
from collections.abc import Callable, Sequence

from deltamem_agents.backbone.blocks import MARKS, Block, mark

Render = Callable[[Sequence[Block], bool], str]
"""Renders blocks, with marks or without; empty where the template refuses."""
Kind = tuple[object, ...]
Place = tuple[int, int]
"""A part, counted over all blocks, and where it ends in the text."""


def ends(blocks: Sequence[Block], whole: str, marked: str, render: Render) -> list[Place]:
    """Where the parts of the blocks end, the markers that close them included, in the order in which they stand.

    A conversation cut after a block shows what closes it. That is looked up once for each kind of neighbours, and for
    a block where something else stands. Its text need not be how the whole conversation starts: templates strip the
    thinking from earlier turns, so the end is looked for behind the block's own content. Nor need the order be that of
    the messages: a template of Mistral's has the system prompt in the last question. A part that isn't shown comes
    last, with nothing.

    Args:
        blocks: the conversation.
        whole: its text.
        marked: its text with a numbered mark behind each part.
        render: renders other blocks.
    """
    block_of = [number for number, block in enumerate(blocks) for _ in block.texts]
    tails = [text[len(text.rstrip()) :] for block in blocks for text in block.texts]  # which some templates strip
    contents = _marked(whole, marked)
    exact = contents is not None
    if contents is None:  # the marks changed what the template does
        contents = _searched(blocks, whole)
    closings: dict[Kind, tuple[str, str]] = {}
    found: list[Place] = []
    for index, (part, place) in enumerate(contents):
        number = block_of[part]
        following = block_of[contents[index + 1][0]] if index + 1 < len(contents) else None
        if following is None or following == number:
            found.append((part, len(whole) if following is None else place))
            continue
        kind, arguments, tail = _kind(blocks[number], blocks[following]), _arguments(blocks[number]), tails[part]
        before, after = closings.get(kind, ("", ""))
        closing = before + arguments + after
        starts = [place, place + len(tail)] if tail and whole.startswith(tail, place) else [place]
        end = next((at + len(closing) for at in starts if kind in closings and whole.startswith(closing, at)), None)
        if end is None:
            end = _cut(blocks[: number + 1], part if exact else None, whole, place, render)
            closing = whole[place:end].removeprefix(tail)
            if arguments in closing:
                before, _, after = closing.partition(arguments) if arguments else (closing, "", "")
                closings[kind] = (before, after)
        found.append((part, end))
    shown = {part for part, _ in found}
    return found + [(part, len(whole)) for part in range(len(block_of)) if part not in shown]


def common_prefix(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _marked(whole: str, marked: str) -> list[Place] | None:
    """Where the marks stand; None if the text without them is another."""
    places, removed = list[Place](), 0
    for found in MARKS.finditer(marked):
        places.append((int(found[1]), found.start() - removed))
        removed += len(found[0])
    once = len({part for part, _ in places}) == len(places)
    return places if once and MARKS.sub("", marked) == whole else None


def _searched(blocks: Sequence[Block], whole: str) -> list[Place]:
    """Where the parts' contents seem to end."""
    places, start = list[Place](), 0
    for text in (text for block in blocks for text in block.texts):
        bare = text.strip()
        at = whole.find(bare, start)
        start = at + len(bare) if at >= 0 else start
        places.append((len(places), start))
    return places


def _cut(blocks: Sequence[Block], part: int | None, whole: str, content: int, render: Render) -> int:
    """Where the last of these blocks ends in the whole conversation.

    Args:
        blocks: the conversation up to it.
        part: its last part; None where marks are of no use.
        whole: the text of the whole conversation.
        content: where the part's content ends there.
        render: renders the blocks.
    """
    if part is None:
        text = render(blocks, False)
        return common_prefix(text, whole) if blocks[-1].texts[-1].strip() in text else content
    _, found, closing = render(blocks, True).rpartition(mark(part))
    closing = MARKS.sub("", closing) if found else ""
    return content + common_prefix(closing, whole[content : content + len(closing)])


def _kind(block: Block, following: Block) -> Kind:
    return tuple((b.message.role, bool(b.message.tool_calls)) for b in (block, following))


def _arguments(block: Block) -> str:
    """What stands between the mark and the end of a block with calls, as templates write it."""
    calls = block.message.tool_calls
    return json.dumps(calls[-1].arguments, ensure_ascii=False) if calls else ""
