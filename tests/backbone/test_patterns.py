"""Patterns that the grammar engine cannot read: what is put in their place matches all that they do."""

import re

import pytest

from deltamem_agents.backbone.patterns import readable_patterns

DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"  # pydantic 2.12 and 2.13 write this for Decimal


@pytest.mark.parametrize(
    ("pattern", "read", "same"),
    [
        (r"^\d{4}$", (r"^\d{4}$",), True),
        ("", ("",), True),
        (DECIMAL, (r"^[+-]?0*\d*\.?\d*$", "[^-+.]"), True),
        (r"^(?!\s*$).+", ("^.+", r"\S"), True),
        (r"^(?![^a]*$)b", ("^b", "[a]"), True),
        (r"^(?=.*\d)(?=.*[a-z]).{8,}$", ("^.{8,}$", r"^(?:.*\d)", "^(?:.*[a-z])"), True),
        (r"^a(?>b|c)++\Z", ("^a(?:b|c)++$",), True),
        (r"^(?!-)a|b", ("^a|b",), False),
        (r"^(?=a)a|b", ("^a|b",), False),
        (r"\bword\b", ("word",), False),
        (r"""^(['"])a\1$""", (r"""^(['"])a(?s:.*)$""",), False),
        (r"(?P<q>x)(?P=q)+", (r"(?P<q>x)(?s:.*)+",), False),
        (r"^(?!(?:a|b(c))\)).+$", ("^.+$",), False),
        (r"[(?!](?<!a)*b", ("[(?!]b",), False),
        ("(?=a)", (), False),
        ("(", (), False),
        (")", (), False),
        ("[", (), False),
        (r"\cJ", (), False),
    ],
)
def test_readable(pattern: str, read: tuple[str, ...], same: bool) -> None:
    assert readable_patterns(pattern) == (read, same)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (DECIMAL, ["1", "-.5", "+10.", "007"], ["", ".", "-", "a", "1.2.3"]),
        (r"^(?=.*\d)(?=.*[a-z]).{8,}$", ["abcdefg1"], ["abcdefgh", "12345678", "a1"]),
        (r"^(?!\s*$).+", ["a", " a"], ["", " "]),
    ],
)
def test_the_same_is_said(pattern: str, matching: list[str], others: list[str]) -> None:
    """By another engine, which reads all of them."""
    read, same = readable_patterns(pattern)
    assert same
    for text in matching + others:
        assert all(re.search(one, text) for one in read) == bool(re.search(pattern, text)) == (text in matching)
