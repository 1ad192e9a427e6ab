"""R2's events, whole: the Worker in Cloudflare's own runtime before the real API, the role before a queue, an S3 server's own events."""

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus, Snapshot, UploadStatus, from_json
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.interface import Page
from api.r2.pull import VISIBILITY_S
from deploy.health import health
from deploy.stack import Stack
from deploy.temporal import TemporalServer
from tests.chaos.guarantees import send as send_plan
from tests.chaos.guarantees import wait_for
from tests.integration.test_api import Activities, ApiProcess, send, state_of, url_of
from tests.integration.test_metrics import assert_the_table_is_kept, scrape
from tests.missing import miss
from tests.resources.make_pdfs import plan_set
from tests.servers.npm_packages import NoPackages
from tests.servers.queue import TOKEN, FakeQueue, event, serving
from tests.servers.recorder import Answer, Request, recording
from tests.servers.versitygw import S3Server
from tests.servers.workerd import RunningWorker, installed_workerd, running_worker
from tests.waiting import DEADLINE_S, until, until_async
from tests.workflow.fakes import pages, working

SECRET = secrets.token_urlsafe(24)
PROBLEM = Answer(502, b"a gateway that is none of ours")


@pytest.fixture(scope="session")
def workerd() -> Path:
    """Cloudflare's runtime. Without it a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    try:
        return installed_workerd()
    except (NoPackages, subprocess.TimeoutExpired) as error:
        miss(str(error))


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """The bucket of the API process and the role."""
    return Bucket(BucketSettings((tmp_path / "bucket").as_uri()))


@pytest.fixture
def api(tmp_path: Path, temporal_server: TemporalServer) -> Iterator[ApiProcess]:
    """The API, which gives a message up at its second attempt."""
    directory = tmp_path / "api"
    directory.mkdir()
    environ = {"SITELINK_BUCKET": (tmp_path / "bucket").as_uri(), "SITELINK_EVENTS_SECRET": SECRET, "SITELINK_EVENTS_ATTEMPTS": "2"}
    api = ApiProcess(directory, temporal_server.address, **environ)
    yield api
    api.end(signal.SIGKILL)
    assert "Traceback" not in api.log.read_text()
    assert SECRET not in api.log.read_text()


def page(number: int) -> Page:
    """A page of ``pages``."""
    return pages(number)[-1]


async def cancelled(http: httpx2.AsyncClient, api: ApiProcess, fake: Activities) -> UploadRef:
    """An upload that was cancelled when only its first sheet was ready, and whose second was committed later all the same."""
    fake.gate.clear()
    ref = await send(http, api)

    async def tiling() -> bool:
        return fake.in_flight > 0

    async def ended() -> bool:
        return (await state_of(http, api, ref))["completedAt"] is not None

    await until_async(tiling)
    assert (await http.post(f"{url_of(api, ref)}/cancel")).status_code == 202
    await until_async(ended)
    assert (await state_of(http, api, ref))["status"] == "cancelled"
    fake.gate.set()
    fake.commit(page(2))
    return ref


async def wait_until_ready(http: httpx2.AsyncClient, api: ApiProcess, ref: UploadRef, sheet: int) -> dict[str, Any]:
    """Waits until the sheet is ready and the run has ended; the progress then."""

    async def is_ready() -> bool:
        state = await state_of(http, api, ref)
        return state["sheets"][sheet - 1]["status"] == "ready" and state["completedAt"] is not None

    await until_async(is_ready)
    return await state_of(http, api, ref)


def batches(requests: list[Request]) -> list[list[dict[str, Any]]]:
    """The messages of every request of the Worker."""
    return [json.loads(request.body)["messages"] for request in requests]


async def test_the_worker_forwards_events_from_its_queue(
    workerd: Path, http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client, tmp_path: Path
) -> None:
    """A committed sheet that the progress does not know becomes ready; poison comes once more, alone, and is kept aside."""
    fake = Activities(pages(3), bucket)
    async with working(temporal, fake):
        ref = await cancelled(http, api, fake)
        with (
            recording(api.url) as recorder,
            running_worker(workerd, tmp_path / "worker.log", f"{recorder.url}/v1/events/r2", SECRET) as worker,
        ):
            await asyncio.to_thread(_send_all, worker, ref)
            state = await wait_until_ready(http, api, ref, 2)

            async def kept_aside() -> bool:
                return len(await _unreadable(http, api)) == 2

            await until_async(kept_aside)
            requests = [request for request in recorder.requests if request.method == "POST"]
        assert (state["status"], state["completedPages"]) == ("cancelled", 1)
        assert [sheet["status"] for sheet in state["sheets"]] == ["pending", "ready", "pending"]
    delivered = [message for batch in batches(requests) for message in batch]
    attempts: dict[str, list[int]] = {}
    for message in delivered:
        attempts.setdefault(message["body"], []).append(message["attempts"])
    about_the_sheet = attempts.pop(json.dumps(event("plans", ref.descriptor(2)), separators=(",", ":")))
    assert about_the_sheet[0] == 1  # again only where Temporal was too slow
    assert sorted(attempts.values()) == [[1], [1], [1, 2], [1, 2]]
    assert attempts["no event"] == attempts["\x00\x01"] == [1, 2]
    assert worker.log.count("does not answer") == 0
    for request in requests:
        Webhook(SECRET.encode()).verify(request.body, dict(request.headers.items()))


def _send_all(worker: RunningWorker, ref: UploadRef) -> None:
    worker.send(event("plans", ref.descriptor(2)))
    worker.send(event("plans", ref.descriptor(2), "DeleteObject"))
    worker.send("no event", "text")
    worker.send(b"\x00\x01", "bytes")
    worker.send(json.dumps(event("plans", "something/else.dzi")), "text")


async def _unreadable(http: httpx2.AsyncClient, api: ApiProcess) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = (await http.get(f"{api.url}/v1/events/unreadable")).json()["unreadable"]
    return answer


async def test_the_worker_brings_back_what_was_not_taken(
    workerd: Path, http: httpx2.AsyncClient, api: ApiProcess, bucket: Bucket, temporal: Client, tmp_path: Path
) -> None:
    """A gateway's error, or a wrong secret, loses nothing: every message comes again."""
    fake = Activities(pages(2), bucket)
    async with working(temporal, fake):
        ref = await cancelled(http, api, fake)
        with recording(api.url) as recorder, ExitStack() as stack:
            url = f"{recorder.url}/v1/events/r2"
            recorder.answer = lambda request: PROBLEM if len(recorder.sent("POST")) < 2 else None
            worker = stack.enter_context(running_worker(workerd, tmp_path / "worker.log", url, SECRET))
            await asyncio.to_thread(worker.send, event("plans", ref.descriptor(2)))
            await wait_until_ready(http, api, ref, 2)
            first, second = batches(recorder.sent("POST"))
            assert [message["attempts"] for message in first + second] == [1, 2]
            stranger = stack.enter_context(running_worker(workerd, tmp_path / "stranger.log", url, "a secret of somebody else"))
            await asyncio.to_thread(stranger.send, event("plans", ref.descriptor(1)))

            async def comes_again() -> bool:
                return len(recorder.sent("POST")) >= 4

            await until_async(comes_again)
            assert "401" in stranger.log


class PullConsumer:
    """``python -m api events``.

    Args:
        log: Gets its output.
        environ: Its variables besides ours.
    """

    def __init__(self, log: Path, environ: dict[str, str]) -> None:
        self.log = log
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "TEMPORAL_"))}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "api", "events"]
            self.process = subprocess.Popen(command, env={**ours, **environ}, stdout=output, stderr=output)

    def end(self) -> int:
        """Asks it to stop; the exit code. Half the time for which it may hold messages is too long."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(VISIBILITY_S / 2)


@contextmanager
def running_role(log: Path, environ: dict[str, str]) -> Iterator[PullConsumer]:
    """Runs the role; kills it at the end."""
    role = PullConsumer(log, environ)
    try:
        yield role
    finally:
        role.process.kill()
        role.process.wait()


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    """A queue whose clock is 10 times as fast as ours."""
    with serving(FakeQueue(speed=10)) as queue:
        yield queue


async def test_the_role_sets_a_progress_right(
    http: httpx2.AsyncClient,
    api: ApiProcess,
    bucket: Bucket,
    temporal: Client,
    temporal_server: TemporalServer,
    queue: FakeQueue,
    tmp_path: Path,
    free_port: int,
) -> None:
    """The sheet becomes ready by its event; the role answers at its metrics port, stops when it is told to, and its log shows no token."""
    fake = Activities(pages(2), bucket)
    environ = {
        **queue.environment,
        "SITELINK_BUCKET": (tmp_path / "bucket").as_uri(),
        "SITELINK_METRICS_PORT": str(free_port),
        "TEMPORAL_ADDRESS": temporal_server.address,
    }
    async with working(temporal, fake):
        ref = await cancelled(http, api, fake)
        for _ in range(3):
            queue.send(event("plans", ref.descriptor(2)))
        with running_role(tmp_path / "role.log", environ) as role:
            state = await wait_until_ready(http, api, ref, 2)
            assert state["status"] == "cancelled"

            async def all_taken() -> bool:
                return queue.is_empty

            await until_async(all_taken)
            # A healthy sheet costs no signal: the run is over, and stays so.
            version = (await state_of(http, api, ref))["version"]
            queue.send(event("plans", ref.descriptor(2)))
            await until_async(all_taken)
            assert (await state_of(http, api, ref))["version"] == version
            url = f"http://127.0.0.1:{free_port}"
            assert [(await http.get(f"{url}{path}")).status_code for path in ("/livez", "/readyz")] == [200, 200]
            assert await asyncio.to_thread(health, environ) is None
            assert_the_table_is_kept("events", await asyncio.to_thread(scrape, f"{url}/metrics"))
            assert await asyncio.to_thread(role.end) == 0
        assert TOKEN not in role.log.read_text()
        assert "Traceback" not in role.log.read_text()


async def test_the_role_outlives_temporal(
    http: httpx2.AsyncClient,
    api: ApiProcess,
    bucket: Bucket,
    temporal: Client,
    temporal_binary: Path,
    queue: FakeQueue,
    tmp_path: Path,
    free_port: int,
) -> None:
    """It starts without it and acknowledges nothing; once Temporal is there, every event is taken."""
    fake = Activities(pages(2), bucket)
    async with working(temporal, fake):
        ref = await cancelled(http, api, fake)
    assert from_json(Snapshot, bucket.get(ref.manifest).body).status is UploadStatus.CANCELLED
    server = TemporalServer(temporal_binary, tmp_path / "another.db", port=free_port)
    environ = {**queue.environment, "SITELINK_BUCKET": (tmp_path / "bucket").as_uri(), "TEMPORAL_ADDRESS": server.address}
    name = queue.send(event("plans", ref.descriptor(2)))
    with running_role(tmp_path / "role.log", environ) as role:

        async def came_again() -> bool:
            return queue.messages[name].attempts >= 3

        await until_async(came_again)
        assert queue.acknowledged == []
        server.start()
        try:

            async def all_taken() -> bool:
                return queue.is_empty

            await until_async(all_taken)
            assert role.process.poll() is None
            handle = (await Client.connect(server.address)).get_workflow_handle(ref.workflow_id)
            assert (await handle.describe()).id == ref.workflow_id  # it waits for its workers
        finally:
            server.stop()
    assert queue.acknowledged == [name]


def test_the_role_is_off_by_default(tmp_path: Path, stack: Stack) -> None:
    """Without its settings it ends, and says which are missing; the embedded stack does not start it."""
    assert "r2-events" not in stack.processes
    with running_role(tmp_path / "role.log", {"SITELINK_DATA_DIR": str(tmp_path)}) as role:
        assert role.process.wait(DEADLINE_S) == 2
    assert "SITELINK_EVENTS_TOKEN" in role.log.read_text()


class Hook:
    """Takes the S3 server's own events and puts those into the queue that R2 would send there, in R2's words."""

    ACTIONS = (
        ("ObjectCreated:Put", "PutObject"),
        ("ObjectCreated:Copy", "CopyObject"),
        ("ObjectCreated:CompleteM", "CompleteMultipartUpload"),
    )

    def __init__(self, queue: FakeQueue) -> None:
        self._queue = queue
        self.sent: list[str] = []

    def take(self, request: Request) -> Answer:
        """One call of the server's."""
        for record in json.loads(request.body).get("Records", []):
            key = record["s3"]["object"]["key"]
            action = next((ours for theirs, ours in self.ACTIONS if theirs in record["eventName"]), None)
            if action and key.endswith(".dzi"):
                self.sent.append(key)
                self._queue.send(event(record["s3"]["bucket"]["name"], key, action))
        return Answer(200)


def test_an_object_that_was_written_late_is_counted(
    new_stack: Callable[..., Stack], s3_server_binary: Path, queue: FakeQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole stack over an S3 server that tells of its objects: a healthy plan needs no event; sheets copied into a cancelled one do."""
    hook = Hook(queue)
    with recording() as recorder:
        recorder.answer = hook.take
        monkeypatch.setenv("VGW_EVENT_WEBHOOK_URL", recorder.url)
        server = S3Server(s3_server_binary, tmp_path / "buckets", access_key_id="tests", secret_access_key=SECRET)
        server.start()
        try:
            settings = BucketSettings("s3://plans/site", server.endpoint, "tests", SECRET, "us-east-1")
            BucketSetup(settings).create()
            storage = {
                "SITELINK_BUCKET": settings.url,
                "SITELINK_S3_ENDPOINT": settings.endpoint,
                "AWS_ACCESS_KEY_ID": settings.access_key_id,
                "AWS_SECRET_ACCESS_KEY": settings.secret_access_key,
            }
            stack = new_stack(**storage, **queue.environment)
            assert stack.processes["r2-events"].is_running
            _copy_late(stack, Bucket(settings), queue, hook)
            stack.stop()
            log = (stack.logs / "r2-events.log").read_text()
            assert "sheets are stored that are not ready" in log
            assert not re.search(rf"Traceback|{TOKEN}", log), log
        finally:
            server.stop()


def _copy_late(stack: Stack, bucket: Bucket, queue: FakeQueue, hook: Hook) -> None:
    body = plan_set(2)
    whole, late = send_plan(stack, body), send_plan(stack, body)
    httpx2.post(f"{stack.api_url}{late}/cancel", timeout=60).raise_for_status()
    assert wait_for(stack, whole, lambda status: status["completedAt"] is not None)["status"] == "complete"
    before = wait_for(stack, late, lambda status: status["completedAt"] is not None)
    assert before["status"] == "cancelled"
    assert {sheet["status"] for sheet in before["sheets"]} <= {SheetStatus.PENDING.value}
    until(lambda: queue.is_empty and len(hook.sent) == 2)
    source, target = (UploadRef("acme", "tower", "a1", path.rsplit("/", 1)[-1]) for path in (whole, late))
    copies = sorted(info.key for info in bucket.objects(source.sheet_prefix(2)))
    for key in sorted(copies, key=lambda key: key.endswith(".dzi")):
        bucket.put(key.replace(source.prefix, target.prefix), bucket.get(key).body)
    after = wait_for(stack, late, lambda status: status["completedPages"] == 1 and status["version"] > before["version"])
    assert [sheet["number"] for sheet in after["sheets"] if sheet["status"] == "ready"] == [2]
    until(lambda: queue.is_empty and len(hook.sent) == 3)
