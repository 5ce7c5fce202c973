"""Sentences inside a message."""

from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.backbone.spans import sentence_spans


def test_sentences_end_with_a_stop_before_a_blank_or_with_a_line_break() -> None:
    tokens = ["Hi", ".", " My", " cat", "!", " 3", ".", "5", "?\n", "so"]
    assert sentence_spans(tokens) == (0, 0, 1, 1, 1, 2, 2, 2, 2, 3)


def test_the_stop_may_share_its_token_with_the_blank() -> None:
    assert sentence_spans(["a", ". ", "b"]) == (0, 0, 1)
    assert sentence_spans(["a", ".", "\n", "b"]) == (0, 0, 1, 2)


def test_a_message_without_sentences_is_one_span() -> None:
    assert sentence_spans(["a", "b", "c"]) == (0, 0, 0)
    assert sentence_spans([]) == ()


@given(st.lists(st.text("a.! \n", max_size=3), max_size=20))
def test_spans_count_up_from_zero_without_a_gap(tokens: list[str]) -> None:
    spans = sentence_spans(tokens)
    assert len(spans) == len(tokens)
    assert list(dict.fromkeys(spans)) == list(range(max(spans, default=-1) + 1))
    assert list(spans) == sorted(spans)
