"""The order in which the model thread takes work."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents import DeltaMemModel, GenerationError, GenerationOptions
from deltamem_agents.engine.scheduler import Emit, Job, Scheduler, Steps, Task
from deltamem_agents.engine.worker import Worker
from deltamem_agents.generation import Lane, Piece, Prefill, Prompt, Row, TextStream, feed
from deltamem_agents.generation.decode import Decoder
from tests.chat import byte_tokenizer
from tests.engine.conftest import model_for
from tests.engine.faults import Gate

SESSIONS = ["alice", "bob", "carol"]


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(Decoder(model_for(), [2]), Prefill(model_for()), max_batch=2, prefill_chunk=8)
    yield made
    made.close()


def lane(model: DeltaMemModel, emit: Emit, cancelled: threading.Event, tokens: int) -> Lane:
    row, logits = feed(model, Row(model.zero_state()), [Piece((5, 6, 7), True)])
    options = GenerationOptions.parse({"max_new_tokens": tokens})
    return Lane(row, logits, options, TextStream(byte_tokenizer()), True, emit, cancelled.is_set)


class Diary:
    """Tasks that note when they begin and end."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, int]] = []

    def task(self, number: int, sessions: frozenset[str], tokens: int) -> Task[int]:
        def begin(emit: Emit, cancelled: threading.Event) -> Steps[int]:
            self.notes.append(("begin", number))
            if tokens:
                yield lane(model_for(), emit, cancelled, tokens)
            self.notes.append(("end", number))
            return number

        return Task(begin, sessions, decodes=bool(tokens))

    def between(self, event: str, number: int, other: str, later: int) -> bool:
        return self.notes.index((event, number)) < self.notes.index((other, later))


def job(task: Task[int]) -> "Job[int]":
    return Job(task, lambda text: None, threading.Event())


@given(
    plan=st.lists(
        st.tuples(st.frozensets(st.sampled_from(SESSIONS), max_size=2), st.integers(0, 5)), min_size=1, max_size=8
    )
)
def test_work_on_a_session_is_done_one_after_the_other_in_the_order_of_the_calls(
    plan: list[tuple[frozenset[str], int]],
) -> None:
    scheduler, diary = Scheduler(Decoder(model_for(), [2]), Prefill(model_for()), max_batch=2, prefill_chunk=8), Diary()
    jobs = [job(diary.task(number, *what)) for number, what in enumerate(plan)]
    scheduler.submit(*jobs)
    scheduler.close()
    assert [j.future.result(0) for j in jobs] == list(range(len(plan)))
    for later, (sessions, _) in enumerate(plan):
        for number in range(later):
            assert plan[number][0].isdisjoint(sessions) or diary.between("end", number, "begin", later)
    decoding = 0
    for event, number in diary.notes:
        decoding += bool(plan[number][1]) * (1 if event == "begin" else -1)
        assert decoding <= 2


def test_what_waits_for_a_session_lets_others_pass(scheduler: Scheduler) -> None:
    diary = Diary()
    alice, bob = frozenset(["alice"]), frozenset(["bob"])
    plan = [(alice, 30), (alice | bob, 0), (bob, 0), (frozenset[str](), 0), (frozenset(["carol"]), 3)]
    jobs = [job(diary.task(number, *what)) for number, what in enumerate(plan)]
    scheduler.submit(*jobs)
    wait([j.future for j in jobs])
    assert diary.between("end", 3, "end", 0)
    assert diary.between("end", 4, "end", 0)
    assert diary.notes[-4:] == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


def test_work_without_a_lane_takes_no_room_from_lanes_and_lets_them_pass(scheduler: Scheduler) -> None:
    """More of it than may decode is under way, and fed in parts."""
    diary, fed = Diary(), list[int]()
    decoding = job(diary.task(3, frozenset(), 2))

    def feeding(number: int) -> Task[int]:
        def begin(emit: Emit, cancelled: threading.Event) -> Steps[int]:
            prompt = Prompt(Row(model_for().zero_state()), [Piece((5,) * 40, True)], cancelled.is_set)
            while left := prompt.tokens:
                yield prompt
                fed.append(left - prompt.tokens)
                if len(fed) == 1:  # all three are under way
                    scheduler.submit(decoding)
            diary.notes.append(("end", number))
            return number

        return Task(begin)

    jobs = [job(feeding(number)) for number in range(3)]
    scheduler.submit(*jobs)
    assert decoding.future.result(60) == 3
    wait([j.future for j in jobs])
    assert diary.between("end", 3, "end", 0)
    assert fed == [8] * 15


def test_what_nobody_waits_for_any_more_never_begins(scheduler: Scheduler) -> None:
    gate, diary = Gate(), Diary()

    def held(emit: Emit, cancelled: threading.Event) -> Steps[int]:
        gate()
        return 0
        yield

    first, left = job(Task(held)), job(diary.task(1, frozenset(), 3))
    scheduler.submit(first, left)
    assert gate.reached.wait(60)
    assert left.future.cancel()
    gate.opened.set()
    last = job(diary.task(2, frozenset(), 0))
    scheduler.submit(last)
    assert last.future.result(60) == 2
    assert diary.notes == [("begin", 2), ("end", 2)]


def test_errors_of_any_kind_reach_the_caller_and_nobody_else(scheduler: Scheduler) -> None:
    def broken(emit: Emit, cancelled: threading.Event) -> Steps[int]:
        yield lane(model_for(), emit, cancelled, 4)
        raise SystemExit("enough")

    worker, diary = Worker(scheduler), Diary()
    with ThreadPoolExecutor(2) as threads:
        good: Future[int] = threads.submit(worker.run, diary.task(1, frozenset(), 20))
        with pytest.raises(SystemExit, match="enough"):
            worker.run(Task(broken, decodes=True))
        assert good.result(60) == 1


def test_the_first_error_of_many_is_raised_and_the_complete_ones_stay(scheduler: Scheduler) -> None:
    def broken(emit: Emit, cancelled: threading.Event) -> Steps[int]:
        raise LookupError("nothing there")
        yield

    diary, alice = Diary(), frozenset(["alice"])
    tasks = [diary.task(0, alice, 3), Task(broken, alice), diary.task(2, alice, 3), diary.task(3, frozenset(), 500)]
    with pytest.raises(LookupError, match="nothing there"):
        Worker(scheduler).run_all(tasks)
    assert diary.between("end", 0, "begin", 2)


def test_a_closed_one_takes_nothing(scheduler: Scheduler) -> None:
    scheduler.close()
    with pytest.raises(GenerationError, match="closed"):
        scheduler.submit(job(Diary().task(0, frozenset(), 0)))
