"""No answer and no error message discloses the insides of a machine: no path, no class, no stack, whatever fails. The log has them all."""

import asyncio
import builtins
import errno
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx2
import obstore.exceptions
import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, HTTPClientError
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowQueryFailedError
from temporalio.converter import DataConverter
from temporalio.exceptions import ActivityError, ApplicationError, RetryState, TimeoutType
from temporalio.exceptions import TimeoutError as TemporalTimeout
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.attempt import Attempt
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus, UploadStatus, timestamp, to_json
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.bucket.store_errors import DENIED_CODES, named_s3_error
from activities.errors import ObjectMissing, SiteLinkError
from activities.render.child import ChildLimits, error_of_answer
from api.cli.client import Server
from api.cli.errors import NotReached
from api.paths import plan_path
from tests.servers.recorder import Answer, recording
from tests.unit.api_fakes import BASE, PATH, PDF, PLAN, REF, FakeTemporal, accept, client_of, closed_run, make_app, snapshot
from tests.unit.sheets import put_sheet
from workflows.processing.failures import reason_and_detail

SOURCE = "/srv/sitelink/var/scratch/sources/0123456789abcdef.pdf"
"""A path as libraries put it into their texts."""

SAID = (
    f"obstore.exceptions.GenericError: Unable to open {SOURCE}: failed (os error 5)\n\nDebug source:\nGeneric {{ store: RenderError('x') }}"
)
"""A text that has all that a client must not see."""

INSIDES = re.compile(
    r"/srv/|scratch|Traceback|\[Errno|os error|Debug source|__\w+__"
    r"|\b\w+(Error|Exception|Warning)\b(?<!InternalError)"  # classes of Python and of libraries; ours have other names
    r"|\b[a-z_]\w*(\.[a-z_]\w*)*\.[A-Z]\w*"  # a class with its module
)

READY, TILING = SheetStatus.READY, SheetStatus.TILING
ROUTES = [
    *(("GET", path) for path in (PATH, BASE, f"{PATH}/verify", f"{PATH}/verify?deep=true", f"{PATH}/sheets/sheet-1/tiles/sheet-1.dzi")),
    *(("GET", path) for path in ("/readyz", "/livez", "/v1/events/unreadable", f"{PATH}/events")),
    *(("POST", f"{PATH}/{action}") for action in ("cancel", "reconcile", "reconcile?dryRun=true", "sheets/1/retry", "sheets/1/prioritize")),
    ("POST", f"{BASE.removesuffix('/uploads')}/reconcile"),
    ("POST", BASE),
    ("DELETE", PATH),
]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of the bucket."""
    return tmp_path / "bucket"


@pytest.mark.parametrize("text", [SOURCE, "RenderError('x')", "a.b.Cd", "[Errno 5] x", *SAID.split("\n\n")])
def test_insides_are_known(text: str) -> None:
    """Each kind by itself, and not what the design says."""
    assert INSIDES.search(text)
    assert not INSIDES.search(
        "StorageUnavailable: the bucket failed at organizations/a/upload.json: No space left on device. InternalError A.B"
    )


def assert_no_insides(text: str, *paths: Path) -> None:
    """Nothing of them is in what a client gets."""
    assert not (found := INSIDES.search(text)), f"{found and found[0]!r} in {text}"
    assert not any(str(path) in text for path in paths), text


# What the API answers while something is really broken


def in_the_way(path: Path) -> None:
    """A directory where a file should be, or a file where a directory should be."""
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"")
    else:
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)


def loop(path: Path) -> None:
    """A link that leads to itself."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)


def damaged(path: Path) -> None:
    """A record that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"schema": 1, "status"')


DAMAGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda _: None,
    "bucket gone": shutil.rmtree,
    "bucket is a file": in_the_way,
    "bucket is a loop": loop,
    **{
        f"{name} {damage.__name__}": lambda root, damage=damage, key=key: damage(root / key)  # type: ignore[misc]
        for damage in (in_the_way, loop, damaged)
        for name, key in {
            "upload.json": REF.record,
            "manifest.json": REF.manifest,
            "sheet.json": REF.sheet_record(1),
            ".dzi": REF.descriptor(1),
            "a tile": REF.tiles_prefix(1) + "0/0_0.jpeg",
            "key record": PLAN.idempotency_key("one"),
        }.items()
    },
    **{
        f"{name} {damage.__name__}": lambda root, damage=damage, key=key: damage(root / key)  # type: ignore[misc]
        for damage in (in_the_way, loop)
        for name, key in {"uploads": PLAN.uploads_prefix, "sheets": REF.sheets_prefix, "events": "events"}.items()
    },
}

RPC = RPCError(SAID, RPCStatusCode.UNAVAILABLE, b"")
SILENCES: dict[str, Callable[[FakeTemporal], None]] = {
    "running": lambda temporal: setattr(temporal, "state", snapshot(READY, TILING)),
    "closed": lambda temporal: setattr(temporal, "state", closed_run()),
    "refusing": lambda temporal: _answer(temporal, RPC),
    "internal": lambda temporal: _answer(temporal, RPCError(SAID, RPCStatusCode.INTERNAL, b"")),
    "not reached": lambda temporal: _answer(temporal, RuntimeError(f"Failed client connect: {SAID}")),
    "silent": lambda temporal: _answer(temporal, RPCError(SAID, RPCStatusCode.DEADLINE_EXCEEDED, b"")),
    "failing": lambda temporal: setattr(temporal, "state", WorkflowQueryFailedError(SAID)),
    "a bug": lambda temporal: _answer(temporal, RuntimeError(SAID)),
}


def _answer(temporal: FakeTemporal, error: Exception) -> None:
    temporal.state = temporal.start_error = temporal.signal_error = temporal.cancel_error = temporal.healthy = error


async def ask_everything(client: httpx2.AsyncClient) -> AsyncIterator[tuple[str, httpx2.Response]]:
    """The answer of every route; an event stream as far as it comes at once."""
    for method, path in ROUTES:
        request = client.build_request(method, path, content=PDF if path == BASE else b"", headers={"Idempotency-Key": "one"})
        if path.endswith("/events"):
            continue  # its events are snapshots, which GET shows; its refusal is that of the others
        yield f"{method} {path}", await client.send(request)


@pytest.mark.parametrize("silence", SILENCES)
@pytest.mark.parametrize("damage", ["nothing", "bucket gone", "upload.json damaged", "manifest.json damaged"])
async def test_answers_without_temporal_have_no_insides(
    bucket: Bucket, temporal: FakeTemporal, tmp_path: Path, root: Path, damage: str, silence: str
) -> None:
    """Of every route, whatever Temporal says, also while the bucket is broken."""
    await check_all(bucket, temporal, tmp_path, root, damage, silence)


@pytest.mark.parametrize("silence", ["running", "closed"])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_answers_about_a_broken_bucket_have_no_insides(
    bucket: Bucket, temporal: FakeTemporal, tmp_path: Path, root: Path, damage: str, silence: str
) -> None:
    """Of every route, whatever lies in the way of an object; each is named, none is a bug."""
    await check_all(bucket, temporal, tmp_path, root, damage, silence)


async def check_all(bucket: Bucket, temporal: FakeTemporal, tmp_path: Path, root: Path, damage: str, silence: str) -> None:
    """Asks everything of an upload with one sheet after it was damaged."""
    await accept(bucket)
    await asyncio.to_thread(put_sheet, bucket, 1, REF)
    if silence != "running":
        await bucket.put_async(REF.manifest, to_json(snapshot(READY, SheetStatus.FAILED, status=UploadStatus.PARTIAL)))
    DAMAGES[damage](root)
    SILENCES[silence](temporal)
    async with client_of(make_app(bucket, temporal)) as client:
        async for what, answer in ask_everything(client):
            assert answer.status_code != 500 or silence == "a bug", f"{what}: {answer.text}"
            assert_no_insides(answer.text + str(answer.headers), tmp_path)


# Where errors get their names


def library_errors() -> Iterator[Exception]:
    """Errors of every library and of every number that the system has."""
    for kind in vars(obstore.exceptions).values():
        if isinstance(kind, type) and issubclass(kind, Exception):
            yield kind(SAID)
    for number in errno.errorcode:
        yield OSError(number, os.strerror(number), SOURCE)
        yield obstore.exceptions.GenericError(f"Unable to open {SOURCE}: failed (os error {number})")


def test_errors_of_a_directory_have_no_insides(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """The system's words for its number are all that goes on; the log has the whole text, with the upload."""
    bucket.put(REF.manifest, b"{}")
    for error in library_errors():
        caplog.clear()
        chunks = cast("Generator[bytes]", bucket.chunks(REF.manifest))
        next(chunks)
        with pytest.raises(SiteLinkError) as failure:
            chunks.throw(error)  # where the library would raise it
        assert_no_insides(str(failure.value))
        if not isinstance(failure.value, ObjectMissing):
            (record,) = caplog.records
            assert SOURCE in record.getMessage()
            assert record.__dict__["ref"] == str(REF)


@pytest.mark.parametrize(
    "code", ["", "NoSuchBucket", "NoSuchKey", "RequestTimeTooSkewed", "SlowDown", "InternalError", *sorted(DENIED_CODES)]
)
def test_errors_of_an_s3_server_have_no_insides(code: str, caplog: pytest.LogCaptureFixture) -> None:
    """S3's code is all that goes on of an answer."""
    assert_no_insides(str(named_s3_error(code, SAID, bucket="plans", key=REF.manifest)))
    if code != "NoSuchKey":
        (record,) = caplog.records
        assert SOURCE in record.getMessage()
        assert record.__dict__["ref"] == str(REF)


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url=f"http://{SOURCE}"),
        ConnectTimeoutError(endpoint_url=f"http://{SOURCE}"),
        HTTPClientError(error=OSError(5, "x", SOURCE)),
    ],
)
def test_errors_of_boto_have_no_insides(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that never came has no code."""

    def origins() -> Iterator[str]:
        """Fails while the request is made, as boto would."""
        raise error
        yield ""

    setup = BucketSetup(BucketSettings("s3://plans", "http://127.0.0.1:1", "id", "hush", "auto"))
    with pytest.raises(SiteLinkError) as failure:
        setup.allow_origins(cast("Sequence[str]", origins()))
    assert_no_insides(str(failure.value))
    assert SOURCE in caplog.text


@pytest.mark.parametrize("name", ["PasswordError", "Error", "PdfError", "PdfiumError", "RecursionError", "KeyError", "RenderCrashed", "_x"])
def test_errors_of_a_render_process_have_no_insides(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The class and the words of a library in a child, and of a child that was taken over, go to the log."""
    fault = error_of_answer({"error": name, "message": f"{SOURCE}: invalid password"}, "count", ChildLimits(), str(REF), fresh_child=True)
    assert_no_insides(str(fault))
    (record,) = caplog.records
    assert f"{name}: " in record.getMessage()
    assert "invalid password" in record.getMessage()
    assert record.__dict__["ref"] == str(REF)


BUILTIN = sorted(
    (kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)),
    key=lambda kind: kind.__name__,
)


def failures() -> Iterator[Exception]:
    """What an activity may raise."""
    for kind in BUILTIN:
        try:
            yield kind(SAID)
        except TypeError:
            continue  # it is made of other things than a text
    yield from library_errors()
    yield RPC
    yield TemporalTimeout(SAID, type=TimeoutType.HEARTBEAT, last_heartbeat_details=[])


async def as_failure(error: Exception) -> Failure:
    """The failure that Temporal keeps of an activity which raises ``error``."""

    async def attempt() -> None:
        with Attempt().named_errors():
            raise error

    failure = Failure()
    try:
        await ActivityEnvironment().run(attempt)
    except Exception as raised:  # noqa: BLE001 - whatever leaves the activity
        await DataConverter.default.encode_failure(raised, failure)
    return failure


async def test_warnings_of_a_failing_activity_have_no_insides(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Whatever an activity raises again and again: only a named error's own sentence is shown."""
    await accept(bucket)
    temporal.state = replace(snapshot(READY, TILING), updated_at=timestamp(datetime.now(UTC) - timedelta(minutes=7)))
    async with client_of(make_app(bucket, temporal)) as client:
        for error in failures():
            pending = PendingActivityInfo(attempt=7)
            pending.activity_type.name = "tile_page"
            pending.last_failure.CopyFrom(await as_failure(error))
            temporal.pending = [pending]
            warning = (await client.get(PATH)).json()["warning"]
            assert "(attempt 7)" in warning
            assert_no_insides(warning)


@pytest.mark.parametrize("kind", [None, "PermissionError", "temporalio.exceptions.FailureError", "SiteLink", "errors", "ApplicationError"])
def test_reason_of_a_failed_sheet_has_no_insides(kind: str | None) -> None:
    """An activity that ends for good without a name of ours is an ``InternalError``."""
    error = ActivityError(
        "Activity task failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="1@host",
        activity_type="tile_page",
        activity_id="1",
        retry_state=RetryState.NON_RETRYABLE_FAILURE,
    )
    error.__cause__ = ApplicationError(SAID, type=kind, non_retryable=True)
    reason, detail = reason_and_detail(error)
    assert reason == "InternalError"
    assert_no_insides(detail)


def test_command_line_says_no_insides_of_a_bucket(bucket: Bucket, root: Path) -> None:
    """Without a server, too."""
    loop(root / REF.record)
    environ = {"PATH": os.environ["PATH"], "SITELINK_BUCKET": root.as_uri()}
    command = [sys.executable, "-m", "api.cli", "verify", str(REF), "--bucket"]
    result = subprocess.run(command, env=environ, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("StorageUnavailable: the bucket failed at organizations/")
    assert_no_insides(result.stderr, root)


def test_command_line_says_no_insides_of_its_connection() -> None:
    """A server that is away, hangs up or answers nonsense: the system's words, not httpx2's."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with Server(f"http://127.0.0.1:{port}") as server, pytest.raises(NotReached, match="Connection refused") as failure:
        server.request("GET", plan_path(PLAN))
    assert_no_insides(str(failure.value))
    with recording() as recorder, Server(recorder.url) as server:
        recorder.answer = lambda _: Answer(204)
        for kind in (httpx2.ReadTimeout, httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol):
            with pytest.raises(NotReached) as failure, server.event_stream(REF, "1"):
                raise kind(SAID)  # as the library would while the stream is read
            assert_no_insides(str(failure.value))
