"""The metrics of one process for Prometheus: its own, and beside them those of Temporal's library, at one address.

Temporal's library could answer Prometheus itself, but at a second address in each process. Here it hands its metrics over in a buffer.

Oddities, on purpose:

1. Counters of Temporal's library end in ``_total`` and its histograms in ``_seconds``, as Prometheus names them and as Temporal's own
   dashboards expect them. https://github.com/temporalio/dashboards
2. The buffer is emptied every ``DRAIN_S`` seconds even if nobody asks: a full buffer would lose counts.
   https://python.temporal.io/temporalio.runtime.MetricBuffer.html
"""

import asyncio
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Self

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from temporalio.runtime import (
    BUFFERED_METRIC_KIND_COUNTER,
    BUFFERED_METRIC_KIND_GAUGE,
    BufferedMetric,
    MetricBuffer,
    MetricBufferDurationFormat,
    Runtime,
    TelemetryConfig,
)

from activities.environment import whole_number
from activities.logs import temporal_logging

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

BUFFER_UPDATES = 100_000
DRAIN_S = 5.0
TURN_S = 1.0

STANDSTILL_LIMIT_S = 60.0
"""After so long, the event loop is not expected to move again."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, inf)
"""The buckets of every histogram of seconds."""

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MetricsSettings:
    """Where a process answers Prometheus.

    Args:
        host: The address to listen on.
        port: The port; 0 picks a free one. None: the process does not listen for Prometheus.
    """

    host: str = "127.0.0.1"
    port: int | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the settings from the environment.

        Raises:
            ValueError: The port cannot be used.
        """
        has_port = bool(environ.get("SITELINK_METRICS_PORT"))
        port = whole_number(environ, "SITELINK_METRICS_PORT", 0, low=0, high=65_535, digits_only=True) if has_port else None
        return cls(environ.get("SITELINK_METRICS_HOST") or cls.host, port)


def host_in_url(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host


def new_registry(role: str) -> CollectorRegistry:
    """A registry with the memory, CPU time and open files of this process.

    Args:
        role: The process's part in SiteLink, such as ``api``.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Gauge("sitelink_process", "1 for each process that runs, by its role", ["role"], registry=registry).labels(role).set(1)
    return registry


def watch_event_loop(registry: CollectorRegistry) -> Callable[[], float]:
    """Measures from now on how long the running event loop stands still. Another thread answers the metric, also while the loop stands.

    Returns:
        Gives the seconds since its last turn.
    """
    loop = asyncio.get_running_loop()
    last_turn = loop.time()

    def take_turn() -> None:
        nonlocal last_turn
        last_turn = loop.time()
        loop.call_later(TURN_S, take_turn)

    def standstill_s() -> float:
        return loop.time() - last_turn

    take_turn()
    name, text = "sitelink_event_loop_standstill_seconds", f"Seconds since the process's event loop has moved; up to {TURN_S:g} in health"
    Gauge(name, text, registry=registry).set_function(standstill_s)
    return standstill_s


class Health:
    """Whether the process lives and works, as ``/livez`` and ``/readyz`` say beside its metrics.

    Args:
        standstill_s: Gives the seconds for which the event loop has stood still.
    """

    def __init__(self, standstill_s: Callable[[], float]) -> None:
        self._standstill_s = standstill_s
        self._is_ready = False

    async def ready_until(self, stop: asyncio.Event) -> None:
        """Waits for ``stop``. Until then the process works."""
        self._is_ready = True
        await stop.wait()
        self._is_ready = False

    def answer(self, path: str) -> bool | None:
        """The answer at a path; None for any other path. Called in another thread than the loop's."""
        lives = self._standstill_s() < STANDSTILL_LIMIT_S
        return {"/livez": lives, "/readyz": lives and self._is_ready}.get(path)


def serve(registry: CollectorRegistry, settings: MetricsSettings, health: Health | None = None) -> str | None:
    """Answers Prometheus from now on, in a thread of its own.

    Args:
        registry: The metrics.
        settings: Where to listen.
        health: Answers ``/livez`` and ``/readyz`` at the same port: 200 for yes, 503 for no.

    Returns:
        The address; None if the settings have no port.

    Raises:
        ValueError: Nobody can listen there. The message names the variables.
    """
    if settings.port is None:
        return None
    try:
        server, _ = start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        msg = f"SITELINK_METRICS_HOST {settings.host}, SITELINK_METRICS_PORT {settings.port}: {error.strerror}"
        raise ValueError(msg) from error
    if health and (metrics := server.get_app()):
        server.set_app(_with_health(health, metrics))
    return f"http://{host_in_url(settings.host)}:{server.server_port}/metrics"


def _with_health(health: Health, metrics: "WSGIApplication") -> "WSGIApplication":
    def respond(request: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        is_well = health.answer(request["PATH_INFO"])
        if is_well is None:  # not the path of a health check, so the request is for the metrics
            return metrics(request, start_response)
        start_response("200 OK" if is_well else "503 Service Unavailable", [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
        return [b"yes\n" if is_well else b"no\n"]

    return respond


class TemporalMetrics(Collector):
    """The metrics of Temporal's library, those that workflows record among them. Connect the client with ``runtime``.

    Args:
        registry: Where they are asked for.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._buffer = MetricBuffer(BUFFER_UPDATES, MetricBufferDurationFormat.SECONDS)
        self.runtime = Runtime(telemetry=TelemetryConfig(logging=temporal_logging(), metrics=self._buffer, attach_service_name=False))
        self._mutex = threading.Lock()
        self._metrics: dict[str, BufferedMetric] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        """Of counters and gauges, and the sums of histograms."""
        self._buckets: dict[str, dict[Labels, list[int]]] = {}
        registry.register(self)
        threading.Thread(target=self._drain_for_ever, name="temporal-metrics", daemon=True).start()

    def describe(self) -> list[Metric]:
        """Nothing is known before the first update."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric that had an update since the start."""
        with self._mutex:
            self._drain()
            yield from [self._family(name, metric) for name, metric in self._metrics.items()]

    def _drain_for_ever(self) -> None:
        pause = threading.Event()
        while not pause.wait(DRAIN_S):
            with self._mutex:
                self._drain()

    def _drain(self) -> None:
        for update in self._buffer.retrieve_updates():
            name, kind, value = update.metric.name, update.metric.kind, update.value
            labels = tuple((label, str(text)) for label, text in sorted(update.attributes.items()))
            self._metrics.setdefault(name, update.metric)
            values = self._values.setdefault(name, {})
            values[labels] = value if kind == BUFFERED_METRIC_KIND_GAUGE else values.get(labels, 0) + value
            if kind not in (BUFFERED_METRIC_KIND_COUNTER, BUFFERED_METRIC_KIND_GAUGE):
                counts = self._buckets.setdefault(name, {}).setdefault(labels, [0] * len(SECONDS))
                counts[bisect_left(SECONDS, value)] += 1

    def _family(self, name: str, metric: BufferedMetric) -> Metric:
        help_text = metric.description or "See https://docs.temporal.io/references/sdk-metrics"
        if metric.kind == BUFFERED_METRIC_KIND_COUNTER:
            family = Metric(name.removesuffix("_total"), help_text, "counter")
            for labels, value in self._values[name].items():
                family.add_sample(f"{family.name}_total", dict(labels), value)
        elif metric.kind == BUFFERED_METRIC_KIND_GAUGE:
            family = Metric(name, help_text, "gauge")
            for labels, value in self._values[name].items():
                family.add_sample(name, dict(labels), value)
        else:
            family = Metric(f"{name.removesuffix('_seconds')}_seconds", help_text, "histogram")
            for labels, counts in self._buckets[name].items():
                for bound, count in zip(SECONDS, accumulate(counts), strict=True):
                    family.add_sample(f"{family.name}_bucket", {**dict(labels), "le": "+Inf" if bound == inf else str(bound)}, count)
                family.add_sample(f"{family.name}_count", dict(labels), sum(counts))
                family.add_sample(f"{family.name}_sum", dict(labels), self._values[name][labels])
        return family
