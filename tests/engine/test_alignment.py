"""What is new in a caller's messages."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import Message, Role
from deltamem_agents.engine.alignment import align
from deltamem_agents.store import Entry

TEXTS = st.sampled_from(["hi", "ok", "no", "the cat", ""])
ROLES: st.SearchStrategy[Role] = st.sampled_from(["user", "assistant", "tool"])
MESSAGES = st.lists(st.builds(Message, role=ROLES, content=TEXTS), max_size=8)


def entry(message: Message) -> Entry:
    return Entry(
        role=message.role, digest=message.digest(), message_id=message.id, text=None, tokens=1, written=True
    )


def ledger(messages: Sequence[Message]) -> list[Entry]:
    return [entry(m) for m in messages]


def user(text: str, id: str | None = None) -> Message:
    return Message(role="user", content=text, id=id)


def said(text: str, id: str | None = None) -> Message:
    return Message(role="assistant", content=text, id=id)


def with_ids(messages: Sequence[Message]) -> list[Message]:
    return [m.model_copy(update={"id": f"id{number}"}) for number, m in enumerate(messages)]


@given(MESSAGES, MESSAGES)
def test_new_messages_are_the_end_of_what_was_passed_and_nothing_spoken_is_lost(
    past: list[Message], passed: list[Message]
) -> None:
    aligned = align(passed, ledger(past))
    assert list(aligned.new) == passed[len(passed) - len(aligned.new) :]
    before = passed[: len(passed) - len(aligned.new)]
    known = {m.digest() for m in past}
    assert [m for m in before if m.digest() not in known] == list(aligned.shown)


@given(MESSAGES.filter(bool), MESSAGES, st.integers(0, 8))
def test_with_ids_exactly_the_new_ones_are_new_however_much_was_trimmed(
    past: list[Message], new: list[Message], trimmed: int
) -> None:
    line = with_ids([*past, *new])
    past, new = line[: len(past)], line[len(past) :]
    kept = past[min(trimmed, len(past) - 1) :]
    assert list(align([*kept, *new], ledger(past)).new) == new


@given(MESSAGES.filter(bool), MESSAGES)
def test_full_histories_after_a_reply_need_no_ids(past: list[Message], new: list[Message]) -> None:
    past = [*past, said("a reply")]  # one that nobody repeats
    assert list(align([*past, *new], ledger(past)).new) == new


@given(MESSAGES)
def test_everything_is_new_to_an_empty_ledger(passed: list[Message]) -> None:
    assert list(align(passed, []).new) == passed


@given(MESSAGES, MESSAGES)
def test_system_prompts_are_shown_and_never_new(past: list[Message], passed: list[Message]) -> None:
    system = Message(role="system", content="Be brief.")
    aligned, without = align([system, *passed, system], ledger(past)), align(passed, ledger(past))
    assert aligned.new == without.new
    assert aligned.shown == (system, system, *without.shown)


def test_the_longest_run_marks_the_point_wherever_it_stands() -> None:
    past = [user("hi"), said("ok"), user("hi"), said("ok")]
    summary = user("(a summary)")
    aligned = align([summary, *past, user("hi")], ledger(past))
    assert (aligned.shown, aligned.new) == ((summary,), (user("hi"),))


def test_hi_again_is_new() -> None:
    past = [user("hi"), said("ok")]
    assert align([user("hi")], ledger(past)).new == (user("hi"),)
    assert align([*past, user("hi")], ledger(past)).new == (user("hi"),)


def test_in_doubt_it_is_new() -> None:
    past = [user("hi"), said("ok")]
    assert align([user("hi"), said("changed"), user("so")], ledger(past)).new == (
        user("hi"),
        said("changed"),
        user("so"),
    )


def test_a_known_id_counts_whatever_became_of_the_text() -> None:
    past = [user("hi", "u1"), said("a long reply", "r1")]
    cleared = [user("hi", "u1"), said("[gone]", "r1"), user("so", "u2")]
    aligned = align(cleared, ledger(past))
    assert (aligned.shown, aligned.new) == ((), (user("so", "u2"),))


def test_known_ids_out_of_order_mark_the_last_of_them_in_the_callers_messages() -> None:
    past = [user("a", "1"), said("b"), user("c", "2"), said("d")]
    assert align([user("a", "1"), said("b"), user("c", "2"), said("d"), user("e", "3")], ledger(past)).new == (
        user("e", "3"),
    )


def test_the_same_words_under_another_id_after_a_known_message_are_new() -> None:
    past = [user("hi", "u1"), said("ok", "s1"), user("hi", "u2"), said("ok", "s2")]
    passed = [user("hi", "u1"), said("ok"), user("hi", "u3")]
    assert align(passed, ledger(past)).new == (user("hi", "u3"),)


def test_ids_that_change_at_every_call_prove_nothing() -> None:
    past = [user("hi", "x1"), said("ok", "s1"), user("so", "x2"), said("yes", "s2")]
    fresh = [user("hi", "y1"), said("ok", "y2"), user("so", "y3"), said("yes", "y4"), user("and", "y5")]
    assert align(fresh, ledger(past)).new == (user("and", "y5"),)


def test_a_reply_marked_with_its_snapshot_is_known_even_if_the_caller_changed_its_text() -> None:
    past = [user("hi"), said("  ok  ", "snapshot")]
    assert align([user("hi"), said("ok", "snapshot"), user("so")], ledger(past)).new == (user("so"),)
