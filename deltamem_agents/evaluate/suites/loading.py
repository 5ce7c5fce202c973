"""The suites by name."""

from collections.abc import Callable
from pathlib import Path

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.babi import babi
from deltamem_agents.evaluate.suites.conversation import Suite
from deltamem_agents.evaluate.suites.facts import facts
from deltamem_agents.evaluate.suites.intents import intents
from deltamem_agents.evaluate.suites.locomo import locomo
from deltamem_agents.evaluate.suites.memorybank import memorybank
from deltamem_agents.evaluate.suites.xquad import xquad

SUITES: dict[str, Callable[[Path | None, int], Suite]] = {
    "babi": lambda data, seed: babi(data),
    "facts": lambda data, seed: facts(data, seed=seed),
    "intents": lambda data, seed: intents(data, seed=seed),
    "locomo": lambda data, seed: locomo(data, seed=seed),
    "memorybank": lambda data, seed: memorybank(data),
    "xquad": lambda data, seed: xquad(data),
}
"""Each takes a path to its data and a seed."""


def load_suite(name: str, data: Path | None, *, seed: int = 0) -> Suite:
    """A suite with all it has.

    Args:
        name: one of `SUITES`.
        data: its files, or a folder above them.
        seed: draws what the suite draws.

    Raises:
        ConfigError: there is no such suite, or its data is missing (says where to get it) or malformed.
    """
    if name not in SUITES:
        raise ConfigError(f"suite is {name!r}, expected one of {', '.join(SUITES)}")
    suite = SUITES[name](data, seed)
    if not any(talk.questions for talk in suite.conversations):
        raise ConfigError(f"{data} holds no question of {name}: get the files anew")
    return suite
