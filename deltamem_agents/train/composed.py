"""Values that are composed: dates, times, numbers and codes, a tenth of them held out of training."""

import random
import string
import zlib
from collections.abc import Callable

from deltamem_agents.train.attributes import Split

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def held_out(text: str) -> bool:
    """A tenth of all texts, the same on every machine."""
    return zlib.crc32(text.encode()) % 10 == 0


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=count))


def _time(rng: random.Random) -> str:
    return f"{rng.randint(1, 12)}:{5 * rng.randrange(12):02} {rng.choice(('am', 'pm'))}"


_COMPOSED: dict[str, Callable[[random.Random], str]] = {
    # none is ever part of another: two digits always, or "May 1" would be part of "May 14"
    "date": lambda rng: f"{rng.choice(MONTHS)} {rng.randint(10, 28)}",
    "number": lambda rng: str(rng.randint(1000, 9999)),
    "time": _time,
    "code": lambda rng: f"{_letters(rng, 2)}-{rng.randint(100, 999)}",
    "phone": lambda rng: f"{rng.randint(200, 999)}-0{rng.randint(100, 999)}",  # the 0: no number begins with it
    "seat": lambda rng: f"{rng.randint(10, 39)}{rng.choice('ABCDEF')}",
    "version": lambda rng: f"{rng.randint(1, 9)}.{rng.randint(10, 99)}",
}
COMPOSED = (*_COMPOSED, "age")
"""Kinds of values that are composed, not listed."""


def compose(kind: str, rng: random.Random, split: Split) -> str:
    """A value of one of the kinds `COMPOSED`.

    Args:
        kind: which.
        rng: draws it.
        split: those of training and test are different ones, but for ages, of which there are too few.
    """
    if kind == "age":
        return str(rng.randint(18, 95))
    while True:
        value = _COMPOSED[kind](rng)
        # "2:30 pm" is part of "12:30 pm": both are held out, or neither
        key = value[1:] if kind == "time" and value[1] != ":" else value
        if held_out(key) == (split == "test"):
            return value
