"""One batch to one loss: memories are written, questions answered from them, and what the recipe weighs is added up."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.state import MemoryState
from deltamem_agents.train.answers import (
    AnswerRows,
    answer_logits,
    answer_logits_and_gates,
    answer_rows,
    answer_states,
    prose_rows,
)
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
    open_cost,
    own_beats_swapped,
    plain_divergence,
)
from deltamem_agents.train.recipe import Recipe
from deltamem_agents.train.runlog import Progress
from deltamem_agents.train.unrelated import Unrelated, beginning, plain_prose, plain_replies
from deltamem_agents.train.writing import Written, write_memories

PASSAGES = 96
"""How much prose is sampled to read with a memory."""


PASSAGE = 48
"""Tokens of a passage that are read: longer ones cost more than the answers do, and tell no more."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Episodes that are trained on together."""

    episodes: tuple[Episode, ...]
    unrelated: tuple[tuple[Unrelated, bool], ...]
    """Prompts, or pieces of prose, put to the episodes' memories in turn, and whether those are full or empty."""
    together: bool
    """Whether earlier messages are encoded as a conversation."""
    bare: bool
    """Whether questions come without the default system prompt."""
    seed: int = 0
    """Of what is sampled of it later."""


class Objective:
    """What is minimised: holds the model, and draws and weighs batches."""

    def __init__(
        self, recipe: Recipe, model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, data: TrainingData
    ) -> None:
        self.recipe, self.model, self.data = recipe, model, data
        self.template = ChatTemplate(tokenizer)
        self.features = Features(model, budget=recipe.feature_cache_mb * 1_000_000)
        self._unrelated: dict[bool, list[Unrelated]] = {}
        self._plain: dict[Unrelated, Tensor] = {}

    def prepare(self, progress: Progress | None = None) -> None:
        """Has the plain backbone generate what must not change, where a stage asks for it; telling how far it is."""
        if any(s.visible or (s.unrelated_every and self.recipe.losses.plain) for s in self.recipe.stages):
            self._kinds(progress)

    def draw(self, step: int, rng: random.Random) -> Batch:
        """The next batch, of the planned `step`."""
        recipe = self.recipe
        current = recipe.stage(step)
        stage = recipe.stages[current]
        if current and stage.replay and rng.random() < stage.replay:
            stage = recipe.stages[rng.randrange(current)]
        together, bare = rng.random() < stage.together, rng.random() < stage.bare
        facts = rng.choice(stage.facts)  # one number for the batch: rows of about one length need little padding
        visible = bool(stage.visible) and rng.random() < stage.visible
        if visible:  # long prompts: few rows, one question each
            together, facts = True, min(facts, 3)
            talk = min(stage.other_talk, 2)
            stage = stage.model_copy(update={"questions": 1, "filler": (0,), "other_talk": talk})
        stage = stage.model_copy(update={"facts": (facts,)})
        count = max(2, recipe.rows // (3 if visible else min(facts, stage.questions)))
        episodes = tuple(self.data.draw(stage, rng, together=together) for _ in range(count))
        if visible:
            replies = [u.reply for u in self._kinds()[False]]
            episodes = tuple(_with_window(e, replies, rng) for e in episodes)
        unrelated: tuple[tuple[Unrelated, bool], ...] = ()
        if recipe.losses.plain and stage.unrelated_every and step % stage.unrelated_every == 0:
            kind = self._kinds()[rng.random() < recipe.prose]
            chosen = [rng.choice(kind) for _ in range(recipe.unrelated)]
            unrelated = tuple((u, rng.random() < 0.7) for u in chosen)
        return Batch(episodes, unrelated, together, bare, rng.getrandbits(32))

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss of a batch, and figures for the log."""
        weights = self.recipe.losses
        written = self.write(
            batch.episodes,
            together=batch.together,
            gate_gradients=weights.sparsity + weights.idle + weights.told + weights.apart > 0,
        )
        own = written.state
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
        figures: dict[str, float] = {}
        if batch.unrelated:
            drift, gates = self._drift(batch, own)
            parts["plain"] = weights.plain, drift
            if gates is not None:
                figures["read_gates_plain"] = gates.mean().item()
                if weights.gate:
                    parts["gate"] = weights.gate, open_cost(gates).mean()
        if weights.sparsity:
            parts["sparsity"] = weights.sparsity, gate_mean(written.cost, written.on)
        idle = written.on & written.talk
        if weights.idle and bool(idle.any()):
            parts["idle"] = weights.idle, gate_mean(written.cost, idle)
        told = written.told > 0
        if weights.told and bool(told.any()):
            parts["told"] = weights.told, gate_mean(written.missed, told)
        if weights.apart and not bool(written.overlap.isnan()):
            parts["apart"] = weights.apart, written.overlap
        loss = torch.stack([weight * part for weight, part in parts.values()]).sum()
        figures |= {f"{name}_loss": part.item() for name, (_, part) in parts.items()}
        figures["exact"] = exact(logits, rows.targets).float().mean().item()
        figures["beta_facts"] = gate_mean(written.beta, written.on & ~written.talk).item()
        if bool(told.any()):
            figures["beta_told"] = gate_mean(written.beta, told).item()
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
            told=[e.told for e in episodes],
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

    def _drift(self, batch: Batch, state: MemoryState) -> tuple[Tensor, Tensor | None]:
        """KL to the plain backbone where nothing may change, and how far each read opened there."""
        chosen = [u for u, _ in batch.unrelated]
        rows, places = self._plain_rows(chosen).sampled(self.recipe.losses.plain_positions, random.Random(batch.seed))
        rows, head = rows.to(self.model.device), self.model.backbone.get_output_embeddings()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            given = [self._plain_predictions(u) for u in chosen]
            known = pad_sequence([x[[p for p in places if p < len(x)]] for x in given], batch_first=True)
            plain = head(known.to(self.model.device)).float()
        full = torch.tensor([full for _, full in batch.unrelated], device=self.model.device)
        memories = state.tensor[torch.arange(len(chosen)) % len(state)] * full.view(-1, 1, 1, 1, 1)
        logits, gates = answer_logits_and_gates(self.model, rows, MemoryState(memories))
        opened = None if gates is None else gates[rows.mask.bool()]
        return plain_divergence(logits, plain, rows.targets != IGNORED), opened

    def _plain_rows(self, unrelated: Sequence[Unrelated]) -> AnswerRows:
        template, roles = self.template, self.model.adapter.config.absorb_roles
        replies, prompts = [u.reply for u in unrelated], [u.prompt for u in unrelated if u.prompt]
        return answer_rows(template, prompts, replies, roles=roles) if prompts else prose_rows(template, replies)

    def _plain_predictions(self, unrelated: Unrelated) -> Tensor:
        """What the plain backbone's output layer is given where the reply counts, [A, H]; computed once, then kept."""
        if unrelated not in self._plain:
            with torch.no_grad():
                self._plain[unrelated] = answer_states(self.model, self._plain_rows([unrelated]))[0].cpu()
        return self._plain[unrelated]

    def _kinds(self, progress: Progress | None = None) -> dict[bool, list[Unrelated]]:
        """What must not change: prompts with their replies, and prose (True)."""
        if not self._unrelated:
            model, template, seed = self.model, self.template, self.recipe.seed
            prose: list[str] = []
            if self.recipe.prose:
                prose = plain_prose(model, template, count=PASSAGES, seed=seed, length=64, progress=progress)
            long = prose[: len(prose) // 2]
            count = self.recipe.unrelated_prompts
            prompts = plain_replies(model, template, self.data, prose=long, seed=seed, count=count, progress=progress)
            passages = [Unrelated((), beginning(template.tokenizer, text, PASSAGE)) for text in prose]
            self._unrelated = {False: prompts, True: passages or prompts}
        return self._unrelated


def _with_window(episode: Episode, replies: Sequence[str], rng: random.Random) -> Episode:
    """The episode with its last one to four turns in the prompt, more than half of their replies the plain model's."""
    chosen = [rng.choice(replies) if rng.random() < 0.6 else "" for _ in range(rng.randint(1, 4))]
    return episode.with_last_shown(len(chosen), chosen)
