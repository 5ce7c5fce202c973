"""Text as it comes: what decoding all tokens at once gives, for about one decoding of each token."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltamem_agents.generation import TextStream
from tests.chat import VOCABULARY, byte_tokenizer

WORDS = ["\u2581", "\u2581the", "\u2581a", "a", "b", "the", ".", ",", "é", "END", "\u2581\u2581", "▁\ufffd"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def sentencepiece(decoder: decoders.Decoder) -> PreTrainedTokenizerBase:
    """Words that carry their blank in front, bytes for what is no word, and this decoder."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *BYTES, *WORDS])}
    made = Tokenizer(models.BPE(vocabulary, [("\u2581", "the"), ("\u2581", "a")], byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@cache
def llama() -> PreTrainedTokenizerBase:
    blanks = decoders.Replace("\u2581", " ")
    return sentencepiece(
        decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    )


@cache
def metaspace() -> PreTrainedTokenizerBase:
    return sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))


@cache
def wordpiece() -> PreTrainedTokenizerBase:
    vocabulary = {token: number for number, token in enumerate(["[UNK]", "[SEP]", "a", "b", "##a", "##é", "the", "."])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", sep_token="[SEP]")


def whole(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def in_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    stream = TextStream(tokenizer)
    text = "".join([*(stream.push(token) for token in ids), stream.finish()])
    assert text == stream.text
    return text


@pytest.mark.parametrize("made", [byte_tokenizer, llama, metaspace])
@given(text=st.text(st.sampled_from(" abthe.é漢🦊\n\u0301"), max_size=30) | st.text(max_size=20))
def test_the_pieces_of_a_text_are_its_tokens_decoded_at_once(
    made: Callable[[], PreTrainedTokenizerBase], text: str
) -> None:
    ids = made().encode(text, add_special_tokens=False)
    assert in_pieces(made(), ids) == whole(made(), ids)


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40))
def test_tokens_that_no_text_has_give_what_they_give_at_once(ids: list[int]) -> None:
    """Halves of characters, bytes that are none, special tokens in between."""
    assert in_pieces(byte_tokenizer(), ids) == whole(byte_tokenizer(), ids)


@pytest.mark.parametrize("made", [llama, metaspace])
@given(st.lists(st.sampled_from([0, 1, *range(258, 258 + len(WORDS)), 2 + 0x0A, 2 + 0x41]), max_size=25))
def test_blanks_in_front_of_words_stay_and_the_first_one_goes(
    made: Callable[[], PreTrainedTokenizerBase], ids: list[int]
) -> None:
    assert in_pieces(made(), ids) == whole(made(), ids)


@given(st.lists(st.integers(0, 7), max_size=25))
def test_pieces_of_words_are_put_together(ids: list[int]) -> None:
    assert in_pieces(wordpiece(), ids) == whole(wordpiece(), ids)


def test_what_was_shown_stays_when_a_byte_spoils_the_bytes_before_it() -> None:
    fox, spoiled = [2 + byte for byte in "🦊".encode()], 2 + 0xFF
    assert whole(llama(), [*fox, spoiled]) == "\ufffd" * 5
    assert in_pieces(llama(), [*fox, spoiled, 2 + len(BYTES) + 3]) == "🦊\ufffda"


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.tokens = tokenizer, 0

    def decode(self, ids: list[int], **options: bool) -> str | list[str]:
        self.tokens += len(ids)
        return self.tokenizer.decode(ids, **options)


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_a_long_text_costs_as_much_a_token_as_a_short_one(stop: tuple[str, ...]) -> None:
    counted = Counted(byte_tokenizer())
    stream = TextStream(counted, stop)  # type: ignore[arg-type]
    for token in byte_tokenizer().encode("the cat, 漢字 🦊 " * 100, add_special_tokens=False):
        stream.push(token)
    assert counted.tokens < 10 * len(stream.ids)


def streamed(text: str, stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream, pieces = TextStream(byte_tokenizer(), stop), list[str]()
    for token in byte_tokenizer().encode(text, add_special_tokens=False):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@given(st.text(max_size=40))
def test_pieces_are_the_text_whatever_it_is(text: str) -> None:
    pieces, stream = streamed(text)
    assert "".join(pieces) == stream.text == text


@pytest.mark.parametrize("text", ["naïve", "漢字かな", "🦊🦊 ok", "a\u0301", "x\ufffd y"])
def test_unfinished_characters_are_held_back(text: str) -> None:
    pieces, _ = streamed(text)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces).replace("x\ufffd y", "")


def test_half_a_character_at_the_end_comes_out_as_what_it_is() -> None:
    stream = TextStream(byte_tokenizer())
    assert stream.push(byte_tokenizer().encode("字", add_special_tokens=False)[0]) == ""
    assert stream.finish() == stream.text == "\ufffd"


@given(
    st.text("ENDab ", max_size=30), st.lists(st.sampled_from(["END", "E", "DD", "ND a", "ba", "the"]), max_size=3)
)
def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(text: str, stop: list[str]) -> None:
    pieces, stream = streamed(text, stop)
    shown = ""
    for piece in pieces:
        shown += piece
        assert not any(s in shown for s in stop)
    assert shown == stream.text
    assert text.startswith(shown)
    assert stream.stopped == any(s in text for s in stop)
    if not stream.stopped:
        assert shown == text
    else:
        assert any(text[len(shown) :].startswith(s) for s in stop)


def test_what_may_become_a_stop_string_waits() -> None:
    stream = TextStream(byte_tokenizer(), ["END"])
    tokens = byte_tokenizer().encode("aENENb", add_special_tokens=False)
    assert [stream.push(t) for t in tokens] == ["a", "", "", "EN", "", "ENb"]


def test_special_tokens_are_no_text() -> None:
    pieces, stream = streamed("a<|im_start|>b")
    assert "".join(pieces) == stream.text == "ab"


def test_spaces_before_punctuation_stay() -> None:
    assert "".join(streamed("so , it is n't . ok ?")[0]) == "so , it is n't . ok ?"
