"""How an adapter is trained: one YAML file, one frozen config."""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from deltamem_agents.backbone.load import BUNDLED
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import ConfigError
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.fields import explained

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_EPISODES = ("episodes", "babi", "chats")


class Stage(EpisodeMix):
    """A stretch of the curriculum: how its episodes are drawn, and when it ends. `replies` follows `together`."""

    model_config = _FROZEN

    steps: int = Field(ge=1)
    """How many optimiser steps it takes at most."""
    above: float | None = Field(default=None, ge=0, lt=1)
    """It ends earlier once recall of its own kind of episodes, in held-out phrasings and values, is above this."""
    together: float = Field(default=0.5, ge=0, le=1)
    """Share of batches in which messages are encoded as a conversation with replies, not each by itself."""
    bare: float = Field(default=0.0, ge=0, le=1)
    """Share of batches whose questions come without the template's default system prompt, which is faster."""
    replay: float = Field(default=0.0, ge=0, le=1)
    """Share of batches that are drawn as in an earlier stage."""
    data_share: float = Field(default=0.0, ge=0, le=1)
    """Share of episodes that come from the recipe's `data`, not from the generators."""
    unrelated_every: int = Field(default=0, ge=0)
    """Every so many steps also carry rows that must answer as the plain backbone does; 0: none do."""
    visible: float = Field(default=0.0, ge=0, le=1)
    """Share of batches in which the last turns stand in the prompt too, half of their replies the plain model's."""


class Source(BaseModel):
    """A file or folder of your data."""

    model_config = _FROZEN

    format: Literal["episodes", "babi", "chats", "intents", "talk"]
    """Episode JSONL; bAbI tasks; conversations (JSONL, JSON arrays, also of ShareGPT's messages); intents (CSV or Rasa
    JSON) for label maps; texts for filler."""
    path: Path
    """Relative to the recipe's file."""
    share: float = Field(default=1.0, gt=0)
    """Weight among the sources of episodes."""
    window: int = Field(default=2, ge=0)
    """Chats: how many messages before the question stay visible."""
    held_out: float = Field(default=0.1, ge=0, le=0.5)
    """Chats: share of the conversations, two at least, that are not trained on; each evaluation says how well their
    replies are predicted. 0: none are."""
    licence: str = ""
    """Goes into the model card."""


class Losses(BaseModel):
    """Weights of the losses; what has weight 0 is not computed."""

    model_config = _FROZEN

    answer: float = Field(default=1.0, ge=0)
    """Cross entropy of the answer."""
    distillation: float = Field(default=0.0, ge=0)
    """KL from the frozen model that sees everything, on answers it finds likelier than the memory does."""
    distillation_top_k: int = Field(default=32, ge=1)
    """How many of the teacher's tokens are kept at each position."""
    margin: float = Field(default=0.0, ge=0)
    """The own state must beat another's."""
    margin_nats: float = Field(default=1.0, gt=0)
    """By how much, in nats a token."""
    plain: float = Field(default=1.0, ge=0)
    """KL to the plain backbone on unrelated prompts, in the steps that carry them."""
    sparsity: float = Field(default=0.0, ge=0)
    """Write gates that open over written tokens: the mean of −log(1 − β)."""
    idle: float = Field(default=0.0, ge=0)
    """The same over written tokens of messages that tell nothing."""
    told: float = Field(default=0.0, ge=0)
    """Write gates that stay closed over the values told: the mean of −log β̄, β̄ being the mean over a layer's gates."""
    apart: float = Field(default=0.0, ge=0)
    """Token writes of different facts to one memory under keys alike, which overwrite each other: mean cos² of keys."""
    gate: float = Field(default=0.0, ge=0)
    """Read gates that open in rows that must answer as the plain backbone does: the mean of −log(1 − g)."""
    plain_positions: int = Field(default=20, ge=1)
    """At how many tokens a row, drawn at random, those rows are compared with the plain backbone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.answer and not self.distillation:
            raise ValueError("answer and distillation are both 0: give one of them a weight, or nothing is learnt")
        return self


class Optimiser(BaseModel):
    """AdamW with a linear warm-up and a cosine."""

    model_config = _FROZEN

    learning_rate: float = Field(default=2e-3, gt=0)
    """At the end of the warm-up."""
    warm_up: int = Field(default=40, ge=0)
    """Steps."""
    final: float = Field(default=0.02, ge=0, le=1)
    """Share of the learning rate that is left at the end."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of AdamW's two averages."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    clip: float = Field(default=1.0, gt=0)
    """Norm that gradients are clipped to."""


class Recipe(BaseModel):
    """How an adapter is trained."""

    model_config = _FROZEN

    model: str = BUNDLED
    """The backbone: "bundled", a folder, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen backbone; "auto" is bfloat16 where the hardware computes in it. The adapter learns in float32."""
    model_kwargs: dict[str, JsonValue] = {}
    """What else `AutoModelForCausalLM.from_pretrained` is told, such as {attn_implementation: eager}, or, for 4 bits a
    weight, {quantization_config: {load_in_4bit: true}}. A device_map must put all of it on one device."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, which computes the rest once more: a step takes about a third
    longer and far less memory; the weights come out the same."""
    adapter: DeltaMemConfig = DeltaMemConfig()
    """Options of the adapter."""
    init_adapter: Path | None = None
    """Start from this adapter folder, or checkpoint of another run. Relative to the file. Heads it lacks are fresh."""
    align: float = Field(default=0.0, ge=0, le=1)
    """Fresh state heads begin with keys, values and gates fitted to the backbone, and corrections of this length, in
    units of the residual stream: 0.05 in the default recipe. 0: random weights."""
    quiet: float = Field(default=0.0, ge=0)
    """A run begins with write gates lowered and retention raised on talk, by at most so much before the sigmoid."""
    keep: float = Field(default=0.0, ge=0, lt=1)
    """Share of `init_adapter`'s weights in what is written, the trained ones are the rest: the mean of the two keeps
    some of what a run unlearns (Wortsman et al., arXiv:2109.01903)."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The curriculum."""
    data: tuple[Source, ...] = ()
    """Your data, beside the generators."""
    losses: Losses = Losses()
    """What is minimised."""
    optimiser: Optimiser = Optimiser()
    """How."""
    rows: int = Field(default=16, ge=2)
    """Answers in a batch: as many episodes where each has one question."""
    unrelated: int = Field(default=4, ge=1)
    """Rows that must answer as the plain backbone does, in the steps that carry them."""
    unrelated_prompts: int = Field(default=252, ge=4)
    """How many prompts they are drawn from, at most; the plain backbone's replies to them are made once. What is kept
    for few prompts is kept less well for others."""
    prose: float = Field(default=0.5, ge=0, le=1)
    """Share of these steps whose rows are prose read by itself, not prompts with replies."""
    accumulate: int = Field(default=1, ge=1)
    """Batches that make one optimiser step."""
    seed: int = 0
    """Of weights and episodes."""
    evaluate_every: int = Field(default=50, ge=1)
    """Steps between evaluations."""
    evaluate_episodes: int = Field(default=32, ge=2)
    """Episodes of each kind in an evaluation, and of the chats held out at most."""
    checkpoint_every: int = Field(default=25, ge=1)
    """Steps between checkpoints."""
    evaluation: dict[str, EpisodeMix] = {
        "closed_1": EpisodeMix(),
        "closed_3": EpisodeMix(facts=(3,)),
        "open_1": EpisodeMix(open_share=1.0),
        "open_3": EpisodeMix(facts=(3,), open_share=1.0, other_talk=2, replies=True),
    }
    """Kinds of episodes an evaluation asks, beside the stage's own; in held-out phrasings and values."""
    feature_cache_mb: int = Field(default=0, ge=0)
    """Keep features of repeated single messages, in half precision; a resumed run is then the same to tolerance."""
    licence: str = "Apache-2.0"
    """Of the adapter; goes into the model card."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.keep and self.init_adapter is None:
            raise ValueError("keep is a share of init_adapter, which is missing: name an adapter folder or checkpoint")
        if any(s.format in _EPISODES for s in self.data) and not any(s.data_share for s in self.stages):
            raise ValueError("data has episodes, but no stage takes any: give one a data_share, such as 0.3")
        return self

    @property
    def steps(self) -> int:
        """Optimiser steps in all, unless stages end early."""
        return sum(stage.steps for stage in self.stages)

    def start(self, stage: int) -> int:
        """The step at which a stage begins as planned."""
        return sum(s.steps for s in self.stages[:stage])

    def stage(self, step: int) -> int:
        """Index of the stage that the planned `step` belongs to."""
        return next(i for i in range(len(self.stages)) if step < self.start(i + 1))

    def rate(self, step: int, *, begun: int = 0) -> float:
        """Learning rate at the planned `step`: linear warm-up, then a cosine to the final share.

        Args:
            step: the planned step.
            begun: the one at which the optimiser knew nothing.
        """
        o = self.optimiser
        progress = max(0.0, step - o.warm_up) / max(1, self.steps - o.warm_up)
        warm_up = min(1.0, (step - begun + 1) / max(1, o.warm_up))
        return o.learning_rate * warm_up * (o.final + (1 - o.final) * 0.5 * (1 + math.cos(math.pi * progress)))

    @classmethod
    def load(cls, path: str | Path, *, model: str | None = None, changes: Sequence[str] = ()) -> Self:
        """Reads a YAML file, or a recipe that ships. Paths in it are relative to the file, or to where you are.

        Args:
            path: the file or the name.
            model: takes the place of the file's.
            changes: other fields that do, as "adapter.delta_heads=[o]" or "stages.0.steps=50": field, "=", YAML.

        Raises:
            ConfigError: no such file, no PyYAML, no valid YAML, a change without "=" or of no field or stage there
                is, or fields that are unknown or impossible: names each.
        """
        try:
            import yaml
        except ImportError as error:
            raise ConfigError("recipes are YAML: install the extra, `pip install 'deltamem-agents[train]'`") from error
        file = _recipe_file(path)
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{file} cannot be read as YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{file} holds a {type(data).__name__}, expected the fields of a recipe")
        for change in changes:
            field, sign, text = change.partition("=")
            if not sign:
                raise ConfigError(f"{change!r} changes nothing: expected a field, =, and its value, as in seed=1")
            try:
                _change(data, field, yaml.safe_load(text))
            except (LookupError, ValueError, yaml.YAMLError) as error:
                raise ConfigError(f"{change!r} cannot be put into {file}: {error}") from error
        try:
            recipe = cls.model_validate(data | ({"model": model} if model is not None else {}))
        except ValidationError as error:
            found = "; ".join(explained(cls, e) for e in error.errors())
            raise ConfigError(f"{file} is not a valid recipe: {found}") from error
        return recipe._at(file.parent if Path(path).is_file() else Path.cwd())

    def _at(self, folder: Path) -> Self:
        folder = folder.absolute()
        start = None if self.init_adapter is None else folder / self.init_adapter.expanduser()
        data = tuple(s.model_copy(update={"path": folder / s.path.expanduser()}) for s in self.data)
        return self.model_copy(update={"init_adapter": start, "data": data})


def _change(data: Any, field: str, value: object) -> None:
    """Puts a value where the dotted field says; numbers are places in a list."""
    way = field.split(".")
    for step, key in enumerate(way):
        if not isinstance(data, dict | list):
            raise ValueError(f"{'.'.join(way[:step])} has no fields")
        place: Any = int(key) if isinstance(data, list) else key
        if step == len(way) - 1:
            data[place] = value
        else:
            data = data[place] if isinstance(data, list) else data.setdefault(place, {})


def _recipe_file(path: str | Path) -> Path:
    shipped = Path(str(files("deltamem_agents.train") / "recipes"))
    names = sorted(p.stem for p in shipped.glob("*.yaml"))
    if Path(path).is_file():
        return Path(path)
    if str(path) in names:
        return shipped / f"{path}.yaml"
    raise ConfigError(f"no recipe at {path}: expected a YAML file, or the name of one that ships: {', '.join(names)}")
