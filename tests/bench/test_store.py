"""`deltamem bench store`: every operation at every size, on a real PostgreSQL. How fast, is no test's business."""

import pytest
from typer.testing import CliRunner, Result

from deltamem_agents import SQLStore
from deltamem_agents.cli import app
from tests.postgresql import Server

QUICKLY = ["--state-bytes", "100", "--threads", "2", "--seconds", "0.2", "--repeats", "3"]
OPERATIONS = [
    "head",
    "load a state",
    "find",
    "list a page of 50",
    "list 50 by prefix",
    "commit, new session",
    "commit",
    "prune 1 of 2",
    "forget",
]


def bench(url: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["bench", "store", url, *options, *QUICKLY])


def test_measures_each_operation_at_each_size(postgresql: Server) -> None:
    url = postgresql.fresh()

    result = bench(url, "--sessions", "12", "--sessions", "5")

    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines()]
    assert rows[0] == ["sessions", "what", "times", "p50, ms", "p99, ms"]
    for size in ("5", "12"):
        measured = [row for row in rows if row[0] == size]
        assert [row[1] for row in measured[: len(OPERATIONS)]] == OPERATIONS
        assert [row[2] for row in measured[: len(OPERATIONS)]] == ["3"] * len(OPERATIONS)
        assert all(0 < float(row[3]) <= float(row[4]) for row in measured if row[2])
        commits, beside, disk = (row[1] for row in measured[len(OPERATIONS) :])
        assert commits.startswith("commit, 2 threads, ")
        assert "while one prunes" in beside
        assert disk.startswith("disk: ")
    with SQLStore(url) as store:
        assert store.count(prefix="user-") == 12
        assert store.count() == 12  # it has forgotten the sessions that it made to forget them


@pytest.mark.parametrize("spec", ["sqlite:///here.db", "full"])
def test_only_an_empty_postgresql_is_filled(spec: str, postgresql: Server) -> None:
    url = postgresql.fresh() if spec == "full" else spec
    if spec == "full":
        assert bench(url).exit_code == 0

    result = bench(url)

    assert result.exit_code == 1
    assert "expected" in result.stderr
