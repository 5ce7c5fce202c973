"""Training adapters on a frozen backbone: episodes as data and from generators, losses, recipes, the loop."""

from deltamem_agents.train.attributes import ATTRIBUTES, HELD_OUT_ATTRIBUTES, Attribute, Split
from deltamem_agents.train.chats import chat_episodes
from deltamem_agents.train.convert import babi_episodes, intent_texts
from deltamem_agents.train.episode import Episode, contains, read_episodes, write_episodes
from deltamem_agents.train.episodes import EpisodeMix, draw_episode
from deltamem_agents.train.facts import Values, training_vocabulary
from deltamem_agents.train.labels import LabelTexts
from deltamem_agents.train.recipe import Losses, Optimiser, Recipe, Source, Stage
from deltamem_agents.train.runlog import Record
from deltamem_agents.train.talk import Talk
from deltamem_agents.train.trainer import Trainer

__all__ = [
    "ATTRIBUTES",
    "HELD_OUT_ATTRIBUTES",
    "Attribute",
    "Episode",
    "EpisodeMix",
    "LabelTexts",
    "Losses",
    "Optimiser",
    "Recipe",
    "Record",
    "Source",
    "Split",
    "Stage",
    "Talk",
    "Trainer",
    "Values",
    "babi_episodes",
    "chat_episodes",
    "contains",
    "draw_episode",
    "intent_texts",
    "read_episodes",
    "training_vocabulary",
    "write_episodes",
]
