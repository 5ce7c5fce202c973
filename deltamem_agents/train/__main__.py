"""Trains the default adapter.

python -m deltamem_agents.train runs/default
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from deltamem_agents.backbone.load import BUNDLED, load_backbone
from deltamem_agents.train.recall import RecallTrainer, Recipe


def train(
    output: Annotated[Path, typer.Argument(help="Folder for checkpoint, log and adapter; a run in it is resumed.")],
    model: Annotated[str, typer.Option(help='"bundled", a folder, or a hub id.')] = BUNDLED,
    until: Annotated[int | None, typer.Option(min=1, help="Stop at this step.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and episodes.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="Of the frozen backbone; bfloat16 is faster where the CPU has it.")
    ] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Trains a recall adapter for a frozen model, resuming where a stopped run left off."""
    torch.set_num_threads(threads)
    backbone, tokenizer = load_backbone(model, dtype=getattr(torch, dtype))
    RecallTrainer(Recipe(seed=seed), backbone, tokenizer, output).run(until=until)


if __name__ == "__main__":
    typer.run(train)
