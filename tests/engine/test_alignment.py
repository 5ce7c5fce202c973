"""Which of a caller's messages a ledger knows by content alone."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import Entry, Message, Role, Snapshot
from deltamem_agents.engine.alignment import by_digest, moved_on

TEXTS = st.sampled_from(["hi", "ok", "no", "the cat", ""])
ROLES: st.SearchStrategy[Role] = st.sampled_from(["user", "assistant", "tool"])
MESSAGES = st.lists(st.builds(Message, role=ROLES, content=TEXTS), max_size=8)


def ledger(*turns: Sequence[Message]) -> list[Snapshot]:
    snapshots: list[Snapshot] = []
    for messages in filter(None, turns):
        before = snapshots[-1].messages if snapshots else 0
        entries = tuple(
            Entry(role=m.role, digest=m.digest(), message_id=m.id, text=None, tokens=1, written=True) for m in messages
        )
        count = before + len(entries)
        snapshots.append(
            Snapshot(
                id=uuid.uuid4().hex,
                parent=snapshots[-1].id if snapshots else None,
                session="a",
                thread="main",
                turn=len(snapshots) + 1,
                messages=count,
                thread_messages=count,
                thread_tokens=count,
                fingerprint="",
                created_at=datetime.now(UTC),
                state=b"",
                entries=entries,
                kind="turn" if messages[-1].role == "assistant" else "absorb",
            )
        )
    return snapshots


def user(text: str, id: str | None = None) -> Message:
    return Message(role="user", content=text, id=id)


def said(text: str, id: str | None = None) -> Message:
    return Message(role="assistant", content=text, id=id)


def new(passed: Sequence[Message], *turns: Sequence[Message]) -> list[Message]:
    known = by_digest(passed, ledger(*turns))
    return list(passed[known.index + 1 :] if known else passed)


@given(MESSAGES, MESSAGES)
def test_a_known_message_is_what_the_ledger_says_it_is(past: list[Message], passed: list[Message]) -> None:
    known = by_digest(passed, ledger(past))
    assert known is None or passed[known.index].digest() == known.entry.digest


@given(MESSAGES.filter(bool), MESSAGES)
def test_full_histories_after_a_reply_need_no_ids(past: list[Message], after: list[Message]) -> None:
    past = [*past, said("a reply")]  # one that nobody repeats
    assert new([*past, *after], past) == after


@given(MESSAGES)
def test_everything_is_new_to_an_empty_ledger(passed: list[Message]) -> None:
    assert by_digest(passed, []) is None


def test_the_longest_run_marks_the_point_wherever_it_stands() -> None:
    past = [user("hi"), said("ok"), user("hi"), said("ok")]
    assert new([user("(a summary)"), *past, user("hi")], past[:2], past[2:]) == [user("hi")]


def test_hi_again_is_new() -> None:
    past = [user("hi"), said("ok")]
    assert new([user("hi")], past) == [user("hi")]
    assert new([*past, user("hi")], past) == [user("hi")]


def test_in_doubt_it_is_new() -> None:
    passed = [user("hi"), said("changed"), user("so")]
    assert new(passed, [user("hi"), said("ok")]) == passed


def test_a_question_asked_again_with_what_came_before_it_is_known() -> None:
    past = [user("hi"), said("ok")], [user("the cat"), said("yes")]
    known = by_digest([*past[0], user("the cat")], ledger(*past))
    assert known is not None
    assert (known.index, known.turn.turn, known.place) == (2, 2, 0)


def test_where_the_end_was_changed_the_last_known_reply_marks_the_point() -> None:
    past = [user("hi"), said("ok")], [user("the cat"), said("yes")], [user("a dog"), said("no")]
    assert new([*past[0], user("the dog")], *past) == [user("the dog")]
    assert new([*past[0], *past[1], user("another")], *past) == [user("another")]
    assert new([said("yes"), user("another")], *past) == [said("yes"), user("another")]  # a reply alone proves little


def test_after_a_known_message_the_same_words_under_another_id_are_new() -> None:
    past = ledger([user("hi", "u1"), said("ok", "s1")], [user("hi", "u2"), said("ok", "s2")])
    for id, index in (("u3", 1), ("u2", 2), (None, 2)):
        passed = [user("hi", "u1"), said("ok"), user("hi", id)]
        known = by_digest(passed[:2], past[:1])
        assert known is not None
        assert moved_on(known, passed, past).index == index
