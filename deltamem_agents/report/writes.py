"""What a session's turns wrote, token by token: they are run again, which takes the model."""

from collections.abc import Sequence

from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.engine.last_turn import LastTurn, run_last_turn
from deltamem_agents.engine.prompts import PromptWriter
from deltamem_agents.store import Snapshot


def recent_writes(engine: DeltaMemEngine, session: str, *, turns: int) -> dict[str, LastTurn]:
    """Runs the newest turns of a session's line again; gives what each wrote, by snapshot.

    Args:
        engine: with the session in its store.
        session: its name.
        turns: how many turns at most.

    Raises:
        SessionNotFoundError: there is no such session, or it is empty.
        FingerprintError: it was written under another backbone or adapter.
        StateError: a state cannot be read.
    """
    head = engine.info(session).head
    return turn_writes(engine, session, [] if head is None else engine.store.line(head)[-turns:])


def turn_writes(engine: DeltaMemEngine, session: str, turns: Sequence[Snapshot]) -> dict[str, LastTurn]:
    """Runs turns of a session again; gives what each wrote, by snapshot.

    Raises:
        SessionNotFoundError: there is no such session, or it is empty.
        FingerprintError: it was written under another backbone or adapter.
        StateError: a state cannot be read.
        StoreError: a snapshot is gone.
    """
    engine.state(session)  # checks that it is there, and of this model

    def work() -> dict[str, LastTurn]:
        writer = PromptWriter(ChatTemplate(engine.tokenizer), engine.model.adapter.config)
        return {
            turn.id: run_last_turn(engine.model, engine.store, writer, [turn], recent_messages=engine.recent_messages)
            for turn in turns
        }

    return engine.on_session(session, work)
