"""A rolling summary, written by the frozen model itself: what it would have without a memory or a search."""

from collections.abc import Sequence

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.evaluate.suites.contexts import Contexts
from deltamem_agents.messages import Message

STEP_TOKENS = 2048
"""So many tokens of the conversation go into one step; fewer where the context is short."""
ASKED = "Summarise what we know now: names, facts, dates, plans. Be brief."


def rolling_summary(engine: DeltaMemEngine, contexts: Contexts, *, budget: int) -> str:
    """Goes through a conversation step by step; each step sees the summary so far and the next messages.

    Args:
        engine: its frozen model writes the summary.
        contexts: the conversation.
        budget: tokens that the summary's message may have, markers included.

    Returns:
        The summary's text, cut to the budget.
    """
    summary = ""
    room = min(STEP_TOKENS, (engine.context - 2 * budget) // 2)
    for step in _steps(contexts.lengths, room):
        shown = [contexts.messages[place] for place in step]
        before = [summary_message(summary)] if summary else []
        turn = engine.generate(
            [*before, *shown, Message(role="user", content=ASKED)], memory="off", max_new_tokens=budget
        )
        summary = _cut(engine, turn.reply.content.strip(), budget)
    return summary


def summary_message(summary: str) -> Message:
    """How a summary is shown."""
    return Message(role="user", content=f"Summary so far: {summary}")


def _steps(lengths: Sequence[int], room: int) -> list[range]:
    """Consecutive messages that fit into one step each; one that is longer is a step by itself."""
    steps, start, filled = [], 0, 0
    for place, length in enumerate(lengths):
        if place > start and filled + length > room:
            steps.append(range(start, place))
            start, filled = place, 0
        filled += length
    return [*steps, range(start, len(lengths))]


def _cut(engine: DeltaMemEngine, text: str, budget: int) -> str:
    """The longest beginning of a text, by tokens, whose message fits the budget."""
    tokenizer, question = engine.tokenizer, Message(role="user", content="x")
    alone = engine.count_tokens([question])
    ids = tokenizer.encode(text, add_special_tokens=False)
    for end in range(min(len(ids), budget), 0, -1):  # a text need not be tokenised as it was generated
        cut = str(tokenizer.decode(ids[:end])).strip("\ufffd ")
        if engine.count_tokens([summary_message(cut), question]) - alone <= budget:
            return cut
    return ""
