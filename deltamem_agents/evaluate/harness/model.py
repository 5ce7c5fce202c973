"""The harness' own Hugging Face model, whose forwards read a memory. Importing this needs lm_eval."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.attach import PASS_KEY, MemoryPass
from deltamem_agents.errors import StateError
from deltamem_agents.state import MemoryState


class DeltaMemLM(HFLM):  # type: ignore[misc] # its types are not looked at
    """A backbone as `lm_eval` runs it, reading one memory: give it to `lm_eval.simple_evaluate(model=…)`.

    Prompts, batches, generation and scores are the harness' own, with a memory and without. Every request starts from
    the same state, and nothing is written, neither into a store nor in flight.

    Args:
        model: a backbone with its adapter attached; nothing else may run on it during an evaluation.
        tokenizer: the backbone's tokenizer.
        state: the memory, of one row; None: the backbone alone, without a memory.
        batch_size: how many requests run together.

    Raises:
        StateError: the state has several rows, or belongs to another adapter.
    """

    def __init__(
        self,
        model: DeltaMemModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        state: MemoryState | None = None,
        batch_size: int = 1,
    ) -> None:
        if state is not None:
            state = state.to(model.device)
            if len(state) != 1:
                raise StateError(f"the memory has {len(state)} rows, expected one: every request reads the same")
            with torch.no_grad():  # whatever is wrong with this state for this model shows here
                model(torch.zeros(1, 1, dtype=torch.long, device=model.device), state=state, write=False)
        # a copy of the tokenizer: the harness sets its padding
        super().__init__(pretrained=model.backbone, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        self._memory = nullcontext if state is None else lambda: reading(model, state)

    def _model_call(self, *args: object, **options: object) -> Tensor:
        with self._memory():
            logits: Tensor = super()._model_call(*args, **options)
        return logits

    def _model_generate(self, *args: object, **options: object) -> Tensor:
        with self._memory():
            tokens: Tensor = super()._model_generate(*args, **options)
        return tokens


@contextmanager
def reading(model: DeltaMemModel, state: MemoryState) -> Iterator[None]:
    """Inside, each forward of the backbone, whoever calls it, reads this memory in all of its rows and writes nothing.

    Args:
        model: the model; its backbone's own `generate` reads the memory too.
        state: the memory, of one row, on the model's device.
    """
    layers = state.tensor.shape[1]

    def bind(
        backbone: nn.Module, args: tuple[object, ...], options: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        ids = options.get("input_ids", args[0] if args else None)
        assert isinstance(ids, Tensor), "the harness gives token ids"
        rows = state.tensor.expand(len(ids), -1, -1, -1, -1).contiguous()
        bound = MemoryPass(rows, write=False, spans=None, needs_grad=torch.is_grad_enabled(), new=[None] * layers)
        return args, {**options, PASS_KEY: bound}

    hook = model.backbone.register_forward_pre_hook(bind, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
