"""What a session's last turns wrote, token by token: they are run again, which takes the model."""

from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.engine.last_turn import LastTurn, run_last_turn
from deltamem_agents.engine.prompts import PromptWriter


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
    engine.state(session)  # checks that it is there, and of this model

    def work() -> dict[str, LastTurn]:
        info = engine.store.session(session)
        line = [] if info is None or info.head is None else engine.store.line(info.head)
        writer = PromptWriter(ChatTemplate(engine.tokenizer), engine.model.adapter.config)
        return {
            turn.id: run_last_turn(
                engine.model, engine.store, writer, [turn], recent_messages=engine.recent_messages
            )
            for turn in line[-turns:]
        }

    return engine.on_session(session, work)
