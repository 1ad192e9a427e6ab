"""The API as a process on a socket, with a real Temporal server, the real workflow and a real directory; only activities are pretended."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Note, SheetStatus, Snapshot, UploadOptions, bounded_notes, from_json, to_json
from activities.bucket.storage import Bucket
from activities.bucket.weight import MOST_PAGES
from activities.errors import PageUnreadable, StorageUnavailable
from activities.interface import BucketState, CountPages, Document, ListSheets, Page, WriteManifest, WrittenManifest
from activities.limits import DocumentLimits
from api.__main__ import GRACE_S
from api.progress.delivery import PING_S
from api.progress.runs import QUERY_TIMEOUT_S
from deploy.temporal import TemporalServer
from tests.unit.api_fakes import BASE, PATH, PDF, REF, Upstream, accept, change, files_below, make_app, make_bucket, snapshot
from tests.waiting import DEADLINE_S, until, until_async
from tests.workflow.fakes import FakeActivities, pages, working

MEGABYTE = 1 << 20


class ApiProcess:
    """``python -m api``.

    Args:
        directory: The bucket's and the log's.
        temporal: Address of the Temporal server.
        environ: Further variables.
    """

    def __init__(self, directory: Path, temporal: str, **environ: str) -> None:
        self.log = directory / "api.log"
        self._environ = {
            **os.environ,
            "SITELINK_BUCKET": (directory / "bucket").as_uri(),
            "SITELINK_PORT": "0",
            "TEMPORAL_ADDRESS": temporal,
            **environ,
        }
        self.port = 0
        self.accepted: list[UploadRef] = []
        self.start()

    def start(self) -> None:
        """Starts it, again on the same port, and waits until it listens."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "api"], env=self._environ, stderr=log, stdout=log)
        until(self._listens)
        self._environ["SITELINK_PORT"] = str(self.port)

    def _listens(self) -> bool:
        log = self.log.read_text()
        assert self._process.poll() is None, log
        if match := re.search(r"listening on http://127\.0\.0\.1:(\d+)", log):
            self.port = int(match[1])
        return match is not None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def end(self, number: signal.Signals) -> int:
        """Sends a signal; the exit code."""
        self._process.send_signal(number)
        return self._process.wait(DEADLINE_S)

    @property
    def title(self) -> str:
        """The process's command line, as every user of the machine sees it."""
        return Path(f"/proc/{self._process.pid}/cmdline").read_text()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def peak_memory_bytes(self) -> int:
        """Largest resident size so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


@pytest.fixture(scope="module")
def bucket_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bucket of all API processes is."""
    return tmp_path_factory.mktemp("api") / "bucket"


@pytest.fixture(scope="module")
def bucket(bucket_directory: Path) -> Bucket:
    """The bucket of all API processes."""
    return Bucket(BucketSettings(bucket_directory.as_uri()))


@contextmanager
def running(directory: Path, temporal: str, **environ: str) -> Iterator[ApiProcess]:
    """Runs an API process; kills it at the end."""
    directory.mkdir()
    api = ApiProcess(directory, temporal, **environ)
    try:
        yield api
    finally:
        api.end(signal.SIGKILL)
    log = api.log.read_text()
    # uvicorn writes one for each request that it cancels when it stops
    assert log.count("Traceback") == log.count("asyncio.exceptions.CancelledError: Task cancelled"), log


async def end_runs(temporal: Client, api: ApiProcess) -> None:
    """Ends what the API has started: the next test has workers, too."""
    while api.accepted:
        with suppress(RPCError):  # it has ended by itself
            await temporal.get_workflow_handle(api.accepted.pop().workflow_id).terminate()


@pytest.fixture
async def new_api(
    tmp_path: Path, bucket_directory: Path, temporal_server: TemporalServer, temporal: Client
) -> AsyncIterator[Callable[..., ApiProcess]]:
    """Starts API processes of this test alone."""
    started: list[ApiProcess] = []
    with ExitStack() as processes:

        def start(temporal: str = temporal_server.address) -> ApiProcess:
            directory = tmp_path / f"api-{len(started)}"
            started.append(processes.enter_context(running(directory, temporal, SITELINK_BUCKET=bucket_directory.as_uri())))
            return started[-1]

        yield start
    for api in started:
        await end_runs(temporal, api)


@pytest.fixture(scope="module")
def api_of_module(bucket_directory: Path, temporal_server: TemporalServer) -> Iterator[ApiProcess]:
    """See ``api``."""
    with running(bucket_directory.with_name("process"), temporal_server.address, SITELINK_BUCKET=bucket_directory.as_uri()) as api:
        yield api


@pytest.fixture
async def api(api_of_module: ApiProcess, temporal: Client) -> AsyncIterator[ApiProcess]:
    """One API process for the tests after which it still runs."""
    yield api_of_module
    await end_runs(temporal, api_of_module)


class Activities(FakeActivities):
    """Pretended activities that write the manifest into the real bucket, and read it there."""

    def __init__(self, pages: list[Page], bucket: Bucket) -> None:
        super().__init__(pages)
        self._bucket = bucket

    @activity.defn
    async def count_pages(self, args: CountPages) -> Document:
        """The pages."""
        return await super().count_pages(args)

    @activity.defn
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """What was committed, and the manifest."""
        return await super().list_sheets(args)

    @activity.defn
    async def write_manifest(self, args: WriteManifest) -> WrittenManifest:
        """Writes it as the real one does."""
        written = await super().write_manifest(args)
        await self._bucket.put_async(UploadRef.parse(args.ref).manifest, to_json(args.snapshot))
        return written


class Stream:
    """The events of one connection."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()
        self.last_id: int | None = None

    async def next(self) -> tuple[str, str]:
        """Name and data of the next event.

        Raises:
            StopAsyncIteration: The stream ended.
        """
        name = data = ""
        async with asyncio.timeout(DEADLINE_S):
            while (line := await anext(self._lines)) or not data:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data = value
                elif field == "id":
                    self.last_id = int(value)
        return name, data

    async def rest(self) -> list[tuple[str, str]]:
        """Every event until the stream ends."""
        events = []
        try:
            while True:
                events.append(await self.next())
        except StopAsyncIteration:
            return events


@asynccontextmanager
async def streaming(http: httpx2.AsyncClient, url: str, after: int | None = None) -> AsyncIterator[Stream]:
    """A connection to an upload's events."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    async with http.stream("GET", f"{url}/events", headers=headers) as response:
        yield Stream(response)


async def send(http: httpx2.AsyncClient, api: ApiProcess, content: Any = PDF, **options: Any) -> UploadRef:
    """Uploads a PDF."""
    answer = await http.post(api.url + BASE, content=content, **options)
    assert answer.status_code == 202, answer.text
    api.accepted.append(UploadRef.parse(answer.json()["ref"]))
    return api.accepted[-1]


def url_of(api: ApiProcess, ref: UploadRef) -> str:
    """Where an upload is."""
    return f"{api.url}{BASE}/{ref.upload}"


async def state_of(http: httpx2.AsyncClient, api: ApiProcess, ref: UploadRef) -> dict[str, Any]:
    """The progress as GET says it."""
    answer: dict[str, Any] = (await http.get(url_of(api, ref))).json()
    return answer


async def listed(http: httpx2.AsyncClient, api: ApiProcess) -> list[str]:
    """The refs of the plan's uploads."""
    return [entry["ref"] for entry in (await http.get(api.url + BASE)).json()["uploads"]]


def merged(events: list[tuple[str, str]]) -> dict[str, Any]:
    """What a client knows after these events."""
    known: dict[str, Any] = {}
    sheets: dict[int, Any] = {}
    for name, data in events:
        document = json.loads(data)
        if name != "change":
            sheets.clear()
        sheets.update((sheet["number"], sheet) for sheet in document["sheets"])
        known = {**document, "sheets": [sheets[number] for number in sorted(sheets)]}
    return known


async def test_upload_is_watched_to_its_end(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """From POST to ``end``: every change arrives, versions grow, the last event is the manifest byte for byte, for latecomers too."""
    fake = Activities(pages(8), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        async with streaming(http, url_of(api, ref)) as stream:
            first = await stream.next()
            assert first[0] == "snapshot"
            fake.gate.set()
            events = [first, *await stream.rest()]
        late = []
        for after in (None, json.loads(first[1])["version"]):
            async with streaming(http, url_of(api, ref), after) as stream:
                late.append(await stream.rest())
    manifest = bucket.get(ref.manifest).body
    assert events[-1] == ("end", manifest.decode())
    assert merged(events[:-1]) == json.loads(manifest)
    versions = [json.loads(data)["version"] for _, data in events]
    assert versions == sorted(versions)
    assert [name for name, _ in late[0]] == ["snapshot", "end"]
    assert [name for name, _ in late[1]] == ["change", "end"]
    assert merged([first, *late[1][:1]]) == json.loads(manifest)
    final = from_json(Snapshot, manifest).version
    assert (await http.get(f"{url_of(api, ref)}/events", headers={"Last-Event-ID": str(final)})).status_code == 204
    answer = await state_of(http, api, ref)
    assert (answer["status"], answer["version"], answer["warning"]) == ("complete", final, None)


async def test_longest_texts_of_2000_sheets_are_streamed(
    http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client
) -> None:
    """A change that is too large for an update arrives all the same, and the last event is the manifest byte for byte."""
    titled = [replace(page, title="\N{GRINNING FACE}" * 120) for page in pages(MOST_PAGES)]
    counted = DocumentLimits().check_pages(titled, UploadOptions())
    fake = Activities(list(counted), bucket)
    notes = bounded_notes(Note("FontSubstituted", f"{number}{'n' * 200}") for number in range(9))
    for page in counted[3:]:
        fake.commit(replace(page, notes=notes))
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        async with streaming(http, url_of(api, ref)) as stream:
            events = [await stream.next()]
            while len(merged(events)["sheets"]) < MOST_PAGES:
                events.append(await stream.next())
            fake.gate.set()
            events += await stream.rest()
    manifest = bucket.get(ref.manifest).body
    assert events[-1] == ("end", manifest.decode())
    assert merged(events[:-1]) == json.loads(manifest)
    assert json.loads(manifest)["status"] == "complete"


async def test_killed_api_loses_no_change(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """SIGKILL with open streams; after the restart ``Last-Event-ID`` brings exactly what was missed."""
    fake = Activities(pages(6), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        await until_async(lambda: _has(http, api, ref, "totalPages", 6))
        async with streaming(http, url_of(api, ref)) as stream:
            before = await stream.next()
            while all(sheet["status"] == "pending" for sheet in merged([before])["sheets"]):
                before = ("snapshot", json.dumps(merged([before, await stream.next()])))
            last_id = stream.last_id
            api.end(signal.SIGKILL)
            with pytest.raises(httpx2.TransportError):
                await stream.rest()
        fake.gate.set()
        handle = temporal.get_workflow_handle(ref.workflow_id)
        await handle.result()
        api.start()
        started = time.monotonic()
        async with streaming(http, url_of(api, ref), last_id) as stream:
            events = await stream.rest()
        assert time.monotonic() - started < PING_S  # at once, and not when something else happens
    manifest = json.loads(bucket.get(ref.manifest).body)
    assert [name for name, _ in events] == ["change", "end"]
    missed = [sheet["number"] for sheet in json.loads(events[0][1])["sheets"]]
    assert missed == [sheet["number"] for sheet in manifest["sheets"] if sheet["version"] > (last_id or 0)]
    assert merged([before, events[0]]) == manifest


async def _has(http: httpx2.AsyncClient, api: ApiProcess, ref: UploadRef, name: str, value: object) -> bool:
    return bool((await state_of(http, api, ref))[name] == value)


async def test_two_processes_tell_the_same(
    http: httpx2.AsyncClient, api: ApiProcess, new_api: Callable[..., ApiProcess], bucket: Bucket, temporal: Client
) -> None:
    """A client may watch, and come back, through any API process."""
    apis = [api, new_api()]
    fake = Activities(pages(5), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, apis[0])
        async with streaming(http, url_of(apis[0], ref)) as one, streaming(http, url_of(apis[1], ref)) as two:
            first = [await one.next(), await two.next()]
            fake.gate.set()
            rests = await asyncio.gather(one.rest(), two.rest())
    assert merged([first[0], *rests[0]]) == merged([first[1], *rests[1]]) == json.loads(bucket.get(ref.manifest).body)


async def test_client_that_never_reads_delays_nobody(http: httpx2.AsyncClient, tmp_path: Path) -> None:
    """While two connections take nothing, a third sees every change; the first then gets them together, the second holds up no stop.

    A real Temporal cannot carry a state that is larger than the kernel's buffers, so this one is pretended.
    """
    state = snapshot(*[SheetStatus.PENDING] * 300)
    state = replace(state, sheets=tuple(replace(sheet, title="A" * 20_000) for sheet in state.sheets))
    upstream, bucket = Upstream(state), make_bucket(tmp_path / "bucket")
    await accept(bucket, REF)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(make_app(bucket, upstream), log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S)
        server = uvicorn.Server(config)
        with deaf_connection(port) as late, deaf_connection(port):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            async with streaming(http, f"http://127.0.0.1:{port}{PATH}") as stream:
                events = [await stream.next()]
                for number in range(1, 21):
                    state, _ = change(state, number, SheetStatus.READY)
                    await upstream.set(state)
                    events.append(await stream.next())
                assert [json.loads(data)["completedPages"] for _, data in events] == list(range(21))
                late.setblocking(False)
                body = b""
                while b'"completedPages":20,' not in body:
                    body += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(late, 1 << 20), DEADLINE_S)
                # The snapshot, at most one change that was on its way when the buffers were full, and all others in one.
                assert body.count(b"event: snapshot") == 1
                assert body.count(b"event: change") in (1, 2)
            server.should_exit = True
            async with asyncio.timeout(DEADLINE_S):
                await serving


def deaf_connection(port: int) -> socket.socket:
    """A connection to an upload's events."""
    connection = socket.socket()
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {PATH}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return connection


async def test_sigterm_ends_within_seconds_with_streams_open(
    http: httpx2.AsyncClient, new_api: Callable[..., ApiProcess], bucket: Bucket, temporal: Client
) -> None:
    """The streams end after a whole event, without an ``end`` that would be none; the process exits with 0."""
    api = new_api()
    fake = Activities(pages(1), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        async with streaming(http, url_of(api, ref)) as one, streaming(http, url_of(api, ref)) as two:
            await one.next()
            await two.next()
            assert await asyncio.to_thread(api.end, signal.SIGTERM) == 0
            for stream in (one, two):
                assert "end" not in [name for name, _ in await stream.rest()]
        assert "graceful shutdown exceeded" not in api.log.read_text()
        fake.gate.set()
        await temporal.get_workflow_handle(ref.workflow_id).result()


@pytest.mark.parametrize("form", [False, True])
async def test_connection_cut_in_the_middle_of_an_upload_leaves_nothing(
    http: httpx2.AsyncClient, api: ApiProcess, bucket_directory: Path, form: bool
) -> None:
    """Half an upload is none, and no half object stays, not even with its key."""
    before, uploads = files_below(bucket_directory), await listed(http, api)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n' if form else b""
    kind = "multipart/form-data; boundary=b" if form else "application/pdf"
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(
            f"POST {BASE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nIdempotency-Key: k\r\n"
            f"Content-Length: {50 * MEGABYTE}\r\n\r\n".encode()
            + head
            + PDF
        )
        for _ in range(20):
            connection.sendall(bytes(MEGABYTE))
        await until_async(lambda: len(files_below(bucket_directory)) > len(before))
    await until_async(lambda: sorted(files_below(bucket_directory)) == sorted(before))
    assert await listed(http, api) == uploads


async def test_server_stopped_in_the_middle_of_an_upload_leaves_nothing(new_api: Callable[..., ApiProcess], bucket_directory: Path) -> None:
    """SIGTERM gives the upload up after some seconds, and its half object with it."""
    api, before = new_api(), files_below(bucket_directory)
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(f"POST {BASE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {50 * MEGABYTE}\r\n\r\n".encode() + PDF)
        for _ in range(20):
            connection.sendall(bytes(MEGABYTE))
        await until_async(lambda: len(files_below(bucket_directory)) > len(before))
        await asyncio.to_thread(api.end, signal.SIGTERM)
    assert sorted(files_below(bucket_directory)) == sorted(before)


@pytest.mark.parametrize("form", [False, True])
async def test_memory_stays_constant(http: httpx2.AsyncClient, new_api: Callable[..., ApiProcess], bucket: Bucket, form: bool) -> None:
    """A file of 300 MB needs no more memory than the bucket's own buffers."""
    api, count = new_api(), 300

    async def body() -> AsyncIterator[bytes]:
        if form:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n'
        yield PDF
        for _ in range(count):
            yield bytes(MEGABYTE)
        if form:
            yield b"\r\n--b--\r\n"

    await send(http, api)  # so that the libraries are warm
    before = api.peak_memory_bytes
    headers = {"Content-Type": "multipart/form-data; boundary=b"} if form else {}
    ref = await send(http, api, body(), headers=headers)
    grown = api.peak_memory_bytes - before
    info = bucket.head(ref.source)
    bucket.delete([ref.source])
    assert info.size == len(PDF) + count * MEGABYTE
    assert grown < 120 * MEGABYTE


async def test_api_lives_without_temporal(
    http: httpx2.AsyncClient, api: ApiProcess, new_api: Callable[..., ApiProcess], free_port: int, temporal: Client, bucket: Bucket
) -> None:
    """It starts, is not ready, and accepts; an API that has Temporal runs what was accepted at the first look."""
    lonely = new_api(f"127.0.0.1:{free_port}")
    assert (await http.get(f"{lonely.url}/livez")).status_code == 200
    ready = await http.get(f"{lonely.url}/readyz")
    assert (ready.status_code, ready.json()["type"]) == (503, "TemporalUnavailable")
    ref = await send(http, lonely)
    answer = await state_of(http, lonely, ref)
    assert (answer["status"], "Temporal does not answer" in answer["warning"]) == ("queued", True)
    async with streaming(http, url_of(lonely, ref)) as stream:
        assert (await stream.next())[0] == "snapshot"
    assert (await http.get(f"{api.url}/readyz")).status_code == 200
    async with working(temporal, Activities(pages(2), bucket)):
        await until_async(lambda: _has(http, api, ref, "status", "complete"))


async def test_no_worker_is_no_wait(http: httpx2.AsyncClient, api: ApiProcess) -> None:
    """An accepted upload that no worker answers for is shown soon, as queued, with a warning: it is us who give the query up."""
    ref = await send(http, api)
    started = time.monotonic()
    answer = await state_of(http, api, ref)
    assert time.monotonic() - started < 5 * QUERY_TIMEOUT_S
    assert (answer["status"], "no worker" in answer["warning"]) == ("queued", True)


async def test_cancel_ends_the_upload(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """Cancel is accepted, the stream ends with ``cancelled``, twice is no error."""
    fake = Activities(pages(3), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        await until_async(lambda: fake.in_flight == 3)
        async with streaming(http, url_of(api, ref)) as stream:
            await stream.next()
            assert (await http.post(f"{url_of(api, ref)}/cancel")).status_code == 202
            name, data = (await stream.rest())[-1]
        assert (name, json.loads(data)["status"]) == ("end", "cancelled"), data
        assert (await http.post(f"{url_of(api, ref)}/cancel")).status_code == 202


async def test_retry_reopens_an_upload(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """A failed sheet of an upload that has ended is tried again; whoever comes back sees only what changed."""
    fake = Activities(pages(3), bucket)
    fake.tile_errors[2] = [PageUnreadable("page 2")]
    async with working(temporal, fake):
        ref = await send(http, api)
        async with streaming(http, url_of(api, ref)) as stream:
            events = await stream.rest()
            last_id = stream.last_id
        assert json.loads(events[-1][1])["status"] == "partial"
        fake.gate.clear()
        assert (await http.post(f"{url_of(api, ref)}/sheets/2/retry")).status_code == 202
        assert (await http.post(f"{url_of(api, ref)}/sheets/4/retry")).json()["type"] == "SheetNotFound"
        async with streaming(http, url_of(api, ref), last_id) as stream:
            fake.gate.set()
            again = await stream.rest()
    assert [name for name, _ in again][-1] == "end"
    assert json.loads(again[-1][1])["status"] == "complete"
    changed = {sheet["number"] for name, data in again if name == "change" for sheet in json.loads(data)["sheets"]}
    assert changed == {2}
    assert merged([*events, *again[:-1]]) == json.loads(bucket.get(ref.manifest).body)


async def test_terminated_run_is_failed(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """An operator's Terminate ends the stream with ``failed``, and a reconcile brings the upload back."""
    fake = Activities(pages(2), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        await until_async(lambda: _has(http, api, ref, "totalPages", 2))
        async with streaming(http, url_of(api, ref)) as stream:
            await stream.next()
            await temporal.get_workflow_handle(ref.workflow_id).terminate()
            name, data = (await stream.rest())[-1]
        assert (name, json.loads(data)["status"], json.loads(data)["reason"]) == ("end", "failed", "Terminated")
        fake.gate.set()
        assert (await http.post(f"{url_of(api, ref)}/reconcile")).status_code == 202
        await until_async(lambda: _has(http, api, ref, "status", "complete"))


async def test_failing_bucket_is_a_warning(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """While an activity keeps failing, GET names its last failure and the number of tries."""
    fake = Activities(pages(1), bucket)
    fake.upload_errors[1] = [StorageUnavailable("the bucket answers 503")] * 100
    async with working(temporal, fake):
        ref = await send(http, api)

        async def warned() -> bool:
            warning = (await state_of(http, api, ref))["warning"]
            return bool(warning and re.fullmatch(r"StorageUnavailable: the bucket answers 503 \(attempt \d+\)", warning))

        await until_async(warned)
        fake.upload_errors[1].clear()
        await until_async(lambda: _has(http, api, ref, "status", "complete"))


async def test_list_shows_running_and_ended_uploads(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """Newest first, each with its state."""
    fake = Activities(pages(2), bucket)
    async with working(temporal, fake):
        first = await send(http, api, params={"filename": "one.pdf"})
        await temporal.get_workflow_handle(first.workflow_id).result()
        fake.manifest = None
        fake.committed.clear()
        fake.gate.clear()
        second = await send(http, api, params={"filename": "two.pdf"})
        await until_async(lambda: _has(http, api, second, "status", "processing"))
        uploads = (await http.get(api.url + BASE, params={"limit": 2})).json()["uploads"]
        fake.gate.set()
        await temporal.get_workflow_handle(second.workflow_id).result()
    assert [(entry["fileName"], entry["status"], entry["progress"]) for entry in uploads] == [
        ("two.pdf", "processing", 0),
        ("one.pdf", "complete", 100),
    ]


@pytest.mark.parametrize(("name", "value"), [("SITELINK_HOST", "0.0.0.0"), ("SITELINK_PORT", "many"), ("SITELINK_BUCKET", "ftp://x")])  # noqa: S104 - it must be refused
def test_unusable_setting_ends_the_process_with_2(name: str, value: str) -> None:
    """One sentence names the variable, nothing is started."""
    done = subprocess.run(
        [sys.executable, "-m", "api"], env={**os.environ, name: value}, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr


async def test_request_is_found_by_its_id(http: httpx2.AsyncClient, api: ApiProcess, temporal: Client) -> None:
    """The id of the client is in the answer, in the log lines of the request and in the memo of the run that it started."""
    ref = await send(http, api, headers={"X-Request-ID": "from-the-gateway-7"})
    memo = await (await temporal.get_workflow_handle(ref.workflow_id).describe()).memo()
    assert memo == {"requestId": "from-the-gateway-7"}
    assert re.search(rf"accepted an upload ref={ref} request_id=from-the-gateway-7 ", api.log.read_text())
    answer = await http.get(url_of(api, ref) + "/nothing")
    assert (answer.status_code, len(answer.headers["x-request-id"])) == (404, 32)


async def test_long_poll_follows_an_upload_to_its_end(http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client) -> None:
    """By changes alone, a client without a stream knows in the end what the manifest says."""
    fake = Activities(pages(8), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, api)
        known = await state_of(http, api, ref)
        waiting = asyncio.create_task(http.get(url_of(api, ref), params={"after": known["version"], "wait": 50, "changes": "true"}))
        fake.gate.set()
        while known["status"] in ("queued", "processing"):
            document = (await waiting).json()
            assert document["version"] >= known["version"]
            known = merged([("snapshot", json.dumps(known)), ("change", json.dumps(document))])
            waiting = asyncio.create_task(http.get(url_of(api, ref), params={"after": known["version"], "wait": 50, "changes": "true"}))
        await waiting  # the run has ended, so nobody waits
    manifest = json.loads(bucket.get(ref.manifest).body)
    assert {name: known[name] for name in manifest} == manifest


async def test_server_that_stops_says_so_to_those_who_wait(http: httpx2.AsyncClient, new_api: Callable[..., ApiProcess]) -> None:
    """It ends within seconds. They may ask again, and come to another process."""
    api = new_api()
    ref = await send(http, api)  # no worker runs, so nothing changes
    version = (await state_of(http, api, ref))["version"]
    sent: list[str] = []

    async def trace(event: str, _: object) -> None:
        if event.endswith("send_request_body.complete"):
            sent.append(event)

    query, extensions = {"after": version, "wait": 50}, {"trace": trace}
    waits = [asyncio.create_task(http.get(url_of(api, ref), params=query, extensions=extensions)) for _ in range(3)]
    await until_async(lambda: len(sent) == len(waits))
    await http.get(f"{api.url}/livez")  # a later request is answered, so the earlier ones have come to their handlers
    assert await asyncio.to_thread(api.end, signal.SIGTERM) == 0
    for answer in await asyncio.gather(*waits):
        assert (answer.status_code, answer.json()["type"]) == (503, "ServiceUnavailable")
        assert "x-request-id" in answer.headers


def test_bytes_that_are_no_request_get_a_problem(api_of_module: ApiProcess) -> None:
    """Also what is refused before it comes to a route is a problem document."""
    with socket.create_connection(("127.0.0.1", api_of_module.port), timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET nonsense\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    assert b"\r\nX-Request-ID: " in head
    assert json.loads(body)["type"] == "BadRequest"
