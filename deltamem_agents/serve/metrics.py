"""Figures for Prometheus: vLLM's names under the prefix `deltamem:`, and what only a memory has."""

import time
from collections.abc import Callable, Iterator
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deltamem_agents.engine import DeltaMemEngine, Turn
from deltamem_agents.errors import StoreError
from deltamem_agents.store import StateStore

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTED_EVERY = 30.0
"""Seconds for which a count of all sessions holds."""


class Metrics:
    """The figures of one server.

    Args:
        model: what clients call the model; a label of every figure.
    """

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"deltamem:{name}", text, ["model_name", *labels], registry=self._registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            name = f"deltamem:{name}_seconds"
            return Histogram(name, text, ["model_name", *labels], buckets=SECONDS, registry=self._registry)

        self._prompt = counter("prompt_tokens", "Prompt tokens, those in KV caches included.")
        self._cached = counter("prefix_cache_hits", "Prompt tokens that were in a KV cache already.")
        self._generated = counter("generation_tokens", "Tokens generated.")
        self._done = counter("request_success", "Turns that were complete.", "finished_reason")
        self._answers = counter("http_responses", "Answers by status.", "status")
        self._first = seconds("time_to_first_token", "From the request to its first text.")
        self._between = seconds("inter_token_latency", "Between two pieces of text of a reply.")
        self._whole = seconds("e2e_request_latency", "From the request to the turn's commit.")
        self._store = seconds("store_latency", "Calls of the store.", "operation")

    def observe(self, engine: DeltaMemEngine) -> None:
        """Also tells what the engine is doing, and how many sessions there are."""
        self._registry.register(_EngineFigures(engine, self._model))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)

    def answered(self, status: int) -> None:
        """An answer was sent."""
        self._answers.labels(self._model, str(status)).inc()

    def piece(self, seconds: float, *, first: bool) -> None:
        """A piece of text came, so long after the one before, or after the request."""
        (self._first if first else self._between).labels(self._model).observe(seconds)

    def turn(self, turn: Turn, seconds: float) -> None:
        """A turn was complete."""
        self._prompt.labels(self._model).inc(turn.usage.prompt_tokens)
        self._cached.labels(self._model).inc(turn.usage.cached_tokens)
        self._generated.labels(self._model).inc(turn.usage.completion_tokens)
        self._done.labels(self._model, turn.finish_reason).inc()
        self._whole.labels(self._model).observe(seconds)

    def left(self) -> None:
        """A client went away before its turn was complete."""
        self._done.labels(self._model, "abort").inc()

    def timed(self, store: StateStore) -> StateStore:
        """The store, with the time that each call of it takes among the figures."""
        return cast("StateStore", _TimedStore(store, lambda name: self._store.labels(self._model, name)))


class _TimedStore:
    """Hands every call of `StateStore` on to a store, and takes the time."""

    def __init__(self, store: StateStore, histogram: Callable[[str], Histogram]) -> None:
        self._under, self._histogram = store, histogram

    def __enter__(self) -> "_TimedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._under.close()


def _timed(name: str) -> Callable[..., object]:
    def timed(self: _TimedStore, *args: object, **kwargs: object) -> object:
        with self._histogram(name).time():
            return getattr(self._under, name)(*args, **kwargs)

    return timed


for _name in vars(StateStore):  # on the class: from Python 3.12 on, isinstance looks for a protocol's methods there
    if not _name.startswith("_"):
        setattr(_TimedStore, _name, _timed(_name))


class _EngineFigures:
    """What an engine tells when it is asked."""

    def __init__(self, engine: DeltaMemEngine, model: str) -> None:
        self._engine, self._model = engine, model
        self._counted: tuple[float, int] | None = None

    def collect(self) -> Iterator[Metric]:
        figures, sessions = self._engine.figures, self._sessions()
        gauges = [
            ("num_requests_running", "Turns that decode, and other work under way.", figures.running),
            ("num_requests_waiting", "Turns that wait.", figures.waiting),
            *([] if sessions is None else [("sessions", "Sessions in the store.", sessions)]),
        ]
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"deltamem:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        counters = [
            ("cold_replays", "Turns of known sessions without a KV cache to go on from.", figures.cold_replays),
            ("commit_conflicts", "Commits that lost a race and were made again.", figures.conflicts),
        ]
        for name, text, value in counters:
            counter = CounterMetricFamily(f"deltamem:{name}", text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter

    def _sessions(self) -> int | None:
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] > COUNTED_EVERY:
            try:
                self._counted = now, self._engine.store.count()
            except StoreError:  # the other figures are wanted all the more
                return None
        return self._counted[1]
