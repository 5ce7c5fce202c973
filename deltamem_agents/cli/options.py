"""Options that several commands take."""

from typing import Annotated

import typer

ModelOption = Annotated[str, typer.Option("--model", help='"bundled", a folder, or a hub id of a causal LM.')]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", help="Folder or hub id of an adapter. Default: the one that ships for the model."),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="SQLite file or database URL. Default: sessions.db in your data folder."),
]
