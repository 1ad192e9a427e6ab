"""A killed repair leaves no lie: at no moment does a sheet with a missing tile have a ``.dzi``."""

from collections.abc import Callable
from typing import Any

import httpx2

from activities.bucket.keys import UploadRef
from activities.bucket.listing import Listing
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_sheet
from deploy.stack import Stack
from tests.chaos.guarantees import PLAN, accepted, address, path_of, sheets_in, wait_for
from tests.resources.make_pdfs import plan_set
from tests.waiting import DEADLINE_S, until

PAGES = 6


def lies(bucket: Bucket, ref: UploadRef) -> list[int]:
    """The numbers of the sheets that have a ``.dzi`` but miss another object."""
    listings = [Listing.fetch(bucket, ref, number) for number in range(1, PAGES + 1)]
    committed = [listing for listing in listings if listing.descriptor]
    return [listing.number for listing in committed if not verify_sheet(bucket, ref, listing, None, None, deep=False).is_whole]


def test_killed_repair_leaves_no_lie_and_is_finished(new_stack: Callable[..., Stack]) -> None:
    """SIGKILL of the tile worker while broken sheets are tiled again, twice; the second time the plan is reconciled meanwhile."""
    stack = new_stack(SITELINK_RENDER_SLOTS="1")
    ref = accepted(stack, plan_set(PAGES))
    upload = path_of(ref)
    wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    bucket_directory = stack.data_dir / "bucket"
    expected = sheets_in(bucket_directory, upload)
    bucket = Bucket(BucketSettings(bucket_directory.absolute().as_uri()))

    damaged = [f"{ref.tiles_prefix(number)}0/0_0.jpeg" for number in range(1, PAGES)]

    def ready() -> int:
        answer: dict[str, Any] = httpx2.get(address(stack, ref), timeout=DEADLINE_S).json()
        return int(answer["completedPages"]) if answer["status"] == "processing" else PAGES

    def is_being_repaired() -> bool:
        """Whether some damaged sheets have their tile back, and others not yet. When all have it, they are damaged again."""
        repaired = sum((bucket_directory / key).exists() for key in damaged)
        if repaired == len(damaged) and ready() == PAGES:
            bucket.delete(damaged)
            assert httpx2.post(f"{address(stack, ref)}/reconcile", timeout=DEADLINE_S).status_code == 202
        return 0 < repaired < len(damaged)

    until(is_being_repaired)
    stack.kill("worker-tile")
    assert lies(bucket, ref) == []
    stack.start_process("worker-tile")
    end = wait_for(stack, upload, lambda status: status["completedAt"] is not None and status["completedPages"] == PAGES)
    assert (end["status"], end["reconciled"]) == ("complete", True)
    assert sheets_in(bucket_directory, upload) == expected

    until(is_being_repaired)
    stack.kill("worker-tile")
    assert lies(bucket, ref) == []
    plan = stack.api_url + PLAN.format(plan=ref.plan).removesuffix("/uploads")
    httpx2.post(f"{plan}/reconcile?deep=true", timeout=DEADLINE_S).raise_for_status()
    stack.start_process("worker-tile")
    until(lambda: httpx2.get(f"{address(stack, ref)}/verify", timeout=DEADLINE_S).json()["verified"] and ready() == PAGES)
    assert sheets_in(bucket_directory, upload) == expected
