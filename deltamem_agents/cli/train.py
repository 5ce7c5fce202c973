"""`deltamem train`: an adapter for any backbone, by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.console import err, note
from deltamem_agents.cli.progress import Shown, StepLine
from deltamem_agents.cli.stopping import Stopping

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from deltamem_agents.train import Recipe, Record, Trainer


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or one that ships: default, distance, harmless, example, ablation."),
    ] = None,
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
    dry_run: Annotated[bool, typer.Option(help="Check recipe and data, compute the memory it takes, and end.")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="List all fields of a recipe, and end.")] = False,
) -> None:
    """Train an adapter, resuming where a stopped run left off. Start it with `accelerate launch` on several GPUs."""
    from deltamem_agents.train.fields import reference
    from deltamem_agents.train.recipe import Recipe

    if fields:
        typer.echo(reference(Recipe))
        return
    if recipe is None:
        raise typer.BadParameter("name one: a YAML file, or one that ships, such as example", param_hint="RECIPE")
    loaded = Recipe.load(recipe, model=model, changes=change or ())
    import torch
    from accelerate import Accelerator
    from transformers.utils import logging

    from deltamem_agents.train.machine import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    accelerator = Accelerator()
    if dry_run:
        _plan(loaded, accelerator.device)
        return
    err.quiet = not accelerator.is_main_process
    with Stopping(listens=accelerator.num_processes == 1) as stopping:
        try:
            trainer = _trainer(loaded, output, accelerator)
            for said in trainer.notes:
                note(said)
            found = _run(trainer, until, stopping)
        except KeyboardInterrupt:
            note(_stopped_at_once(output, in_a_step=stopping.gently))
            raise typer.Exit(stopping.exit_code) from None
    if not trainer.done(until):
        note(f"stopped at step {trainer.step}; the same command goes on from there")
        raise typer.Exit(stopping.exit_code)
    if accelerator.is_main_process:
        from deltamem_agents.train.card import scores

        for name, own, other in scores(found):
            note(f"{name}: own memory {own}, another's {other}")
        typer.echo(output / "adapter")


def _trainer(recipe: "Recipe", output: Path, accelerator: "Accelerator") -> "Trainer":
    """Loads the model, and shows how far state heads are fitted to it."""
    from deltamem_agents.train import Trainer
    from deltamem_agents.train.backbone import recipe_backbone

    backbone, tokenizer = recipe_backbone(recipe, accelerator.device)
    with Shown(err) as shown:
        return Trainer(
            recipe,
            backbone,
            tokenizer,
            output,
            accelerator=accelerator,
            progress=lambda done, of: shown.show(f"fitting state heads to the model: {done} of {of}"),
        )


def _stopped_at_once(output: Path, *, in_a_step: bool) -> str:
    """What a run that was ended where it stood leaves."""
    kept = (output / "checkpoint.pt").exists() or (output / "adapter").exists()
    place = "in the middle of a step" if in_a_step else "before another step" if kept else "before the first step"
    way_on = f"goes on from what is kept in {output}" if kept else "begins anew"
    return f"stopped {place}: the same command {way_on}"


def _run(trainer: "Trainer", until: int | None, stopping: Stopping) -> "Record":
    """Trains, and shows how far it is."""
    stages = trainer.recipe.stages
    with Shown(err) as shown:
        trainer.prepare(lambda done, of: shown.show(f"the plain model's own replies, kept on disk: {done} of {of}"))
        line = StepLine(stages=len(stages))

        def show(record: "Record") -> None:
            total = trainer.step + trainer.recipe.steps - trainer.position
            shown.show(line.after(record, total=total if until is None else min(total, until)), keep="recall" in record)

        stopping.gently = True
        return trainer.run(until=until, progress=show, stopping=stopping.asked)


def _plan(recipe: "Recipe", device: "torch.device") -> None:
    """Says what a run would do, and the memory it would take."""
    from deltamem_agents.backbone.template import ChatTemplate
    from deltamem_agents.train.backbone import recipe_shapes
    from deltamem_agents.train.data import TrainingData
    from deltamem_agents.train.facts import Values, training_vocabulary
    from deltamem_agents.train.footprint import footprint
    from deltamem_agents.train.machine import training_dtype

    config, tokenizer = recipe_shapes(recipe)
    template, data = ChatTemplate(tokenizer), TrainingData.load(recipe.data, Values(training_vocabulary(tokenizer)))
    for number, stage in enumerate(recipe.stages):
        typer.echo(f"stage {number + 1}: {stage.steps} steps of {recipe.rows * recipe.accumulate} answers")
    for found in data.found:
        typer.echo(found)
    dtype = training_dtype(recipe.dtype, device)
    needs = footprint(recipe, config, dtype, template, data)
    type_name = str(dtype).removeprefix("torch.")
    typer.echo(f"memory, computed for {type_name}, not measured (a GPU's driver takes 1 GB more):")
    for name, size in needs.rows(checkpointing=recipe.gradient_checkpointing).items():
        typer.echo(f"  {name:<50} {size / 1e9:6.2f} GB")
