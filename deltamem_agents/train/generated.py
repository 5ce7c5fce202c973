"""What the plain backbone says to prompts, kept on disk: on a CPU it takes minutes, and every run needs the same."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.adapter import backbone_fingerprint
from deltamem_agents.backbone.load import tokenizer_fingerprint
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.train.answers import answer_rows
from deltamem_agents.train.runlog import Progress

ROWS = 32
"""How many texts are generated together."""
VERSION = 1
"""Raise it whenever the same prompts and settings give other texts."""

Prompt = tuple[Message, ...]
"""A conversation that ends with the user; empty: nothing, so that the backbone says what a user would."""


def generate(
    model: DeltaMemModel,
    template: ChatTemplate,
    prompts: Sequence[Prompt],
    *,
    length: int,
    seed: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The plain backbone's replies, made once for a model, its prompts and settings.

    Args:
        model: the model; its memory is not used.
        template: renders the prompts.
        prompts: all conversations, or all empty.
        length: tokens a text at most.
        seed: of sampling; None: greedy.
        cache_dir: where texts are kept; default: the user's cache.
        progress: told how far it is.
    """
    if not prompts:
        return []
    settings = [VERSION, _identity(model, template), [_named(p) for p in prompts], length, seed]
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    folder = user_cache_path("deltamem-agents") if cache_dir is None else cache_dir
    file = folder / "generated" / f"{name}.json"
    found = _read(file, len(prompts))
    if found is None:
        found = _generate(model, template, prompts, length=length, seed=seed, progress=progress)
        with contextlib.suppress(OSError):  # a cache that can't be written costs time, nothing else
            _write(file, found)
    elif progress:
        progress(len(found), len(found))
    return found


def _named(prompt: Prompt) -> str | list[tuple[str, str]] | None:
    """A prompt in a cache's name."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return [(message.role, message.content) for message in prompt] or None


def _identity(model: DeltaMemModel, template: ChatTemplate) -> str:
    """Name, architecture, type and tokenizer of a backbone, and a few of its weights: a fine-tuned one is another."""
    backbone = model.backbone
    weights = hashlib.sha256()
    for weight in backbone.parameters():
        weights.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    name = Path(backbone.config.name_or_path or "?").name
    parts = (name, backbone_fingerprint(backbone), backbone.dtype, tokenizer_fingerprint(template.tokenizer))
    return " ".join((*map(str, parts), weights.hexdigest()[:16]))


def _read(file: Path, count: int) -> list[str] | None:
    """The texts of a file; None where there is none, or one that was cut short."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, list) and len(found) == count and all(isinstance(text, str) for text in found)
    return found if whole else None


def _write(file: Path, texts: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{id(texts):x}")
    beside.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    beside.replace(file)


def _generate(
    model: DeltaMemModel,
    template: ChatTemplate,
    prompts: Sequence[Prompt],
    *,
    length: int,
    seed: int | None,
    progress: Progress | None,
) -> list[str]:
    """Texts, prompts of about one length together."""
    order = sorted(range(len(prompts)), key=lambda n: sum(len(message.content) for message in prompts[n]))
    found: dict[int, str] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        for start in range(0, len(order), ROWS):
            if progress:
                progress(start, len(order))
            chosen = order[start : start + ROWS]
            ids, mask = _rows(model, template, [prompts[n] for n in chosen])
            texts = _continue(model, template, ids, mask, length=length, sampled=seed is not None)
            found |= zip(chosen, texts, strict=True)
    if progress:
        progress(len(order), len(order))
    return [found[n] for n in range(len(prompts))]


def _rows(model: DeltaMemModel, template: ChatTemplate, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts that all are conversations, or all empty."""
    if not any(prompts):
        ids = torch.tensor([_opening(template)] * len(prompts), device=model.device)
        return ids, torch.ones_like(ids)
    batch = answer_rows(template, prompts, [""] * len(prompts), roles=())
    batch = batch.to(model.device)
    return batch.ids[:, :-1], batch.mask[:, :-1]  # without the end of the empty answer


def _opening(template: ChatTemplate) -> list[int]:
    """What stands before a user's first word."""
    one, other = (
        [i for segment in template.render([Message(role="user", content=text)]) for i in segment.ids] for text in "a1"
    )
    return one[: next(n for n, (i, j) in enumerate(zip(one, other, strict=False)) if i != j)]


@torch.no_grad()
def _continue(
    model: DeltaMemModel, template: ChatTemplate, ids: Tensor, mask: Tensor, *, length: int, sampled: bool
) -> Sequence[str]:
    tokenizer = template.tokenizer
    choice = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0} if sampled else {"do_sample": False}
    out = model.backbone.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, max_new_tokens=length, pad_token_id=tokenizer.eos_token_id, **choice
    )
    return list(tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))
