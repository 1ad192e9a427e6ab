"""A copy of the bucket is a whole backup: a new stack on the copy has everything that clients knew, and goes on with it."""

import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout
from activities.bucket.storage import Bucket
from deploy.stack import Stack
from tests.chaos.guarantees import PLAN, Watch, accepted, address, assert_whole, path_of, sheets_of, wait_for
from tests.resources.make_pdfs import plan_set
from tests.servers.s3 import TestServer
from tests.waiting import DEADLINE_S

PAGES = 8


def copy(source: BucketSettings, target: BucketSettings) -> None:
    """Copies all objects of a bucket, as a backup program does."""
    if not source.is_s3:
        shutil.copytree(source.directory, target.directory)
        return
    old, new = Bucket(source), Bucket(target)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda info: new.put(info.key, old.get(info.key).body), old.objects("")))


def finished(stack: Stack, body: bytes, layout: Layout = Layout.EXPLODED) -> UploadRef:
    """An upload that has ended."""
    ref = accepted(stack, body, layout=layout)
    wait_for(stack, path_of(ref), lambda status: status["status"] == "complete")
    return ref


def sent_again(stack: Stack, body: bytes, key: str) -> UploadRef:
    """The upload that a request with this ``Idempotency-Key`` leads to."""
    headers = {"Content-Type": "application/pdf", "Idempotency-Key": key}
    answer = httpx2.post(stack.api_url + PLAN.format(plan="a1"), content=body, headers=headers, timeout=DEADLINE_S)
    return UploadRef.parse(answer.raise_for_status().json()["ref"])


@pytest.mark.parametrize("where", ["directory", "s3"])
def test_new_stack_on_a_copy_of_the_bucket_has_everything(
    new_stack: Callable[..., Stack], s3_server: TestServer, tmp_path: Path, where: str
) -> None:
    """The bucket is copied in the middle of an upload, and all else is lost: Temporal's database, scratch, data directory.

    The new stack lists the uploads, verifies them, serves their tiles, repairs what the copy lacks, and finishes the upload without making
    its committed sheets again. A deleted upload stays deleted, an ``Idempotency-Key`` leads to its upload, and a new upload works.
    """
    body, key = plan_set(PAGES, 900, 600), str(uuid.uuid4())
    if where == "directory":
        old, new = (BucketSettings((tmp_path / name).as_uri()) for name in ("old", "new"))
        environments = [{"SITELINK_BUCKET": settings.url} for settings in (old, new)]
    else:
        old, new = s3_server.new_bucket(), s3_server.new_bucket()
        environments = [s3_server.environment(settings) for settings in (old, new)]
    stack = new_stack(SITELINK_RENDER_SLOTS="1", **environments[0])
    whole, packed, deleted = finished(stack, body), finished(stack, body, Layout.PACKED), finished(stack, plan_set(1, 300, 200))
    assert httpx2.delete(address(stack, deleted), timeout=DEADLINE_S).status_code == 202
    unfinished = sent_again(stack, body, key)
    with Watch(stack, unfinished) as watch:
        watch.until(lambda watch: watch.completed >= 3)
        stack.kill("worker-tile")
    copy(old, new)
    stack.stop(grace_s=0)
    bucket = Bucket(new)
    expected, expected_packed = sheets_of(Bucket(old), whole), sheets_of(Bucket(old), packed)
    # A copy that is made while uploads run may lack objects.
    bucket.delete([f"{whole.tiles_prefix(2)}0/0_0.jpeg", unfinished.sheet_record(1)])
    done = {
        info.key: info.modified
        for info in bucket.objects(unfinished.sheets_prefix)
        if info.key.endswith(".dzi") and info.key != unfinished.descriptor(1)
    }
    assert 1 < len(done) < PAGES - 1  # of the sheets but the first
    assert not bucket.has(unfinished.manifest)

    fresh = new_stack(**environments[1])
    listed = httpx2.get(fresh.api_url + PLAN.format(plan="a1"), timeout=DEADLINE_S).json()
    assert {upload["ref"] for upload in listed["uploads"]} == {str(ref) for ref in (whole, packed, unfinished)}
    assert httpx2.get(address(fresh, deleted), timeout=DEADLINE_S).status_code == 404
    tile = f"{whole.tiles_prefix(1)}10/0_0.jpeg".removeprefix(whole.prefix)
    for ref in (whole, packed):
        assert httpx2.get(f"{address(fresh, ref)}/{tile}", timeout=DEADLINE_S).content == Bucket(old).get(whole.prefix + tile).body
    with Watch(fresh, unfinished, watch.last_event_id, len(done)) as again:
        final = again.end()
    assert (final["status"], final["completedPages"]) == ("complete", PAGES)
    assert sent_again(fresh, body, key) == unfinished
    assert httpx2.post(f"{address(fresh, whole)}/reconcile", timeout=DEADLINE_S).status_code == 202
    wait_for(fresh, path_of(whole), lambda status: status["reconciled"] and status["completedAt"] is not None)
    for ref, objects in ((whole, expected), (packed, expected_packed), (unfinished, expected), (finished(fresh, body), expected)):
        assert_whole(new, ref, objects)
    assert {info.key: info.modified for info in bucket.objects(unfinished.sheets_prefix) if info.key in done} == done
