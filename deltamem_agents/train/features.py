"""What the frozen backbone makes of token rows: the inputs of its attention modules, computed with little padding."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.attach import find_attention
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.messages import Message
from deltamem_agents.train.runlog import Progress

PADDED_TOKENS = 8192
"""At most so many tokens, padding included, go through the backbone at once."""
WASTE = 1.25
"""Rows are forwarded together while padding them adds no more than a quarter."""

AT_ONCE = 4_000_000_000
"""Bytes of features that are fitted to at once; those of more layers are computed in several passes."""

TokenRow = tuple[int, ...]


def message_tokens(template: ChatTemplate, message: Message) -> TokenRow:
    """A message by itself, with what the template puts around it but before the first one."""
    return tuple(i for s in template.render([message]) if s.message is not None for i in s.ids)


@contextmanager
def recorded_inputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the hidden states that enter each module during forwards inside the block, in call order."""
    inputs: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        inputs.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).detach())

    handles = [m.register_forward_pre_hook(record, with_kwargs=True) for m in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


class Features:
    """Computes features without reads or writes, each distinct row once, and keeps the most recently used ones.

    Args:
        model: its backbone computes them, for the layers of its adapter.
        layers: which of the adapter's layers; None: all.
        budget: bytes of kept features; 0 keeps none. What is kept is in half precision, on first use already. Kept
            features don't depend on who else was in the batch, so a resumed run is the same to tolerance only.
        progress: told how many rows of how many are computed.
    """

    def __init__(
        self,
        model: DeltaMemModel,
        *,
        layers: range | None = None,
        budget: int = 0,
        progress: Progress | None = None,
    ) -> None:
        sites = find_attention(model.backbone)
        self.model = model
        paths = list(model.adapter.paths)
        self.modules = [sites[path].module for path in (paths if layers is None else paths[layers.start : layers.stop])]
        self.budget, self.progress = budget, progress
        self.bytes = 0
        self._kept: OrderedDict[TokenRow, Tensor] = OrderedDict()

    def of(self, rows: Sequence[TokenRow], *, keep: Sequence[slice | Tensor] | None = None) -> list[Tensor]:
        """Features of each row, [tokens, layers, H] in the backbone's dtype.

        Args:
            rows: token ids.
            keep: which positions of each row are wanted; such features aren't cached. None: all.
        """
        if keep is not None:
            return self._compute(rows, keep)
        found = {row: self._kept[row] for row in rows if row in self._kept}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for row, features in zip(missing, self._compute(missing, [slice(None)] * len(missing)), strict=True):
            found[row] = self._remember(row, features)
        for row in rows:
            if row in self._kept:
                self._kept.move_to_end(row)
        return [found[row] for row in rows]

    def _remember(self, row: TokenRow, features: Tensor) -> Tensor:
        if not self.budget:
            return features
        features = features.half() if features.dtype == torch.float32 else features.clone()
        self._kept[row] = features
        self.bytes += features.nbytes
        while self.bytes > self.budget:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return features

    @torch.no_grad()
    def _compute(self, rows: Sequence[TokenRow], keep: Sequence[slice | Tensor]) -> list[Tensor]:
        done: dict[int, Tensor] = {}
        device = self.model.device
        for group in buckets([len(row) for row in rows]):
            parts = [torch.tensor(rows[i]) for i in group]
            ids = pad_sequence(parts, batch_first=True).to(device)
            mask = pad_sequence([torch.ones_like(p) for p in parts], batch_first=True).to(device)
            with recorded_inputs(self.modules) as inputs:
                self.model.backbone(
                    input_ids=ids,
                    attention_mask=mask,
                    use_cache=False,
                    logits_to_keep=torch.tensor([0], device=device),
                )
            for place, i in enumerate(group):
                done[i] = torch.stack([x[place, : len(rows[i])][keep[i]] for x in inputs], 1)
            if self.progress is not None:
                self.progress(len(done), len(rows))
        return [done[i] for i in range(len(rows))]


def layer_groups(model: DeltaMemModel, tokens: int) -> list[range]:
    """The adapter's layers in groups whose kept features, and these once more while they are put together, fit.

    Args:
        model: whose features they are.
        tokens: how many.
    """
    layers = list(model.adapter.layers.values())
    each = 2 * tokens * layers[0].shape.hidden * 2
    size = max(1, AT_ONCE // max(1, each))
    return [range(start, min(start + size, len(layers))) for start in range(0, len(layers), size)]


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Groups rows of similar lengths, so that padding stays below `WASTE` and a group below `PADDED_TOKENS`."""
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups:
            padded = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if padded <= min(PADDED_TOKENS, WASTE * (real + lengths[i])):
                groups[-1].append(i)
                real += lengths[i]
                continue
        groups.append([i])
        real = lengths[i]
    return groups
