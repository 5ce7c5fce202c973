"""Sentences inside a message, for adapters that write one mean per sentence."""

from collections.abc import Sequence


def sentence_spans(tokens: Sequence[str]) -> tuple[int, ...]:
    """Numbers the sentence of each token: a new one begins after a line break, or after . ! ? followed by a blank.

    Args:
        tokens: the text of each token.
    """
    spans, current = [], 0
    for index, text in enumerate(tokens):
        spans.append(current)
        following = text[len(text.rstrip()) :] or "".join(tokens[index + 1 : index + 2])
        ended = text.endswith("\n") or (text.rstrip().endswith((".", "!", "?")) and following[:1].isspace())
        current += ended
    return tuple(spans)
