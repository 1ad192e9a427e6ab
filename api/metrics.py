"""What the API counts. No label holds an upload, a path or anything else that a client chooses."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from activities.telemetry import SECONDS


class ApiMetrics:
    """The counts of one process of the API, and the answer to ``GET /metrics``.

    Args:
        registry: Where the counts are asked for; the metrics of the process and of Temporal's library may be there, too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._delivery = Histogram(
            "sitelink_progress_to_client_seconds",
            "From the step of a run that changed the progress until every client that watches the upload was sent the change",
            buckets=SECONDS,
            registry=registry,
        )

    def observe_delivery(self, seconds: float) -> None:
        """Counts a change that every client of an upload was sent; the clocks of Temporal and of this machine may differ."""
        self._delivery.observe(max(0.0, seconds))

    def watch(self, streams: Callable[[], int], uploads: Callable[[], int]) -> None:
        """Shows the state of the API whenever somebody asks.

        Args:
            streams: Gives the number of event streams that are open.
            uploads: Gives the number of uploads that are watched.
        """
        for name, help_text, value in (
            ("sse_connected", "Clients whose event streams are open", streams),
            ("sitelink_watched_uploads", "Uploads that somebody watches by this process", uploads),
        ):
            Gauge(name, help_text, registry=self._registry).set_function(value)

    async def respond(self, _: Request) -> Response:
        """Every metric, in Prometheus's text format."""
        body = await run_in_threadpool(generate_latest, self._registry)
        return Response(body, media_type=CONTENT_TYPE_PLAIN_0_0_4, headers={"Cache-Control": "no-store"})
