import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.errors import ConfigError, TrainingError
from deltamem_agents.train import Episode, Losses, Source, Stage, Trainer, read_episodes, write_episodes
from deltamem_agents.train.answers import AnswerRows, answer_logits
from deltamem_agents.train.losses import IGNORED, answer_log_probs
from tests.builders import randomised
from tests.chat import CHATML, DEFAULT_SYSTEM, chat_backbone
from tests.train.conftest import small_recipe
from tests.train.runs import Make, log_of
from tests.train.test_chats import written


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
