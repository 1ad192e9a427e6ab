"""The whole stack over a real S3 server: the same job, the same bytes."""

import hashlib
from collections.abc import Callable

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.records import SourceRecord
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import ROOM_KEY, Bucket
from activities.bucket.uploads import UploadStore
from deploy.stack import Stack
from tests.chaos.guarantees import send, sheets_in, wait_for, wait_until_scratch_is_empty
from tests.resources.make_pdfs import plan_set
from tests.servers.s3 import TestServer

pytestmark = pytest.mark.usefixtures("temporal_binary")

PAGES = 4
SOURCE = "incoming/acme/plan.pdf"


def sheets_on_server(bucket: Bucket, upload: str) -> dict[str, str]:
    """Every object below ``sheets/`` with the digest of its bytes; the LIST's ETag proves each."""
    prefix = f"organizations/acme/projects/tower/plans/a1/uploads/{upload.rsplit('/', 1)[-1]}/sheets/"
    sheets = {}
    for info in bucket.objects(prefix):
        body = bucket.get(info.key).body
        assert info.etag == f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        sheets[info.key.removeprefix(prefix)] = hashlib.sha256(body).hexdigest()
    return sheets


def test_a_plan_over_s3_is_the_same_as_in_a_directory(new_stack: Callable[..., Stack], stack: Stack, s3_server: TestServer) -> None:
    """It completes, every tile is byte-equal to the directory's, also when the tile worker is killed; the API serves them.

    So it is with a plan that lies in the bucket, whose SHA-256 is not known before a worker reads it.
    """
    body = plan_set(PAGES)
    in_directory = send(stack, body)
    settings = s3_server.new_bucket("site/plans")
    bucket = Bucket(settings)
    bucket.put(SOURCE, body)
    over_s3 = new_stack(**s3_server.environment(settings), SITELINK_SOURCE_PREFIX="incoming/{org}/")
    undisturbed, disturbed = send(over_s3, body), ""
    for on, upload in ((stack, in_directory), (over_s3, undisturbed)):
        assert wait_for(on, upload, lambda status: status["completedAt"] is not None)["status"] == "complete"
    expected = sheets_in(stack.data_dir / "bucket", in_directory)
    assert len(expected) > 100
    assert sheets_on_server(bucket, undisturbed) == expected
    tile = "/sheets/sheet-1/tiles/sheet-1_files/0/0_0.jpeg"
    assert (
        httpx2.get(over_s3.api_url + undisturbed + tile, timeout=60).content
        == httpx2.get(stack.api_url + in_directory + tile, timeout=60).content
    )

    answer = httpx2.post(f"{over_s3.api_url}{undisturbed.rpartition('/')[0]}", json={"source": SOURCE}, timeout=60)
    named = answer.raise_for_status().headers["location"]
    assert wait_for(over_s3, named, lambda status: status["completedAt"] is not None)["status"] == "complete"
    assert sheets_on_server(bucket, named) == expected
    ref = UploadRef.parse(answer.json()["ref"])
    assert UploadStore(bucket).record(ref).sha256 is None
    assert bucket.get_record(SourceRecord, ref.source_record).sha256 == hashlib.sha256(body).hexdigest()

    disturbed = send(over_s3, body)
    wait_for(over_s3, disturbed, lambda status: status["completedPages"] >= 1)
    over_s3.kill("worker-tile")
    over_s3.start_process("worker-tile")
    status = wait_for(over_s3, disturbed, lambda status: status["completedAt"] is not None)
    assert (status["status"], status["completedPages"]) == ("complete", PAGES)
    assert sheets_on_server(bucket, disturbed) == expected
    wait_until_scratch_is_empty(over_s3)
    assert BucketSetup(settings).unfinished_uploads() == []
    assert all(info.key.startswith("organizations/") or info.key in (ROOM_KEY, SOURCE) for info in bucket.objects(""))
    for log in over_s3.logs.glob("*.log"):
        assert settings.secret_access_key not in log.read_text(), log
