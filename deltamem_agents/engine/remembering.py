"""What does a session remember? It is asked, and nothing of that is kept."""

from collections.abc import Sequence

from deltamem_agents.engine.interface import EngineCalls
from deltamem_agents.engine.records import Recollection

LENGTH = 48
"""Tokens of an answer, at most."""
THREAD = "remembered"
"""A line of conversation of its own: the session's messages are not in the prompt, and questions are new each time."""


def ask_memory(engine: EngineCalls, session: str, questions: Sequence[str]) -> list[Recollection]:
    """Asks a session's memory, each question by itself; see `EngineCalls.remembered`."""
    engine.info(session)  # refuses a session that does not exist, which would be asked with an empty memory
    turns = engine.batch(
        [[{"role": "user", "content": question}] for question in questions],
        sessions=[session] * len(questions),
        memory="read",
        thread=THREAD,
        recent_messages=0,
        max_new_tokens=LENGTH,
    )
    return [Recollection(question, turn.reply.content) for question, turn in zip(questions, turns, strict=True)]
