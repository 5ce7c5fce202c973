"""Which tokens a state holds, noted where they are written: inside the forward of the last memory layer.

The first layer sees tokens without what stands before them, and a random one can forget: two histories that end in the
same sixty tokens then leave the same state there, to the bit.
"""

from typing import Self

import torch
from torch import Tensor, nn

from deltamem_agents import DeltaMemModel, MemoryState


class WrittenTokens:
    """Follows states through every forward of a model: what was written into each, from an empty memory on."""

    def __init__(self, model: DeltaMemModel) -> None:
        self.model = model
        self.layer = list(model.adapter.layers.values())[-1]
        zero = model.zero_state().tensor[0, -1]
        self._tokens: dict[bytes, list[int]] = {_key(zero): []}
        self._ids = torch.zeros(0)

    def __enter__(self) -> Self:
        self._hooks = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.layer.register_forward_hook(self._written, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def behind(self, state: MemoryState) -> list[int]:
        """The tokens that were written on the way to this state, in order."""
        return self._tokens[_key(state.tensor[0, -1])]

    def start_from(self, state: MemoryState, tokens: list[int]) -> None:
        """Takes a state as known."""
        self._tokens[_key(state.tensor[0, -1])] = tokens

    def _before(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self._ids = args[0] if args else kwargs["input_ids"]

    def _written(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object], out: tuple[Tensor, Tensor]
    ) -> None:
        write, spans = kwargs["write"], kwargs["spans"]
        mask = write if isinstance(write, Tensor) else torch.full(self._ids.shape, bool(write))
        if isinstance(spans, Tensor):
            mask = mask & (spans >= 0)
        for ids, on, before, after in zip(self._ids, mask, args[1], out[1], strict=True):
            if on.any():
                self._tokens[_key(after)] = [*self._tokens[_key(before)], *ids[on].tolist()]


def _key(state: Tensor) -> bytes:
    return state.detach().cpu().contiguous().numpy().tobytes()
