"""`deltamem doctor`: what it finds is what is there, and it changes nothing."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deltamem_agents.cli import app
from deltamem_agents.cli.findings import Finding, extras, hub_cache
from tests.cli.conftest import Saved

NEEDS = [
    "rich>=14",
    'bm25s>=0.3; extra == "evaluate"',
    'langchain<2,>=1.4; extra == "langchain"',
    'langchain-core<2,>=1.7; extra == "langchain"',
    'bm25s>=0.3; extra == "all"',
]


def doctor(data: Path, *options: str) -> Result:
    places = {"XDG_DATA_HOME": str(data), "COLUMNS": "80"}
    return CliRunner().invoke(app, ["doctor", *options], env=places)


def found(data: Path, *options: str, code: int = 0) -> dict[str, Finding]:
    result = doctor(data, "--json", *options)
    assert result.exit_code == code, result.output
    return {each["name"]: Finding.model_validate(each) for each in json.loads(result.stdout)}


def test_it_tells_of_machine_models_stores_and_extras_in_80_columns(tmp_path: Path) -> None:
    result = doctor(tmp_path)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for part in ("Machine", "Models", "Stores", "Extras"):
        assert part in result.stdout
    assert not list(tmp_path.iterdir()), "looking makes nothing"


def test_a_store_is_counted(saved: Saved, tmp_path: Path) -> None:
    with saved.engine() as engine:
        for name in ("alice", "bob"):
            engine.absorb([{"role": "user", "content": "I live in Oslo."}], session=name)
    named = found(tmp_path, "--store", str(saved.store))
    assert "2 sessions" in named["store"].found
    assert named["store"].state == "fine"
    assert named["processor"].found.startswith(f"{os.cpu_count()} cores")


@pytest.mark.parametrize("content", [None, b"this is no database" * 100])
def test_a_store_that_cannot_be_used_ends_in_1_and_stays_as_it_is(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    if content is not None:
        path.write_bytes(content)
    broken = found(tmp_path, "--store", str(path), code=1)["store"]
    assert broken.state == "wrong"
    assert broken.means
    assert (path.read_bytes() if path.exists() else None) == content


def test_a_password_in_a_url_is_not_shown(tmp_path: Path) -> None:
    result = doctor(tmp_path, "--json", "--store", "postgresql://me:secret@localhost:1/none?connect_timeout=1")
    assert result.exit_code == 1
    assert "secret" not in result.output


def test_adapters_of_the_hub_s_cache_are_told_from_models(tmp_path: Path) -> None:
    for name, file in (("models--a--model", "config.json"), ("models--a--memory", "delta_mem_config.json")):
        folder = tmp_path / "hub" / name
        snapshot = folder / "snapshots" / "0123"
        for each in (snapshot, folder / "refs", folder / "blobs"):
            each.mkdir(parents=True)
        (snapshot / file).write_text("{}")
        (folder / "refs" / "main").write_text("0123")
    assert hub_cache(tmp_path / "hub") == (["a/model"], ["a/memory"])
    assert hub_cache(tmp_path / "nowhere") == ([], [])


@pytest.mark.parametrize(
    ("here", "state", "means"),
    [
        ({"bm25s": "0.4", "langchain": "1.5", "langchain-core": "1.8"}, "fine", ""),
        ({"langchain-core": "1.8"}, "absent", "pip install 'deltamem-agents[langchain]'"),
        ({"langchain": "1.3", "langchain-core": "1.8"}, "wrong", "wants langchain<2,>=1.4"),
    ],
)
def test_an_extra_is_there_lacking_or_of_another_version(here: dict[str, str], state: str, means: str) -> None:
    named = {each.name: each for each in extras(NEEDS, here.get)}
    assert named.keys() == {"evaluate", "langchain"}, "what is always needed is no extra, and all is only a name"
    assert named["langchain"].state == state
    assert named["langchain"].means.startswith(means)
    assert named["evaluate"].state == ("fine" if "bm25s" in here else "absent")
