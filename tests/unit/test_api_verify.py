"""``GET …/verify`` without a socket."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import to_wire
from activities.bucket.storage import Bucket, ObjectInfo
from activities.bucket.verify import verify_upload
from activities.errors import StorageUnavailable
from api.verify import DEEP_AT_ONCE, WAITING
from tests.unit.api_fakes import BASE, FakeTemporal, RawRequest, accept, client_of, make_app
from tests.unit.sheets import NAMES, REF, progress, put_upload
from tests.waiting import until_async

PATH = f"{BASE}/{REF.upload}/verify"


class FlakyBucket(Bucket):
    """A directory whose LIST fails for one prefix, or waits until a test opens it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BucketSettings(directory.as_uri()))
        self.failing = ""
        self.open = threading.Event()
        self.open.set()
        self.listed: list[str] = []

    def objects(self, prefix: str, after: str = "", last: str = "") -> Iterator[ObjectInfo]:
        """The LIST."""
        self.listed.append(prefix)
        assert self.open.wait(120)
        if prefix == self.failing:
            msg = "503 SlowDown"
            raise StorageUnavailable(msg)
        return super().objects(prefix, after, last)


@pytest.fixture
def bucket(tmp_path: Path) -> FlakyBucket:
    """An empty bucket."""
    return FlakyBucket(tmp_path)


async def get(bucket: Bucket, path: str = PATH, **params: str) -> httpx2.Response:
    """Asks an API over this bucket, with a Temporal that knows no run."""
    async with client_of(make_app(bucket, FakeTemporal())) as client:
        return await client.get(path, params=params)


@pytest.mark.parametrize(("deep", "is_deep"), [(None, False), ("false", False), ("0", False), ("", True), ("1", True), ("true", True)])
async def test_the_answer_is_the_report_with_its_sheets(bucket: FlakyBucket, deep: str | None, is_deep: bool) -> None:
    """One JSON object, equal to the report that ``verify_upload`` makes from the bucket alone."""
    put_upload(bucket)
    bucket.delete([REF.tiles_prefix(2) + NAMES[5]])
    answer = await get(bucket, **({} if deep is None else {"deep": deep}))
    assert (answer.status_code, answer.headers["content-type"], answer.headers["cache-control"]) == (200, "application/json", "no-store")
    *sheets, total = map(to_wire, verify_upload(bucket, REF, deep=is_deep))
    assert answer.json() == {"sheets": sheets, **total}
    assert (answer.json()["verified"], answer.json()["deep"]) == (False, is_deep)
    assert [sheet["missing"] for sheet in answer.json()["sheets"]] == [[], [NAMES[5]]]


async def test_a_running_upload_is_judged_by_its_run(bucket: FlakyBucket) -> None:
    """The run's progress counts, not an older manifest."""
    manifest = put_upload(bucket)
    temporal = FakeTemporal()
    temporal.state = progress(*manifest.sheets[:1])
    async with client_of(make_app(bucket, temporal)) as client:
        document = (await client.get(PATH)).json()
    assert (document["totalSheets"], document["foreignCount"] > len(NAMES)) == (1, True)


async def test_refusals_are_named(bucket: FlakyBucket) -> None:
    """An unknown upload, a malformed flag and a malformed id have their own errors."""
    assert (await get(bucket)).json()["type"] == "UploadNotFound"
    put_upload(bucket)
    answer = await get(bucket, deep="very")
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert (await get(bucket, f"{BASE}/-x/verify")).status_code == 422


async def test_a_bucket_that_fails_in_the_middle_verifies_nothing(bucket: FlakyBucket) -> None:
    """The answer is still JSON. It has the reports so far, and a problem that says why it ends."""
    put_upload(bucket)
    bucket.failing = REF.sheet_prefix(2)
    document = (await get(bucket)).json()
    assert [sheet["number"] for sheet in document["sheets"]] == [1]
    assert (document["verified"], document["problems"]) == (False, ["not verified to the end: StorageUnavailable: 503 SlowDown"])


async def test_many_at_once_wait_and_a_client_that_leaves_frees_its_place(bucket: FlakyBucket) -> None:
    """Two uploads are verified at a time. The work for a client that has left stops."""
    put_upload(bucket, 12)
    bucket.open.clear()
    app = make_app(bucket, FakeTemporal())
    requests = [RawRequest(app, "GET", PATH, {}) for _ in range(4)]
    await until_async(lambda: len(bucket.listed) >= 8)
    for request in requests:
        request.feed(b"", more=False)
        request.disconnect()
    for request in requests:
        await request.task
    bucket.open.set()
    async with client_of(app) as client:
        assert (await client.get(PATH)).json()["verified"]
    assert len(bucket.listed) < 4 * 12, "uploads were verified to the end although their clients had left"


async def test_deep_verifications_of_one_organization_do_not_block_others(bucket: FlakyBucket) -> None:
    """While one organization has more deep ones than it may, a verification by names and another organization's deep one are done."""
    put_upload(bucket)
    other = UploadRef("other", "tower", "a1", REF.upload)
    await accept(bucket, other)
    bucket.open.clear()
    app = make_app(bucket, FakeTemporal())
    requests = [RawRequest(app, "GET", f"{PATH}?deep=true", {}) for _ in range(DEEP_AT_ONCE + WAITING)]
    too_many = DEEP_AT_ONCE + WAITING - 1 - WAITING // 2
    await until_async(lambda: sum(request.status == 429 for request in requests) >= too_many and len(bucket.listed) >= 2)
    assert sum(request.status == 429 for request in requests) == too_many
    listed = len(bucket.listed)
    name_request = RawRequest(app, "GET", PATH, {})
    other_request = RawRequest(app, "GET", PATH.replace("acme", "other") + "?deep=true", {})
    await until_async(lambda: (name_request.status, other_request.status) == (200, 200) and len(bucket.listed) > listed)
    for request in (*requests, name_request, other_request):
        request.feed(b"", more=False)
        request.disconnect()
    bucket.open.set()
    await asyncio.gather(*(request.task for request in (*requests, name_request, other_request)))


async def test_another_plans_upload_is_not_found(bucket: FlakyBucket) -> None:
    """An upload is found only under its own plan."""
    put_upload(bucket)
    other = UploadRef("acme", "tower", "a2", REF.upload)
    assert (await get(bucket, f"/v1/organizations/acme/projects/tower/plans/a2/uploads/{other.upload}/verify")).status_code == 404
