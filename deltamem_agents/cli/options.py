"""Options that several commands take."""

from typing import Annotated

import typer

ModelOption = Annotated[str, typer.Option("--model", help='"bundled", a folder, or a hub id of a causal LM.')]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", help="Folder or hub id of an adapter. Default: the one that ships for the model."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where to put the model, as in cuda:1. Default: a GPU if there is one.")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help='Of the model\'s weights, as in bfloat16; "auto": as saved, or float32 where a CPU is slow in that.',
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option("--weights", help='"int8": the model\'s weights rounded, smaller and faster on a CPU; or "full".'),
]
ModelKwargsOption = Annotated[
    str,
    typer.Option(
        "--model-kwargs", help='More for transformers\' from_pretrained, as JSON: {"revision": "v2"}.'
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="SQLite file or database URL. Default: sessions.db in your data folder."),
]
