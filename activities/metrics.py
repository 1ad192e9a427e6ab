"""The metrics of a host that renders and uploads. No label holds an upload or a title. Neither documents nor clients choose a label."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from activities.bucket.records import SheetRecord
from activities.bucket.storage import Bucket
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.telemetry import SECONDS
from activities.tracing.spans import Spans, Writes

TILES = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000, 200_000)
BYTES = tuple(float(1 << power) for power in range(14, 33, 2))

STAGES = ("fetch", "draw", "tile", "upload", "commit")


class HostMetrics:
    """The metrics of a host.

    Args:
        registry: Where the counts are asked for; default: nobody asks for them.
        spans: Get the stages, too; default: nobody traces them.
    """

    def __init__(self, registry: CollectorRegistry | None = None, spans: Spans | None = None) -> None:
        self._spans = spans or Spans()
        self._registry = registry = registry or CollectorRegistry()
        stages = Histogram(
            "sitelink_stage_seconds",
            "Seconds of one stage: fetch a PDF from the bucket, draw a page, cut its tiles, upload a sheet's objects, commit the sheet",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._put_seconds = Histogram(
            "sitelink_bucket_put_seconds", "Seconds of each try of a write to the bucket that succeeded", buckets=SECONDS, registry=registry
        )
        self._put_errors = Counter(
            "sitelink_bucket_put_errors",
            "Failed tries of a write to the bucket, by S3's code, the HTTP status or the system's name of the error",
            ["code"],
            registry=registry,
        )
        self._children = Counter(
            "sitelink_render_children_ended",
            "Render processes that ended, by how: retired in order, or by the fault that ended them",
            ["end"],
            registry=registry,
        )
        self._sheets = (
            Histogram("sitelink_sheet_tiles", "Tiles of each sheet that was committed", buckets=TILES, registry=registry),
            Histogram("sitelink_sheet_bytes", "Bytes of the tiles of each sheet that was committed", buckets=BYTES, registry=registry),
            Histogram("sitelink_sheet_puts", "Objects written for each sheet that was committed", buckets=TILES, registry=registry),
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[Writes]:
        """Measures one of ``STAGES``, which lasts as long as the block. A stage that fails is traced, but not counted."""
        began = time.monotonic()
        with self._spans.stage(name) as writes:
            yield writes
        self._stages[name].observe(time.monotonic() - began)

    def rendered(self, draw_s: float, tile_s: float) -> None:
        """Counts a page that a render process has just drawn and then cut into tiles, in so many seconds."""
        for name, seconds, seconds_ago in (("draw", draw_s, tile_s), ("tile", tile_s, 0.0)):
            self._stages[name].observe(seconds)
            self._spans.ended(name, seconds, seconds_ago)

    def observe_put(self, seconds: float, error_code: str) -> None:
        """Counts one try of a write to the bucket; without an error the code is empty."""
        self._spans.count_put(error_code)
        if error_code:
            self._put_errors.labels(error_code).inc()
        else:
            self._put_seconds.observe(seconds)

    def count_child(self, end: str) -> None:
        """Counts a render process that has ended."""
        self._children.labels(end).inc()

    def count_sheet(self, record: SheetRecord, puts: int) -> None:
        """Counts a sheet that was committed by ``puts`` writes."""
        for histogram, amount in zip(self._sheets, (record.tiles, record.bytes, puts), strict=True):
            histogram.observe(amount)

    def watch(self, bucket: Bucket, scratch: Scratch, children: ChildPool, layers: Iterable[str]) -> None:
        """Shows the state of the host's parts whenever somebody asks.

        Args:
            bucket: The bucket.
            scratch: The scratch.
            children: The render processes.
            layers: All layers that may confine a render process.
        """
        self._gauge(
            "sitelink_bucket_in_flight",
            "Tiles, thumbnails and records that are being written to an S3 server by this host; 0 over a directory, where nobody counts",
            lambda: bucket.limiter.in_flight,
        )
        self._gauge(
            "sitelink_bucket_in_flight_limit",
            "Most writes to the bucket in flight; on an S3 server it finds itself",
            lambda: bucket.limiter.limit,
        )
        self._gauge("sitelink_scratch_bytes", "Bytes of the tiled pages on the scratch, as the limit counts them", scratch.published_bytes)
        self._gauge("sitelink_scratch_limit_bytes", "SITELINK_SCRATCH_LIMIT_BYTES", lambda: scratch.limit_bytes)
        self._gauge("sitelink_render_slots", "Pages that this host renders at once, at most", lambda: children.slots)
        self._gauge("sitelink_render_slots_busy", "Pages that this host renders now", lambda: children.busy)
        confinement = Gauge(
            "sitelink_render_confinement",
            "1 if the layer confines render processes on this host, as one that was asked at the start said; else 0",
            ["layer"],
            registry=self._registry,
        )
        for layer in layers:
            confinement.labels(layer).set(layer in children.confinement)

    def _gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        Gauge(name, help_text, registry=self._registry).set_function(value)
