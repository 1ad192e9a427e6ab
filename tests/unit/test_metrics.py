"""What a host and the API count, asked for as Prometheus asks."""

import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx2
import pytest
from obstore.exceptions import GenericError
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from temporalio.testing import ActivityEnvironment

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout, SheetStatus, UploadOptions, UploadRecord, to_json
from activities.bucket.storage import Bucket
from activities.bucket.store_errors import error_label
from activities.errors import StorageUnavailable
from activities.host import Host
from activities.interface import CountPages, TilePage, UploadPage
from activities.metrics import HostMetrics
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.threads import FairThreads
from api.metrics import r2_event_counter
from api.paths import UPLOAD, uploads_path
from api.progress.runs import Runs
from api.progress.status import Status
from api.r2.events import OUTCOMES, Message, R2Events
from tests.resources import make_pdfs
from tests.servers.queue import event
from tests.unit.api_fakes import PATH, UNAVAILABLE, RawRequest, Upstream, accept, change, client_of, make_app, snapshot
from tests.waiting import until_async
from worker.app import Activities

REF = UploadRef("acme", "tower", "a1", "0198c0de-0000-7000-8000-000000000001")
READY, PENDING = SheetStatus.READY, SheetStatus.PENDING


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of its own for every test."""
    return CollectorRegistry()


@pytest.fixture
async def host(registry: CollectorRegistry, tmp_path: Path) -> AsyncIterator[Host]:
    """A host that counts, with an accepted upload of one page in its bucket."""
    metrics = HostMetrics(registry)
    bucket = Bucket(BucketSettings((tmp_path / "bucket").as_uri()), on_put=metrics.observe_put)
    children = ChildPool(2, on_end=metrics.count_child)
    with (
        FairThreads(2, "bucket") as threads,
        closing(Scratch(tmp_path / "scratch", 1 << 30, fetching=partial(metrics.stage, "fetch"))) as scratch,
    ):
        await children.layers()
        metrics.watch(bucket, scratch, children, ("Landlock", "seccomp", "a layer that no kernel has"))
        yield Host(bucket=bucket, scratch=scratch, children=children, threads=threads, uploads=threads, metrics=metrics)
        await children.close()


@pytest.mark.parametrize("layout", list(Layout))
async def test_host_counts_the_stages_and_the_writes_of_a_sheet(host: Host, registry: CollectorRegistry, layout: Layout) -> None:
    """Seconds of each stage, and tiles, bytes and writes of each sheet; an attempt that finds tiles in the bucket writes fewer objects."""
    pdf, options = make_pdfs.plan_set(1), UploadOptions(layout=layout)
    host.bucket.put(REF.source, pdf)
    host.bucket.put(
        REF.record, to_json(UploadRecord("a.pdf", len(pdf), hashlib.sha256(pdf).hexdigest(), options, "2026-01-31T09:30:00.000Z"))
    )
    activities, run = Activities(host), ActivityEnvironment().run
    written = registry.get_sample_value("sitelink_bucket_put_seconds_count")
    assert written == 2
    (page,) = (await run(activities.count_pages, CountPages(str(REF)))).pages
    began = time.time()
    tiled = await run(activities.tile_page, TilePage(str(REF), 1, page.width, page.height, options))
    assert (registry.get_sample_value("sitelink_scratch_bytes") or 0) > 0
    sheet = await run(activities.upload_page, UploadPage(str(REF), page, options, tiled))
    assert began < sheet.committed_at <= time.time()
    for stage in ("fetch", "draw", "tile", "upload", "commit"):
        labels = {"stage": stage}
        assert registry.get_sample_value("sitelink_stage_seconds_count", labels) == 1
        assert 0 < (registry.get_sample_value("sitelink_stage_seconds_sum", labels) or 0) < 600
    assert registry.get_sample_value("sitelink_scratch_bytes") == 0
    assert registry.get_sample_value("sitelink_sheet_tiles_sum") == sheet.tiles
    assert registry.get_sample_value("sitelink_sheet_bytes_sum") == sheet.bytes
    puts = registry.get_sample_value("sitelink_sheet_puts_sum")
    # ``sheet.json``, the marker, tiles; of both layouts also the archive. ``tile_page`` has written the thumbnail.
    assert puts == {Layout.EXPLODED: sheet.tiles + 2, Layout.PACKED: 2, Layout.BOTH: sheet.tiles + 3}[layout]
    tiled = await run(activities.tile_page, TilePage(str(REF), 1, page.width, page.height, options))
    await run(activities.upload_page, UploadPage(str(REF), page, options, tiled))
    assert registry.get_sample_value("sitelink_sheet_tiles_count") == 2
    await host.children.retire(str(REF))
    await until_async(lambda: registry.get_sample_value("sitelink_render_children_ended_total", {"end": "retired"}) == 2)


def test_host_shows_its_limits_and_its_confinement(host: Host, registry: CollectorRegistry) -> None:
    """The layers are those that a child has named; a layer that does not hold is 0."""
    layers = {
        sample.labels["layer"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "sitelink_render_confinement"
    }
    assert layers == {name: name in host.children.confinement for name in ("Landlock", "seccomp", "a layer that no kernel has")}
    assert registry.get_sample_value("sitelink_render_slots") == 2
    assert registry.get_sample_value("sitelink_render_slots_busy") == 0
    assert registry.get_sample_value("sitelink_scratch_limit_bytes") == 1 << 30
    assert registry.get_sample_value("sitelink_bucket_in_flight_limit") == host.bucket.limiter.limit
    assert registry.get_sample_value("sitelink_bucket_in_flight") == 0


def test_failed_writes_are_counted_by_the_name_of_the_error(host: Host, registry: CollectorRegistry) -> None:
    """The system's name in a directory."""
    host.bucket.put("file", b"")
    with pytest.raises(StorageUnavailable):
        host.bucket.put("file/below", b"")
    assert registry.get_sample_value("sitelink_bucket_put_errors_total", {"code": "ENOTDIR"}) == 1
    assert registry.get_sample_value("sitelink_bucket_put_seconds_count") == 1


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (GenericError("status code: 503 <Error><Code>SlowDown</Code></Error>"), "SlowDown"),
        (GenericError("status code: 403 <Error><Code>AccessDenied</Code></Error>"), "AccessDenied"),
        (GenericError("status code: 400 <Error><Code>upload0198c0de</Code></Error>"), "400"),
        (GenericError("<Error><Code>upload0198c0de</Code></Error>"), "other"),
        (GenericError("status code: 502 Bad Gateway"), "502"),
        (GenericError("connection reset"), "other"),
        (OSError(28, "No space left on device"), "ENOSPC"),
    ],
)
def test_errors_have_a_bounded_number_of_names(error: Exception, label: str) -> None:
    """A server may put anything into its answer."""
    assert error_label(error) == label


async def test_api_counts_its_streams_and_their_delays(bucket: Bucket) -> None:
    """``sse_connected`` is the number of open streams; a change that a run makes is counted once its clients were sent it."""
    await accept(bucket)
    state = snapshot(PENDING, PENDING, version=int(time.time() * 1000) - 5000)
    upstream = Upstream(state)
    app = make_app(bucket, upstream)

    async def value(name: str) -> float:
        async with client_of(app) as client:
            families = text_string_to_metric_families((await client.get("/metrics")).text)
        return next(sample.value for family in families for sample in family.samples if sample.name == name)

    assert await value("sse_connected") == 0
    requests = [RawRequest(app, "GET", f"{PATH}/events", {}) for _ in range(2)]
    await until_async(lambda: all(len(request.sent) > 1 for request in requests))
    assert await value("sse_connected") == 2
    assert await value("sitelink_watched_uploads") == 1
    assert await value("sitelink_progress_to_client_seconds_count") == 0  # the first state is no change
    assert await value("sitelink_commit_to_client_seconds_count") == 0
    upstream.committed = (time.time() - 7, time.time() + 600)
    await upstream.set(change(state, 1, READY)[0])
    await until_async(lambda: all(len(request.sent) > 2 for request in requests))
    assert await value("sitelink_progress_to_client_seconds_count") == 1
    assert 4 < await value("sitelink_progress_to_client_seconds_sum") < 600
    assert await value("sitelink_commit_to_client_seconds_count") == 2
    assert 6 < await value("sitelink_commit_to_client_seconds_sum") < 600  # a clock that is ahead counts as no time
    for request in requests:
        request.disconnect()
        await request.task
    assert await value("sse_connected") == 0
    assert await value("sitelink_watched_uploads") == 0


async def test_api_counts_its_answers(bucket: Bucket) -> None:
    """By method, template of the path, and class of the status. No client makes a label: neither by a path, nor by a method."""
    await accept(bucket)
    registry = CollectorRegistry()
    app = make_app(bucket, Upstream(snapshot(READY)), registry=registry)

    def count(method: str, route: str, status: str) -> float | None:
        return registry.get_sample_value("sitelink_http_requests_total", {"method": method, "route": route, "status": status})

    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.get(PATH)).is_success
        assert (await client.get(f"{uploads_path(REF.plan_ref)}/0198c0de-0000-7000-8000-00000000000f")).status_code == 404
        assert (await client.get("/nothing-here")).status_code == 404
        assert (await client.request("PURGE", "/livez")).status_code == 405
        assert (await client.get(PATH, headers={"Host": "another.example.com"})).status_code == 421
    assert count("GET", UPLOAD, "2xx") == 2
    assert count("GET", UPLOAD, "4xx") == 1
    assert count("GET", "", "4xx") == 2
    assert count("other", "/livez", "4xx") == 1


async def test_r2_events_are_counted_by_outcome(bucket: Bucket) -> None:
    """Each message once, by what was decided; every outcome is there from the start."""
    await accept(bucket)
    registry, upstream = CollectorRegistry(), Upstream(snapshot(READY, PENDING))
    runs = Runs(upstream.connect)
    events = R2Events(bucket, Status(bucket, runs), runs, attempts=3, gather_s=0, on_decided=r2_event_counter(registry))

    def counts() -> list[float | None]:
        return [registry.get_sample_value("sitelink_r2_events_total", {"outcome": outcome}) for outcome in OUTCOMES]

    assert counts() == [0, 0, 0, 0, 0]
    await events.decide(Message("1", json.dumps(event("plans", REF.descriptor(1))).encode(), 1))
    assert counts() == [1, 0, 0, 0, 0]
    await events.decide(Message("2", json.dumps(event("plans", "x.txt")).encode(), 1))
    assert counts() == [1, 0, 1, 0, 0]
    for attempts in (1, 2, 3):
        await events.decide(Message("3", b"no event", attempts))
    assert counts() == [1, 0, 1, 2, 1]
    upstream.state = upstream.start_error = UNAVAILABLE
    await events.decide(Message("4", json.dumps(event("plans", REF.descriptor(2))).encode(), 1))
    assert counts() == [1, 1, 1, 2, 1]
    await events.close()


async def test_metrics_are_prometheus_text(bucket: Bucket) -> None:
    """Fresh at each request."""
    async with client_of(make_app(bucket, Upstream(snapshot()))) as client:
        answer = await client.get("/metrics")
    assert isinstance(answer, httpx2.Response)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
