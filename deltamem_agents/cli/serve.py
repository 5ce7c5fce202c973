"""`deltamem serve`: one model for many users, over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_agents.cli.loading import BUNDLED, load_engine
from deltamem_agents.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    ModelKwargsOption,
    ModelOption,
    StoreOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.serve.service import Service


def serve(
    model: ModelOption = BUNDLED,
    adapter: AdapterOption = None,
    store: StoreOption = None,
    recent_messages: Annotated[int, typer.Option(min=0, help="How many recent messages are also in prompts.")] = 8,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free.")] = 8080,
    api_keys: Annotated[
        Path | None, typer.Option(help="A file of lines `key namespace`; read again on SIGHUP.", show_default=False)
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Listen to other machines without asking for keys.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What clients call the model. Default: its own name.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Turns that decode together, at most.")] = 16,
    prefill_chunk: Annotated[
        int, typer.Option(min=1, help="Tokens of prompts that are fed between two tokens of those that decode.")
    ] = 128,
    max_queue: Annotated[int, typer.Option(min=0, help="Calls that may wait; more are answered 429.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply where a request doesn't say.")] = 512,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    model_kwargs: ModelKwargsOption = "{}",
    weights: WeightsOption = "full",
    drain_timeout: Annotated[float, typer.Option(min=0, help="Seconds that what runs has left after SIGTERM.")] = 30.0,
) -> None:
    """Serve a model and its memories in the shape of OpenAI's API: chat, responses, sessions, figures."""
    from deltamem_agents.serve import ServeConfig
    from deltamem_agents.serve import serve as run

    config = ServeConfig(
        model_id=name or Path(model).name,
        max_batch=max_batch,
        max_queue=max_queue,
        max_new_tokens=max_new_tokens,
        drain_timeout=drain_timeout,
    )

    def load(service: "Service") -> "DeltaMemEngine":
        from deltamem_agents.store import open_store

        timed = service.metrics.timed(open_store(store))
        return load_engine(
            model,
            adapter=adapter,
            store=timed,
            recent_messages=recent_messages,
            max_batch=max_batch,
            prefill_chunk=prefill_chunk,
            device=device,
            dtype=dtype,
            model_kwargs=model_kwargs,
            weights=weights,
            spinner=False,
        )

    run(load, config, host=host, port=port, api_keys=api_keys, allow_anyone=allow_anyone)
