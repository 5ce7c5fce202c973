"""Training an adapter to recall what it was told.

    python -m deltamem_agents.train runs/default

The backbone stays frozen. An episode's earlier messages are written into the memory; then a question is answered with
those messages not in the prompt. Cross entropy on the answer teaches recall; rows with unrelated prompts, held to the
plain backbone's own distribution, teach the memory to leave everything else alone. Stops and resumes at checkpoints.
"""

import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import ConfigError, TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.train.batches import answer_rows, write_memories
from deltamem_agents.train.episodes import Episode, EpisodeMix, draw_episode
from deltamem_agents.train.facts import ATTRIBUTES, SMALL_TALK, Values, training_vocabulary


class Stage(BaseModel):
    """A stretch of the curriculum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    until: int
    """The step it ends before."""
    facts: tuple[int, ...]
    """Numbers of facts in an episode, drawn uniformly."""
    open_share: float = 0.0
    """Share of values from the open vocabulary."""
    other_talk: int = 0
    """At most this many messages of small talk and earlier questions in an episode."""
    unrelated_every: int = 0
    """Every so many steps also carry rows that must answer as the plain backbone does; 0: none do."""


class Recipe(BaseModel):
    """How the default adapter is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = (
        Stage(until=420, facts=(1, 1, 2)),
        Stage(until=450, facts=(1, 1, 2, 3), open_share=0.75, other_talk=1),
        Stage(until=500, facts=(1, 1, 2, 3), open_share=0.75, other_talk=1, unrelated_every=1),
        Stage(until=600, facts=(1, 1, 2, 3), open_share=0.6, other_talk=1, unrelated_every=3),
        Stage(until=850, facts=(1, 2, 3, 4), other_talk=2, unrelated_every=2),
    )
    """The curriculum; the last stage ends the training."""
    batch: int = 16
    """Recall episodes a step."""
    unrelated: int = 4
    """Rows that must answer as the plain backbone does, in the steps that carry them."""
    unrelated_weight: float = 1.0
    learning_rate: float = 2e-3
    warm_up: int = 40
    seed: int = 0
    evaluate_every: int = 50
    adapter: DeltaMemConfig = DeltaMemConfig()

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.stages[-1].until

    def stage(self, step: int) -> Stage:
        """The stage that `step` belongs to."""
        return next(stage for stage in self.stages if step < stage.until)

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine to 2 %."""
        progress = max(0.0, step - self.warm_up) / max(1, self.steps - self.warm_up)
        warm_up = min(1.0, (step + 1) / self.warm_up)
        return self.learning_rate * warm_up * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A prompt that has nothing to do with the memory, and the plain backbone's greedy reply."""

    prompt: Message
    reply: str
    untold: bool
    """Whether it asks for a fact: then it is put to an empty memory, which must not make one up."""


class RecallTrainer:
    """Holds the model, the optimiser and the random state of one run; `run` goes on from the last checkpoint."""

    def __init__(
        self, recipe: Recipe, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path
    ) -> None:
        self.recipe, self.output = recipe, output
        self.template = ChatTemplate(tokenizer)
        self.values = Values(training_vocabulary(tokenizer))
        adapter = DeltaMemAdapter.initialize(recipe.adapter, backbone, seed=recipe.seed)
        self.model = DeltaMemModel(backbone.eval(), adapter)  # type: ignore[no-untyped-call]
        self.optimizer = torch.optim.AdamW(
            self.model.adapter.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.rng = random.Random(recipe.seed)
        self.step = 0
        self.unrelated: list[Unrelated] = []
        output.mkdir(parents=True, exist_ok=True)

    def run(self, *, until: int | None = None) -> None:
        """Trains to the last step, or to step `until`, logging to `log.jsonl` and checkpointing as it evaluates."""
        self._resume()
        last = min(until or self.recipe.steps, self.recipe.steps)
        while self.step < last:
            started = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate(self.step)
            losses = self._train_step()
            self.step += 1
            record: dict[str, float] = {"step": self.step, **losses, "seconds": time.monotonic() - started}
            if self.step % self.recipe.evaluate_every == 0 or self.step == last:
                record |= self.evaluate()
                self._checkpoint()
            with (self.output / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in record.items()}) + "\n")
        self.model.adapter.save_pretrained(self.output / "adapter", dtype=torch.float16)

    def _train_step(self) -> dict[str, float]:
        recipe = self.recipe
        together = self.rng.random() < 0.5
        stage = recipe.stage(self.step)
        mix = EpisodeMix(
            facts=stage.facts, open_share=stage.open_share, other_talk=stage.other_talk, replies=together
        )
        on = stage.unrelated_every and self.step % stage.unrelated_every == 0
        unrelated = recipe.unrelated if on else 0
        episodes = [draw_episode(mix, self.values, self.rng, split="train") for _ in range(recipe.batch + unrelated)]
        state = write_memories(self.model, self.template, [e.earlier for e in episodes], together=together)
        asked = episodes[: recipe.batch]
        recall, exact = self._recall_loss(asked, state.rows(slice(recipe.batch)))
        loss, losses = recall, {"recall_loss": recall.item(), "train_exact": exact}
        if unrelated:
            drift = self._unrelated_loss(unrelated, state.rows(slice(recipe.batch, None)))
            loss = loss + recipe.unrelated_weight * drift
            losses["unrelated_loss"] = drift.item()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.step}, expected a finite number: the last checkpoint is "
                "still good; go on from it with a lower learning rate"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.adapter.parameters(), 1.0)
        self.optimizer.step()
        return losses

    def _answer_logits(
        self, prompts: Sequence[Message], answers: Sequence[str], state: MemoryState
    ) -> tuple[Tensor, Tensor]:
        """Float32 logits [B, A + 1, V] at the answers, and targets [B, A + 1]."""
        roles = self.model.adapter.config.absorb_roles
        rows = answer_rows(self.template, [[p] for p in prompts], answers, roles=roles)
        keep = torch.arange(rows.ids.shape[1] - rows.targets.shape[1], rows.ids.shape[1])
        out = self.model(rows.ids, rows.mask, state=state, write=rows.write, logits_to_keep=keep, use_cache=False)
        return out.logits.float(), rows.targets

    def _recall_loss(self, episodes: Sequence[Episode], state: MemoryState) -> tuple[Tensor, float]:
        questions = [Message(role="user", content=e.question) for e in episodes]
        logits, targets = self._answer_logits(questions, [e.answer for e in episodes], state)
        exact = ((logits.argmax(-1) == targets) | (targets == -100)).all(-1).float().mean().item()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100), exact

    def _unrelated_loss(self, count: int, state: MemoryState) -> Tensor:
        """KL(plain ‖ with memory) on the plain backbone's own replies, in nats a token."""
        if not self.unrelated:
            self.unrelated = self._plain_replies()
        chosen = [self.rng.choice(self.unrelated) for _ in range(count)]
        prompts, replies = [u.prompt for u in chosen], [u.reply for u in chosen]
        told = torch.tensor([not u.untold and self.rng.random() < 0.7 for u in chosen])
        state = MemoryState(state.tensor * told.view(-1, 1, 1, 1, 1))
        with torch.no_grad():
            plain, targets = self._answer_logits(prompts, replies, self.model.zero_state(count))
        logits, _ = self._answer_logits(prompts, replies, state)
        on = targets != -100
        log_probs, plain_log_probs = F.log_softmax(logits[on], -1), F.log_softmax(plain[on], -1)
        return F.kl_div(log_probs, plain_log_probs, log_target=True, reduction="batchmean")

    @torch.no_grad()
    def _plain_replies(self, statements: int = 60, length: int = 12) -> list[Unrelated]:
        """The plain backbone's greedy replies to small talk, to statements of facts and to questions for them."""
        rng = random.Random(self.recipe.seed)
        mix = EpisodeMix(facts=(1,), open_share=0.3)
        told = [draw_episode(mix, self.values, rng, split="train").earlier[0].content for _ in range(statements)]
        asked = [q for attribute in ATTRIBUTES for q in attribute.phrasings("train")[1]]
        prompts = [Message(role="user", content=text) for text in (*SMALL_TALK, *told, *asked)]
        rows = answer_rows(self.template, [[p] for p in prompts], [""] * len(prompts), roles=())
        ids, mask = rows.ids[:, :-1], rows.mask[:, :-1]  # without the end of the empty answer
        backbone, tokenizer = self.model.backbone, self.template.tokenizer
        out = backbone.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=length,
            pad_token_id=tokenizer.eos_token_id,
        )
        replies = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [Unrelated(p, r, p.content in asked) for p, r in zip(prompts, replies, strict=True) if r.strip()]

    @torch.no_grad()
    def evaluate(self, episodes: int = 32) -> dict[str, float]:
        """Teacher-forced exact answers on held-out phrasings and words: own state, and somebody else's."""
        results: dict[str, float] = {}
        for name, mix in {
            "closed_1": EpisodeMix(facts=(1,), open_share=0.0),
            "closed_3": EpisodeMix(facts=(3,), open_share=0.0),
            "open_1": EpisodeMix(facts=(1,), open_share=1.0),
            "open_3": EpisodeMix(facts=(3,), open_share=1.0, other_talk=2, replies=True),
        }.items():
            rng = random.Random(f"evaluate {name}")
            drawn = [draw_episode(mix, self.values, rng, split="test") for _ in range(episodes)]
            state = write_memories(self.model, self.template, [e.earlier for e in drawn], together=mix.replies)
            results[name] = self._recall_loss(drawn, state)[1]
            swapped = MemoryState(state.tensor.roll(1, 0))
            results[f"{name}_swapped"] = self._recall_loss(drawn, swapped)[1]
        return results

    def _checkpoint(self) -> None:
        target = self.output / "checkpoint.pt"
        content = {
            "recipe": self.recipe.model_dump_json(),
            "step": self.step,
            "adapter": self.model.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.getstate(),
        }
        torch.save(content, target.with_suffix(".tmp"))
        os.replace(target.with_suffix(".tmp"), target)
        self.model.adapter.save_pretrained(self.output / "adapter", dtype=torch.float16)

    def _resume(self) -> None:
        path = self.output / "checkpoint.pt"
        if not path.exists():
            return
        content = torch.load(path, weights_only=True)
        saved = Recipe.model_validate_json(content["recipe"])
        if saved.adapter != self.recipe.adapter:
            raise ConfigError(
                f"{path} is of an adapter with {saved.adapter}, this run wants {self.recipe.adapter}: choose another "
                "output folder, or the same adapter config"
            )
        self.model.adapter.load_state_dict(content["adapter"])
        self.optimizer.load_state_dict(content["optimizer"])
        version, internal, gauss = content["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.step = content["step"]
