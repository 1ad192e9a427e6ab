"""The trace of an upload over a real Temporal server: one tree, whoever runs its parts, and nothing in it that a key would hide."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.worker import Replayer, Worker

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.errors import PageUnreadable, StorageUnavailable
from activities.interface import WORKFLOW_QUEUE
from activities.logs import extras
from activities.tracing.sdk import exporting
from activities.tracing.settings import Tracing
from deploy.temporal import TemporalServer
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, activity_workers, pages, working
from tests.workflow.runs import handle_of, keep_history
from workflows.codec import data_converter
from workflows.messages import ProgressAfter, SheetNumbers
from workflows.starting import start_upload
from workflows.upload import ProcessUpload

pytestmark = pytest.mark.usefixtures("client")

REQUEST = "POST /uploads"


class Traced:
    """One process that traces, with its spans in memory.

    Args:
        name: The process's role.
    """

    def __init__(self, name: str = "test") -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing: Tracing = exporting(self._exporter, name, SimpleSpanProcessor)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans that have ended."""
        return self._exporter.get_finished_spans()

    async def client(self, server: TemporalServer, keys: Sequence[bytes] = ()) -> Client:
        """A client that traces, and whose workers do."""
        converter = data_converter(keys)
        return await Client.connect(server.address, identity="test", interceptors=self.tracing.interceptors, data_converter=converter)

    async def start(self, client: Client, ref: UploadRef) -> None:
        """Starts an upload within the span of a request."""
        assert self.tracing.tracer is not None
        with self.tracing.tracer.start_as_current_span(REQUEST):
            await start_upload(client, ref)


def paths(spans: Sequence[ReadableSpan]) -> Counter[str]:
    """How often each span is there, by the names from the root to it. Every parent must be there, and all spans in one trace."""
    by_id = {span.context.span_id: span for span in spans if span.context}
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    assert len(by_id) == len(spans)

    def path(span: ReadableSpan) -> str:
        return f"{path(by_id[span.parent.span_id])} > {span.name}" if span.parent else span.name

    return Counter(map(path, spans))


def below_start(**activities: int) -> dict[str, int]:
    """The tree of one run of an upload that calls these activities so often."""
    start = f"{REQUEST} > StartWorkflow:ProcessUpload"
    tree = {REQUEST: 1, start: 1, f"{start} > RunWorkflow:ProcessUpload": 1, f"{start} > CompleteWorkflow:ProcessUpload": 1}
    for name, count in activities.items():
        tree[f"{start} > StartActivity:{name}"] = tree[f"{start} > StartActivity:{name} > RunActivity:{name}"] = count
    return tree


async def check_tree(handle: WorkflowHandle[Any, Any], spans: Sequence[ReadableSpan], expected: dict[str, int]) -> None:
    """The tree is the expected one. On a machine so busy that Temporal gave a task away twice, a span may be there more than once."""
    events = (await handle.fetch_history()).events
    lost = {EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT, EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED}
    attempts = [event.activity_task_started_event_attributes.attempt for event in events]
    tree = paths(spans)
    if lost & {event.event_type for event in events} or max(attempts) > 1:
        assert set(tree) == set(expected)
        assert all(tree[name] >= count for name, count in expected.items())
    else:
        assert tree == expected


def whole_tree(sheets: int) -> dict[str, int]:
    """The tree of an upload in which nothing fails."""
    return below_start(list_sheets=1, count_pages=1, tile_page=sheets, upload_page=sheets, discard_scratch=1, write_manifest=1)


async def test_an_upload_is_one_tree(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """From the request over the run to each activity. Clients that watch add nothing. The run's history replays where nobody traces."""
    traced = Traced()
    client = await traced.client(temporal_server)
    fake = FakeActivities(pages(3))
    async with working(client, fake):
        await traced.start(client, ref)
        handle = handle_of(client, ref)
        await handle.execute_update(ProcessUpload.progress_after, ProgressAfter(1))
        await handle.query(ProcessUpload.progress)
        await handle.result()
        await keep_history(handle, "traced")
    await check_tree(handle, traced.spans, whole_tree(3))
    tiled = [span for span in traced.spans if span.name == "RunActivity:tile_page"]
    facts = [span.attributes or {} for span in tiled]
    assert {(each["sitelink.ref"], each["sitelink.sheet"], each["sitelink.attempt"]) for each in facts} >= {
        (str(ref), sheet, 1) for sheet in (1, 2, 3)
    }
    assert {span.resource.attributes["service.name"] for span in traced.spans} == {"sitelink-test"}
    await Replayer(workflows=[ProcessUpload]).replay_workflow(await handle.fetch_history())


async def test_tracing_adds_no_command(temporal_server: TemporalServer, client: Client, ref: UploadRef) -> None:
    """The events of a run are the same with and without, so that either kind of worker may go on with either kind of run."""
    plain_ref = UploadRef(ref.organization, ref.project, ref.plan, f"{ref.upload}-plain")
    traced = Traced()
    for each, upload in ((await traced.client(temporal_server), ref), (client, plain_ref)):
        async with working(each, FakeActivities(pages(1))):
            await (traced.start(each, upload) if upload is ref else start_upload(each, upload))
            await handle_of(each, upload).result()
    with_traces, without = [await handle_of(client, upload).fetch_history() for upload in (ref, plain_ref)]
    assert kinds(with_traces) == kinds(without)
    before = len(traced.spans)
    for history in (with_traces, without):
        await Replayer(workflows=[ProcessUpload], interceptors=[*traced.tracing.interceptors]).replay_workflow(history)  # type: ignore[list-item] # also of workers
    assert len(traced.spans) == before


def kinds(history: WorkflowHistory) -> list[int]:
    """The kinds of the events that do not depend on which of two tasks is first."""
    tasks = {EventType.Value(f"EVENT_TYPE_WORKFLOW_TASK_{state}") for state in ("SCHEDULED", "STARTED", "COMPLETED", "TIMED_OUT", "FAILED")}
    return sorted(event.event_type for event in history.events if event.event_type not in tasks)


async def test_replay_doubles_no_span(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """A worker that keeps no run replays the whole history at each of its steps."""
    traced = Traced()
    client = await traced.client(temporal_server)
    worker = Worker(client, task_queue=WORKFLOW_QUEUE, workflows=[ProcessUpload], max_cached_workflows=0)
    async with activity_workers(client, FakeActivities(pages(4), window=1)), worker:
        await traced.start(client, ref)
        await handle_of(client, ref).result()
    await check_tree(handle_of(client, ref), traced.spans, whole_tree(4))


async def test_trace_goes_on_in_another_process(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """The workflow worker is replaced while sheets are in flight: both processes together have each span once."""
    first, second, host = Traced("first"), Traced("second"), Traced("host")
    fake = FakeActivities(pages(3))
    fake.gate.clear()
    starting = await first.client(temporal_server)
    async with activity_workers(await host.client(temporal_server), fake):
        async with workflow_worker_of(starting):
            await first.start(starting, ref)
            await until_async(lambda: fake.in_flight == 3)
        async with workflow_worker_of(await second.client(temporal_server)):
            fake.gate.set()
            await handle_of(starting, ref).result()
    assert {span.name for span in second.spans} >= {"StartActivity:upload_page", "CompleteWorkflow:ProcessUpload"}
    assert "RunWorkflow:ProcessUpload" not in {span.name for span in second.spans}
    await check_tree(handle_of(starting, ref), [*first.spans, *second.spans, *host.spans], whole_tree(3))


def workflow_worker_of(client: Client) -> Worker:
    """A worker that stops at once."""
    return Worker(client, task_queue=WORKFLOW_QUEUE, workflows=[ProcessUpload])


async def test_next_run_stays_in_the_trace(forgetful_server: TemporalServer, ref: UploadRef) -> None:
    """Continue-as-new hands the trace over: the activities of all runs are in it."""
    traced = Traced()
    client = await traced.client(forgetful_server)
    async with working(client, FakeActivities(pages(30), window=4)):
        await traced.start(client, ref)
        await handle_of(client, ref).result()
    tree = paths(traced.spans)
    start = f"{REQUEST} > StartWorkflow:ProcessUpload"
    assert tree[f"{start} > RunWorkflow:ProcessUpload"] > 1
    assert tree[f"{start} > StartActivity:tile_page > RunActivity:tile_page"] >= 30


async def test_attempts_and_failures_have_names_and_no_words(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """Each attempt has its span and the type of its error; the words of an error, which may hold a title, are in no span."""
    traced = Traced()
    client = await traced.client(temporal_server)
    fake = FakeActivities(pages(2))
    fake.tile_errors[1] = [PageUnreadable("cannot draw A-101")]
    fake.upload_errors[2] = [StorageUnavailable("cannot write A-102")]
    async with working(client, fake):
        await traced.start(client, ref)
        assert (await handle_of(client, ref).result()).status is UploadStatus.PARTIAL
    uploads = [span for span in traced.spans if span.name == "RunActivity:upload_page"]
    assert [(span.attributes or {})["sitelink.attempt"] for span in uploads[:2]] == [1, 2]
    assert [span.status.status_code for span in (uploads[0], uploads[-1])] == [StatusCode.ERROR, StatusCode.UNSET]
    failed = [(span.name, (span.attributes or {})["error.type"]) for span in traced.spans if "error.type" in (span.attributes or {})]
    assert sorted(failed) == [("RunActivity:tile_page", "PageUnreadable"), ("RunActivity:upload_page", "StorageUnavailable")]
    text = "".join(span.to_json() for span in traced.spans)
    assert "PageUnreadable" in text
    assert "A-10" not in text
    assert "stacktrace" not in text


async def test_headers_hold_ids_only_and_need_no_key(temporal_server: TemporalServer, ref: UploadRef) -> None:
    """With a key, a trace goes on as without. In clear are the ids of trace and span, and no title."""
    traced = Traced()
    sealed = await traced.client(temporal_server, [bytes(range(32))])
    async with working(sealed, FakeActivities(pages(1))):
        await traced.start(sealed, ref)
        await handle_of(sealed, ref).result()
        history = await handle_of(sealed, ref).fetch_history()
    await check_tree(handle_of(sealed, ref), traced.spans, whole_tree(1))
    headers = [event.workflow_execution_started_event_attributes.header for event in history.events[:1]]
    headers += [
        event.activity_task_scheduled_event_attributes.header
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert len(headers) == 7
    for header in headers:
        assert set(header.fields) == {"_tracer-data"}
        assert set(json.loads(header.fields["_tracer-data"].data)) == {"traceparent"}
    assert b"A-101" not in b"".join(event.SerializeToString() for event in history.events)


async def test_log_lines_of_a_run_show_its_trace(temporal_server: TemporalServer, ref: UploadRef, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of workflows and of activities, those of Temporal's library about a failed activity, too. A run without a trace shows none."""
    shown: dict[str, set[object]] = {}

    class Collects(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage().partition(" (")[0]  # without what Temporal's library adds where the log is not set up
            shown.setdefault(message, set()).add(extras(record).get("trace_id"))

    traced = Traced()
    client = await traced.client(temporal_server)
    handler = Collects()
    logging.getLogger().addHandler(handler)
    caplog.set_level(logging.INFO)
    try:
        fake = FakeActivities(pages(2))
        fake.tile_errors[1] = [PageUnreadable("cannot be drawn")]
        async with working(client, fake):
            await traced.start(client, ref)
            await handle_of(client, ref).signal(ProcessUpload.prioritize, SheetNumbers((1,)))
            await handle_of(client, ref).result()
        context = traced.spans[0].context
        assert context
        ours = {f"{context.trace_id:032x}"}
        for message in ("finished", "Completing activity as failed", "an upload has ended"):
            assert shown[message] == ours, message
        shown.clear()
        async with working(client, FakeActivities(pages(1))):
            other = UploadRef(ref.organization, ref.project, ref.plan, f"{ref.upload}-x")
            await asyncio.create_task(start_upload(await Client.connect(temporal_server.address, identity="test"), other))
            await handle_of(client, other).result()
        assert shown["an upload has ended"] == {None}
    finally:
        logging.getLogger().removeHandler(handler)
