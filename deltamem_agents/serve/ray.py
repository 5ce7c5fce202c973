"""`serve deploy`: the same app on Ray Serve, as replicas that share one store, so that any of them answers anybody.

A replica keeps nothing but caches: a session's turns go to the same one as long as it is there, because that is faster,
and to any other when it isn't. `deploy/ray.yaml` is the config to begin with; `ray_proxy` shapes what Ray answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltamem_agents.backbone.int8 import Weights
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.engine.records import Transcript
from deltamem_agents.errors import ConfigError
from deltamem_agents.serve.app import create_app
from deltamem_agents.serve.config import ServeConfig
from deltamem_agents.serve.keys import Keys
from deltamem_agents.serve.logs import log_to_stderr
from deltamem_agents.serve.ray_proxy import REPLICA
from deltamem_agents.serve.service import Service
from deltamem_agents.store import open_store

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
except ImportError as missing:
    raise ConfigError(
        f"Ray Serve 2.57 or later is not installed ({missing}), and this needs it: pip install 'deltamem-agents[ray]'"
    ) from missing

ROUTER = f"{ConsistentHashRouter.__module__}.{ConsistentHashRouter.__name__}"
ROOM = 8
"""Calls beside those of the model, such as lists of sessions, that a replica takes on at once."""
ATTEMPTS = 3
"""How often a replica that cannot load its model is tried before the deployment has failed."""


class RouterOptions(BaseModel):
    """How Ray's `ConsistentHashRouter` spreads sessions over replicas. It passes over keywords that it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_virtual_nodes: int = Field(default=100, ge=1)
    """Places of a replica on the ring: more spread sessions more evenly."""
    num_fallback_replicas: int = Field(default=2, ge=0)
    """How many others are asked when a session's own replica is busy; 0: its calls wait for it."""


class ReplicaOptions(BaseModel):
    """How many replicas there are, and what each of them gets."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_replicas: int = Field(default=1, ge=1)
    """At least so many."""
    max_replicas: int = Field(default=1, ge=1)
    """At most so many."""
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Calls under way or waiting a replica: more start another one, fewer end one. None: `max_batch`."""
    upscale_delay_s: float = Field(default=30.0, ge=0)
    """Seconds of more load before a replica is added."""
    downscale_delay_s: float = Field(default=600.0, ge=0)
    """Seconds of less load before one is taken away: its sessions' caches go with it."""
    num_cpus: float = Field(default=1.0, ge=0)
    """Cores that Ray sets aside for each."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that each gets; 0.5 puts two on one."""
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    """Calls that one is given at once: above twice `max_batch`, so that a batch waits while one runs. None: 8 more."""
    max_queued_requests: int = Field(default=256, ge=0)
    """Calls that wait at each of Ray's proxies for a replica with room; one more is answered 429."""
    retry_after_s: float = Field(default=2.0, ge=0)
    """Seconds after which those may come again."""
    health_check_period_s: float = Field(default=5.0, gt=0)
    """How often each is asked for a sign of life."""


class RayOptions(BaseModel):
    """The application's arguments: `args` in a config for `serve deploy`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "bundled"
    """"bundled", a folder that all machines have, or a hub id."""
    adapter: str | None = None
    """Folder or hub id of an adapter. None: the one that ships for the model."""
    store: str
    """What all replicas share: the URL of a PostgreSQL; on one machine a SQLite file also does."""
    recent_messages: int = Field(default=8, ge=0)
    """How many recent messages are also in prompts."""
    transcript: Transcript = "window"
    """How long texts are kept. "full": all of them, without which a session of many turns cannot be rebuilt."""
    keep_snapshots: int | None = Field(default=64, ge=1)
    """How many turns a session can go back; each takes a state's room. None: all."""
    device: str | None = None
    """Where to put the model. None: a GPU if Ray gave one."""
    dtype: str = "auto"
    """Of the model's weights."""
    model_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """More for transformers' `from_pretrained`."""
    weights: Weights = "full"
    """"int8": the model's weights rounded, smaller and faster on a CPU."""
    api_keys: str | None = None
    """A file of lines `key namespace` on all machines. None: nobody is asked."""
    allow_anyone: bool = False
    """Without keys: also answer requests to other hosts than localhost."""
    serve: ServeConfig = ServeConfig()
    """Names and limits of each replica."""
    replicas: ReplicaOptions = ReplicaOptions()
    """How many, and how big."""
    router: RouterOptions = RouterOptions()
    """Who answers which session."""

    @classmethod
    def parse(cls, args: Mapping[str, object]) -> Self:
        """Checks the arguments of an application.

        Raises:
            ConfigError: names each unknown setting and bad value, and the settings that there are in its place.
        """
        try:
            return cls.model_validate(args)
        except ValidationError as error:
            raise _explained(cls, error, "the application's args") from error

    @model_validator(mode="after")
    def _fit(self) -> Self:
        replicas, least = self.replicas, 2 * self.serve.max_batch + 1
        if replicas.max_replicas < replicas.min_replicas:
            raise ValueError(f"max_replicas is {replicas.max_replicas}, less than min_replicas {replicas.min_replicas}")
        if self.max_ongoing_requests < least:
            raise ValueError(
                f"max_ongoing_requests is {self.max_ongoing_requests}, expected at least {least}, above twice max_batch"
            )
        if self.store in ("memory", ":memory:"):
            raise ValueError("store is in memory, where no other replica sees it: give the URL of a PostgreSQL")
        return self

    @property
    def max_ongoing_requests(self) -> int:
        """Calls that a replica is given at once."""
        given = self.replicas.max_ongoing_requests
        return 2 * self.serve.max_batch + ROOM if given is None else given


@serve.ingress()  # type: ignore[untyped-decorator, unused-ignore]
class Replica:
    """One engine, and the app that answers for it. It is there when its model is loaded."""

    def __init__(self, options: RayOptions) -> None:
        """Loads the model and opens the store.

        Raises:
            ConfigError: settings that were given beside the application's, and don't fit.
            DeltaMemError: the model or the store cannot be opened.
        """
        context = serve.get_replica_context()
        check_deployment(context._deployment_config, options)
        log_to_stderr()
        local_only = options.api_keys is None and not options.allow_anyone
        config = options.serve.model_copy(update={"local_only": local_only})
        self._service = Service(config, None if options.api_keys is None else Keys.read(Path(options.api_keys)))
        self._service.open(_load(options, self._service))
        self._name = context.replica_tag

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app, which closes the engine in the end."""
        return _named(create_app(self._service), self._name)


def app(args: Mapping[str, object]) -> serve.Application:
    """Builds the application: `import_path: deltamem_agents.serve.ray:app`.

    Raises:
        ConfigError: an unknown setting, or a bad value.
    """
    options = RayOptions.parse(args)
    replicas = options.replicas
    if replicas.min_replicas == replicas.max_replicas:
        scaling: dict[str, object] = {"num_replicas": replicas.min_replicas}
    else:
        limits = replicas.model_dump(include={"min_replicas", "max_replicas", "upscale_delay_s", "downscale_delay_s"})
        target = replicas.target_ongoing_requests or float(options.serve.max_batch)
        scaling = {"autoscaling_config": {**limits, "target_ongoing_requests": target}}
    deployment = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=replicas.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": replicas.retry_after_s},
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER, request_router_kwargs=options.router.model_dump()
        ),
        graceful_shutdown_timeout_s=options.serve.drain_timeout,
        health_check_period_s=replicas.health_check_period_s,
        max_constructor_retry_count=ATTEMPTS,
        rolling_update_percentage=0.5,
        max_surge_percent=100,  # the new ones are there before the old ones go
        **scaling,
    )
    return deployment.bind(options)


class Deployed(Protocol):
    """What is looked at of Ray's `DeploymentConfig`."""

    max_ongoing_requests: int
    request_router_config: RequestRouterConfig


def check_deployment(config: Deployed, options: RayOptions) -> None:
    """Checks what `deployments:` in a config may have put in the place of the application's settings.

    Args:
        config: what Ray goes by.
        options: the application's.

    Raises:
        ConfigError: a keyword that the router would pass over, or too few calls at once.
    """
    router = config.request_router_config
    if router.request_router_class == ROUTER:
        try:
            RouterOptions.model_validate(router.request_router_kwargs)
        except ValidationError as error:
            raise _explained(RouterOptions, error, "request_router_kwargs") from error
    if config.max_ongoing_requests <= 2 * options.serve.max_batch:
        raise ConfigError(
            f"max_ongoing_requests is {config.max_ongoing_requests}, expected above twice max_batch, which is "
            f"{options.serve.max_batch}: leave it out of `deployments:`, or raise it"
        )


def _load(options: RayOptions, service: Service) -> DeltaMemEngine:
    store = service.metrics.timed(open_store(options.store))
    try:
        return DeltaMemEngine.from_pretrained(
            options.model,
            adapter=options.adapter,
            device=options.device,
            dtype=options.dtype,
            model_kwargs=dict(options.model_kwargs),
            weights=options.weights,
            store=store,
            recent_messages=options.recent_messages,
            transcript=options.transcript,
            keep_snapshots=options.keep_snapshots,
            max_batch=options.serve.max_batch,
        )
    except BaseException:
        store.close()
        raise


def _named(app: ASGIApp, name: str) -> ASGIApp:
    """The app; its answers say which replica they are of."""

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA] = name
            await send(message)

        await app(scope, receive, answer)

    return named


def _explained(model: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    """What is wrong, and which settings there are where it is."""
    found = []
    for wrong in error.errors(include_url=False):
        known, path = _at(model, wrong["loc"][:-1]), ".".join(map(str, wrong["loc"]))
        more = f"; known there are {', '.join(known.model_fields)}" if wrong["type"] == "extra_forbidden" else ""
        found.append(f"{path + ': ' if path else ''}{wrong['msg'].removeprefix('Value error, ')}{more}")
    return ConfigError(f"{where}: {'. '.join(found)}: correct that in the config, and deploy it again")


def _at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    for part in path:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    return model
