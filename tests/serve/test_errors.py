"""Errors in OpenAI's shape."""

import pytest

from deltamem_agents import errors
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.serve.errors import of_engine, of_validation


def every(kind: type[DeltaMemError]) -> list[type[DeltaMemError]]:
    return [
        kind,
        *(below for sub in kind.__subclasses__() if sub.__module__ == errors.__name__ for below in every(sub)),
    ]


@pytest.mark.parametrize("kind", every(DeltaMemError))
def test_every_error_has_a_status_and_its_own_name(kind: type[DeltaMemError]) -> None:
    made = of_engine(kind("session 'bob:x' is odd"), hide="bob:")
    assert 400 <= made.status < 600
    error = made.body["error"]
    assert isinstance(error, dict)
    assert error["exception"] == kind.__name__
    assert error["message"] == "session 'x' is odd"
    assert (made.status == 503) == ("Retry-After" in made.headers)


def test_where_something_is_wrong_is_written_as_openai_writes_it() -> None:
    found = {"type": "extra_forbidden", "loc": ("body", "messages", 0, "ChatMessage", "colour"), "msg": "", "input": 1}
    assert of_validation([found]).param == "messages[0].colour"  # type: ignore[list-item]
