"""Losses around the bucket: Temporal's database, the S3 server, room on the disk. The job goes on, and keeps the committed sheets."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import ROOM_KEY, Bucket, ObjectInfo
from deploy.stack import Stack
from tests.chaos.guarantees import (
    Watch,
    accepted,
    address,
    assert_whole,
    sheets_of,
    wait_until_scratch_is_empty,
)
from tests.missing import miss
from tests.resources.make_pdfs import plan_set
from tests.servers.faults import Faults, Rule, delays, faulty
from tests.servers.s3 import TestServer
from tests.servers.versitygw import S3Server
from tests.temporal import lose_database
from tests.waiting import DEADLINE_S, until

PAGES = 8


def undisturbed(stack: Stack, settings: BucketSettings, body: bytes) -> tuple[dict[str, str], UploadRef]:
    """The objects of the sheets after a run in which nothing fails, and the run's upload."""
    ref = accepted(stack, body)
    with Watch(stack, ref) as watch:
        assert watch.end()["status"] == "complete"
    return sheets_of(Bucket(settings), ref), ref


def committed(bucket: Bucket, ref: UploadRef) -> dict[str, ObjectInfo]:
    """Every object of the sheets that have a ``.dzi``, by its key below ``sheets/``."""
    objects = {info.key.removeprefix(ref.sheets_prefix): info for info in bucket.objects(ref.sheets_prefix)}
    done = {key.partition("/")[0] for key in objects if key.endswith(".dzi")}
    return {key: info for key, info in objects.items() if key.partition("/")[0] in done}


@contextmanager
def served(where: str, s3_server: TestServer, new_stack: Callable[..., Stack]) -> Iterator[tuple[Stack, BucketSettings, Faults | None]]:
    """A stack that renders one page at a time, its bucket, and the proxy before the S3 server, if there is one."""
    if where == "directory":
        stack = new_stack(SITELINK_RENDER_SLOTS="1")
        yield stack, BucketSettings((stack.data_dir / "bucket").as_uri()), None
        return
    made = s3_server.new_bucket()
    with faulty(made.endpoint) as faults:
        yield new_stack(SITELINK_RENDER_SLOTS="1", **s3_server.environment(replace(made, endpoint=faults.url))), made, faults


@pytest.mark.parametrize("where", ["directory", "s3"])
def test_lost_temporal_database_costs_no_committed_sheet(new_stack: Callable[..., Stack], s3_server: TestServer, where: str) -> None:
    """Every process is killed and Temporal's database deleted: the upload finishes, without a write to a committed sheet.

    From the first answer of the new API on, over the directory even before a worker runs, the status shows no less than a client knew
    before and than the bucket holds. An upload that had finished before the loss is repaired from the bucket alone.
    """
    with served(where, s3_server, new_stack) as (stack, settings, faults):
        body, bucket = plan_set(PAGES, 900, 600), Bucket(settings)
        expected, forgotten = undisturbed(stack, settings, body)
        ref = accepted(stack, body)
        with Watch(stack, ref) as before:
            before.until(lambda watch: watch.completed >= 2)
            for name in ("worker-tile", "worker-workflow", "api", "temporal"):
                stack.kill(name)
        done = committed(bucket, ref)
        sheets = sum(key.endswith(".dzi") for key in done)
        assert before.completed <= sheets < PAGES
        lose_database(stack.data_dir)
        asked = len(faults.passed) if faults else 0

        stack.start_process("temporal")
        stack.start_process("api")
        workers = ("worker-workflow", "worker-tile")
        if faults:
            for name in workers:
                stack.start_process(name)
        with ExitStack() as watches:
            new = watches.enter_context(Watch(stack, ref, completed=sheets))
            back = watches.enter_context(Watch(stack, ref, before.last_event_id, before.completed))
            status = first_status(stack, ref)
            assert int(str(status["completedPages"])) >= sheets
            assert int(str(status["version"])) >= before.last_event_id
            if not faults:
                for name in workers:
                    stack.start_process(name)
            for watch in (new, back):
                final = watch.end()
                assert (final["status"], final["completedPages"]) == ("complete", PAGES)
        assert new.states[0]["completedPages"] >= sheets
        assert_whole(settings, ref, expected)
        assert {key: (info.etag, info.modified) for key, info in committed(bucket, ref).items() if key in done} == {
            key: (info.etag, info.modified) for key, info in done.items()
        }
        if faults:
            written = {
                target.partition(ref.sheets_prefix)[2].partition("?")[0] for target in faults.sent("PUT", ref.sheets_prefix, since=asked)
            }
            assert len(written) > 0
            assert written.isdisjoint(done)
        # Temporal has forgotten the upload that had finished before.
        bucket.delete([f"{forgotten.tiles_prefix(2)}0/0_0.jpeg", forgotten.descriptor(3)])
        assert httpx2.post(f"{address(stack, forgotten)}/reconcile", timeout=DEADLINE_S).status_code == 202
        with Watch(stack, forgotten) as watch:
            final = watch.end()
        assert (final["status"], final["completedPages"], final["reconciled"]) == ("complete", PAGES, True)
        assert_whole(settings, forgotten, expected)


def test_reopened_upload_goes_on_after_temporal_is_lost(new_stack: Callable[..., Stack]) -> None:
    """A cancelled upload is resumed, and that run is lost with Temporal's database: nobody has to ask for it again.

    The manifest in the bucket is older than what clients saw. No answer takes them back to it.
    """
    stack = new_stack(SITELINK_RENDER_SLOTS="1")
    settings = BucketSettings((stack.data_dir / "bucket").as_uri())
    body = plan_set(PAGES, 900, 600)
    expected, _ = undisturbed(stack, settings, body)
    ref = accepted(stack, body)
    with Watch(stack, ref) as watch:
        watch.until(lambda watch: watch.completed >= 1)
        assert httpx2.post(f"{address(stack, ref)}/cancel", timeout=DEADLINE_S).status_code == 202
        ended = watch.end()
    assert ended["status"] == "cancelled"
    assert httpx2.post(f"{address(stack, ref)}/sheets/{PAGES}/retry", timeout=DEADLINE_S).status_code == 202
    with Watch(stack, ref, ended["version"], ended["completedPages"]) as before:
        before.until(lambda watch: watch.completed > ended["completedPages"])
        for name in ("worker-tile", "worker-workflow", "api", "temporal"):
            stack.kill(name)
    assert before.completed < PAGES
    lose_database(stack.data_dir)
    for name in ("temporal", "api"):
        stack.start_process(name)
    silent = first_status(stack, ref)
    assert "may not be the latest" in str(silent["warning"]), "no worker runs yet"
    with Watch(stack, ref, before.last_event_id, before.completed) as back:
        for name in ("worker-workflow", "worker-tile"):
            stack.start_process(name)
        final = back.end()
    assert (final["status"], final["completedPages"]) == ("complete", PAGES)
    assert all(state["version"] >= before.last_event_id for state in back.states if state["warning"] is None)
    assert_whole(settings, ref, expected)


def first_status(stack: Stack, ref: UploadRef) -> dict[str, object]:
    """The first status that a GET brings."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return dict(httpx2.get(address(stack, ref), timeout=DEADLINE_S).json())
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_killed_worker_api_and_s3_server_change_nothing(new_stack: Callable[..., Stack], s3_server_binary: Path, tmp_path: Path) -> None:
    """SIGKILL of the tile worker in an upload, of the API with open streams, of the S3 server: the same bytes, nothing unfinished."""
    server = S3Server(s3_server_binary, tmp_path / "buckets", access_key_id="tests", secret_access_key="of-this-test")  # noqa: S106
    server.start()
    settings = BucketSettings("s3://plans", server.endpoint, "tests", "of-this-test", "us-east-1")
    BucketSetup(settings).create()
    try:
        with faulty(server.endpoint) as faults:
            stack = new_stack(
                SITELINK_BUCKET=settings.url,
                SITELINK_S3_ENDPOINT=faults.url,
                AWS_ACCESS_KEY_ID=settings.access_key_id,
                AWS_SECRET_ACCESS_KEY=settings.secret_access_key,
            )
            body = plan_set(4)
            expected, _ = undisturbed(stack, settings, body)
            faults.lay(Rule(delays(0.05), target="_files/"))
            ref = accepted(stack, body)
            with Watch(stack, ref) as watch, Watch(stack, ref) as other:
                watch.until(lambda watch: "uploading" in watch.statuses.values())
                stack.kill("worker-tile")
                stack.start_process("worker-tile")
                watch.until(lambda watch: watch.completed >= 1)
                stack.kill("api")
                stack.start_process("api")
                server.process.kill()
                asked = len(faults.passed)
                until(lambda: len(faults.passed) > asked + 10)
                server.start()
                faults.lay()
                for client in (watch, other):
                    final = client.end()
                    assert (final["status"], final["completedPages"]) == ("complete", 4)
            assert_whole(settings, ref, expected)
            assert all(info.key.startswith("organizations/") or info.key == ROOM_KEY for info in Bucket(settings).objects(""))
            wait_until_scratch_is_empty(stack)
    finally:
        server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB. If none can be mounted, a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True, check=False)
    if mounted.returncode:
        miss(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_full_scratch_disk_is_a_warning(new_stack: Callable[..., Stack], small_disk: Path) -> None:
    """A full disk of the host fails no sheet: the status warns of it, and the job goes on once there is room."""
    stack = new_stack(SITELINK_SCRATCH_DIR=str(small_disk / "scratch"))
    settings = BucketSettings((stack.data_dir / "bucket").as_uri())
    body = plan_set(2)
    expected, _ = undisturbed(stack, settings, body)
    ballast = small_disk / "ballast"
    fill(ballast)
    os.truncate(ballast, ballast.stat().st_size - (64 << 10))  # room for the document, not for its tiles
    ref = accepted(stack, body)
    with Watch(stack, ref) as watch:
        deadline = time.monotonic() + DEADLINE_S
        while not re.search("StorageUnavailable.*No space left", str((status := first_status(stack, ref))["warning"])):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        ballast.unlink()
        assert watch.end()["status"] == "complete"
    assert_whole(settings, ref, expected)
