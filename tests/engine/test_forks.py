"""A process that forks after its engine has worked: the child is told what to do, and nothing hangs."""

import os
import threading
import traceback
from collections.abc import Callable

import pytest

from deltamem_agents import DeltaMemEngine, GenerationError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

HI = [{"role": "user", "content": "hi"}]


def in_fork(work: Callable[[], None]) -> int:
    """The exit status of a fork that does this; 99 if it hangs."""
    pid = os.fork()
    if pid == 0:
        threading.Timer(30, lambda: os._exit(99)).start()
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


CALLS: dict[str, Callable[[DeltaMemEngine], object]] = {
    "generate": lambda engine: engine.generate(HI, session="alice", max_new_tokens=2),
    "without a session": lambda engine: engine.generate(HI, max_new_tokens=2),
    "stream": lambda engine: list(engine.stream(HI, session="alice", max_new_tokens=2)),
    "batch": lambda engine: engine.batch([HI], sessions=["alice"], max_new_tokens=2),
    "absorb": lambda engine: engine.absorb(HI, session="alice"),
    "inspect": lambda engine: engine.inspect("alice"),
    "rebuild": lambda engine: engine.rebuild("alice"),
    "fork": lambda engine: engine.session("alice").fork("bob"),
    "forget": lambda engine: engine.forget("alice"),
}


@pytest.mark.parametrize("call", CALLS)
def test_work_in_a_fork_is_refused_with_what_to_do(call: str, engine: DeltaMemEngine) -> None:
    engine.generate(HI, session="alice", max_new_tokens=2)

    def work() -> None:
        with pytest.raises(GenerationError, match=r"a fork of it .* make an engine in each process after the fork"):
            CALLS[call](engine)

    assert in_fork(work) == 0
    assert engine.sessions()[0].turns == 1
    engine.generate(HI, session="alice", max_new_tokens=2)


def test_what_needs_no_model_works_in_a_fork(engine: DeltaMemEngine) -> None:
    engine.generate(HI, session="alice", max_new_tokens=2)

    def work() -> None:
        assert engine.sessions()[0].turns == 1
        assert engine.state("alice").tensor.abs().sum() > 0
        assert len(engine.session("alice").log()) == 1
        assert engine.count_tokens(HI) > 0
        engine.close()

    assert in_fork(work) == 0
    assert engine.sessions()[0].turns == 1
