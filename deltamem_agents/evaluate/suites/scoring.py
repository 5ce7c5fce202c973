"""Scores of free answers, as the benchmarks define them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from deltamem_agents.errors import ConfigError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
Words = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """SQuAD's words of an answer: lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def stems(text: str) -> list[str]:
    """LoCoMo's words of an answer: as SQuAD's, without "and" too, each by its Porter stem.

    Raises:
        ConfigError: nltk, which has the stemmer that LoCoMo uses, is not installed.
    """
    bare = re.sub(r"\b(a|an|the|and)\b", " ", text.lower().translate(_PUNCTUATION))
    return [_stem(word) for word in bare.split()]


def token_f1(answer: str, gold: str, *, by: Words = words) -> float:
    """Harmonic mean of precision and recall over words, repeated words counted; 1 if both have none."""
    found, wanted = by(answer), by(gold)
    if not found or not wanted:
        return float(found == wanted)
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted))


def list_f1(answer: str, gold: str, *, by: Words = words) -> float:
    """F1 of a list, parted by commas: each wanted item takes the best of those given; their mean."""
    given = [part.strip() for part in answer.split(",")]
    wanted = [part.strip() for part in gold.split(",")]
    return sum(max(token_f1(g, w, by=by) for g in given) for w in wanted) / len(wanted)


def exact_match(answer: str, gold: str) -> float:
    """Whether both have the same words, SQuAD's way."""
    return float(words(answer) == words(gold))


def holds(answer: str, gold: str) -> float:
    """Whether the words of the right answer, or of each of its parts between commas, occur in a row in this one."""
    said = f" {' '.join(words(answer))} "
    return float(all(f" {' '.join(words(part))} " in said for part in gold.split(",")))


def short_answer(answer: str, golds: Sequence[str]) -> dict[str, float]:
    """F1, exact match and containment against the right answer that fits best, by these names."""
    measures: dict[str, Callable[[str, str], float]] = {"f1": token_f1, "exact": exact_match, "holds": holds}
    return {name: max((measure(answer, gold) for gold in golds), default=0.0) for name, measure in measures.items()}


@cache
def _stem(word: str) -> str:
    return str(_stemmer()(word))


@cache
def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # here: an extra
    except ImportError as error:
        raise ConfigError(
            "LoCoMo's score needs nltk's Porter stemmer, which is not installed: "
            'pip install "deltamem-agents[evaluate]"'
        ) from error
    stem: Callable[[str], str] = PorterStemmer().stem
    return stem
