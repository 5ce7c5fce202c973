"""llama.cpp beside this package: all sessions in one batch, through the low-level API of llama-cpp-python."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deltamem_agents.bench.peer import Decode, Prompts, Start
from deltamem_agents.errors import BackboneError, GenerationError

INSTALL = "pip install llama-cpp-python (builds it: takes a C++ compiler and some minutes)"

ROOM = 256
"""llama.cpp gives each session a multiple of so many tokens."""


def llama_cpp_available() -> bool:
    """Whether llama-cpp-python is installed."""
    return find_spec("llama_cpp") is not None


@contextmanager
def llama_cpp_peer(path: Path, *, length: int, threads: int) -> Iterator[Start]:
    """A GGUF file in llama.cpp, on the CPU, keys and values in float32.

    A context is made for each number of sessions when it first comes up, and kept; each start empties it.

    Args:
        path: the GGUF file.
        length: tokens of a session at most, prompt and what is decoded together.
        threads: of the CPU.

    Raises:
        BackboneError: the file cannot be loaded.
    """
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # else it tells on stderr of every tensor
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise BackboneError(f"llama.cpp {llama_cpp.__version__} cannot load {path}; what it says is above")
    contexts: dict[int, Any] = {}

    def start(prompts: Prompts) -> Decode:
        count = len(prompts)
        if count not in contexts:
            contexts[count] = _context(model, sessions=count, length=length, threads=threads)
        context = contexts[count]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        ends = [len(prompt) for prompt in prompts]
        chosen = _step(context, prompts, [0] * count, vocabulary)

        def decode(tokens: int) -> list[int]:
            nonlocal chosen
            for _ in range(tokens):
                chosen = _step(context, [[token] for token in chosen], ends, vocabulary)
                for session in range(count):
                    ends[session] += 1
            return chosen

        return decode

    try:
        yield start
    finally:
        for context in contexts.values():
            llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _context(model: Any, *, sessions: int, length: int, threads: int) -> Any:
    """Room for so many sessions of that length; nothing is shared between them."""
    import llama_cpp

    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = sessions * (-(-length // ROOM) * ROOM)
    options.n_seq_max = sessions
    options.n_threads = options.n_threads_batch = threads
    options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise BackboneError(
            f"llama.cpp {llama_cpp.__version__} makes no context for {sessions} sessions of {length} tokens; "
            "what it says is above"
        )
    return context


def _step(context: Any, fed: Prompts, starts: Sequence[int], vocabulary: int) -> list[int]:
    """One forward over what is fed to each session, at its place; the likeliest token behind each."""
    import llama_cpp

    total = sum(len(ids) for ids in fed)
    batch, place, lasts = llama_cpp.llama_batch_init(total, 0, 1), 0, []
    try:
        for session, (ids, first) in enumerate(zip(fed, starts, strict=True)):
            for position, token in enumerate(ids, first):
                batch.token[place], batch.pos[place], batch.logits[place] = token, position, False
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, session
                place += 1
            batch.logits[place - 1] = True
            lasts.append(place - 1)
        batch.n_tokens = total
        code = llama_cpp.llama_decode(context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)
    if code != 0:
        raise GenerationError(f"llama.cpp's decode of {total} tokens returned {code}, expected 0; shorten the prompts")
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, last), (vocabulary,)) for last in lasts]
    return [int(row.argmax()) for row in rows]
