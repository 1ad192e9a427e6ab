"""A real S3 server behind a proxy that makes it slow, narrow and moody. It gets many requests at once where that helps; nothing is lost."""

import os
from collections.abc import Callable
from dataclasses import replace

import httpx2
import pytest

from activities.bucket.limiter import LEAST
from activities.bucket.storage import Bucket
from activities.errors import StorageUnavailable
from activities.threads import FairThreads
from deploy.stack import Stack
from tests.resources.make_pdfs import plan_set
from tests.servers.far import Far, far_away, far_binary
from tests.servers.s3 import TestServer
from tests.servers.versitygw import NoS3Server
from tests.unit.api_fakes import BASE
from tests.waiting import ASK_S, until

MOST = 256


@pytest.fixture(autouse=True)
def proxy() -> None:
    """The proxy's program. Without Go a test run on CI fails; elsewhere these tests are skipped."""
    try:
        far_binary()
    except NoS3Server as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def far_bucket(server: TestServer, far: Far) -> Bucket:
    """A new bucket behind the proxy, as a worker has it."""
    return Bucket(replace(server.new_bucket(), endpoint=far.endpoint), max_requests=MOST)


def put_many(bucket: Bucket, far: Far, number: int) -> dict[str, int]:
    """Writes so many objects, as a worker does; returns what has passed the proxy until then. All objects are there."""
    with FairThreads(MOST, "test", lambda: bucket.limiter.limit) as threads:
        list(threads.map(("a",), lambda each: bucket.put(f"objects/{each}", b"body"), range(number)))
    counts = far.counts()
    assert len(list(bucket.objects("objects/"))) == number
    return counts


def test_far_bucket_gets_many_requests_at_once(s3_server: TestServer) -> None:
    """One after the other, or 16 at once, they would take the longer the further the bucket is."""
    with far_away(s3_server.endpoint, "-delay=200ms") as far:
        counts = put_many(far_bucket(s3_server, far), far, 1500)
    assert 4 * LEAST < counts["mostInFlight"] <= MOST
    assert counts["refused"] == 0
    assert counts["connections"] <= 2 * MOST  # they are kept for further requests, so that none waits for a new connection and its TLS


def test_connections_are_not_kept_from_others(s3_server: TestServer) -> None:
    """A server may take few connections: those of many writes are closed soon, while that of a read waits for the next read."""
    with far_away(s3_server.endpoint, "-delay=20ms") as far:
        bucket = far_bucket(s3_server, far)
        assert put_many(bucket, far, 600)["open"] >= LEAST
        until(lambda: far.counts()["open"] <= 1, ASK_S)
        assert far.counts()["open"] == 1
        assert bucket.get("objects/0").body == b"body"


def test_refused_requests_are_sent_again(s3_server: TestServer) -> None:
    """Each 503 costs one request more, and no error reaches the caller."""
    with far_away(s3_server.endpoint, "-delay=10ms", "-error-each=20") as far:
        counts = put_many(far_bucket(s3_server, far), far, 600)
    assert counts["refused"] >= 30
    assert counts["requests"] == 600 + counts["refused"]


def test_bucket_that_refuses_everything_is_named(s3_server: TestServer) -> None:
    """After some tries the caller is told, and no more than one request is in flight then."""
    with far_away(s3_server.endpoint, "-error-each=1") as far:
        bucket = Bucket(replace(s3_server.new_bucket(), endpoint=far.endpoint), max_requests=MOST)
        with FairThreads(MOST, "test", lambda: bucket.limiter.limit) as threads:
            futures = [threads.submit(("a",), bucket.put, f"objects/{each}", b"body") for each in range(LEAST + 1)]
            for future in futures:
                with pytest.raises(StorageUnavailable, match="SlowDown"):
                    future.result()
        assert bucket.limiter.limit < LEAST


def test_job_loses_nothing(s3_server: TestServer, new_stack_of_module: Callable[..., Stack]) -> None:
    """A whole upload through a bucket that is far away, refuses one request in fifty, and now and then all of them."""
    settings = s3_server.new_bucket()
    options = ("-delay=20ms", "-error-each=50", "-burst-each=4s", "-burst-for=500ms")
    with far_away(s3_server.endpoint, *options) as far:
        stack = new_stack_of_module(**s3_server.environment(replace(settings, endpoint=far.endpoint)))
        with httpx2.Client(base_url=stack.api_url, trust_env=False, timeout=120) as http:
            accepted = http.post(BASE, content=plan_set(2, 24 * 72, 18 * 72), headers={"Content-Type": "application/pdf"})
            status = accepted.raise_for_status().headers["Location"]
            until(lambda: http.get(status).json()["status"] not in ("queued", "processing"))
            found = http.get(status).json()
        assert found["status"] == "complete"
        assert far.counts()["refused"] > 10
    tiles = [info for info in Bucket(settings).objects("") if "_files/" in info.key]
    assert len(tiles) == sum(sheet["tiles"] for sheet in found["sheets"])
