"""Prompts that have nothing to do with the memory, and the plain backbone's replies, which must not change."""

import random
from dataclasses import dataclass

import torch

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.train.answers import answer_rows
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.episodes import EpisodeMix
from deltamem_agents.train.talk import SMALL_TALK


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A prompt that has nothing to do with the memory, and the plain backbone's greedy reply."""

    prompt: Message
    reply: str


@torch.no_grad()
def plain_replies(
    model: DeltaMemModel,
    template: ChatTemplate,
    data: TrainingData,
    *,
    seed: int,
    statements: int = 40,
    length: int = 12,
    rows: int = 32,
) -> list[Unrelated]:
    """The plain backbone's greedy replies to small talk and to statements of facts.

    Args:
        model: the model; its memory is not used.
        template: renders the prompts.
        data: makes the statements.
        seed: draws them.
        statements: how many.
        length: tokens a reply.
        rows: how many prompts go through the backbone together.
    """
    rng = random.Random(seed)
    mix = EpisodeMix(open_share=0.3)
    told = [data.generate(mix, rng, split="train").earlier[0].content for _ in range(statements)]
    prompts = [Message(role="user", content=text) for text in (*SMALL_TALK, *told)]
    found: list[Unrelated] = []
    for start in range(0, len(prompts), rows):
        chosen = prompts[start : start + rows]
        batch = answer_rows(template, [[p] for p in chosen], [""] * len(chosen), roles=()).to(model.device)
        ids, mask = batch.ids[:, :-1], batch.mask[:, :-1]  # without the end of the empty answer
        out = model.backbone.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=length,
            pad_token_id=template.tokenizer.eos_token_id,
        )
        replies = template.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        found += [Unrelated(p, r) for p, r in zip(chosen, replies, strict=True) if r.strip()]
    return found
