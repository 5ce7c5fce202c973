import copy
import json
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import AdapterError, ConfigError, TrainingError
from deltamem_agents.train import Episode, Losses, Record, Source, Stage, Trainer, read_episodes, write_episodes
from deltamem_agents.train.answers import AnswerRows, answer_logits
from deltamem_agents.train.losses import IGNORED, answer_log_probs
from tests.builders import MECHANISMS, randomised
from tests.chat import CHATML, DEFAULT_SYSTEM, chat_backbone
from tests.train.conftest import small_recipe
from tests.train.test_chats import written

Make = Callable[..., Trainer]


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Make:
    def build(folder: str = "run", **changes: object) -> Trainer:
        return Trainer(small_recipe(**changes), chat_backbone(), tokenizer, tmp_path / folder)

    return build


class Killed(Exception):
    """What a power cut looks like from inside."""


def log_of(trainer: Trainer) -> list[Record]:
    records = [json.loads(line) for line in (trainer.output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def test_a_step_reaches_every_weight_and_leaves_the_backbone_alone(make: Make) -> None:
    losses = Losses(distillation=0.5, margin=0.5, sparsity=0.1, idle=0.2)
    stage = Stage(steps=3, unrelated_every=1, facts=(2,), questions=2, system=0.5, other_talk=5, tools=0.5)
    trainer = make(losses=losses, stages=(stage,))
    before = {name: p.clone() for name, p in trainer.model.backbone.named_parameters()}
    record = trainer._one_step()
    record = trainer._one_step()
    wanted = {"answer_loss", "distillation_loss", "margin_loss", "plain_loss", "sparsity_loss", "idle_loss"}
    assert wanted | {"exact", "beta_facts"} <= record.keys()
    total = record["answer_loss"] + 0.5 * record["distillation_loss"] + 0.5 * record["margin_loss"]
    total += record["plain_loss"] + 0.1 * record["sparsity_loss"] + 0.2 * record["idle_loss"]
    assert record["loss"] == pytest.approx(total, rel=1e-5)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.model.adapter.parameters())
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.backbone.named_parameters())


def test_what_has_no_weight_is_not_computed(make: Make) -> None:
    record = make(losses=Losses(plain=0), stages=(Stage(steps=3, unrelated_every=1),))._one_step()
    assert {n for n in record if n.endswith("_loss")} == {"answer_loss"}


@pytest.mark.parametrize("prose", [0.0, 1.0])
def test_what_must_not_change_is_prompts_or_prose(make: Make, prose: float) -> None:
    trainer = make(prose=prose, stages=(Stage(steps=3, unrelated_every=1),))
    batch = trainer.objective.draw(0, trainer.rng)
    assert all((not u.prompt) == bool(prose) for u, _ in batch.unrelated)
    assert trainer.objective(batch)[1]["plain_loss"] > 0


def test_accumulated_batches_are_averaged(make: Make) -> None:
    trainer = make(accumulate=2, stages=(Stage(steps=3, bare=0.0),))
    draws = [trainer.objective.draw(0, trainer.rng) for _ in range(2)]
    losses = [trainer.objective(batch)[0].item() for batch in draws]
    assert make("again", accumulate=2, stages=(Stage(steps=3, bare=0.0),))._one_step()["loss"] == pytest.approx(
        sum(losses) / 2, rel=1e-5
    )


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


def test_a_finished_run_leaves_adapter_card_and_log(make: Make) -> None:
    trainer = make()
    found = trainer.run()
    loaded = DeltaMemAdapter.from_pretrained(trainer.output / "adapter")
    assert loaded.config == trainer.recipe.adapter
    card = (trainer.output / "adapter" / "README.md").read_text()
    for part in ("Apache-2.0", "seed 0", "6 steps of 3 answers", "| recall |", "another's memory"):
        assert part in card
    assert {"recall", "recall_swapped", "one", "one_swapped"} == found.keys()
    records = log_of(trainer)
    assert [("recall" in r) for r in records] == [False, False, True, False, False, True]
    assert make().run() != {}  # nothing left to do: evaluates and writes the same adapter again


def test_a_stage_ends_early_when_it_is_learnt(make: Make) -> None:
    stages = (Stage(steps=50, above=0.0), Stage(steps=2))
    trainer = make(stages=stages, evaluate_every=1)
    trainer._advance(0.0)
    assert trainer.stage == 0
    trainer._advance(0.1)
    assert (trainer.stage, trainer.position) == (1, 50)
    trainer.run()
    assert trainer.step == 2


def test_episodes_of_files_are_trained_on(make: Make, tmp_path: Path) -> None:
    told = [{"role": "user", "content": "It is blue."}]
    episode = Episode.model_validate({"earlier": told, "question": "Colour?", "answer": "Blue.", "tags": ["mine"]})
    write_episodes(tmp_path / "mine.jsonl", [episode])
    source = Source(format="episodes", path=tmp_path / "mine.jsonl")
    trainer = make(data=(source,), stages=(Stage(steps=1, data_share=1.0),))
    assert set(trainer.objective.draw(0, trainer.rng).episodes) == {episode}
    with pytest.raises(ConfigError, match="there is none"):
        make("none", stages=(Stage(steps=1, data_share=1.0),)).run()


def test_a_missing_data_folder_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"missing is nothing"):
        make(data=(Source(format="babi", path=tmp_path / "missing"),), stages=(Stage(steps=1, data_share=0.5),))


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


def test_what_the_plain_model_says_is_there_before_the_first_step(make: Make) -> None:
    told: list[tuple[int, int]] = []
    trainer = make()
    trainer.prepare(lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1] > 0
    assert all(done <= of for done, of in told)
    kinds = trainer.objective._kinds()
    trainer.run(until=4)
    assert trainer.objective._kinds() is kinds
    told.clear()
    make("none", stages=(Stage(steps=2),)).prepare(lambda done, of: told.append((done, of)))
    assert told == []


def test_checkpointed_gradients_are_the_same(make: Make) -> None:
    losses = Losses(distillation=0.5, margin=0.5, sparsity=0.1, idle=0.2)
    stage = Stage(steps=3, unrelated_every=1, facts=(2,), questions=2, system=0.5, other_talk=5)
    found = {}
    for replayed in (False, True):
        trainer = make(f"run {replayed}", losses=losses, stages=(stage,), gradient_checkpointing=replayed)
        randomised(trainer.model.adapter)
        passes: list[int] = []
        attention = trainer.model.backbone.get_decoder().layers[1].self_attn
        attention.register_forward_pre_hook(lambda *_, to=passes: to.append(1) if torch.is_grad_enabled() else None)
        loss = trainer.objective(trainer.objective.draw(0, trainer.rng))[0]
        before = len(passes)
        loss.backward()
        found[replayed] = loss, [p.grad for p in trainer.model.adapter.parameters()], (before, len(passes))
    (loss, gradients, (forward, all_in_all)), (same, replays, (forward_too, twice)) = found[False], found[True]
    assert forward == all_in_all == forward_too
    assert twice == 2 * forward > 0
    assert torch.equal(loss, same)
    for one, other in zip(gradients, replays, strict=True):
        assert one is not None
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_chats_that_are_held_out_are_scored_and_never_trained_on(make: Make, tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl", 8)
    source = Source(format="chats", path=path, window=1, held_out=0.25)
    trainer = make(data=(source,), stages=(Stage(steps=2, data_share=1.0),))
    assert trainer.notes == ["chats.jsonl: 8 episodes in 8 of 8 conversations; 2 held out (2 episodes)"]
    kept = {e.answer for episodes in trainer.objective.data.held_out for e in episodes}
    drawn = {e.answer for n in range(20) for e in trainer.objective.draw(0, trainer.rng).episodes}
    assert not kept & drawn
    assert len(drawn) == 6
    randomised(trainer.model.adapter)
    found = trainer.evaluate()
    assert {"chats", "chats_nats", "chats_swapped", "chats_swapped_nats"} <= found.keys()
    assert 0 <= found["chats"] <= 1
    assert found["chats_nats"] != found["chats_swapped_nats"]
    one, other = (e for episodes in trainer.objective.data.held_out for e in episodes)
    logits = [answer_logits(trainer.model, rows_of(trainer, e), trainer.objective.write([e], together=True).state)
              for e in (one, other)]
    nats = sum(-answer_log_probs(x, rows_of(trainer, e).targets).item() * count_of(trainer, e)
               for x, e in zip(logits, (one, other), strict=True))
    assert found["chats_nats"] == pytest.approx(nats / (count_of(trainer, one) + count_of(trainer, other)), rel=1e-4)
    trainer.run()
    assert "of tokens" in (trainer.output / "adapter" / "README.md").read_text()


def rows_of(trainer: Trainer, episode: Episode) -> AnswerRows:
    return trainer.objective.rows([episode])


def count_of(trainer: Trainer, episode: Episode) -> int:
    return int((rows_of(trainer, episode).targets != IGNORED).sum())


def test_a_template_without_a_system_role_trains_under_system_prompts_too(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHATML.replace("<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n", "")
    )
    stages = (Stage(steps=2, other_talk=2, tools=0.5), Stage(steps=1, system=1.0))
    trainer = Trainer(small_recipe(stages=stages), chat_backbone(), strict, tmp_path)
    trainer.run()
    batch = trainer.objective.draw(2, trainer.rng)
    rows = trainer.objective.rows(batch.episodes)
    system = next(m.content for e in batch.episodes for m in e.window if m.role == "system")
    assert any(system in str(strict.decode(ids)) for ids in rows.ids)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(make: Make) -> None:
    trainer = make()
    trainer.run(until=2)
    saved = (trainer.output / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(iter(trainer.model.adapter.parameters())).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3.*failed-batch\.jsonl.*last good checkpoint"):
        trainer.run()
    assert (trainer.output / "checkpoint.pt").read_bytes() == saved
    assert len(read_episodes(trainer.output / "failed-batch.jsonl")) == 3
    assert make().step == 2


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
