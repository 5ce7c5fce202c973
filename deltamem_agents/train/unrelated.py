"""Prompts and prose that have nothing to do with the memory: what the plain backbone predicts there must not change."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.train.agents import tool_turn
from deltamem_agents.train.attributes import Split
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.everyday import everyday
from deltamem_agents.train.facts import holds_held_out_word
from deltamem_agents.train.generated import Prompt, generate
from deltamem_agents.train.phrases import phrases
from deltamem_agents.train.runlog import Progress

TOLD = EpisodeMix(open_share=0.3, dates=0.2, people=0.2, inside=0.2, paired=0.2)
"""How the statements are drawn that a reply of the plain backbone follows."""


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A prompt that has nothing to do with the memory, and the plain backbone's greedy reply, or its beginning."""

    prompt: Prompt
    """Empty: the reply is prose, read by itself, without the chat template."""
    reply: str


def plain_replies(
    model: DeltaMemModel,
    template: ChatTemplate,
    data: TrainingData,
    *,
    prose: Sequence[str] = (),
    seed: int,
    count: int,
    length: int = 32,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[Unrelated]:
    """The plain backbone's greedy replies: a third to general questions, a third to statements and small talk.

    The last third are requests to tools, and prompts that the backbone makes up itself, some of them with a passage of
    prose before them, as a long prompt would. A quarter as many again come after questions about the user and their
    right answers, as they do in a chat that shows its last messages.

    Args:
        model: the model; its memory is not used.
        template: renders the prompts.
        data: makes the statements.
        prose: passages for long prompts.
        seed: draws the prompts.
        count: how many replies at most, without those in a chat.
        length: tokens a reply.
        cache_dir: where what is generated is kept; default: the user's cache.
        progress: told how many replies are there.
    """
    rng, third = random.Random(seed), count // 3
    questions = general_questions("train")
    asked = rng.sample(questions, min(third, len(questions)))
    talk = [text for kind in phrases("small_talk")["train"].values() for text in kind]
    talk = rng.sample(talk, min(third // 4, len(talk)))
    talk += [everyday(rng) for _ in range(third // 2 - len(talk))]
    told = [data.generate(TOLD, rng, split="train").earlier[0].content for _ in range(third - len(talk))]
    wanted = [tool_turn(rng, "train")[0].content for _ in range(third // 4)]
    own = own_prompts(model, template, count=third // 2, seed=seed, cache_dir=cache_dir, progress=progress)
    long = [f"{text}\n\n{ask}" for text, ask in zip(prose, own[::-1], strict=False)][: third // 4]
    alone: list[Prompt] = [
        (Message(role="user", content=text),) for text in dict.fromkeys((*asked, *talk, *told, *wanted, *own, *long))
    ]
    last = (*asked, *talk, *told)
    chats = [_in_a_chat(data, rng.choice(last), rng) for _ in range(count // 4)]
    replies: list[str] = []
    for prompts in (alone, chats):
        replies += generate(model, template, prompts, length=length, cache_dir=cache_dir, progress=progress)
    return [
        Unrelated(prompt, kept)
        for prompt, reply in zip((*alone, *chats), replies, strict=True)
        if (kept := _trainable(reply))
    ]


def _in_a_chat(data: TrainingData, text: str, rng: random.Random) -> Prompt:
    """A user's message after one or two questions about the user, each with its answer."""
    earlier: list[Message] = []
    for _ in range(rng.randint(1, 2)):
        episode = data.generate(TOLD, rng, split="train")
        earlier.append(Message(role="user", content=episode.question))
        earlier.append(Message(role="assistant", content=episode.answer))
    return (*earlier, Message(role="user", content=text))


def general_questions(split: Split) -> list[str]:
    """Questions that no memory is needed for: general knowledge, arithmetic, lists, translation, definitions."""
    return [text for kind in phrases("general_questions")[split].values() for text in kind]


def plain_prose(
    model: DeltaMemModel,
    template: ChatTemplate,
    *,
    count: int = 96,
    seed: int,
    length: int = 128,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Prose of the plain backbone: sampled replies to prompts it makes up itself.

    Args:
        model: the model; its memory is not used.
        template: renders the prompts.
        count: how many are sampled at most; sentences that hold a word kept for testing are left out.
        seed: of the sampling.
        length: tokens a passage; longer ones are cut.
        cache_dir: where what is generated is kept; default: the user's cache.
        progress: told how many passages are there.
    """
    own = own_prompts(model, template, count=count, seed=seed, cache_dir=cache_dir, progress=progress)
    asked = [(Message(role="user", content=text),) for text in own]
    replies = generate(model, template, asked, length=length, seed=seed, cache_dir=cache_dir, progress=progress)
    sentences = (re.split(r"(?<=[.!?\n])\s+", reply) for reply in replies)
    passages = (" ".join(s for s in parts if not holds_held_out_word(s)).strip() for parts in sentences)
    return [text for text in passages if len(template.tokenizer.encode(text, add_special_tokens=False)) > 1]


def own_prompts(
    model: DeltaMemModel,
    template: ChatTemplate,
    *,
    count: int,
    seed: int,
    length: int = 32,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """User messages that the plain backbone makes up, sampled where one would begin (Xu et al., arXiv:2406.08464).

    Args:
        model: the model; its memory is not used.
        template: says where a user message begins.
        count: how many are sampled; those that say nothing, or hold a word kept for testing, are left out.
        seed: of the sampling.
        length: tokens a message; longer ones are cut.
        cache_dir: where what is generated is kept; default: the user's cache.
        progress: told how many messages are there.
    """
    found = generate(model, template, [()] * count, length=length, seed=seed, cache_dir=cache_dir, progress=progress)
    return [text for text in map(str.strip, found) if text and not holds_held_out_word(text)]


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """The first so many tokens of a text."""
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:tokens]))


def _trainable(text: str) -> str:
    """A text up to the first word that holds one kept for testing; "" where only blanks are left."""
    kept = " ".join(takewhile(lambda word: not holds_held_out_word(word), text.split(" ")))
    return kept if kept.strip() else ""
