"""A job whose processes are killed or stopped in the middle leaves the same bucket as an undisturbed one."""

import httpx2
import pytest

from activities.bucket.forecast import sheet_objects
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout
from activities.bucket.report import Proof, UploadReport
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from deploy.stack import Stack
from tests.chaos.guarantees import Watch, accepted, path_of, send, sheets_in, wait_for, wait_until_scratch_is_empty
from tests.resources.make_pdfs import plan_set
from tests.waiting import DEADLINE_S, until

PAGES = 8


@pytest.fixture(scope="module")
def body() -> bytes:
    """A PDF of ``PAGES`` pages."""
    return plan_set(PAGES)


def whole(stack: Stack, body: bytes, layout: Layout) -> dict[str, str]:
    """The files of the sheets of ``body``, with their digests, after a run in which nothing was killed."""
    upload = send(stack, body, layout)
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", PAGES)
    files = sheets_in(stack.data_dir / "bucket", upload)
    assert len(files) == sum(sheet_objects(layout, sheet["tiles"]) for sheet in status["sheets"]) == status["sheetPuts"]
    return files


@pytest.fixture(scope="module")
def undisturbed(chaos_stack: Stack, body: bytes) -> dict[str, str]:
    """The files of a run in which nothing was killed."""
    return whole(chaos_stack, body, Layout.EXPLODED)


def assert_complete_and_equal(stack: Stack, upload: str, undisturbed: dict[str, str]) -> None:
    """The upload ends complete, with the files of an undisturbed run."""
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", PAGES)
    assert sheets_in(stack.data_dir / "bucket", upload) == undisturbed


def test_killed_tile_worker_leaves_the_same_bucket(stack_to_kill: Stack, body: bytes, undisturbed: dict[str, str]) -> None:
    """SIGKILL of the tile worker's process group, twice, among sheets that are rendered and uploaded."""
    upload = send(stack_to_kill, body)
    for ready in (1, 4):
        wait_for(stack_to_kill, upload, lambda status, ready=ready: status["completedPages"] >= ready)  # type: ignore[misc]
        stack_to_kill.kill("worker-tile")
        stack_to_kill.start_process("worker-tile")
    assert_complete_and_equal(stack_to_kill, upload, undisturbed)


def test_killed_tile_worker_leaves_the_same_packed_sheets(stack_to_kill: Stack, body: bytes) -> None:
    """The same with packed sheets. Then two objects are lost: a reconcile finds it, and goes on after another SIGKILL."""
    expected = whole(stack_to_kill, body, Layout.PACKED)
    ref = accepted(stack_to_kill, body, layout=Layout.PACKED)
    upload = path_of(ref)
    for ready in (1, 4):
        wait_for(stack_to_kill, upload, lambda status, ready=ready: status["completedPages"] >= ready)  # type: ignore[misc]
        stack_to_kill.kill("worker-tile")
        stack_to_kill.start_process("worker-tile")
    assert_complete_and_equal(stack_to_kill, upload, expected)
    bucket = stack_to_kill.data_dir / "bucket"
    for number in (2, 5):
        (bucket / ref.archive(number)).unlink()
    httpx2.post(f"{stack_to_kill.api_url}{upload}/reconcile", timeout=DEADLINE_S).raise_for_status()
    wait_for(stack_to_kill, upload, lambda status: status["reconciled"] and status["status"] == "processing")
    stack_to_kill.kill("worker-tile")
    stack_to_kill.start_process("worker-tile")
    assert_complete_and_equal(stack_to_kill, upload, expected)
    *_, report = verify_upload(Bucket(BucketSettings(bucket.as_uri())), ref, deep=True)
    assert isinstance(report, UploadReport)
    assert (report.verified, report.verified_sheets, report.proof) == (True, PAGES, Proof.DIGEST)


def test_killed_temporal_server_goes_on_from_its_file(stack_to_kill: Stack, body: bytes, undisturbed: dict[str, str]) -> None:
    """SIGKILL of the Temporal server, which starts again on the same file."""
    upload = send(stack_to_kill, body)
    wait_for(stack_to_kill, upload, lambda status: status["completedPages"] >= 2)
    stack_to_kill.kill("temporal")
    stack_to_kill.start_process("temporal")
    assert_complete_and_equal(stack_to_kill, upload, undisturbed)


def test_killed_workflow_worker_and_api_change_nothing(stack_to_kill: Stack, body: bytes, undisturbed: dict[str, str]) -> None:
    """SIGKILL of the workflow worker and of the API while a client has a stream open: the client comes back and sees the end."""
    ref = accepted(stack_to_kill, body)
    with Watch(stack_to_kill, ref) as watch:
        watch.until(lambda watch: watch.completed >= 1)
        for name in ("worker-workflow", "api"):
            stack_to_kill.kill(name)
            stack_to_kill.start_process(name)
        assert watch.end()["status"] == "complete"
    assert_complete_and_equal(stack_to_kill, path_of(ref), undisturbed)


def test_stopped_tile_worker_hands_back_its_work(stack_to_kill: Stack, body: bytes, undisturbed: dict[str, str]) -> None:
    """SIGTERM ends the worker; the next one tiles the remaining sheets."""
    upload = send(stack_to_kill, body)
    wait_for(stack_to_kill, upload, lambda status: status["completedPages"] >= 1)
    worker = stack_to_kill.processes["worker-tile"]
    first = worker.pid
    worker.terminate()
    until(lambda: worker.pid != first or not worker.is_running)
    assert_complete_and_equal(stack_to_kill, upload, undisturbed)


def test_cancelled_upload_leaves_nothing_behind(stack_to_kill: Stack) -> None:
    """After a cancel nothing is written any more; exactly the sheets that are counted have a ``.dzi``, and all their tiles are right.

    The document has far more pages than can be done before the cancel.
    """
    ref = accepted(stack_to_kill, plan_set(10 * PAGES))
    upload, bucket = path_of(ref), stack_to_kill.data_dir / "bucket"
    wait_for(stack_to_kill, upload, lambda status: status["completedPages"] >= 1)
    assert httpx2.post(f"{stack_to_kill.api_url}{upload}/cancel", timeout=DEADLINE_S).status_code == 202
    status = wait_for(stack_to_kill, upload, lambda status: status["completedAt"] is not None)
    assert status["status"] == "cancelled"
    assert {sheet["status"] for sheet in status["sheets"]} == {"ready", "pending"}
    files = sheets_in(bucket, upload)
    wait_until_scratch_is_empty(stack_to_kill)
    assert sheets_in(bucket, upload) == files
    ready = {f"sheet-{sheet['number']}" for sheet in status["sheets"] if sheet["status"] == "ready"}
    assert {name.partition("/")[0] for name in files if name.endswith(".dzi")} == ready
    *_, report = verify_upload(Bucket(BucketSettings(bucket.as_uri())), ref, deep=True)
    assert isinstance(report, UploadReport)
    assert (report.verified, report.verified_sheets) == (True, len(ready))
