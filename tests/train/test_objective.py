"""What may not change and what stays in sight, by the loss: compared with what it is made of."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.train import Episode, Losses, Stage, Trainer
from deltamem_agents.train.answers import answer_logits, answer_rows
from deltamem_agents.train.losses import IGNORED, plain_divergence
from deltamem_agents.train.machine import training_dtype
from tests.builders import randomised
from tests.chat import chat_backbone
from tests.train.conftest import small_recipe

Make = Callable[..., Trainer]
GATED = DeltaMemConfig(rank=4, num_state_heads=2, read_gate="match", gate_floor=0.1)


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Make:
    def build(**changes: object) -> Trainer:
        trainer = Trainer(small_recipe(**changes), chat_backbone(), tokenizer, tmp_path / "run")
        randomised(trainer.model.adapter)
        return trainer

    return build


@pytest.mark.parametrize("prose", [0.0, 1.0])
def test_drift_is_the_divergence_from_the_plain_model_at_the_positions_drawn(make: Make, prose: float) -> None:
    losses = Losses(plain=2.0, gate=0.5, plain_positions=6)
    trainer = make(losses=losses, adapter=GATED, prose=prose, stages=(Stage(steps=3, unrelated_every=1, facts=(2,)),))
    objective = trainer.objective
    batch = objective.draw(0, trainer.rng)
    with torch.no_grad():
        state = objective.write(batch.episodes, together=batch.together).state
        found, opened = objective._drift(batch, state)
        rows, _ = objective._plain_rows([u for u, _ in batch.unrelated]).sampled(6, random.Random(batch.seed))
        full = torch.tensor([full for _, full in batch.unrelated])
        memories = torch.stack([state.tensor[n % len(state)] * full[n] for n in range(len(full))])
        plain = answer_logits(trainer.model, rows, None)
        expected = plain_divergence(
            answer_logits(trainer.model, rows, MemoryState(memories)), plain, rows.targets != IGNORED
        )
    assert rows.targets.shape[1] <= 6
    assert found.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-7)
    assert opened is not None
    assert 0 < opened.mean().item() < 1
    record = trainer._one_step()
    assert record["loss"] == pytest.approx(
        record["answer_loss"] + 2.0 * record["plain_loss"] + 0.5 * record["gate_loss"], rel=1e-5
    )


def test_values_told_are_weighed_in_where_a_recipe_asks_for_it(make: Make) -> None:
    trainer = make(losses=Losses(told=0.5, apart=3.0, idle=2.0), stages=(Stage(steps=3, facts=(2,), other_talk=3),))
    record = trainer._one_step()
    parts = record["answer_loss"] + 0.5 * record["told_loss"] + 3.0 * record["apart_loss"]
    parts += 2.0 * record.get("idle_loss", 0.0)
    assert record["loss"] == pytest.approx(parts, rel=1e-5)
    assert 0 < record["beta_told"] < 1


def test_an_empty_memory_that_nothing_is_written_to_doesnt_drift(make: Make) -> None:
    trainer = make(adapter=GATED, prose=1.0, stages=(Stage(steps=3, unrelated_every=1),))
    batch = trainer.objective.draw(0, trainer.rng)
    with torch.no_grad():
        drift, _ = trainer.objective._drift(batch, trainer.model.zero_state(len(batch.episodes)))
    assert abs(drift.item()) < 1e-6


def test_positions_are_drawn_for_all_rows_alike(make: Make) -> None:
    template = make().objective.template
    prompts = [[Message(role="user", content="a")], [Message(role="user", content="b")]]
    rows = answer_rows(template, prompts, ["one two three", "x"], roles=())
    some, places = rows.sampled(3, random.Random(1))
    assert places == sorted(set(places))
    assert torch.equal(some.at, rows.at[:, places])
    assert torch.equal(some.targets, rows.targets[:, places])
    assert rows.sampled(100, random.Random(1))[1] == list(range(rows.at.shape[1]))


def test_recent_turns_may_stand_in_the_prompt(make: Make) -> None:
    stage = Stage(steps=3, visible=1.0, facts=(3,), other_talk=3, questions=4)
    trainer = make(stages=(stage,), rows=8)
    batch = trainer.objective.draw(0, trainer.rng)
    shown = [e for e in batch.episodes if e.shown]
    assert len(batch.episodes) == 8 // 3
    assert shown, "an episode with two turns or more shows some"
    for episode in shown:
        assert episode.earlier, "some are in the memory alone"
        assert [m.role for m in episode.window if m.role != "system"][:2] == ["user", "assistant"]
        assert not episode.exchanges
    assert trainer._one_step()["answer_loss"] > 0


def test_what_is_shown_is_what_was_said_with_other_replies() -> None:
    said = [Message(role=role, content=f"{role} {n}") for n in range(3) for role in ("user", "assistant")]
    episode = Episode(earlier=tuple(said), question="?", answer="user 2", values=("user 2",), talk=(0, 1, 4))
    shown = episode.with_last_shown(2, ["", "rambling"])
    assert shown.earlier == tuple(said[:2])
    assert [m.content for m in shown.window] == ["user 1", "assistant 1", "user 2", "rambling"]
    assert (shown.talk, shown.shown) == ((0, 1), True)
    assert episode.with_last_shown(9, []).earlier == tuple(said[:2]), "one turn stays in the memory"
    assert episode.with_last_shown(0, []) is episode
    alone = Episode(earlier=tuple(said[:2]), question="?", answer="x")
    assert alone.with_last_shown(1, []) is alone
    with pytest.raises(ValueError, match="set shown"):
        Episode.model_validate(shown.model_dump() | {"shown": False})


def test_the_type_is_the_one_asked_for_or_what_the_hardware_has() -> None:
    cpu = torch.device("cpu")
    assert training_dtype("float32", cpu) == torch.float32
    assert training_dtype("bfloat16", cpu) == torch.bfloat16
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert training_dtype("auto", cpu) == (torch.bfloat16 if has_it else torch.float32)
