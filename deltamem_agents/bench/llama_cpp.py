"""llama.cpp as a peer: sessions as sequences of one context, decoded together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltamem_agents.errors import BackboneError


class LlamaCpp:
    """One model in llama.cpp, by its C functions: what is above them holds one sequence only.

    Args:
        path: a GGUF file.
        sessions: how many sequences there are, at most.
        room: tokens of each, at most.
        threads: how many compute.

    Raises:
        BackboneError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, sessions: int, room: int, threads: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._silent = self._api.llama_log_callback(lambda *_: None)  # kept: C calls it
        self._api.llama_log_set(self._silent, None)
        self._api.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise BackboneError(f"llama.cpp cannot load {path}: expected a GGUF file of the model that is measured")
        settings = self._api.llama_context_default_params()
        settings.n_ctx = sessions * max(room, 256)
        settings.n_batch = sessions * room
        settings.n_seq_max = sessions
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise BackboneError(f"llama.cpp makes no context of {settings.n_ctx} tokens for {path}: ask for fewer")
        self._vocabulary = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))

    def start(self, prompts: Sequence[Sequence[int]]) -> Callable[[int], list[int]]:
        """Feeds prompts into empty sequences; gives what decodes so many tokens of each, and says their last ones."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        chosen = self._feed(prompts, [0] * len(prompts))
        lengths = [len(prompt) for prompt in prompts]

        def decode(count: int) -> list[int]:
            nonlocal chosen
            for _ in range(count):
                chosen = self._feed([[token] for token in chosen], lengths)
                for row in range(len(lengths)):
                    lengths[row] += 1
            return chosen

        return decode

    def _feed(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int]:
        """Tokens of each sequence from its place on; the most probable next ones."""
        batch = self._api.llama_batch_init(sum(map(len, rows)), 0, 1)
        lasts, at = list[int](), 0
        for sequence, (row, start) in enumerate(zip(rows, starts, strict=True)):
            for place, token in enumerate(row):
                batch.token[at], batch.pos[at] = token, start + place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = place == len(row) - 1
                at += 1
            lasts.append(at - 1)
        batch.n_tokens = at
        failed = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed} for {at} tokens of {len(rows)} sequences")
        shape = (self._vocabulary,)
        found = (self._api.llama_get_logits_ith(self._context, last) for last in lasts)
        return [int(np.ctypeslib.as_array(logits, shape=shape).argmax()) for logits in found]
