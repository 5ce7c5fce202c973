"""Options of a generation: checked, and told what is wrong."""

import pytest

from deltamem_agents import GenerationError, GenerationOptions


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"top_k": 0, "nonsense": 1}, "nonsense"),
    ],
)
def test_bad_options_are_named_and_the_known_ones_listed(options: dict[str, object], named: str) -> None:
    with pytest.raises(GenerationError, match=f"(?s){named}.*known are max_new_tokens, temperature"):
        GenerationOptions.parse(options)


def test_none_means_the_default() -> None:
    options = GenerationOptions.parse({"max_new_tokens": None, "temperature": None, "stop": None})
    assert options == GenerationOptions()


@pytest.mark.parametrize("stop", ["END", ["END"], ("END",)])
def test_stop_strings_come_in_any_sequence(stop: object) -> None:
    assert GenerationOptions.parse({"stop": stop}).stop == ("END",)
