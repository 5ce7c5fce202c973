"""`deltamem train`: an adapter for any backbone, by a recipe."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deltamem_agents.cli.console import err, note

FIGURES = ("loss", "recall", "recall_swapped", "beta_facts", "beta_talk")


def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or one that ships: default, distance, harmless, example, ablation.")
    ],
    output: Annotated[
        Path, typer.Option(help="Folder for checkpoint, log and adapter; a run in it is resumed.")
    ] = Path("runs/adapter"),
    model: Annotated[str | None, typer.Option(help="Takes the place of the recipe's model.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help='As in --set "adapter.delta_heads=[o]"; may be repeated.'),
    ] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Stop when this many steps are done.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")] = None,
) -> None:
    """Train an adapter, resuming where a stopped run left off. Start it with `accelerate launch` on several GPUs."""
    import torch
    from accelerate import Accelerator
    from transformers.utils import logging

    from deltamem_agents.backbone.load import load_backbone
    from deltamem_agents.train import Recipe, Record, Trainer
    from deltamem_agents.train.machine import keep_freed_memory, training_dtype

    keep_freed_memory()
    loaded = Recipe.load(recipe, model=model, changes=change or ())
    if threads is not None:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    accelerator = Accelerator()
    backbone, tokenizer = load_backbone(
        loaded.model, device=accelerator.device, dtype=training_dtype(loaded.dtype, accelerator.device)
    )
    trainer = Trainer(loaded, backbone, tokenizer, output, accelerator=accelerator)
    if trainer.step:
        note(f"going on from step {trainer.step} in {output}")
    columns = [TextColumn("stage {task.fields[stage]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    shown: Record = {}
    with Progress(
        *columns, TextColumn("{task.fields[figures]}"), console=err, disable=not accelerator.is_main_process
    ) as bar:
        task = bar.add_task("train", total=loaded.steps, stage=trainer.stage + 1, figures="")
        bar.update(task, completed=trainer.position)

        def show(record: Record) -> None:
            shown.update({name: record[name] for name in FIGURES if name in record})
            figures = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items())
            bar.update(task, completed=trainer.position, stage=trainer.stage + 1, figures=figures)

        try:
            found = trainer.run(until=until, progress=show)
        except KeyboardInterrupt:
            note(f"stopped; the same command goes on from the last checkpoint in {output}")
            raise typer.Exit(130) from None
    if accelerator.is_main_process:
        for name in (n for n in found if f"{n}_swapped" in found):
            note(f"{name}: own memory {found[name]:.1%}, another's {found[f'{name}_swapped']:.1%}")
        typer.echo(output / "adapter")
