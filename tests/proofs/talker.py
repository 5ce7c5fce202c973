"""Conversations in processes of their own, which note what they do as they do it: they are there to be killed.

Run as a module, this loads the bundled model once, with one thread, and forks a process for each task on stdin. Such a
process begins with the weights and with nothing of a session: no engine, no KV cache, no open store.
"""

import json
import os
import sys
import time
import traceback
from typing import TypedDict

import torch
from transformers import PreTrainedTokenizerBase

from deltamem_agents import DeltaMemAdapter, DeltaMemEngine, DeltaMemModel, SQLStore
from deltamem_agents.adapter.default import default_adapter_path
from deltamem_agents.backbone.load import load_backbone

SESSION = "nora"
REPLY_TOKENS = 8
PAUSE = 0.25
"""Between a reply and the next message, in parts of what the turn took; people take longer."""
LINGER = 600.0


class Task(TypedDict):
    """What a process does before it ends."""

    store: str
    recent_messages: int
    history: list[dict[str, str]]
    """What the caller has, replies included."""
    said: list[dict[str, str]]
    """The user messages to come, one a turn; each turn sends the whole history."""
    linger: bool
    """Whether to stay until killed, so that a kill always meets this very process."""


class NotedStore(SQLStore):
    """Notes where each commit begins and ends."""

    def commit(self, *args: object, **kwargs: object) -> None:
        note("commit")
        super().commit(*args, **kwargs)  # type: ignore[arg-type]
        note("committed")


def note(what: str, **more: object) -> None:
    """A line for whoever watches; one small write, so that it is whole or not there."""
    line = json.dumps({"what": what, "at": time.monotonic(), **more}) + "\n"
    os.write(1, line.encode())


def talk(model: DeltaMemModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """One process's part of a conversation."""
    note("start", pid=os.getpid())
    history = list(task["history"])
    store, recent = NotedStore(task["store"]), task["recent_messages"]
    with DeltaMemEngine(model, tokenizer, store=store, recent_messages=recent) as engine:
        for message in task["said"]:
            note("turn")
            begun = time.monotonic()
            history.append(message)
            streaming = False
            for item in engine.stream(history, session=SESSION, max_new_tokens=REPLY_TOKENS):
                if not isinstance(item, str):
                    reply = item.reply.model_dump()
                elif not streaming:
                    streaming = True
                    note("text")
            history.append(reply)
            note("reply", reply=reply)
            time.sleep(PAUSE * (time.monotonic() - begun))
        if task["linger"]:
            time.sleep(LINGER)


def serve() -> None:
    """Forks a process for each line on stdin, one at a time, and notes its end."""
    torch.set_num_threads(1)  # a pool of threads would not live on in a fork
    backbone, tokenizer = load_backbone("bundled")
    model = DeltaMemModel(backbone, DeltaMemAdapter.from_pretrained(default_adapter_path("bundled")))
    with torch.inference_mode():  # what compiles at first use does so once
        out = model(torch.tensor([[1, 2, 3, 4]]), logits_to_keep=1)
        after = {"past_key_values": out.past_key_values, "state": out.state, "carry": out.carry}
        model(torch.tensor([[5]]), write=False, **after)
    note("ready")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                talk(model, tokenizer, json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(pid, 0)
        note("gone", status=os.waitstatus_to_exitcode(ended))


if __name__ == "__main__":
    serve()
