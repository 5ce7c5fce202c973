"""Regular expressions as schemas have them, put as the grammar engine reads them."""

import re
from functools import lru_cache

from llguidance import LLMatcher

_TOKEN = re.compile(
    r"""
      (?P<back> \\[1-9]\d* | \\k<\w+> | \(\?P=\w+\) )
    | (?P<edge> \\[bB] )
    | (?P<around> \(\?<?[=!] )
    | (?P<open> \(\?> | \( )
    | (?P<close> \) )
    | (?P<count> (?: [*+?] | \{\d*,?\d*\} ) [+?]? )
    | (?P<other> \\. | \[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\] | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_SPELLED = {"(?>": "(?:", r"\A": "^", r"\Z": "$", r"\z": "$"}
"""What has another spelling there. A group that never gives back matches no more than one that does."""
_NOTHING_BUT = re.compile(r"\^?(?:\[(\^?)(\]?(?:\\.|[^\]\\])+)\]|\\([sdw]))\*\$", re.DOTALL | re.IGNORECASE)
"""A string of nothing but some characters."""


@lru_cache(maxsize=1024)
def readable_patterns(pattern: str) -> tuple[tuple[str, ...], bool]:
    """Patterns that the grammar engine reads and that a string must all match, in the place of one that it may not.

    It doesn't look around or back. What a pattern looks for at its start can be a second pattern; word boundaries,
    back-references and other look-around are let go of, and the rest matches all that the pattern does, and more.

    Returns:
        The patterns, and whether they say the same as the one that is given.
    """
    if not _error(pattern):
        return (pattern,), True
    widened, exact = _widened(pattern)
    read = tuple(one for one in widened if one and not _error(one))
    return read, exact and len(read) == len(widened)


def _error(pattern: str) -> str:
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema({"type": "string", "pattern": pattern}))


def _widened(pattern: str) -> tuple[list[str], bool]:
    beside, exact, gone = list[str](), True, False
    groups: list[tuple[str, list[str]]] = [("", [])]  # how each begins, and what is in it
    for token in _TOKEN.finditer(pattern):
        kind, text = token.lastgroup, token[0]
        if kind in ("open", "around"):
            groups.append((text, []))
        elif kind == "close" and len(groups) > 1:
            opening, parts = groups.pop()
            if opening.startswith("(?") and opening[-1] in "=!":
                first = len(groups) == 1 and groups[0][1] == ["^"]
                looked_for = _beside(opening, "".join(parts)) if first else None
                beside += [] if looked_for is None else [looked_for]
                exact, gone = exact and looked_for is not None, True
                continue
            groups[-1][1].append(_SPELLED.get(opening, opening) + "".join(parts) + ")")
        elif kind in ("edge", "back"):
            exact, gone = False, kind == "edge"
            groups[-1][1].extend(["(?s:.*)"] if kind == "back" else [])
            continue
        elif not (kind == "count" and gone):  # else it counts what isn't there any more
            groups[-1][1].append(_SPELLED.get(text, text))
        gone = False
    if "|" in groups[0][1]:  # what one alternative looks for says nothing of the others
        beside, exact = [], exact and not beside
    return ["".join(groups[0][1]), *beside], exact


def _beside(opening: str, ahead: str) -> str | None:
    """What a string must match as well, for what its pattern looks for at the start; None: no pattern says that."""
    if opening == "(?=":
        return f"^(?:{ahead})"
    only = _NOTHING_BUT.fullmatch(ahead)
    if opening != "(?!" or only is None:
        return None
    negated, these, kind = only.groups()
    return f"\\{kind.swapcase()}" if kind else f"[{'' if negated else '^'}{these}]"
