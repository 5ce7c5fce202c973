"""lm-evaluation-harness over a memory: what that changes, what it must not, and what is said where it can't run."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from deltamem_agents import DeltaMemEngine
from deltamem_agents.cli import app
from deltamem_agents.errors import ConfigError, SessionNotFoundError, StateError
from deltamem_agents.evaluate.harness import evaluate_harness, full_memory
from deltamem_agents.evaluate.harness.memory import chosen_memory
from deltamem_agents.evaluate.harness.report import Results, compared
from deltamem_agents.evaluate.harness.tasks import load_tasks, task_manager
from deltamem_agents.state import MemoryState

if TYPE_CHECKING:
    from deltamem_agents.evaluate.harness.model import DeltaMemLM

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="lm_eval is not installed: the extra `harness`")

PAIRS = [("The cat sat on", " the mat"), ("Is it", " as cold as it was there?"), ("", "alone"), ("a", "b")]
PROMPTS = ["What is the name of the cat?", "Hi", "Tell me more about the user, please: who is he?"]

REPLIES = """
task: parrots
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/parrots.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["zz"], do_sample: false, max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/parrots.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@dataclass
class Request:
    """As much of the harness' own as its models look at."""

    args: tuple[object, ...]


def requests(*args: tuple[object, ...]) -> list[Request]:
    return [Request(a) for a in args]


@pytest.fixture(scope="module")
def told(engine: DeltaMemEngine) -> MemoryState:
    """The memory of a session that was told something."""
    engine.absorb([{"role": "user", "content": "My cat is called Ada."}], session="alice")
    return engine.state("alice")


def harness_model(engine: DeltaMemEngine, state: MemoryState | None, *, batch_size: int = 1) -> "DeltaMemLM":
    from deltamem_agents.evaluate.harness.model import DeltaMemLM

    return DeltaMemLM(engine.model, engine.tokenizer, state=state, batch_size=batch_size)


def scores(engine: DeltaMemEngine, state: MemoryState | None, *, batch_size: int = 1) -> list[float]:
    model = harness_model(engine, state, batch_size=batch_size)
    scored = [float(found) for found, _ in model.loglikelihood(requests(*PAIRS))]
    return scored + [float(found) for found in model.loglikelihood_rolling(requests(*((p,) for p in PROMPTS)))]


def replies(
    engine: DeltaMemEngine, state: MemoryState | None, *, batch_size: int = 1, until: Sequence[str] = ()
) -> list[str]:
    model = harness_model(engine, state, batch_size=batch_size)
    options = {"until": list(until), "max_gen_toks": 12, "do_sample": False}
    prompts = [model.apply_chat_template([{"role": "user", "content": text}]) for text in PROMPTS]
    return list(model.generate_until(requests(*((prompt, dict(options)) for prompt in prompts))))


@needs_harness
def test_an_empty_memory_is_the_frozen_model_bit_for_bit(engine: DeltaMemEngine) -> None:
    empty = engine.model.zero_state()
    assert scores(engine, empty) == scores(engine, None)
    assert replies(engine, empty) == replies(engine, None)


@needs_harness
def test_log_likelihoods_are_those_of_the_model_with_this_state(engine: DeltaMemEngine, told: MemoryState) -> None:
    tokenizer, (context, continuation) = engine.tokenizer, PAIRS[0]
    ids = tokenizer.encode(context + continuation, add_special_tokens=False)
    start = len(tokenizer.encode(context, add_special_tokens=False))
    with torch.no_grad():
        logits = engine.model(torch.tensor([ids[:-1]]), state=told, write=False).logits[0, start - 1 :]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None]).sum()
    assert scores(engine, told)[0] == pytest.approx(float(expected), abs=1e-4)


@needs_harness
def test_a_memory_changes_every_score_and_some_replies(engine: DeltaMemEngine, told: MemoryState) -> None:
    assert all(abs(a - b) > 1e-3 for a, b in zip(scores(engine, told), scores(engine, None), strict=True))
    assert replies(engine, told) != replies(engine, None)


@needs_harness
def test_replies_are_those_of_the_model_with_this_state(engine: DeltaMemEngine, told: MemoryState) -> None:
    model = harness_model(engine, told)
    prompt = model.apply_chat_template([{"role": "user", "content": PROMPTS[0]}])
    ids = engine.tokenizer.encode(prompt, add_special_tokens=False)
    for _ in range(4):
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids]), state=told, write=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    expected = engine.tokenizer.decode(ids[-4:], skip_special_tokens=True)
    (reply,) = model.generate_until(requests((prompt, {"until": [], "max_gen_toks": 4, "do_sample": False})))
    assert reply == expected


@needs_harness
def test_a_batch_is_each_by_itself(engine: DeltaMemEngine, told: MemoryState) -> None:
    assert scores(engine, told, batch_size=3) == pytest.approx(scores(engine, told), abs=1e-4)
    assert replies(engine, told, batch_size=3) == replies(engine, told)


@needs_harness
def test_replies_end_before_a_stop_string(engine: DeltaMemEngine, told: MemoryState) -> None:
    whole = replies(engine, told)
    stop = whole[0][2:4]
    assert len(stop) == 2
    assert replies(engine, told, until=[stop]) == [text.split(stop)[0] for text in whole]


@needs_harness
def test_the_backbone_forgets_the_memory_afterwards(engine: DeltaMemEngine, told: MemoryState) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = engine.model.backbone(ids).logits
        scores(engine, told)
        assert torch.equal(engine.model.backbone(ids).logits, before)


@needs_harness
def test_a_state_that_does_not_belong_here_is_refused(engine: DeltaMemEngine) -> None:
    with pytest.raises(StateError, match="2 rows, expected one"):
        harness_model(engine, engine.model.zero_state(2))
    with pytest.raises(StateError, match="expected"):
        harness_model(engine, MemoryState.zeros(1, 1, 1, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks whose data are files."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = [{"question": text, "answer": "so"} for text in PROMPTS]
    (folder / "parrots.jsonl").write_text("\n".join(map(json.dumps, documents)))
    for name, text in (("parrots", REPLIES), ("choices", CHOICES)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@needs_harness
def test_a_run_compares_and_leaves_the_session_as_it_is(
    engine: DeltaMemEngine, told: MemoryState, folder: Path
) -> None:
    head = engine.store.session("alice")
    report = evaluate_harness(
        engine, ["parrots", "choices"], memory="alice", limit=2, max_gen_toks=6, batch_size=2, include_path=folder
    )
    assert {(f.task, f.metric, f.count) for f in report.figures} == {
        ("parrots", "exact_match,none", 2),
        ("choices", "acc,none", 2),
    }
    assert all(figure.memory is not None and figure.interval is not None for figure in report.figures)
    assert [len(asked.frozen) for asked in report.asked] == [1, 1, 2, 2]  # a reply each; two choices each
    assert any(asked.frozen != asked.memory for asked in report.asked)
    assert engine.store.session("alice") == head
    assert torch.equal(engine.state("alice").tensor, told.tensor)
    json.dumps(report.as_dict())


@needs_harness
def test_an_empty_memory_makes_no_difference_and_none_is_the_frozen_model(engine: DeltaMemEngine, folder: Path) -> None:
    empty = evaluate_harness(engine, ["parrots", "choices"], memory="empty", limit=2, include_path=folder)
    assert [figure.difference for figure in empty.figures] == [0.0, 0.0]
    assert all(asked.memory == asked.frozen for asked in empty.asked)
    alone = evaluate_harness(engine, ["parrots"], memory="none", limit=2, include_path=folder)
    assert (alone.figures[0].memory, alone.figures[0].interval) == (None, None)
    assert alone.figures[0].frozen == empty.figures[0].frozen


@needs_harness
def test_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "gone.yaml").write_text(REPLIES.replace("parrots", "gone").replace("FOLDER", str(tmp_path)))
    manager = task_manager(folder)
    with pytest.raises(ConfigError, match="unknown nonsense: see `lm_eval ls tasks`"):
        load_tasks(manager, ["nonsense", "parrots"])
    with pytest.raises(ConfigError, match="none of parrots can take it, only ifeval"):
        load_tasks(manager, ["parrots"], data=tmp_path)
    with pytest.raises(ConfigError, match=r"data of the task gone cannot be had .* --include-path"):
        load_tasks(manager, ["gone"])
    with pytest.raises(ConfigError, match="is no folder"):
        task_manager(tmp_path / "nowhere")


@needs_harness
def test_ifeval_takes_its_prompts_from_a_file(tmp_path: Path) -> None:
    manager = task_manager()
    with pytest.raises(ConfigError, match=r"holds no ifeval/input_data\.jsonl"):
        load_tasks(manager, ["ifeval"], data=tmp_path)
    document = {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "input_data.jsonl").write_text(json.dumps(document))
    try:
        (task,) = load_tasks(manager, ["ifeval"], data=tmp_path)
    except ConfigError as error:
        assert "punkt_tab" in str(error)  # noqa: PT017 # without a network, that is what is missing
        pytest.skip("nltk's punkt_tab is not here")
    assert [found["prompt"] for found in task.test_docs()] == ["No commas."]
    assert task.config.generation_kwargs["max_gen_toks"] == 1280


def test_an_unknown_session_and_impossible_numbers_are_refused(engine: DeltaMemEngine) -> None:
    with pytest.raises(SessionNotFoundError, match="expected one of none, empty, full or a session"):
        chosen_memory(engine, "nobody", seed=0)
    with pytest.raises(ConfigError, match="limit is 0"):
        evaluate_harness(engine, ["parrots"], limit=0)


@pytest.mark.skipif(INSTALLED, reason="lm_eval is installed")
def test_without_the_extra_it_says_how_to_install_it(engine: DeltaMemEngine) -> None:
    with pytest.raises(ConfigError, match=r"deltamem-agents\[harness\]"):
        evaluate_harness(engine, ["ifeval"])
    result = CliRunner().invoke(app, ["evaluate", "harness", "--tasks", "ifeval"])
    assert result.exit_code == 1


def test_a_full_memory_is_the_same_every_time_and_leaves_no_session(engine: DeltaMemEngine) -> None:
    first, again, other = (full_memory(engine, seed=seed) for seed in (0, 0, 1))
    assert first.tensor.norm() > 0
    assert torch.equal(first.tensor, again.tensor)
    assert not torch.equal(first.tensor, other.tensor)
    assert not engine.sessions(prefix="evaluate-")


def test_differences_are_paired_and_sentinels_left_out() -> None:
    def found(right: Sequence[bool], perplexity: float) -> Results:
        samples = [
            {"doc_id": n, "filter": "none", "arguments": [("Q", {})], "resps": [[f"{r}"]], "acc": r, "4096": -1.0}
            for n, r in enumerate(right)
        ]
        results = {"acc,none": sum(right) / len(right), "acc_stderr,none": 0.1, "ppl,none": perplexity, "4096,none": -1}
        return {
            "results": {"task": {"alias": "task", "sample_len": len(right), **results}},
            "higher_is_better": {"task": {"acc": True, "ppl": False}},
            "samples": {"task": samples},
        }

    report = compared(
        {"memory": "full"}, found([True, True, False, True], 9.0), found([True, False, False, False], 9.5)
    )
    accuracy, perplexity = report.figures
    assert (accuracy.metric, accuracy.frozen, accuracy.memory, accuracy.difference) == ("acc,none", 0.75, 0.25, -0.5)
    assert accuracy.interval is not None
    assert -1.0 <= accuracy.interval[0] < -0.5 < accuracy.interval[1] <= 0.0
    assert (perplexity.difference, perplexity.interval, perplexity.higher_is_better) == (0.5, None, False)
    text = report.render()
    assert "replies that the memory changes: 2 of 4" in text
    assert "| task | acc | higher | 4 | 0.7500 | 0.2500 | -0.5000 |" in text
