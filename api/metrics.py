"""What the API counts. No label holds an upload, a path or anything else that a client chooses."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from activities.telemetry import SECONDS
from api.r2.events import OUTCOMES

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""The methods that are a label; a client may send any other word as one."""


def r2_event_counter(registry: CollectorRegistry) -> Callable[[str], None]:
    """Counts, from now on, the messages about R2 events by what was decided."""
    counter = Counter("sitelink_r2_events", "Messages of R2's events that were decided, by outcome", ["outcome"], registry=registry)
    counts = {outcome: counter.labels(outcome) for outcome in OUTCOMES}
    return lambda outcome: counts[outcome].inc()


class ApiMetrics:
    """The counts of one process of the API, and the answer to ``GET /metrics``.

    Args:
        registry: Where the counts are asked for; the metrics of the process and of Temporal's library may be there, too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._answers = Counter(
            "sitelink_http_requests",
            "Requests that were answered, by method, template of the path (empty: refused before, or no such path) and class of the status",
            ["method", "route", "status"],
            registry=registry,
        )
        self._delivery = Histogram(
            "sitelink_progress_to_client_seconds",
            "From the step of a run that changed the progress until every client that watches the upload was sent the change",
            buckets=SECONDS,
            registry=registry,
        )
        self._commits = Histogram(
            "sitelink_commit_to_client_seconds",
            "From a sheet's commit marker in the bucket until every client that watches the upload was sent the sheet",
            buckets=SECONDS,
            registry=registry,
        )

    def count_answer(self, scope: Scope, status: int) -> None:
        """Counts a request whose answer begins."""
        route = getattr(scope.get("route"), "path", "")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._answers.labels(method, route, f"{status // 100}xx").inc()

    def observe_delivery(self, since_change_s: float, since_commits_s: Sequence[float]) -> None:
        """Counts a change that every client of an upload was sent, and each sheet that became ready by it; clocks may differ."""
        self._delivery.observe(max(0.0, since_change_s))
        for seconds in since_commits_s:
            self._commits.observe(max(0.0, seconds))

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
