"""Prompts and prose that have nothing to do with the memory: what the plain backbone predicts there must not change."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.train.agents import tool_turn
from deltamem_agents.train.answers import answer_rows
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.facts import holds_held_out_word
from deltamem_agents.train.talk import SMALL_TALK

ROWS = 32
"""How many texts are generated together."""


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A prompt that has nothing to do with the memory, and the plain backbone's greedy reply, or its beginning."""

    prompt: Message | None
    """None: the reply is prose, read by itself, without the chat template."""
    reply: str


def plain_replies(
    model: DeltaMemModel,
    template: ChatTemplate,
    data: TrainingData,
    *,
    prose: Sequence[str] = (),
    seed: int,
    each: int = 40,
    made_up: int = 160,
    length: int = 32,
) -> list[Unrelated]:
    """The plain backbone's greedy replies to small talk, statements, requests, and to prompts it makes up itself.

    Some of the last have a passage of prose before them, as a long prompt would.

    Args:
        model: the model; its memory is not used.
        template: renders the prompts.
        data: makes the statements.
        prose: passages for long prompts.
        seed: draws them.
        each: how many statements, and how many requests to tools at most.
        made_up: how many prompts of its own at most.
        length: tokens a reply.
    """
    rng = random.Random(seed)
    mix = EpisodeMix(open_share=0.3)
    told = [data.generate(mix, rng, split="train").earlier[0].content for _ in range(each)]
    asked = [tool_turn(rng, "train")[0].content for _ in range(each)]
    own = own_prompts(model, template, count=made_up, seed=seed)
    long = [f"{text}\n\n{ask}" for text, ask in zip(prose, own[::-1], strict=False)]
    prompts = list(dict.fromkeys((*SMALL_TALK, *told, *asked, *own, *long)))
    replies = _replies(model, template, prompts, length=length)
    return [
        Unrelated(Message(role="user", content=text), kept)
        for text, reply in zip(prompts, replies, strict=True)
        if (kept := _trainable(reply))
    ]


def plain_prose(model: DeltaMemModel, template: ChatTemplate, *, count: int, seed: int, length: int = 128) -> list[str]:
    """Prose of the plain backbone: sampled replies to prompts it makes up itself.

    Args:
        model: the model; its memory is not used.
        template: renders the prompts.
        count: how many are sampled at most; sentences that hold a word kept for testing are left out.
        seed: of the sampling.
        length: tokens a passage; longer ones are cut.
    """
    own = own_prompts(model, template, count=count, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        replies = _replies(model, template, own, length=length, sampled=True)
    sentences = (re.split(r"(?<=[.!?\n])\s+", reply) for reply in replies)
    passages = (" ".join(s for s in parts if not holds_held_out_word(s)).strip() for parts in sentences)
    return [text for text in passages if len(template.tokenizer.encode(text, add_special_tokens=False)) > 1]


def own_prompts(model: DeltaMemModel, template: ChatTemplate, *, count: int, seed: int, length: int = 32) -> list[str]:
    """User messages that the plain backbone makes up, sampled where one would begin (Xu et al., arXiv:2406.08464).

    Args:
        model: the model; its memory is not used.
        template: says where a user message begins.
        count: how many are sampled; those that say nothing, or hold a word kept for testing, are left out.
        seed: of the sampling.
        length: tokens a message; longer ones are cut.
    """
    one, other = (
        [i for segment in template.render([Message(role="user", content=text)]) for i in segment.ids] for text in "a1"
    )
    opening = one[: next(n for n, (i, j) in enumerate(zip(one, other, strict=False)) if i != j)]
    found: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, count, ROWS):
            ids = torch.tensor([opening] * min(ROWS, count - start), device=model.device)
            found += _generate(model, template, ids, torch.ones_like(ids), length=length, sampled=True)
    return [text for text in map(str.strip, found) if text and not holds_held_out_word(text)]


def _trainable(text: str) -> str:
    """A text up to the first word that holds one kept for testing; "" where only blanks are left."""
    kept = " ".join(takewhile(lambda word: not holds_held_out_word(word), text.split(" ")))
    return kept if kept.strip() else ""


def _replies(
    model: DeltaMemModel, template: ChatTemplate, prompts: Sequence[str], *, length: int, sampled: bool = False
) -> list[str]:
    """The plain backbone's replies, prompts of about one length together."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    found: dict[int, str] = {}
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        asked = [[Message(role="user", content=prompts[n])] for n in chosen]
        batch = answer_rows(template, asked, [""] * len(asked), roles=()).to(model.device)
        ids, mask = batch.ids[:, :-1], batch.mask[:, :-1]  # without the end of the empty answer
        found |= zip(chosen, _generate(model, template, ids, mask, length=length, sampled=sampled), strict=True)
    return [found[n] for n in range(len(prompts))]


@torch.no_grad()
def _generate(
    model: DeltaMemModel, template: ChatTemplate, ids: Tensor, mask: Tensor, *, length: int, sampled: bool = False
) -> Sequence[str]:
    tokenizer = template.tokenizer
    choice = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0} if sampled else {"do_sample": False}
    out = model.backbone.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, max_new_tokens=length, pad_token_id=tokenizer.eos_token_id, **choice
    )
    return list(tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))
