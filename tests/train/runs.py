"""Short runs, and what they leave."""

import json
from collections.abc import Callable

from deltamem_agents.train import Record, Trainer

Make = Callable[..., Trainer]


def log_of(trainer: Trainer) -> list[Record]:
    records = [json.loads(line) for line in (trainer.output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]
