"""What the routes of one server share, and how they come by it."""

from typing import Annotated, cast
from urllib.parse import unquote

from fastapi import Depends, Request

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import SessionError
from deltamem_agents.serve.config import ServeConfig
from deltamem_agents.serve.errors import RETRY, ApiError
from deltamem_agents.serve.gate import Gate
from deltamem_agents.serve.keys import Keys, Namespace
from deltamem_agents.serve.metrics import Metrics


class Service:
    """One engine, its limits and figures.

    Args:
        config: names and limits.
        keys: who may ask; None: anybody, for everything.
    """

    def __init__(self, config: ServeConfig, keys: Keys | None) -> None:
        self.config, self.keys = config, keys
        self.metrics = Metrics(config.model_id)
        self.gate = Gate(at_once=config.max_batch, max_queue=config.max_queue)
        self._engine: DeltaMemEngine | None = None

    @property
    def ready(self) -> bool:
        """Whether calls are answered: the model is loaded, and the server isn't stopping."""
        return self._engine is not None and not self.gate.draining

    @property
    def engine(self) -> DeltaMemEngine:
        """The engine.

        Raises:
            ApiError: 503 while it is loaded.
        """
        if self._engine is None:
            raise ApiError(503, "the model is being loaded: try again soon", code="loading", headers=RETRY)
        return self._engine

    def open(self, engine: DeltaMemEngine) -> None:
        """Begins to answer with an engine."""
        self.metrics.observe(engine)
        self._engine = engine

    def check_model(self, model: str) -> None:
        """Refuses a model that isn't served.

        Raises:
            ApiError: 404, names the one that is.
        """
        if model != self.config.model_id:
            raise ApiError(
                404,
                f"the model {model!r} is not served here: ask for {self.config.model_id!r}",
                code="model_not_found",
                param="model",
            )


def the_service(request: Request) -> Service:
    """The service of the app that a request is for."""
    return cast("Service", request.app.state.service)


def the_namespace(request: Request) -> Namespace:
    """What the request's key opens.

    Raises:
        ApiError: 401 without a key that is known, where keys are asked for.
    """
    keys = the_service(request).keys
    if keys is None:
        return Namespace()
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    found = keys.namespace(key.strip()) if scheme.lower() == "bearer" else None
    if found is None:
        raise ApiError(
            401,
            "no known API key came with the request: send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    request.state.log["namespace"] = found.name
    return found


TheService = Annotated[Service, Depends(the_service)]
TheNamespace = Annotated[Namespace, Depends(the_namespace)]


def decoded(part: str) -> str:
    """A part of a path, percent-decoded.

    Raises:
        SessionError: it is no UTF-8.
    """
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise SessionError(f"{part[:60]!r} in the path is no percent-encoded UTF-8: encode names so") from error


def the_session(name: str, namespace: TheNamespace) -> str:
    """The name in the store of the session that a path names."""
    return namespace.stored(decoded(name))


TheSession = Annotated[str, Depends(the_session)]
