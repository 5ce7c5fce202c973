"""One batch to one loss: memories are written, questions answered from them, and what the recipe weighs is added up."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.state import MemoryState
from deltamem_agents.train.answers import AnswerRows, answer_logits, answer_rows, prose_rows
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episode import Episode
from deltamem_agents.train.features import Features
from deltamem_agents.train.losses import (
    IGNORED,
    answer_cross_entropy,
    answer_log_probs,
    distillation,
    exact,
    gate_mean,
    own_beats_swapped,
    plain_divergence,
)
from deltamem_agents.train.recipe import Recipe
from deltamem_agents.train.unrelated import Unrelated, plain_prose, plain_replies
from deltamem_agents.train.writing import Written, write_memories

PASSAGES = 256
"""How much prose is sampled to read with a memory."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Episodes that are trained on together."""

    episodes: tuple[Episode, ...]
    others: tuple[Episode, ...]
    """Episodes whose memories unrelated prompts are put to."""
    unrelated: tuple[tuple[Unrelated, bool], ...]
    """Those prompts, or pieces of prose, and whether the memory is full or empty."""
    together: bool
    """Whether earlier messages are encoded as a conversation."""
    bare: bool
    """Whether questions come without the default system prompt."""


class Objective:
    """What is minimised: holds the model, and draws and weighs batches."""

    def __init__(
        self, recipe: Recipe, model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, data: TrainingData
    ) -> None:
        self.recipe, self.model, self.data = recipe, model, data
        self.template = ChatTemplate(tokenizer)
        self.features = Features(model, budget=recipe.feature_cache_mb * 1_000_000)
        self._unrelated: dict[bool, list[Unrelated]] = {}

    def draw(self, step: int, rng: random.Random) -> Batch:
        """The next batch, of the planned `step`."""
        recipe = self.recipe
        current = recipe.stage(step)
        stage = recipe.stages[current]
        if current and stage.replay and rng.random() < stage.replay:
            stage = recipe.stages[rng.randrange(current)]
        together, bare = rng.random() < stage.together, rng.random() < stage.bare
        facts = rng.choice(stage.facts)  # one number for the batch: rows of about one length need little padding
        stage = stage.model_copy(update={"facts": (facts,)})
        count = max(2, recipe.rows // min(facts, stage.questions))
        episodes = tuple(self.data.draw(stage, rng, together=together) for _ in range(count))
        others: tuple[Episode, ...] = ()
        unrelated: tuple[tuple[Unrelated, bool], ...] = ()
        if recipe.losses.plain and stage.unrelated_every and step % stage.unrelated_every == 0:
            kind = self._kinds()[rng.random() < recipe.prose]
            chosen = [rng.choice(kind) for _ in range(recipe.unrelated)]
            others = tuple(self.data.draw(stage, rng, together=together) for _ in chosen)
            unrelated = tuple((u, rng.random() < 0.7) for u in chosen)
        return Batch(episodes, others, unrelated, together, bare)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of a batch, and figures for the log."""
        weights, count = self.recipe.losses, len(batch.episodes)
        written = self.write(
            [*batch.episodes, *batch.others],
            together=batch.together,
            gate_gradients=weights.sparsity + weights.idle > 0,
        )
        own = written.state.rows(slice(count))
        rows = self.rows(batch.episodes, bare=batch.bare)
        logits = answer_logits(self.model, rows, own)
        parts: dict[str, tuple[float, Tensor]] = {}
        if weights.answer:
            parts["answer"] = weights.answer, answer_cross_entropy(logits, rows.targets)
        if weights.distillation:
            parts["distillation"] = weights.distillation, self._distillation(batch.episodes, logits, rows)
        if weights.margin:
            swapped = answer_logits(self.model, rows, MemoryState(own.tensor.roll(1, 0)))
            beaten = answer_log_probs(logits, rows.targets), answer_log_probs(swapped, rows.targets)
            parts["margin"] = weights.margin, own_beats_swapped(*beaten, margin=weights.margin_nats)
        if batch.unrelated:
            parts["plain"] = weights.plain, self._drift(batch, written.state.rows(slice(count, None)))
        if weights.sparsity:
            parts["sparsity"] = weights.sparsity, gate_mean(written.beta, written.on)
        idle = written.on & written.talk
        if weights.idle and bool(idle.any()):
            parts["idle"] = weights.idle, gate_mean(written.beta, idle)
        loss = torch.stack([weight * part for weight, part in parts.values()]).sum()
        figures = {f"{name}_loss": part.item() for name, (_, part) in parts.items()}
        figures["exact"] = exact(logits, rows.targets).float().mean().item()
        figures["beta_facts"] = gate_mean(written.beta, written.on & ~written.talk).item()
        if bool(idle.any()):
            figures["beta_talk"] = gate_mean(written.beta, idle).item()
        return loss, figures

    @torch.no_grad()
    def recall(self, episodes: Sequence[Episode], *, together: bool) -> tuple[float, float]:
        """Shares of exact answers, teacher forced, from the own memory and from another episode's."""
        state = self.write(episodes, together=together).state
        rows = self.rows(episodes)
        own, swapped = (answer_logits(self.model, rows, s) for s in (state, MemoryState(state.tensor.roll(1, 0))))
        return tuple(exact(x, rows.targets).float().mean().item() for x in (own, swapped))  # type: ignore[return-value]

    def write(self, episodes: Sequence[Episode], *, together: bool, gate_gradients: bool = False) -> Written:
        """The memories of the episodes' earlier messages."""
        return write_memories(
            self.features,
            self.template,
            [e.earlier for e in episodes],
            together=together,
            talk=[e.talk for e in episodes],
            gate_gradients=gate_gradients,
        )

    def rows(self, episodes: Sequence[Episode], *, bare: bool = False) -> AnswerRows:
        """The episodes' questions and answers."""
        roles = self.model.adapter.config.absorb_roles
        prompts, answers = [e.prompt for e in episodes], [e.answer for e in episodes]
        rows = answer_rows(
            self.template, prompts, answers, roles=roles, learnt=[e.learnt for e in episodes], bare=bare
        )
        return rows.to(self.model.device)

    def _distillation(self, episodes: Sequence[Episode], logits: Tensor, rows: AnswerRows) -> Tensor:
        # all of it as one conversation; a system prompt comes first
        prompts = [sorted((*e.earlier, *e.prompt), key=lambda m: m.role != "system") for e in episodes]
        learnt = [[len(e.earlier) + i for i in e.learnt] for e in episodes]
        seen = answer_rows(self.template, prompts, [e.answer for e in episodes], roles=(), learnt=learnt)
        seen = seen.to(self.model.device)
        with torch.no_grad():
            teacher = answer_logits(self.model, seen, None)
            knows = answer_log_probs(teacher, seen.targets) > answer_log_probs(logits, rows.targets)
        on = (rows.targets != IGNORED) & knows[:, None]
        return distillation(logits, teacher, on, top_k=self.recipe.losses.distillation_top_k)

    def _drift(self, batch: Batch, state: MemoryState) -> Tensor:
        template, roles = self.template, self.model.adapter.config.absorb_roles
        replies = [u.reply for u, _ in batch.unrelated]
        prompts = [[u.prompt] for u, _ in batch.unrelated if u.prompt is not None]
        rows = answer_rows(template, prompts, replies, roles=roles) if prompts else prose_rows(template, replies)
        rows = rows.to(self.model.device)
        full = torch.tensor([full for _, full in batch.unrelated], device=self.model.device)
        with torch.no_grad():
            plain = answer_logits(self.model, rows, None)
        logits = answer_logits(self.model, rows, MemoryState(state.tensor * full.view(-1, 1, 1, 1, 1)))
        return plain_divergence(logits, plain, rows.targets != IGNORED)

    def _kinds(self) -> dict[bool, list[Unrelated]]:
        """What must not change: prompts with their replies, and prose (True)."""
        if not self._unrelated:
            model, template, seed = self.model, self.template, self.recipe.seed
            prose = plain_prose(model, template, count=PASSAGES, seed=seed) if self.recipe.prose else []
            prompts = plain_replies(model, template, self.data, prose=prose[: len(prose) // 2], seed=seed)
            self._unrelated = {False: prompts, True: [Unrelated(None, text) for text in prose] or prompts}
        return self._unrelated
