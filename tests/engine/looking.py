"""Looking into sessions' memories."""

from deltamem_agents import DeltaMemEngine
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.engine.inspection import MemoryView, inspect_session
from deltamem_agents.engine.last_turn import LastTurn
from deltamem_agents.engine.prompts import PromptWriter


def inspect(engine: DeltaMemEngine, session: str, **options: object) -> MemoryView:
    writer = PromptWriter(ChatTemplate(engine.tokenizer), engine.model.adapter.config)
    options = {"fingerprint": engine.fingerprint, **options}
    return inspect_session(engine.model, engine.store, writer, session, **options)  # type: ignore[arg-type]


def last_of(view: MemoryView) -> LastTurn:
    assert view.last is not None
    return view.last


def say(engine: DeltaMemEngine, *texts: str, session: str = "alice", **options: object) -> None:
    for text in texts:
        engine.generate([{"role": "user", "content": text}], session=session, max_new_tokens=6, **options)  # type: ignore[arg-type]
