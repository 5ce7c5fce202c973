"""A run of the harness' tasks: the frozen model, then the same with a memory."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.harness.memory import MEMORIES, Memory, chosen_memory
from deltamem_agents.evaluate.harness.report import HarnessReport, Results, compared
from deltamem_agents.evaluate.harness.tasks import load_tasks, task_manager
from deltamem_agents.evaluate.report import circumstances
from deltamem_agents.state import MemoryState


def evaluate_harness(
    engine: DeltaMemEngine,
    tasks: Sequence[str],
    *,
    memory: Memory | str = "full",
    limit: int | None = None,
    max_gen_toks: int | None = None,
    batch_size: int = 1,
    chat_template: bool = True,
    data: Path | None = None,
    include_path: Path | None = None,
    metadata: Mapping[str, object] | None = None,
    seed: int = 0,
) -> HarnessReport:
    """Runs tasks of lm-evaluation-harness on the frozen model, and again while it reads a memory.

    What the memory does to tasks that have nothing to do with it is its harm. Every request starts from the same state
    and nothing is written: a session stays as it is. Nothing else may run on the engine meanwhile.

    Args:
        engine: the engine.
        tasks: the harness' names of tasks, groups or tags.
        memory: "none" (the frozen model only), "empty" (it must change nothing), "full" (facts and talk, told to a
            session `evaluate-0`, which is forgotten), or the name of a session in the engine's store.
        limit: at most so many documents of each task, the first ones; None: all.
        max_gen_toks: at most so many tokens of a reply; None: as the task says.
        batch_size: how many requests run together.
        chat_template: whether prompts go through the model's chat template.
        data: IFEval's `input_data.jsonl`, or a folder above it; None: the hub's copy.
        include_path: a folder of more tasks, as YAML files.
        metadata: what tasks that make their data themselves want to know, such as RULER's `max_seq_lengths`.
        seed: draws what "full" is told.

    Raises:
        ConfigError: lm_eval is not installed, a task is unknown or lacks its data, or a number is impossible.
        SessionNotFoundError: there is no such session.
        FingerprintError: the session was written under another backbone or adapter.
    """
    for name, number in (("limit", limit), ("max_gen_toks", max_gen_toks), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}, expected 1 or more")
    manager = task_manager(include_path, {"tokenizer": engine.tokenizer.name_or_path, **(metadata or {})})
    loaded = load_tasks(manager, list(dict.fromkeys(tasks)), data=data)

    import lm_eval

    from deltamem_agents.evaluate.harness.model import DeltaMemLM

    def results(state: MemoryState | None) -> Results:
        found = lm_eval.simple_evaluate(
            DeltaMemLM(engine.model, engine.tokenizer, state=state, batch_size=batch_size),
            tasks=loaded,
            task_manager=manager,
            limit=limit,
            gen_kwargs=None if max_gen_toks is None else {"max_gen_toks": max_gen_toks},
            apply_chat_template=chat_template,
            bootstrap_iters=0,
        )
        return cast("Results", found)

    state = chosen_memory(engine, memory, seed=seed)
    where = circumstances(engine)
    where["versions"] += f", lm_eval {version('lm_eval')}"
    where["memory"] = _described(memory, state, seed)
    where["documents"] = "all" if limit is None else f"the first {limit} of each task"
    where["tokens of a reply"] = "as each task says" if max_gen_toks is None else f"at most {max_gen_toks}"
    where["chat template"] = "the model's" if chat_template else "none"
    where["batch"] = str(batch_size)
    return compared(where, results(None), None if state is None else results(state))


def _described(memory: str, state: MemoryState | None, seed: int) -> str:
    if state is None:
        return "none"
    size = f"norm {state.tensor.norm().item():.3g}"
    if memory == "full":
        return f"full: eight facts, then 256 tokens of other talk, seed {seed}; {size}"
    return f"{memory}; {size}" if memory in MEMORIES else f"of session {memory!r}; {size}"
