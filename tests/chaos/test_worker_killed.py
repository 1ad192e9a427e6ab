"""A tile worker that is killed in the middle leaves the same bucket as one that is not."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from deploy.local import Stack
from tests.resources.make_pdfs import plan_set

PLAN = "/v1/organizations/acme/projects/tower/plans/a1/uploads"
DEADLINE_S = 240


def send(stack: Stack, body: bytes) -> str:
    """Uploads the PDF; returns the path of the upload."""
    response = httpx.post(
        stack.api_url + PLAN, params={"filename": "plan.pdf"}, content=body, headers={"Content-Type": "application/pdf"}, timeout=DEADLINE_S
    )
    assert response.status_code == 202, response.text
    return response.headers["Location"]


def wait_for(stack: Stack, upload: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Asks for the status until the condition holds; on the way the version and the counters never fall."""
    deadline = time.monotonic() + DEADLINE_S
    seen = (0, 0)
    status: dict[str, Any] = {}
    while time.monotonic() < deadline:
        try:
            status = httpx.get(stack.api_url + upload, timeout=60).json()
        except httpx.TransportError:  # the API itself was killed
            time.sleep(0.2)
            continue
        assert (status["version"], status["completedPages"]) >= seen
        seen = (status["version"], status["completedPages"])
        if condition(status):
            return status
        time.sleep(0.05)
    pytest.fail(f"not within {DEADLINE_S} s, last seen {status}")


def sheets_in(bucket: Path, upload: str) -> dict[str, str]:
    """Every object below ``sheets/`` with the digest of its bytes."""
    root = bucket / "organizations/acme/projects/tower/plans/a1/uploads" / upload.rsplit("/", 1)[-1] / "sheets"
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def test_killed_tile_worker_leaves_the_same_bucket(new_stack: Callable[..., Stack]) -> None:
    """SIGKILL of the tile worker's process group in render and upload: the job finishes, and ``sheets/**`` is byte-equal."""
    body = plan_set(8)
    stack = new_stack()
    undisturbed = send(stack, body)
    assert wait_for(stack, undisturbed, lambda status: status["completedAt"] is not None)["status"] == "complete"

    disturbed = send(stack, body)
    for ready in (1, 4):
        wait_for(stack, disturbed, lambda status, ready=ready: status["completedPages"] >= ready)  # type: ignore[misc]
        stack.kill("worker-tile")
        stack.start_process("worker-tile")
    status = wait_for(stack, disturbed, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", 8)
    bucket = stack.data_dir / "bucket"
    assert sheets_in(bucket, disturbed) == sheets_in(bucket, undisturbed)
    assert len(sheets_in(bucket, disturbed)) > 100
    wait_until_scratch_is_empty(stack)


def test_killed_temporal_server_goes_on_from_its_file(new_stack: Callable[..., Stack]) -> None:
    """SIGKILL of the Temporal server in the middle, started again on the same file: the job goes on and ends complete."""
    stack = new_stack()
    upload = send(stack, plan_set(8))
    wait_for(stack, upload, lambda status: status["completedPages"] >= 2)
    stack.kill("temporal")
    stack.start_process("temporal")
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", 8)


def test_killed_workflow_worker_and_api_change_nothing(new_stack: Callable[..., Stack]) -> None:
    """SIGKILL of the workflow worker and of the API while a client watches: both come back and the job ends complete."""
    stack = new_stack()
    upload = send(stack, plan_set(8))
    wait_for(stack, upload, lambda status: status["completedPages"] >= 1)
    for name in ("worker-workflow", "api"):
        stack.kill(name)
        stack.start_process(name)
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", 8)


def test_stopped_tile_worker_hands_back_its_work(new_stack: Callable[..., Stack]) -> None:
    """SIGTERM in the middle ends the worker; the next one does the rest, and the scratch is empty at the end."""
    stack = new_stack()
    upload = send(stack, plan_set(8))
    wait_for(stack, upload, lambda status: status["completedPages"] >= 1)
    worker = stack.processes["worker-tile"]
    begun = time.monotonic()
    worker.terminate()
    first = worker.pid
    while worker.pid == first and worker.is_running:
        assert time.monotonic() - begun < DEADLINE_S
        time.sleep(0.05)
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", 8)
    wait_until_scratch_is_empty(stack)


def test_cancelled_upload_leaves_nothing_behind(new_stack: Callable[..., Stack]) -> None:
    """After a cancel every ``.dzi`` has its sheet counted, nothing is written any more, and the scratch is empty."""
    stack = new_stack()
    upload = send(stack, plan_set(8))
    wait_for(stack, upload, lambda status: status["completedPages"] >= 1)
    assert httpx.post(f"{stack.api_url}{upload}/cancel", timeout=DEADLINE_S).status_code == 202
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert status["status"] == "cancelled"
    assert {sheet["status"] for sheet in status["sheets"]} == {"ready", "pending"}
    before = sheets_in(stack.data_dir / "bucket", upload)
    wait_until_scratch_is_empty(stack)
    assert sheets_in(stack.data_dir / "bucket", upload) == before
    committed = {name for name in before if name.endswith(".dzi")}
    assert committed == {f"sheet-{n}/tiles/sheet-{n}.dzi" for n in (s["number"] for s in status["sheets"] if s["status"] == "ready")}


def wait_until_scratch_is_empty(stack: Stack) -> None:
    """The scratch is freed just after the final state is told."""
    deadline = time.monotonic() + DEADLINE_S
    scratch = stack.data_dir / "scratch"
    while left := [*scratch.glob("pages/*"), *scratch.glob("sources/*")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
