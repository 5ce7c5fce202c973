"""One engine for the same arguments: however a file is spelled, wherever the process stands, while it is open."""

from pathlib import Path

import pytest

from deltamem_agents import DeltaMemEngine, MemoryStore, StoreError, located_model, located_store, shared_engine
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    model = model_for()
    model.backbone.save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    model.adapter.save_pretrained(root / "adapter")
    return root / "model", root / "adapter"


def test_a_relative_path_is_a_file_of_its_own_in_each_working_directory(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = list[DeltaMemEngine]()
    for project in ("one", "two"):
        (tmp_path / project).mkdir()
        monkeypatch.chdir(tmp_path / project)
        engines.append(shared_engine(folders[0], adapter=folders[1], store="memory.db"))
        assert engines[-1].sessions() == []
        engines[-1].absorb([{"role": "user", "content": f"I am in {project}."}], session="alice")
    assert (tmp_path / "one" / "memory.db").exists()
    spellings: list[str | Path] = ["memory.db", Path("memory.db"), "../two/memory.db", "sqlite:///memory.db"]
    spellings += [tmp_path / "two" / "memory.db", f"sqlite:///{tmp_path}/two/memory.db"]
    assert all(shared_engine(folders[0], adapter=folders[1], store=one) is engines[1] for one in spellings)
    monkeypatch.chdir(folders[0].parent)
    assert shared_engine("model", adapter="./adapter", store=tmp_path / "one" / "memory.db") is engines[0]
    for engine in engines:
        engine.close()


def test_a_closed_engine_makes_way(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def shared() -> DeltaMemEngine:
        return shared_engine(folders[0], adapter=folders[1], store=tmp_path / "memory.db")

    with shared() as first:
        assert shared() is first
        first.absorb([{"role": "user", "content": "hello"}], session="alice")
    assert first.closed
    with shared() as second:
        assert second is not first
        assert [info.name for info in second.sessions()] == ["alice"]


def test_other_options_are_other_engines(folders: tuple[Path, Path]) -> None:
    def shared(**options: object) -> DeltaMemEngine:
        return shared_engine(folders[0], adapter=folders[1], store=":memory:", model_kwargs=options)

    plain, eager = shared(), shared(attn_implementation="eager")
    assert plain is shared() is not eager
    assert eager is shared(attn_implementation="eager")
    plain.close()
    eager.close()


def test_what_is_no_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled").mkdir()
    store = MemoryStore()
    assert located_store(store) is store
    assert located_store("memory") == located_store(":memory:") == ":memory:"
    for url in ("postgresql://user:word@host/db", "sqlite://", "sqlite:///file:x.db?uri=true", "no://[url"):
        assert located_store(url) == url
    assert located_store("sqlite:///x.db?timeout=3") == f"sqlite:///{tmp_path}/x.db?timeout=3"
    assert located_store(None) == str(Path(str(located_store(None))).resolve())
    assert [located_model(name) for name in ("bundled", "owner/name")] == ["bundled", "owner/name"]


def test_a_url_that_is_none_is_refused_by_the_store(folders: tuple[Path, Path]) -> None:
    with pytest.raises(StoreError):
        shared_engine(folders[0], adapter=folders[1], store="no://[url")
