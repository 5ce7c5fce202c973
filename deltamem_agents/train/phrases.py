"""Texts by kind from a data file, those of training and those of the test apart."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from deltamem_agents.train.attributes import Split


@cache
def phrases(name: str) -> dict[Split, Mapping[str, tuple[str, ...]]]:
    """The texts of `data/<name>.toml` by kind; a text with a `{}` gives one for each word of `fill`."""
    text = (files("deltamem_agents.train") / "data" / f"{name}.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)

    def kinds(split: Split) -> Mapping[str, tuple[str, ...]]:
        return {
            entry["kind"]: tuple(
                t.format(word) for t in entry["texts"] for word in (entry["fill"] if "{}" in t else ("",))
            )
            for entry in found[split]
        }

    return {"train": kinds("train"), "test": kinds("test")}
