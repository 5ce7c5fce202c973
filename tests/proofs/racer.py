"""One of several processes that talk in one session at once: it says its things as soon as stdin says so."""

import json
import sys

import torch

from deltamem_agents import ConflictError, DeltaMemEngine, SQLStore

SESSION = "shared"


class CountingStore(SQLStore):
    """Counts the races that it lost."""

    conflicts = 0

    def commit(self, *args: object, **kwargs: object) -> None:
        try:
            super().commit(*args, **kwargs)  # type: ignore[arg-type]
        except ConflictError:
            self.conflicts += 1
            raise


def race(
    model: str, adapter: str | None, store: str, name: str, turns: int, recent: int, tokens: int, own_thread: bool
) -> None:
    """Sends only what is new; or, in a thread of its own, the whole history that this process has seen."""
    torch.set_num_threads(1)
    opened = CountingStore(store, timeout=60)
    with DeltaMemEngine.from_pretrained(model, adapter=adapter, store=opened, recent_messages=recent) as engine:
        warm_up = [{"role": "user", "content": "What compiles at first use does so now."}]
        engine.generate(warm_up, session=SESSION, memory="read", max_new_tokens=2)
        print("ready", flush=True)
        sys.stdin.readline()
        said, history = [], list[dict[str, object]]()
        for number in range(turns):
            message = {"role": "user", "content": f"{name} says {number}.", "id": f"{name}-{number}"}
            sent = [*history, message] if own_thread else [message]
            thread = name if own_thread else None
            turn = engine.generate(sent, session=SESSION, thread=thread, max_new_tokens=tokens)
            messages = [message, turn.reply.model_dump()]
            history += messages
            said.append({"snapshot": turn.snapshot, "messages": messages})
    print(json.dumps({"said": said, "conflicts": opened.conflicts}), flush=True)


if __name__ == "__main__":
    race(*json.loads(sys.argv[1]))
