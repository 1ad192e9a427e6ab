"""What the runs of a worker count, as Prometheus reads it, on a real Temporal server."""

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from activities.attempt import background_task
from activities.bucket.keys import UploadRef
from activities.errors import PageUnreadable, StorageUnavailable, TilesMissing
from activities.interface import WORKFLOW_QUEUE, Page, UploadedSheet, UploadPage
from activities.telemetry import TemporalMetrics
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, activity_workers, pages, working
from tests.workflow.runs import handle_of
from worker.app import workflow_worker
from worker.metrics import WorkerMetrics
from workflows.processing.metrics import COUNTERS, begin_counters
from workflows.starting import start_upload
from workflows.upload import ProcessUpload

pytestmark = pytest.mark.usefixtures("client")


def sample(registry: CollectorRegistry, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum of the samples of this name that have at least these labels."""
    wanted = (labels or {}).items()
    return sum(
        found.value for family in registry.collect() for found in family.samples if found.name == name and wanted <= found.labels.items()
    )


async def measured_client(server: TemporalServer, registry: CollectorRegistry) -> Client:
    """A client whose workers count."""
    runtime = TemporalMetrics(registry).runtime
    return await Client.connect(
        server.address, identity="test", runtime=runtime, interceptors=[WorkerMetrics(registry, has_workflows=True)]
    )


async def test_a_run_counts_its_sheets_and_its_end(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """Commits that reach the run, sheets and the upload by outcome, attempts of activities by number; no label names the upload."""
    registry = CollectorRegistry()
    client = await measured_client(temporal_server, registry)
    fake = FakeActivities([*pages(4), Page(5, None, 0, 0, 0, reason="PageTooLarge", detail="page 5 is too large")])
    fake.tile_errors[2] = [PageUnreadable("page 2 cannot be loaded")]
    fake.upload_errors[3] = [StorageUnavailable("once")]
    fake.upload_errors[4] = [TilesMissing("gone")]
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        await until_async(lambda: sample(registry, "processing_duration_seconds_count") > 0)
    assert sample(registry, "progress_update_success_total") == 3
    assert sample(registry, "progress_update_retry_total") == 1
    assert sample(registry, "progress_update_failure_total") == 1
    assert sample(registry, "progress_update_seconds_count") == 3
    assert 0 <= sample(registry, "progress_update_seconds_sum") < 600
    assert sample(registry, "sitelink_sheets_total", {"outcome": "ready", "reason": ""}) == 3
    assert sample(registry, "sitelink_sheets_total", {"outcome": "failed", "reason": "PageUnreadable"}) == 1
    assert sample(registry, "sitelink_sheets_total", {"outcome": "failed", "reason": "PageTooLarge"}) == 1
    assert sample(registry, "processing_duration_seconds_count", {"status": "partial", "pages": "1-5"}) == 1
    attempts = "sitelink_activity_attempts_total"
    assert sample(registry, attempts, {"activity": "tile_page", "outcome": "PageUnreadable", "attempt": "1"}) == 1
    assert sample(registry, attempts, {"activity": "upload_page", "outcome": "StorageUnavailable", "attempt": "1"}) == 1
    assert sample(registry, attempts, {"activity": "upload_page", "outcome": "completed", "attempt": "2"}) == 1
    assert sample(registry, "temporal_workflow_completed_total") == 1
    assert sample(registry, "temporal_sticky_cache_hit_total") > 0
    assert not [found for family in registry.collect() for found in family.samples if ref.upload in str(found.labels)]


async def test_pending_sheets_are_those_of_the_runs_in_the_cache(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """All sheets of all runs, beyond their windows; none of a run that has ended, or that the cache has dropped."""
    registry = CollectorRegistry()
    client = await measured_client(temporal_server, registry)
    other = UploadRef(ref.organization, ref.project, ref.plan, secrets.token_hex(8))
    fake = FakeActivities(pages(40))
    fake.gate.clear()
    worker = Worker(client, task_queue=WORKFLOW_QUEUE, workflows=[ProcessUpload], max_cached_workflows=1)
    async with activity_workers(client, fake, tile_slots=64), worker:
        await start_upload(client, ref)
        await until_async(lambda: sample(registry, "sheets_pending") == 40)
        began = time.time()
        await until_async(lambda: sample(registry, "sitelink_longest_standstill_seconds") > 0.01)
        assert sample(registry, "sitelink_longest_standstill_seconds") < time.time() - began + 600
        await start_upload(client, other)  # the cache has room for one run only
        await until_async(lambda: fake.in_flight == 32 and sample(registry, "temporal_sticky_cache_total_forced_eviction_total") > 0)
        assert sample(registry, "sheets_pending") <= 40  # and not 80
        fake.gate.set()
        for upload in (ref, other):
            await handle_of(client, upload).result()
        await until_async(lambda: sample(registry, "sheets_pending") == 0)
    assert sample(registry, "sitelink_longest_standstill_seconds") == 0


async def test_pending_sheets_of_a_run_that_was_terminated_are_forgotten(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """Temporal does not tell the worker, which keeps the run in its cache. A run that only stands still is counted on."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, has_workflows=True)
    client = await Client.connect(temporal_server.address, interceptors=[metrics])
    fake = FakeActivities(pages(40))
    fake.gate.clear()
    async with working(client, fake), background_task(metrics.forget_gone_runs(client, every_s=0.1, quiet_s=0)):
        await start_upload(client, ref)
        await until_async(lambda: sample(registry, "sheets_pending") == 40)
        asked = sample(registry, "sitelink_longest_standstill_seconds")
        await until_async(lambda: sample(registry, "sitelink_longest_standstill_seconds") > asked + 1)
        assert sample(registry, "sheets_pending") == 40
        await handle_of(client, ref).terminate()
        await until_async(lambda: sample(registry, "sheets_pending") == 0)
        assert sample(registry, "sitelink_longest_standstill_seconds") == 0


async def test_pending_sheets_follow_their_run_to_another_worker(temporal_server: TemporalServer, client: Client, ref: UploadRef) -> None:
    """A worker that is lost takes the run with it, and the next one counts it. One that comes back forgets what the other has done."""
    fake = FakeActivities(pages(40))
    fake.gate.clear()
    async with activity_workers(client, fake, tile_slots=64):
        with counted_worker(temporal_server) as first:
            await start_upload(client, ref)
            await until_async(lambda: first.sheets_pending() == 40)
            first.process.kill()
        with counted_worker(temporal_server) as second:
            fake.closes_after = 4
            fake.gate.set()
            await until_async(lambda: second.sheets_pending() == 40 - len(fake.committed) > 0)
            second.process.send_signal(signal.SIGSTOP)
            with counted_worker(temporal_server) as third:
                fake.closes_after = 0
                fake.gate.set()
                await handle_of(client, ref).result()
                await until_async(lambda: third.sheets_pending() == 0)
                second.process.send_signal(signal.SIGCONT)
                await until_async(lambda: second.sheets_pending() == 0)


@dataclass(frozen=True)
class CountedWorker:
    """A workflow worker in a process of its own.

    Args:
        process: The process.
        address: Where it answers Prometheus.
    """

    process: subprocess.Popen[str]
    address: str

    def sheets_pending(self) -> float:
        """Its gauge."""
        answer = httpx2.get(self.address, timeout=60, trust_env=False).raise_for_status()
        (family,) = (family for family in text_string_to_metric_families(answer.text) if family.name == "sheets_pending")
        return family.samples[0].value


@contextmanager
def counted_worker(server: TemporalServer) -> Iterator[CountedWorker]:
    """Runs such a worker."""
    command = [sys.executable, "-m", "tests.workflow.counted_worker", server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield CountedWorker(process, process.stdout.readline().strip())
        finally:
            process.kill()


async def test_a_run_that_stands_still_is_seen_after_its_worker_has_started_again(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """Nothing happens in the run that would bring it into the new worker's cache, so the worker asks it, and counts it from then on."""
    fake = FakeActivities(pages(3))
    fake.gate.clear()
    registry, again = CollectorRegistry(), CollectorRegistry()
    client = await measured_client(temporal_server, registry)
    async with activity_workers(client, fake):
        async with workflow_worker(client):
            await start_upload(client, ref)
            await until_async(lambda: sample(registry, "sheets_pending") == 3 and fake.in_flight == 3)
        metrics = WorkerMetrics(again, has_workflows=True)
        client = await Client.connect(temporal_server.address, identity="test", interceptors=[metrics])
        async with workflow_worker(client), background_task(metrics.find_open_runs(client)):
            await until_async(lambda: sample(again, "sheets_pending") == 3)
            await until_async(lambda: sample(again, "sitelink_longest_standstill_seconds") > 0.1)
            fake.gate.set()
            await handle_of(client, ref).result()


class LateCommits(FakeActivities):
    """Commits that have taken 5 seconds to reach their runs."""

    @activity.defn
    async def upload_page(self, args: UploadPage) -> UploadedSheet:
        """Commits the sheet, some time ago."""
        return replace(await super().upload_page(args), committed_at=time.time() - 5)


async def test_late_commit_is_measured_and_logged(
    temporal_server: TemporalServer, ref: UploadRef, caplog: pytest.LogCaptureFixture
) -> None:
    """The seconds count from the commit, and one that takes longer than a second is in the log with its sheet."""
    registry = CollectorRegistry()
    client = await measured_client(temporal_server, registry)
    async with working(client, LateCommits(pages(1))):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
    assert 4 < sample(registry, "progress_update_seconds_sum") < 600
    (late,) = [record for record in caplog.records if "a commit reached its run late" in record.message]
    assert (vars(late)["sheet"], vars(late)["seconds"] > 4) == (1, True)


async def test_counters_begin_with_zero(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """So that Prometheus sees their first rise. A run counts in the same series."""
    registry = CollectorRegistry()
    temporal = TemporalMetrics(registry)
    client = await Client.connect(temporal_server.address, identity="test", runtime=temporal.runtime)
    begin_counters(temporal.runtime.metric_meter, client.namespace)
    fake = FakeActivities(pages(1))

    def series() -> dict[str, list[float]]:
        names = [f"{name}_total" for name in COUNTERS]
        samples = [found for family in registry.collect() for found in family.samples]
        return {name: [found.value for found in samples if found.name == name] for name in names}

    assert series() == {f"{name}_total": [0] for name in COUNTERS}
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
    assert series() == {f"{name}_total": [name == "progress_update_success"] for name in COUNTERS}
