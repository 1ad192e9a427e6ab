"""A fake Temporal whose answers a test sets, and the API around it without a socket."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryRejectedError
from temporalio.converter import DataConverter
from temporalio.service import RPCError, RPCStatusCode

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetState, SheetStatus, Snapshot, UploadOptions, UploadRecord, UploadStatus, timestamp, to_json
from activities.bucket.storage import Bucket
from api.access.settings import AccessSettings
from api.app import create_app
from api.settings import ApiSettings
from workflows.messages import Change

URL = "http://127.0.0.1:8000"
PLAN = PlanRef("acme", "tower", "a1")
BASE = "/v1/organizations/acme/projects/tower/plans/a1/uploads"
REF = UploadRef("acme", "tower", "a1", "0198c0de-0000-7000-8000-000000000001")
PATH = f"{BASE}/{REF.upload}"
PDF = b"%PDF-1.7\n" + b"x" * 5000

STACK_CODEC_KEY = "c0de" * 16
"""``SITELINK_CODEC_KEY`` of the stack that the tests share."""

NOT_FOUND = RPCError("no such workflow", RPCStatusCode.NOT_FOUND, b"")
UNAVAILABLE = RPCError("connection refused", RPCStatusCode.UNAVAILABLE, b"")
NO_WORKER = RPCError("timeout", RPCStatusCode.DEADLINE_EXCEEDED, b"")


def closed_run(status: WorkflowExecutionStatus = WorkflowExecutionStatus.COMPLETED) -> Exception:
    """The error of a query of a run that has ended."""
    return WorkflowQueryRejectedError(status)


class FakeTemporal:
    """One workflow, whose answers a test sets."""

    def __init__(self) -> None:
        self.state: Snapshot | Exception = NOT_FOUND
        self.last: Snapshot | Exception = NO_WORKER
        """The answer of a run that has ended."""
        self.start_error: Exception | None = None
        self.started: Snapshot | None = None
        """The state that a start sets; None leaves the state as it is."""
        self.signal_error: Exception | None = None
        self.cancel_error: Exception | None = None
        self.pending: list[PendingActivityInfo] = []
        self.start_time = datetime(2026, 1, 30, tzinfo=UTC)
        self.close_time: datetime | None = datetime(2026, 1, 31, tzinfo=UTC)
        self.healthy: bool | Exception = True
        self.starts: list[dict[str, Any]] = []
        self.signals: list[tuple[str, Any]] = []
        self.open_runs = 0
        self.cancels = 0
        self.queries = 0
        self.updates: list[tuple[int, str]] = []
        """The version and the id of every update."""
        self.update: Callable[[int], Awaitable[Snapshot]] = _never
        self.service_client = self
        self.data_converter = DataConverter.default

    async def connect(self) -> Client:
        """The client of this Temporal."""
        return cast("Client", self)

    def get_workflow_handle_for(self, _: object, workflow_id: str) -> "FakeTemporal":
        """The handle of the one workflow."""
        return self

    def get_workflow_handle(self, workflow_id: str) -> "FakeTemporal":
        """The handle of the one workflow."""
        return self

    async def query(self, *_: object, reject_condition: object = None, **__: object) -> Snapshot:
        """Returns the state or raises it. A query without a reject condition gets the answer of a run that has ended."""
        self.queries += 1
        state = self.state if reject_condition else self.last
        if isinstance(state, Exception):
            raise state
        return state

    async def execute_update(self, _: object, args: Any, *, id: str) -> Snapshot:  # noqa: A002 - the client's own name
        """Notes the update, and calls the function that the test has set."""
        self.updates.append((args.version, id))
        return await self.update(args.version)

    async def start_workflow(self, *args: object, **options: Any) -> None:
        """Notes the start, and sets the state that it brings."""
        if self.start_error:
            raise self.start_error
        self.starts.append({"argument": args[1], **options})
        self.state = self.started or self.state
        self.cancel_error = None

    async def signal(self, name: Any, argument: object, **_: object) -> None:
        """Notes the signal."""
        if self.signal_error:
            raise self.signal_error
        self.signals.append((name.__name__, argument))

    async def cancel(self, **_: object) -> None:
        """Notes the cancellation."""
        self.cancels += 1
        if self.cancel_error:
            raise self.cancel_error

    async def list_workflows(self, *_: object, **__: object) -> AsyncIterator[Any]:
        """No workflow."""
        none: list[Any] = []
        for execution in none:
            yield execution

    async def fetch_history_events(self, **_: object) -> AsyncIterator[Any]:
        """No history, because there is no such workflow."""
        raise NOT_FOUND
        yield

    async def describe(self, **_: object) -> Any:
        """The pending activities and the times of the run."""
        raw = SimpleNamespace(pending_activities=self.pending, workflow_extended_info=SimpleNamespace(cancel_requested=False))
        return SimpleNamespace(start_time=self.start_time, close_time=self.close_time, raw_description=raw, status=None)

    async def count_workflows(self, query: str, **_: object) -> Any:
        """The number of open runs that the test has set, of the organization ``acme``."""
        return SimpleNamespace(count=self.open_runs if "'acme'" in query else 0)

    async def check_health(self, **_: object) -> bool:
        """Returns the health that the test has set, or raises it."""
        if isinstance(self.healthy, Exception):
            raise self.healthy
        return self.healthy


async def _never(_: int) -> Snapshot:
    await asyncio.Event().wait()
    raise AssertionError


class Upstream(FakeTemporal):
    """A workflow whose update waits until the test changes its state."""

    def __init__(self, state: Snapshot) -> None:
        super().__init__()
        self.state = state
        self.update = self._progress_after
        self.committed: tuple[float, ...] = ()
        """The times of the commits in each change."""
        self._moved = asyncio.Condition()

    async def _progress_after(self, version: int) -> Snapshot:
        async with self._moved:
            await self._moved.wait_for(lambda: not isinstance(self.state, Snapshot) or self._is_newer(self.state, version))
        if isinstance(self.state, Exception):
            raise NOT_FOUND
        if version > self.state.version:
            return self.state
        sheets = tuple(sheet for sheet in self.state.sheets if sheet.version > version)
        return Change(**{**vars(self.state), "sheets": sheets}, committed=self.committed)

    def _is_newer(self, state: Snapshot, version: int) -> bool:
        # The real workflow does not answer before it has loaded its state.
        return state.status is not UploadStatus.QUEUED and state.version != version

    async def set(self, state: Snapshot | Exception) -> None:
        """Changes the state of the workflow, or ends its run."""
        async with self._moved:
            self.state = state
            self._moved.notify_all()


def make_bucket(directory: Path) -> Bucket:
    """A bucket in a directory."""
    return Bucket(BucketSettings(directory.as_uri()))


def make_app(
    bucket: Bucket,
    temporal: FakeTemporal,
    *,
    max_file_bytes: int = 1 << 20,
    access: AccessSettings | None = None,
    registry: CollectorRegistry | None = None,
) -> Starlette:
    """The application over a bucket and a Temporal; without access control unless settings of it are given."""
    settings = ApiSettings(BucketSettings("file:///unused"), max_file_bytes=max_file_bytes, access=access or AccessSettings())
    return create_app(bucket, temporal.connect, settings, registry)


def client_of(app: ASGIApp) -> httpx2.AsyncClient:
    """An HTTP client without a socket."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app, raise_app_exceptions=False), base_url=URL)


def files_below(directory: Path) -> list[Path]:
    """Every file below a directory. rglob would fail if somebody removed a directory meanwhile."""
    return [Path(path, name) for path, _, names in os.walk(directory) for name in names]


def files_in(directory: Path) -> list[str]:
    """The names, below the plan, of all files in a bucket's directory, half-written files included."""
    return sorted(str(path.relative_to(directory)).removeprefix(PLAN.prefix) for path in files_below(directory))


async def accept(bucket: Bucket, ref: UploadRef = REF, *, deleted_at: str | None = None) -> UploadRecord:
    """Writes ``upload.json``."""
    record = UploadRecord("A-101.pdf", 5009, "0" * 64, UploadOptions(), timestamp(datetime.now(UTC)), deleted_at)
    await bucket.put_async(ref.record, to_json(record))
    return record


def snapshot(*statuses: SheetStatus, version: int = 100, status: UploadStatus | None = None) -> Snapshot:
    """A progress with these sheets; the last sheet changed last."""
    ready = statuses.count(SheetStatus.READY)
    done = bool(statuses) and ready == len(statuses)
    sheets = tuple(SheetState(n, state, version - len(statuses) + n, f"A-{n}", 100, 50, 300) for n, state in enumerate(statuses, 1))
    return Snapshot(
        status or (UploadStatus.COMPLETE if done else UploadStatus.PROCESSING if statuses else UploadStatus.QUEUED),
        version,
        timestamp(datetime.now(UTC)),
        completed_pages=ready,
        total_pages=len(statuses),
        progress=100 if done else 0,
        sheets=sheets,
    )


def change(state: Snapshot, number: int, status: SheetStatus) -> tuple[Snapshot, Snapshot]:
    """The state after one sheet changed, and the change alone."""
    version = state.version + 1
    sheets = tuple(replace(sheet, status=status, version=version) if sheet.number == number else sheet for sheet in state.sheets)
    ready = sum(sheet.status is SheetStatus.READY for sheet in sheets)
    after = replace(state, version=version, completed_pages=ready, sheets=sheets)
    return after, replace(after, sheets=tuple(sheet for sheet in sheets if sheet.number == number))


class RawRequest:
    """A request straight into the application. A test feeds its body piece by piece."""

    def __init__(self, app: Starlette, method: str, path: str, headers: dict[str, str], host: str | None = "127.0.0.1:8000") -> None:
        self.sent: list[Message] = []
        self.received = 0
        """How often the application asked for more of the body."""
        self._body: asyncio.Queue[Message] = asyncio.Queue()
        names = {**({} if host is None else {"host": host}), **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "root_path": "",
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in names.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    def feed(self, data: bytes, *, more: bool = True) -> None:
        """Sends a piece of the body."""
        self._body.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def disconnect(self) -> None:
        """Closes the connection."""
        self._body.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int | None:
        """The status of the answer; None before the answer has begun."""
        return self.sent[0]["status"] if self.sent else None

    async def _receive(self) -> Message:
        self.received += 1
        return await self._body.get()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.disconnect()  # as every server says once the answer has ended
