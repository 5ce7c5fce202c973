"""`deltamem evaluate`: whether the memory remembers, with controls beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deltamem_agents.cli.console import err, note
from deltamem_agents.cli.loading import BUNDLED, json_object, load_engine
from deltamem_agents.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    ModelKwargsOption,
    ModelOption,
    StoreOption,
    WeightsOption,
)
from deltamem_agents.errors import ConfigError

if TYPE_CHECKING:
    from deltamem_agents.evaluate import RecallReport
    from deltamem_agents.evaluate.harness import HarnessReport
    from deltamem_agents.evaluate.suites import SuiteReport

COLUMNS = (BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn)


class Loading(TypedDict):
    """How a model is loaded."""

    device: str | None
    dtype: str
    model_kwargs: str
    weights: str


app = typer.Typer(no_args_is_help=True, help="Evaluate a model and its adapter.")


@app.command()
def recall(
    rows: Annotated[
        str | None, typer.Option(help='Rows of the table, separated by commas, or "all". Default: all, or your --file.')
    ] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes of each kind and seed.")] = 200,
    seeds: Annotated[str, typer.Option(help="Each draws its own episodes; separated by commas.")] = "0",
    data: Annotated[
        Path | None, typer.Option(help="Folder with train/banking77 in it, for label maps. Default: built-in texts.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text for the perplexity. Default: a built-in one.")] = None,
    file: Annotated[Path | None, typer.Option(help='Episodes of your own, a .jsonl file: the row "file".')] = None,
    seen: Annotated[
        bool, typer.Option("--seen", help="The file's values may be among those that training has seen.")
    ] = False,
    trained_on: Annotated[
        list[Path] | None, typer.Option(help="Episodes that the adapter was trained on; may be given several times.")
    ] = None,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    model_kwargs: ModelKwargsOption = "{}",
    weights: WeightsOption = "full",
    output: Annotated[
        Path | None, typer.Option(help="Also write every answer to this .json file, and the table to a .md beside it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")] = None,
) -> None:
    """Tell facts, then ask for them with nothing in the prompt: the state alone must know.

    Rows: facts-1, facts-4, facts-8, window-1, window-4, talk-256, talk-1024, unseen-words-1, unseen-words-4,
    unseen-attributes, sentences, people, updated, untold, listed, labels, live-turns, perplexity, plain-talk,
    plain-questions; and file, with --file.
    """
    chosen = _numbers(seeds)
    loaded = load_engine(
        model, adapter=adapter, store=":memory:", device=device, dtype=dtype, model_kwargs=model_kwargs,
        weights=weights,
    )
    with loaded as engine:
        import torch

        from deltamem_agents.evaluate import ROWS, evaluate_recall

        if threads is not None:
            torch.set_num_threads(threads)
        chosen_rows = rows or ("all" if file is None else "file")
        names = list(ROWS) if chosen_rows == "all" else [name.strip() for name in chosen_rows.split(",")]
        with _bar() as bar:
            tasks = {name: bar.add_task(name, total=None, start=False, visible=False) for name in names}

            def progress(name: str, done: int, total: int) -> None:
                if not done:
                    bar.start_task(tasks[name])
                bar.update(tasks[name], completed=done, total=total, visible=True)

            def finished(report: "RecallReport") -> None:
                if output is not None:
                    _write(report, output)

            report = evaluate_recall(
                engine,
                rows=names,
                episodes=episodes,
                seeds=chosen,
                data=data,
                text=text,
                file=file,
                seen=seen,
                trained_on=trained_on or (),
                progress=progress,
                finished=finished,
            )
    typer.echo(report.render())
    if output is not None:
        note(f"written: {output} and {output.with_suffix('.md')}")


@app.command()
def harness(
    tasks: Annotated[str, typer.Option(help="Tasks, groups or tags, separated by commas: see `lm_eval ls tasks`.")],
    memory: Annotated[
        str, typer.Option(help="none, empty, full (told facts and talk), or the name of a session in the store.")
    ] = "full",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents of each task.")] = None,
    max_gen_toks: Annotated[
        int | None, typer.Option(min=1, help="At most so many tokens of a reply. Default: as each task says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that run together.")] = 1,
    chat_template: Annotated[bool, typer.Option(help="Put prompts through the model's chat template.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="IFEval's input_data.jsonl, or a folder above it. Default: the hub's copy.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of more tasks, as YAML files.")] = None,
    metadata: Annotated[
        str, typer.Option(help='For tasks that make their data, as JSON: {"max_seq_lengths": [4096]} for RULER.')
    ] = "{}",
    seed: Annotated[int, typer.Option(help="Draws what a full memory is told.")] = 0,
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    model_kwargs: ModelKwargsOption = "{}",
    weights: WeightsOption = "full",
    store: StoreOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write every reply to this .json file, and the table to a .md beside it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")] = None,
) -> None:
    """Run lm-evaluation-harness' tasks on the frozen model, and again while it reads a memory: the difference is harm.

    Data come from the Hugging Face hub, as the harness gets them. Needs the extra "harness".
    """
    about = json_object(metadata, option="--metadata", example='{"max_seq_lengths": [4096]}')
    from deltamem_agents.evaluate.harness import MEMORIES, evaluate_harness, require_harness  # here: transformers

    require_harness()
    where = ":memory:" if memory in MEMORIES else store
    loading = Loading(device=device, dtype=dtype, model_kwargs=model_kwargs, weights=weights)
    loaded = load_engine(model, adapter=adapter, store=where, **loading)
    with loaded as engine:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        report = evaluate_harness(
            engine,
            [name.strip() for name in tasks.split(",")],
            memory=memory,
            limit=limit,
            max_gen_toks=max_gen_toks,
            batch_size=batch_size,
            chat_template=chat_template,
            data=data,
            include_path=include_path,
            metadata=about,
            seed=seed,
        )
    typer.echo(report.render())
    if output is not None:
        _write(report, output)
        note(f"written: {output} and {output.with_suffix('.md')}")


def _suite(name: str, about: str) -> Callable[..., None]:
    """The command of one suite; all take the same options."""

    def command(
        data: Annotated[
            Path | None, typer.Option(help="The benchmark's files, or a folder above them. Nothing is bundled.")
        ] = None,
        budgets: Annotated[
            str, typer.Option(help="Tokens of the conversation that may be visible; separated by commas.")
        ] = "128,256,512,1024",
        conditions: Annotated[str, typer.Option(help='Conditions, separated by commas, or "all".')] = "all",
        conversations: Annotated[int | None, typer.Option(min=1, help="At most so many, a seeded choice.")] = None,
        questions: Annotated[
            int | None, typer.Option(min=1, help="At most so many of each conversation, a seeded choice.")
        ] = None,
        seed: Annotated[int, typer.Option(help="Draws what is drawn.")] = 0,
        model: ModelOption = BUNDLED,
        adapter: AdapterOption = None,
        device: DeviceOption = None,
        dtype: DtypeOption = "auto",
        model_kwargs: ModelKwargsOption = "{}",
        weights: WeightsOption = "full",
        output: Annotated[
            Path | None,
            typer.Option(help="Folder for every answer, the tables and the memories; a run that was stopped goes on."),
        ] = None,
        threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")] = None,
    ) -> None:
        """Set below."""
        _run_suite(
            name,
            data=data,
            budgets=_numbers(budgets, what="budgets"),
            conditions=conditions,
            conversations=conversations,
            questions=questions,
            seed=seed,
            model=model,
            adapter=adapter,
            loading=Loading(device=device, dtype=dtype, model_kwargs=model_kwargs, weights=weights),
            output=output,
            threads=threads,
        )

    command.__doc__ = f"""{about}

    Every question is asked under every condition: none, window, bm25, summary, evidence, full (the frozen model);
    state, state+window, state+bm25 (δ-mem); and the controls zero, shuffled, swapped, swapped+window, swapped+bm25.
    """
    return command


for _name, _about in {
    "babi": "bAbI: the last question of each story.",
    "facts": "Fact consolidation: some facts are told anew with another value.",
    "intents": "Test-time learning: labels without a meaning, from examples.",
    "locomo": "LoCoMo: months of talk, scored as its authors do.",
    "memorybank": "MemoryBank: how close the answers come to those with the full history.",
    "xquad": "XQuAD in English: reading paragraphs.",
}.items():
    app.command(_name)(_suite(_name, _about))


def _run_suite(
    name: str,
    *,
    data: Path | None,
    budgets: list[int],
    conditions: str,
    conversations: int | None,
    questions: int | None,
    seed: int,
    model: str,
    adapter: str | None,
    loading: Loading,
    output: Path | None,
    threads: int | None,
) -> None:
    """Runs a suite and shows its tables."""
    from deltamem_agents.evaluate.suites.loading import load_suite  # here: it imports transformers

    whole = load_suite(name, data, seed=seed)
    if output is not None:
        _make_folder(output)
    store = ":memory:" if output is None else str(output / "memory.db")
    with load_engine(model, adapter=adapter, store=store, recent_messages=0, **loading) as engine:
        import torch

        from deltamem_agents.evaluate.suites import CONDITIONS, evaluate_suite, limited

        if threads is not None:
            torch.set_num_threads(threads)
        with _bar() as bar:
            task = bar.add_task(name, total=None)
            report = evaluate_suite(
                engine,
                limited(whole, conversations=conversations, questions=questions, seed=seed),
                conditions=list(CONDITIONS) if conditions == "all" else [c.strip() for c in conditions.split(",")],
                budgets=budgets,
                seed=seed,
                limits=_limits(conversations, questions, seed),
                output=output,
                progress=lambda talk, done, total: bar.update(
                    task, description=f"{name}: {talk}", completed=done, total=total
                ),
            )
    typer.echo(report.render())
    if output is not None:
        _write(report, output / "report.json")
        note(f"written: {output}/report.json, report.md, records.jsonl")


def _limits(conversations: int | None, questions: int | None, seed: int) -> str:
    """How a run was limited, for its report."""
    if conversations is None and questions is None:
        return "all"
    most = "all conversations" if conversations is None else f"at most {conversations} conversations"
    each = "all their questions" if questions is None else f"at most {questions} questions of each"
    return f"{most}, {each}, chosen with seed {seed}"


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), *(column() for column in COLUMNS), console=err)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {path} cannot be made ({error}): choose another --output") from error


def _numbers(text: str, *, what: str = "seeds") -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{what} are {text!r}, expected whole numbers with commas, as in 0,1,2") from error


def _write(report: "RecallReport | SuiteReport | HarnessReport", output: Path) -> None:
    """Writes what is known so far: a run that is stopped has left its finished rows."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(report.render() + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the results cannot be written to {output}: {error}; choose another --output") from error
