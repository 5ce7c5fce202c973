"""The training loop: draws, learns, evaluates, writes checkpoints, goes on where a stopped run left off.

The backbone stays frozen. An episode's earlier messages are written into the memory; then a question is answered with
those messages not in the prompt. Several processes, as `accelerate launch` starts them, draw different episodes and
average their gradients.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.errors import ConfigError, TrainingError
from deltamem_agents.train.aligned import align_heads
from deltamem_agents.train.backbone import placed, replay_layers
from deltamem_agents.train.card import model_card
from deltamem_agents.train.checkpoint import Checkpoint, Reached, initial_adapter, rng_from
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episode import write_episodes
from deltamem_agents.train.facts import Values, training_vocabulary
from deltamem_agents.train.objective import Batch, Objective
from deltamem_agents.train.quiet import quieten_gates
from deltamem_agents.train.recipe import Recipe
from deltamem_agents.train.runlog import Progress, Record, RunLog
from deltamem_agents.train.scoring import reply_scores


class Trainer:
    """One run in one output folder.

    Args:
        recipe: how to train.
        backbone: the model; moved to the accelerator's device and frozen.
        tokenizer: its tokenizer.
        output: folder for checkpoint, log and adapter; a run in it is resumed, also from its adapter alone.
        accelerator: of this process; None makes one.
        progress: told how far heads are aligned, which takes minutes on a CPU.

    Raises:
        TrainingError: the recipe's data is missing or malformed, or a checkpoint in `output` is damaged.
        ConfigError: a checkpoint or an adapter in `output` is of another recipe, or the recipe asks for what the model
            does not have.
    """

    def __init__(
        self,
        recipe: Recipe,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        output: Path,
        *,
        accelerator: Accelerator | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.output = recipe, output
        self.accelerator = accelerator or Accelerator()
        self.notes: list[str] = []
        """What there is to say before the first step."""
        backbone = placed(backbone, self.accelerator.device, recipe).eval()  # type: ignore[no-untyped-call]
        if recipe.gradient_checkpointing:
            replay_layers(backbone)
        values, template = Values(training_vocabulary(tokenizer)), ChatTemplate(tokenizer)
        data = TrainingData.load(recipe.data, values, count=lambda text: len(tokenizer.encode(text)) + 5)
        self.notes += data.found
        left = None if (output / "checkpoint.pt").exists() else Reached.load(output)
        known = recipe if left is None else recipe.model_copy(update={"init_adapter": output / "adapter"})
        adapter, fresh = initial_adapter(known, backbone)
        self.model = DeltaMemModel(backbone, adapter.to(self.accelerator.device))
        if not (output / "checkpoint.pt").exists():
            self._fit_beginning(template, data, fresh, quiet=recipe.quiet if left is None else 0.0, progress=progress)
        self.objective = Objective(recipe, self.model, tokenizer, data)
        o = recipe.optimiser
        self.optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=o.learning_rate, betas=o.betas, weight_decay=o.weight_decay
        )
        process = self.accelerator.process_index
        self.rng = random.Random(recipe.seed if process == 0 else f"{recipe.seed} {process}")
        self.step = self.position = self.begun = 0
        self.seconds = 0.0
        self.figures: Record = {}
        output.mkdir(parents=True, exist_ok=True)
        if left is not None:
            self._go_on_from_adapter(left)
        elif not (output / "checkpoint.pt").exists() and (output / "log.jsonl").exists():
            self.notes.append(f"{output} has a log but no checkpoint: beginning at step 1")
        self._resume()

    @property
    def stage(self) -> int:
        """Index of the current stage; that of the last one at the end."""
        return self.recipe.stage(min(self.position, self.recipe.steps - 1))

    def prepare(self, progress: Progress | None = None) -> None:
        """Has the plain backbone generate what the recipe needs of it: minutes on a CPU, once; then it is on disk.

        Args:
            progress: told how many texts of how many are there.
        """
        with self.accelerator.main_process_first():
            self.objective.prepare(progress)

    def run(
        self,
        *,
        until: int | None = None,
        progress: Callable[[Record], None] | None = None,
        stopping: Callable[[], bool] | None = None,
    ) -> Record:
        """Trains to the last step, or until `until` steps are done; then the adapter is in `output/adapter`.

        Args:
            until: how many steps in all; None: those of the recipe.
            progress: called with the figures of each step.
            stopping: asked after each step; at True there is a checkpoint of it, and the run ends without an adapter.
                Of several processes all have to be told the same.

        Returns:
            The last evaluation.

        Raises:
            TrainingError: the loss is not finite, or a file cannot be written; the last checkpoint is whole.
        """
        if not self.done(until):
            self.prepare()
        log = RunLog(self.output, step=self.step) if self.accelerator.is_main_process else None
        try:
            while not self.done(until):
                record = self._one_step()
                due = self.step % self.recipe.evaluate_every == 0
                if due or self.done(until):
                    record |= self.evaluate()
                if due:
                    self._advance(record["recall"])
                if log is not None:
                    log.write(record)
                stop = stopping is not None and stopping()
                if self.step % self.recipe.checkpoint_every == 0 or stop or self.done(until):
                    self._checkpoint()
                if progress is not None:
                    progress(record)
                if stop:
                    break
        finally:
            if log is not None:
                log.close()
        if self.accelerator.is_main_process and self.done(until):
            self._save_adapter()
        return self.figures

    def evaluate(self) -> Record:
        """Exact answers on held-out phrasings and values, from the own memory and from another's."""
        recipe, objective = self.recipe, self.objective
        stage = recipe.stages[self.stage]
        figures: Record = {}
        for name, mix in {"recall": stage, **recipe.evaluation}.items():
            rng = random.Random(f"evaluate {name}")
            replies = mix.replies or (mix is stage and stage.together > 0.5)
            mix = mix.model_copy(update={"replies": replies, "questions": 1})
            drawn = [objective.data.generate(mix, rng, split="test") for _ in range(recipe.evaluate_episodes)]
            figures[name], figures[f"{name}_swapped"] = objective.recall(drawn, together=mix.replies)
        if objective.data.held_out:
            figures |= reply_scores(objective, objective.data.held_out, count=recipe.evaluate_episodes)
        self.figures = figures
        return dict(figures)

    def _fit_beginning(
        self, template: ChatTemplate, data: TrainingData, fresh: range, *, quiet: float, progress: Progress | None
    ) -> None:
        """What a run begins with that is fitted to the backbone, not learnt."""
        recipe = self.recipe
        if recipe.align and fresh:
            align_heads(
                self.model, template, data, heads=fresh, strength=recipe.align, seed=recipe.seed, progress=progress
            )
        if quiet:
            quieten_gates(self.model, template, data, amount=quiet, seed=recipe.seed)
        for parameter in self.model.adapter.parameters():  # fits are the same on other processes to rounding only
            broadcast(parameter.data)

    def done(self, until: int | None) -> bool:
        """Whether all steps are done, or `until` of them."""
        return self.position >= self.recipe.steps or (until is not None and self.step >= until)

    def _advance(self, recall: float) -> None:
        """Ends the stage when it is learnt."""
        above = self.recipe.stages[self.stage].above
        if above is not None and recall > above:
            self.position = max(self.position, self.recipe.start(self.stage + 1))

    def _one_step(self) -> Record:
        recipe, started = self.recipe, time.monotonic()
        rate, stage = recipe.rate(self.position, begun=self.begun), self.stage
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        figures: Record = {}
        batches: list[Batch] = []
        for _ in range(recipe.accumulate):
            batches.append(self.objective.draw(self.position, self.rng))
            loss, found = self.objective(batches[-1])
            if self.accelerator.num_processes == 1:
                self._check("loss", loss, batches)
            (loss / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
            found["loss"] = loss.item()
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + value / recipe.accumulate
        parameters = [p for p in self.model.adapter.parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            for p in parameters:
                p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.optimiser.clip)
        self._check("gradient's norm", norm, batches)
        self.optimizer.step()
        self.step += 1
        self.position += 1
        seconds = time.monotonic() - started
        self.seconds += seconds
        figures |= {"grad_norm": norm.item(), "rate": rate, "seconds": seconds}
        return {"step": self.step, "stage": stage, **figures}

    def _check(self, what: str, number: torch.Tensor, batches: list[Batch]) -> None:
        """Stops the run: of several processes all at once, at the norm they share, or the others would wait for one."""
        if torch.isfinite(number):
            return
        one = self.accelerator.num_processes == 1
        path = self.output / ("failed-batch.jsonl" if one else f"failed-batch-{self.accelerator.process_index}.jsonl")
        episodes = [e for batch in batches for e in batch.episodes]
        write_episodes(path, episodes)
        kept = self.output / "checkpoint.pt"
        found = f"the last good checkpoint is {kept}" if kept.exists() else "there was no checkpoint yet"
        raise TrainingError(
            f"the {what} is {number.item()} at step {self.step + 1}, expected a finite number; its batch of "
            f"{len(episodes)} episodes, of which the first asks {episodes[0].question!r}, is in {path}; {found}: look "
            "at the batch, lower the learning rate, and go on in another output folder with init_adapter"
        )

    def _save_adapter(self) -> None:
        folder, adapter = self.output / "adapter", self.model.adapter
        trained = {name: weight.clone() for name, weight in adapter.state_dict().items()}
        if self.recipe.keep:
            before = initial_adapter(self.recipe, self.model.backbone)[0].state_dict()
            share = 1 - self.recipe.keep
            adapter.load_state_dict({n: before[n].to(weight).lerp(weight, share) for n, weight in trained.items()})
        if self.recipe.keep or not self.figures:
            self.evaluate()
        adapter.save_pretrained(folder, dtype=torch.float16)
        Reached(self.step, self.position, self.seconds).save(self.output)
        adapter.load_state_dict(trained)
        card = model_card(self.recipe, adapter, self.figures, steps=self.step, seconds=self.seconds)
        try:
            (folder / "README.md").write_text(card, encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"the model card cannot be written to {folder}: {error}") from error

    def _checkpoint(self) -> None:
        states = gather_object([self.rng.getstate()])
        if self.accelerator.is_main_process:
            Checkpoint(
                recipe=self.recipe.model_dump_json(),
                step=self.step,
                position=self.position,
                adapter=self.model.adapter.state_dict(),
                optimizer=self.optimizer.state_dict(),
                seconds=self.seconds,
                rng=tuple(states),
                begun=self.begun,
                dtype=str(self.model.backbone.dtype),
            ).save(self.output / "checkpoint.pt")
        self.accelerator.wait_for_everyone()

    def _go_on_from_adapter(self, left: Reached) -> None:
        """The checkpoint is gone: the adapter's weights are there already, the optimiser knows nothing."""
        self.step, self.position, self.seconds = left.step, min(left.position, self.recipe.steps), left.seconds
        self.begun = self.position
        self.rng = random.Random(f"{self.recipe.seed} {self.accelerator.process_index} from {left.step}")
        self.notes.append(
            f"no checkpoint in {self.output}, but the adapter of step {left.step}: going on from its weights, with a "
            "new warm-up"
        )

    def _resume(self) -> None:
        path = self.output / "checkpoint.pt"
        if not path.exists():
            return
        saved = Checkpoint.load(path, self.recipe)
        processes = self.accelerator.num_processes
        if len(saved.rng) != processes:
            raise ConfigError(
                f"{path} is of a run with {len(saved.rng)} processes, this one has {processes}: start as many, or "
                "choose another output folder and name this checkpoint as init_adapter"
            )
        self.model.adapter.load_state_dict(saved.adapter)
        self.optimizer.load_state_dict(saved.optimizer)  # type: ignore[arg-type]
        self.rng = rng_from(saved.rng[self.accelerator.process_index])
        self.step, self.position, self.seconds = saved.step, saved.position, saved.seconds
        self.begun = saved.begun
        self.notes.append(f"going on from step {self.step} in {self.output}")
        dtype = str(self.model.backbone.dtype)
        if saved.dtype not in ("", dtype):
            self.notes.append(f"until then the model computed in {saved.dtype}, here it does in {dtype}")
