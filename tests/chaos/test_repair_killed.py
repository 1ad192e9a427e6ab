"""A repair that is killed is found broken again: at no moment does a commit marker stand for what is not there."""

import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

from activities.bucket.keys import UploadRef
from activities.bucket.listing import Listing
from activities.bucket.storage import Bucket, BucketSettings
from activities.bucket.verify import verify_sheet
from deploy.local import Stack
from tests.chaos.test_worker_killed import DEADLINE_S, PLAN, send, sheets_in, wait_for
from tests.resources.make_pdfs import plan_set

PAGES = 6


def lies(bucket: Bucket, ref: UploadRef) -> list[int]:
    """The sheets that have a ``.dzi`` and not everything else."""
    listings = [Listing.of(bucket, ref, number) for number in range(1, PAGES + 1)]
    committed = [listing for listing in listings if listing.descriptor]
    return [each.number for each in committed if not verify_sheet(bucket, ref, each, None, None, deep=False).is_whole]


def test_killed_repair_leaves_no_lie_and_is_finished(new_stack: Callable[..., Stack]) -> None:
    """SIGKILL of the tile worker while broken sheets are tiled again, twice; the second time somebody asks for the whole plan meanwhile."""
    stack = new_stack(SITELINK_RENDER_SLOTS="1")
    upload = send(stack, plan_set(PAGES))
    wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    bucket_directory = stack.data_dir / "bucket"
    expected = sheets_in(bucket_directory, upload)
    bucket = Bucket(BucketSettings(bucket_directory.absolute().as_uri()))
    ref = UploadRef("acme", "tower", "a1", upload.rsplit("/", 1)[-1])

    def damage() -> None:
        bucket.delete([f"{ref.tiles_prefix(number)}0/0_0.jpeg" for number in range(1, PAGES)])
        assert httpx.post(f"{stack.api_url}{upload}/reconcile", timeout=DEADLINE_S).status_code == 202

    def ready() -> int:
        answer: dict[str, Any] = httpx.get(stack.api_url + upload, timeout=DEADLINE_S).json()
        return int(answer["completedPages"]) if answer["status"] == "processing" else PAGES

    damage()
    _until(lambda: 2 <= ready() < PAGES)
    stack.kill("worker-tile")
    assert lies(bucket, ref) == []
    stack.start_process("worker-tile")
    end = wait_for(stack, upload, lambda status: status["completedAt"] is not None and status["completedPages"] == PAGES)
    assert (end["status"], end["reconciled"]) == ("complete", True)
    assert sheets_in(bucket_directory, upload) == expected

    damage()
    _until(lambda: 2 <= ready() < PAGES)
    stack.kill("worker-tile")
    assert lies(bucket, ref) == []
    httpx.post(f"{stack.api_url}{PLAN.removesuffix('/uploads')}/reconcile?deep=true", timeout=DEADLINE_S).raise_for_status()
    stack.start_process("worker-tile")
    _until(lambda: httpx.get(f"{stack.api_url}{upload}/verify", timeout=DEADLINE_S).json()["verified"] and ready() == PAGES)
    assert sheets_in(bucket_directory, upload) == expected


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
