"""The data of a recipe, loaded: episodes to draw from, texts for label maps, sentences for other talk."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deltamem_agents.errors import ConfigError
from deltamem_agents.train.attributes import Split
from deltamem_agents.train.chats import load_chats
from deltamem_agents.train.convert import babi_episodes, files_in, intent_texts
from deltamem_agents.train.episode import Episode, read_episodes
from deltamem_agents.train.episodes import EpisodeMix, draw_episode
from deltamem_agents.train.facts import Values
from deltamem_agents.train.labels import LabelTexts
from deltamem_agents.train.recipe import Source, Stage
from deltamem_agents.train.talk import Talk, rough_tokens


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Where a run's episodes come from."""

    values: Values
    talk: Talk = field(default_factory=Talk)
    labels: LabelTexts = field(default_factory=LabelTexts)
    sources: tuple[tuple[float, tuple[Episode, ...]], ...] = ()
    """Episodes of each source with its weight."""
    held_out: tuple[tuple[Episode, ...], ...] = ()
    """Episodes that are scored and never trained on, by conversation."""
    found: tuple[str, ...] = ()
    """What each source of episodes has, in words."""

    @classmethod
    def load(
        cls, sources: Sequence[Source], values: Values, *, count: Callable[[str], int] = rough_tokens
    ) -> "TrainingData":
        """Loads all sources.

        Args:
            sources: those of the recipe.
            values: where generated facts take their values from.
            count: how many tokens a message of other talk costs.

        Raises:
            TrainingError: a file or folder is missing, or holds something else: names it, line and field too.
        """
        sentences: list[str] = []
        texts: dict[str, list[str]] = {}
        episodes: list[tuple[float, tuple[Episode, ...]]] = []
        held_out: list[tuple[Episode, ...]] = []
        found: list[str] = []
        for source in sources:
            if source.format == "talk":
                sentences += Talk.from_folder(source.path).sentences
            elif source.format == "intents":
                texts |= {f"{source.path.name} {kind}": told for kind, told in intent_texts(source.path).items()}
            elif source.format == "chats":
                chats = load_chats(source.path, window=source.window, held_out=source.held_out)
                episodes.append((source.share, chats.train))
                held_out += chats.held_out
                found.append(chats.found)
            else:
                read = tuple(_episodes(source))
                episodes.append((source.share, read))
                found.append(f"{source.path.name}: {len(read)} episodes")
        talk = Talk(sentences, count=count)
        return cls(values, talk, LabelTexts(texts or None), tuple(episodes), tuple(held_out), tuple(found))

    def draw(self, stage: Stage, rng: random.Random, *, together: bool) -> Episode:
        """One episode to train on.

        Raises:
            ConfigError: the stage takes a share from data, and there is none.
        """
        if stage.data_share and rng.random() < stage.data_share:
            if not self.sources:
                raise ConfigError(
                    f"a stage takes data_share {stage.data_share} of its episodes from data, and there is none: add a "
                    "source of episodes, babi or chats, or set it to 0"
                )
            return rng.choice(rng.choices([e for _, e in self.sources], [w for w, _ in self.sources])[0])
        return self.generate(stage.model_copy(update={"replies": together}), rng, split="train")

    def generate(self, mix: EpisodeMix, rng: random.Random, *, split: Split) -> Episode:
        """One generated episode."""
        return draw_episode(mix, self.values, rng, split=split, talk=self.talk, labels=self.labels)


def _episodes(source: Source) -> list[Episode]:
    if source.format == "babi":
        return babi_episodes(source.path)
    return [episode for file in files_in(source.path, ".jsonl") for episode in read_episodes(file)]
