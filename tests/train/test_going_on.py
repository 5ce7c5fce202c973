"""Runs that were cut off go on, from a checkpoint or from an adapter alone; others are refused."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, ConfigError, TrainingError
from deltamem_agents.train import Record, Stage, Trainer
from tests.builders import MECHANISMS, randomised
from tests.chat import chat_backbone
from tests.train.conftest import small_recipe
from tests.train.runs import Make, log_of


class Killed(Exception):
    """What a power cut looks like from inside."""


def test_a_killed_run_goes_on_as_if_nothing_had_been(make: Make) -> None:
    whole = make("whole")
    whole.run()
    cut = make("cut")

    def kill(record: Record) -> None:
        if record["step"] == 3:  # after the checkpoint of step 2
            raise Killed

    with pytest.raises(Killed):
        cut.run(progress=kill)
    with (cut.output / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # the kill came while writing
    again = make("cut")
    assert again.step == 2
    again.run(until=5)
    last = make("cut")
    last.run()
    assert log_of(last)[:4] == log_of(whole)[:4]
    assert [r["step"] for r in log_of(last)] == [1, 2, 3, 4, 5, 6]
    assert log_of(last)[-1] == log_of(whole)[-1]
    for name, tensor in whole.model.adapter.named_tensors().items():
        assert torch.equal(last.model.adapter.named_tensors()[name], tensor)


def test_a_run_that_is_stopped_keeps_its_last_step_and_goes_on_as_if_nothing_had_been(make: Make) -> None:
    whole, stopped = make("whole"), make("stopped")
    whole.run()
    stopped.run(stopping=lambda: stopped.step == 3)  # between two checkpoints
    assert (stopped.step, stopped.done(None)) == (3, False)
    assert not (stopped.output / "adapter").exists()
    again = make("stopped")
    assert again.notes == [f"going on from step 3 in {again.output}"]
    again.run(stopping=lambda: again.step == 6)  # too late: this was the last one
    assert log_of(again) == log_of(whole)
    for name, tensor in whole.model.adapter.named_tensors().items():
        assert torch.equal(again.model.adapter.named_tensors()[name], tensor)
    assert (again.output / "adapter").is_dir()


def test_a_run_starts_from_an_adapter_folder_or_a_checkpoint(make: Make) -> None:
    first = make("first")
    first.run(until=2)
    for start in ("adapter", "checkpoint.pt"):
        second = make(f"from {start}", init_adapter=first.output / start)
        assert second.step == 0
        for name, tensor in first.model.adapter.named_tensors().items():
            torch.testing.assert_close(second.model.adapter.named_tensors()[name], tensor, rtol=1e-3, atol=1e-4)
        hears_users = second.recipe.adapter.model_copy(update={"absorb_roles": ("user",)})
        third = make(f"from {start}, users only", init_adapter=first.output / start, adapter=hears_users)
        assert third.model.adapter.config.absorb_roles == ("user",)
        torch.testing.assert_close(third.model.adapter.state_dict(), second.model.adapter.state_dict(), rtol=0, atol=0)
        with pytest.raises(ConfigError, match="differs from the recipe's adapter in rank"):
            make("other", init_adapter=first.output / start, adapter=DeltaMemConfig(rank=2, num_state_heads=2))
        with pytest.raises(ConfigError, match="differs from the recipe's adapter in num_state_heads"):
            make("other", init_adapter=first.output / start, adapter=DeltaMemConfig(rank=4, num_state_heads=1))
    torch.save({"adapter": {}}, first.output / "odd.pt")
    with pytest.raises(AdapterError, match="does not fit"):
        make("other", init_adapter=first.output / "odd.pt")


@pytest.mark.parametrize("rankwise", [True, False])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_state_heads_that_an_earlier_adapter_lacks_are_fresh_and_its_own_go_on_as_they_were(
    make: Make, mechanism: str, rankwise: bool
) -> None:
    options = {"rank": 4, "num_state_heads": 2, "rankwise_gates": rankwise}
    narrow = DeltaMemConfig.parse(options | MECHANISMS[mechanism])
    wide = narrow.model_copy(update={"num_state_heads": 3})
    first = make("first", adapter=narrow)
    randomised(first.model.adapter)
    first.run(until=1)
    second = make("second", adapter=wide, init_adapter=first.output / "checkpoint.pt", stages=(Stage(steps=1),))
    hidden = torch.randn(1, 7, 32)
    layers = zip(first.model.adapter.layers.values(), second.model.adapter.layers.values(), strict=True)
    for old, new in layers:
        assert old.shape.hidden == 32
        found, wider = old(hidden, torch.zeros(1, 2, 4, 4)), new(hidden, torch.zeros(1, 3, 4, 4))
        assert found.reads.any()
        torch.testing.assert_close(wider.reads[..., :8], found.reads)
        torch.testing.assert_close(wider.state[:, :2], found.state)
        if found.carry is not None:
            torch.testing.assert_close(wider.carry[:, :8], found.carry)
        for name, delta in old.delta.items():
            assert torch.equal(new.delta[name][:, :8], delta)


def test_a_run_may_begin_quiet_and_does_so_once(make: Make) -> None:
    loud, quiet = make("loud"), make("quiet", quiet=3.0)
    moved = []
    layers = zip(loud.model.adapter.layers.values(), quiet.model.adapter.layers.values(), strict=True)
    for one, other in layers:
        start = one.block["beta"].start
        assert torch.equal(one.in_proj[:start], other.in_proj[:start])
        moved.append((one.in_proj[start:] - other.in_proj[start:]).abs().max().item())
    assert min(moved) > 0
    quiet.run(until=2)
    again = make("quiet", quiet=3.0)
    for name, weight in quiet.model.adapter.state_dict().items():
        assert torch.equal(again.model.adapter.state_dict()[name], weight)


def test_a_run_may_keep_a_share_of_the_weights_it_began_with(make: Make) -> None:
    first = make("first")
    first.run(until=1)
    start = first.output / "adapter"
    second = make("second", init_adapter=start, keep=0.25, quiet=3.0)
    second.run(until=2)
    before = DeltaMemAdapter.from_pretrained(start).named_tensors()
    trained, written = second.model.adapter.named_tensors(), DeltaMemAdapter.from_pretrained(second.output / "adapter")
    for name, weight in written.named_tensors().items():
        torch.testing.assert_close(weight, 0.25 * before[name] + 0.75 * trained[name], atol=2e-3, rtol=2e-3)
    assert any(not torch.equal(before[name], trained[name]) for name in before)
    assert "25% as they were at the start" in (second.output / "adapter" / "README.md").read_text()
    again = make("second", init_adapter=start, keep=0.25, quiet=3.0)  # goes on from the trained weights, not the mean
    for name, weight in again.model.adapter.named_tensors().items():
        assert torch.equal(weight, trained[name])


def test_a_run_that_begins_aligned_goes_on_exactly(make: Make) -> None:
    whole = make("whole", align=0.05)
    biases = [next(iter(t.model.adapter.layers.values())).gate_bias for t in (whole, make("random"))]
    assert not torch.equal(*biases)
    whole.run(until=2)
    shutil.copytree(whole.output, whole.output.with_name("copy"))
    whole.run(until=4)
    again = make("copy", align=0.05)
    again.run(until=4)
    for name, tensor in whole.model.adapter.named_tensors().items():
        assert torch.equal(again.model.adapter.named_tensors()[name], tensor)


def test_a_checkpoint_of_another_recipe_is_refused(make: Make) -> None:
    trainer = make()
    trainer.run(until=2)
    saved = (trainer.output / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"is of another recipe: rows differ.*3 there and 4 here.*init_adapter"):
        make(rows=4)
    (trainer.output / "checkpoint.pt").write_bytes(saved[:1000])
    told = "cannot be read as a checkpoint, it may have been cut short.*delete it, and the same command goes on from"
    with pytest.raises(TrainingError, match=rf"{told} the adapter of .*run/adapter, with a new warm-up"):
        make()
    shutil.rmtree(trainer.output / "adapter")
    with pytest.raises(TrainingError, match=f"{told} the beginning"):
        make()


def test_a_run_goes_on_from_its_adapter_alone_with_a_new_warm_up(make: Make) -> None:
    optimiser = {"warm_up": 3}
    first = make(optimiser=optimiser)
    first.run(until=2)
    (first.output / "checkpoint.pt").unlink()
    second = make(optimiser=optimiser, quiet=3.0, align=0.05)  # what a run begins with is not done once more
    assert (second.step, second.position, second.begun) == (2, 2, 2)
    assert any("the adapter of step 2: going on from its weights, with a new warm-up" in n for n in second.notes)
    for name, tensor in first.model.adapter.named_tensors().items():
        torch.testing.assert_close(second.model.adapter.named_tensors()[name], tensor, rtol=1e-3, atol=1e-4)
    assert second.rng.getstate() != first.rng.getstate()
    whole = make("whole", optimiser=optimiser, quiet=3.0, align=0.05)
    shutil.copytree(second.output, whole.output, dirs_exist_ok=True)
    whole = make("whole", optimiser=optimiser, quiet=3.0, align=0.05)
    whole.run(until=5)
    rates = [r["rate"] for r in log_of(whole)]
    assert [r["step"] for r in log_of(whole)] == [1, 2, 3, 4, 5]
    assert rates[2] == pytest.approx(whole.recipe.rate(2, begun=2))
    assert rates[2] < whole.recipe.rate(2) / 2
    second.run(until=4)  # the new warm-up goes on after a stop too
    again = make(optimiser=optimiser, quiet=3.0, align=0.05)
    assert again.begun == 2
    again.run(until=5)
    for name, tensor in whole.model.adapter.named_tensors().items():
        assert torch.equal(again.model.adapter.named_tensors()[name], tensor)


def test_an_adapter_alone_of_another_recipe_is_refused(make: Make) -> None:
    first = make()
    first.run(until=1)
    (first.output / "checkpoint.pt").unlink()
    with pytest.raises(ConfigError, match="differs from the recipe's adapter in rank"):
        make(adapter=DeltaMemConfig(rank=2, num_state_heads=2))
    (first.output / "adapter.json").unlink()
    assert make().step == 0


def test_a_run_goes_on_where_the_processor_computes_in_another_type(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    Trainer(small_recipe(), chat_backbone(), tokenizer, tmp_path).run(until=2)
    half = Trainer(small_recipe(), chat_backbone().to(torch.bfloat16), tokenizer, tmp_path)
    assert "until then the model computed in torch.float32, here it does in torch.bfloat16" in half.notes
    half.run(until=4)
    assert {p.dtype for p in half.model.adapter.parameters()} == {torch.float32}
    back = Trainer(small_recipe(), chat_backbone(), tokenizer, tmp_path)
    back.run(until=5)
    assert (back.step, len(log_of(back))) == (5, 5)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_whole(make: Make) -> None:
    trainer = make()
    trainer.run(until=2)
    saved = (trainer.output / "checkpoint.pt").read_bytes()
    with files_no_larger_than(len(saved) // 2), pytest.raises(TrainingError, match="the last one is still whole"):
        trainer.run(until=4)
    assert (trainer.output / "checkpoint.pt").read_bytes() == saved
    assert not (trainer.output / "checkpoint.tmp").exists()
    assert make().step == 2
