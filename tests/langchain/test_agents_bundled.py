"""The bundled model in agents: forks, as a user has them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine, bundled_is_cached
from langchain_deltamem import ChatDeltaMem
from tests.langchain.lines import Line, Talk, near, seeded_agent
from tests.langchain.test_forks import ACTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched"),
]
RECENT = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundled") / "memory.db"


@pytest.fixture(scope="module")
def engine(store: Path) -> Iterator[DeltaMemEngine]:
    with DeltaMemEngine.bundled(store=store, recent_messages=RECENT) as engine:
        yield engine


@pytest.mark.parametrize("name", ACTS)
def test_forks_come_to_what_the_visible_messages_come_to(name: str, engine: DeltaMemEngine) -> None:
    """Two threads of one user; the session's state is that of a fresh session which is told the visible line."""
    agent = seeded_agent(ChatDeltaMem(engine=engine, max_new_tokens=8))
    talks = {thread: Talk(agent, thread, session=name) for thread in ("a", "b")}
    line = Line()
    texts = iter(["My dog is called Rex.", "I live in Oslo.", "I like tea.", "Good morning!", "And my cat is Tom."])
    for thread, text in zip("abaaa", texts, strict=True):
        talks[thread].say(text)
        line.follow(thread, talks[thread].visible)
    ACTS[name](talks["a"], 3)
    line.follow("a", talks["a"].visible)
    assert not line.appended
    fresh = engine.session(f"fresh {name}")
    for thread, turn in line.turns:
        engine.absorb(turn, session=fresh.name, thread=thread)
    assert near(engine.state(name), fresh.state)
