"""Loading an engine while somebody watches."""

from typing import TYPE_CHECKING

from deltamem_agents.backbone.bundled import bundled_path
from deltamem_agents.cli.console import err

if TYPE_CHECKING:
    from deltamem_agents.engine import DeltaMemEngine
    from deltamem_agents.store import StateStore

BUNDLED = "bundled"


def load_engine(
    model: str, *, adapter: str | None, store: "StateStore | str | None", recent_messages: int = 8, max_batch: int = 16
) -> "DeltaMemEngine":
    """Loads a model with its adapter and opens a store; see `DeltaMemEngine.from_pretrained`.

    Raises:
        BackboneError: the model cannot be found or loaded.
        AdapterError: the adapter cannot be found or loaded, or does not fit.
        StoreError: the store cannot be opened.
    """
    if model == BUNDLED:
        bundled_path()  # has a progress bar of its own
    with err.status(f"Loading {model}"):
        from transformers.utils import logging  # here: importing torch and transformers takes seconds

        from deltamem_agents.engine import DeltaMemEngine

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        return DeltaMemEngine.from_pretrained(
            model, adapter=adapter, store=store, recent_messages=recent_messages, max_batch=max_batch
        )
