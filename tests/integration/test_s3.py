"""The bucket on an S3 server: what goes over the wire, every refusal by its name, and the set-up."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.attempt import to_application_error
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.parts import StoredPart, equal_parts
from activities.bucket.records import UploadOptions, UploadRecord, from_json, to_json
from activities.bucket.setup import RULE_ID, BucketSetup
from activities.bucket.storage import LIST_PAGE, PART_BYTES, Bucket
from activities.errors import (
    ClockSkewed,
    FileTooLarge,
    NoSuchBucket,
    ObjectMissing,
    PartsIncomplete,
    SiteLinkError,
    StorageDenied,
    StorageUnavailable,
)
from api.progress.runs import Runs
from api.progress.status import Status
from deploy.bucket import DONE, FAILED, set_up
from deploy.process import free_port
from tests.servers.recorder import Answer, Recorder, Request, recording, s3_error
from tests.servers.s3 import TestServer, count_parts, presigned
from tests.unit.api_fakes import FakeTemporal, client_of, make_app
from tests.waiting import DEADLINE_S, until, until_async

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SECRET = "a-secret-of-the-test"  # noqa: S105 - of no real server


@pytest.fixture
def recorder(s3_server: TestServer) -> Iterator[Recorder]:
    """Stands in front of the real server."""
    with recording(s3_server.endpoint) as recorder:
        yield recorder


@pytest.fixture
def settings(s3_server: TestServer, recorder: Recorder) -> BucketSettings:
    """A new bucket, seen through the recorder."""
    made = s3_server.new_bucket()
    return s3_server.settings(made.url.removeprefix("s3://"), "site", endpoint=recorder.url)


@pytest.fixture
def bucket(settings: BucketSettings) -> Bucket:
    """A new bucket, seen through the recorder."""
    return Bucket(settings)


@pytest.fixture
def server_of_errors() -> Iterator[Recorder]:
    """A server that only says what the test tells it to."""
    with recording() as recorder:
        yield recorder


def at(recorder: Recorder, region: str = "auto") -> BucketSettings:
    """Settings of a bucket there."""
    return BucketSettings("s3://plans", recorder.url, "an-id", SECRET, region)


async def stream(chunks: int, chunk: bytes = bytes(MIB)) -> AsyncIterator[bytes]:
    """A body in chunks."""
    for _ in range(chunks):
        yield chunk


CALLS: dict[str, Callable[[Bucket], Any]] = {
    "put": lambda bucket: bucket.put("a/b", b"x"),
    "get": lambda bucket: bucket.get("a/b"),
    "head": lambda bucket: bucket.head("a/b"),
    "chunks": lambda bucket: list(bucket.chunks("a/b")),
    "objects": lambda bucket: list(bucket.objects("a/")),
    "directories": lambda bucket: bucket.directories("a/"),
    "delete": lambda bucket: bucket.delete(["a/b"]),
    "put_async": lambda bucket: asyncio.run(bucket.put_async("a/b", b"x")),
    "get_async": lambda bucket: asyncio.run(bucket.get_async("a/b")),
    "head_async": lambda bucket: asyncio.run(bucket.head_async("a/b")),
    "directories_async": lambda bucket: asyncio.run(bucket.directories_async("a/")),
    "create_async": lambda bucket: asyncio.run(bucket.create_async("a/b", b"x")),
    "put_stream": lambda bucket: asyncio.run(bucket.put_stream("a/b", stream(1))),
}
"""Every method that talks to the bucket."""


# What goes over the wire


def needs_a_checksum(request: Request) -> bool:
    """S3 itself requires one there: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html."""
    return (request.method, request.target.partition("?")[2].rstrip("=")) in {("POST", "delete"), ("PUT", "cors"), ("PUT", "lifecycle")}


def test_r2s_rules_hold_for_every_request(recorder: Recorder, settings: BucketSettings, bucket: Bucket) -> None:
    """No aws-chunked, no trailer, no Expect, no checksum that is not required, no unsized body, and the bucket in the path."""
    for call in ("put", "get", "head", "chunks", "objects", "directories", "delete"):
        CALLS[call](bucket)
        bucket.put("a/b", b"x")
    asyncio.run(bucket.create_async("a/c", b"x"))
    asyncio.run(bucket.put_stream("a/d", stream(20)))
    setup = BucketSetup(settings)
    outcome = set_up(setup, settings.url, ["https://plans.example.com"], create=True, say=lambda _: None)
    assert outcome == DONE
    upload, sizes = setup.start_upload("a/e"), (8 * MIB, MIB)
    urls = [setup.part_url("a/e", upload, number, size, 60) for number, size in enumerate(sizes, 1)]
    etags = [httpx2.put(url, content=bytes(size)).headers["etag"] for url, size in zip(urls, sizes, strict=True)]
    assert [part.etag for part in setup.parts("a/e", upload)] == etags
    setup.complete("a/e", upload, etags)
    setup.abort("a/f", setup.start_upload("a/f"))
    made = {(request.method, re.sub(r"=[^&]*", "", request.target.partition("?")[2])) for request in recorder.requests}
    assert made >= {
        *(("PUT", query) for query in ("", "partNumber&uploadId", "cors", "lifecycle")),
        *(("GET", query) for query in ("", "list-type&prefix", "delimiter&list-type&prefix", "uploadId")),
        *(("POST", query) for query in ("uploads", "uploadId", "delete")),
        ("HEAD", ""),
        ("DELETE", "uploadId"),
    }
    name = settings.url.split("/")[2]
    for request in recorder.requests:
        headers = {header.lower(): value for header, value in request.headers.items()}
        line = f"{request.method} {request.target} {headers}"
        assert "aws-chunked" not in headers.get("content-encoding", ""), line
        assert not headers.get("x-amz-content-sha256", "").startswith("STREAMING"), line
        assert not {"x-amz-trailer", "expect", "transfer-encoding"} & set(headers), line
        checksums = {header for header in headers if "checksum" in header or header == "content-md5"}
        assert not checksums or needs_a_checksum(request), line
        assert request.path == f"/{name}" or request.path.startswith(f"/{name}/site/"), line


def test_a_small_object_is_one_request(recorder: Recorder, bucket: Bucket) -> None:
    """A tile costs one PUT with its digest in the signature, and nothing before or after it."""
    bucket.put("tiles/0_0.jpeg", bytes(7000))
    (request,) = recorder.requests
    assert (request.method, len(request.body), request.headers["content-length"]) == ("PUT", 7000, "7000")
    assert re.fullmatch(r"[0-9a-f]{64}", request.headers["x-amz-content-sha256"])


async def test_parts_are_equal(recorder: Recorder, bucket: Bucket) -> None:
    """Whatever the chunks of the stream, all parts but the last have one size of at least 5 MiB, and one stream holds few of them."""
    chunk = os.urandom(3_000_000)
    await bucket.put_stream("source.pdf", stream(12, chunk))
    parts = {int(re.findall(r"partNumber=(\d+)", request.target)[0]): request.body for request in recorder.sent("PUT")}
    sizes = [len(parts[number]) for number in sorted(parts)]
    assert sizes == [PART_BYTES] * 4 + [12 * 3_000_000 - 4 * PART_BYTES]
    assert b"".join(parts[number] for number in sorted(parts)) == chunk * 12
    assert PART_BYTES >= 5 * MIB


async def test_create_asks_for_absence(recorder: Recorder, bucket: Bucket) -> None:
    """The server decides who was first."""
    await bucket.create_async("keys/k.json", b"1")
    (request,) = recorder.requests
    assert request.headers["if-none-match"] == "*"


def test_many_objects_are_deleted_by_the_thousand(recorder: Recorder, bucket: Bucket) -> None:
    """2,001 objects are three requests."""
    bucket.delete(f"tiles/{number}.jpeg" for number in range(2001))
    assert [request.body.count(b"<Key>") for request in recorder.requests] == [1000, 1000, 1]


def test_r2s_region_is_in_the_signature(server_of_errors: Recorder) -> None:
    """Both libraries sign for ``auto``."""
    server_of_errors.answer = lambda _: s3_error(403, "AccessDenied")
    for call in (lambda: Bucket(at(server_of_errors)).put("a", b"x"), BucketSetup(at(server_of_errors)).unfinished_uploads):
        with pytest.raises(StorageDenied):
            call()
    assert all("/auto/s3/aws4_request" in request.headers["authorization"] for request in server_of_errors.requests)


# Refusals


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchBucket", NoSuchBucket),
        (403, "AccessDenied", StorageDenied),
        (403, "InvalidAccessKeyId", StorageDenied),
        (403, "SignatureDoesNotMatch", StorageDenied),
        (401, "Unauthorized", StorageDenied),
        (403, "RequestTimeTooSkewed", ClockSkewed),
        (400, "InvalidRequest", StorageUnavailable),
        (409, "ConditionalRequestConflict", StorageUnavailable),
    ],
)
def test_an_error_has_the_name_of_its_code(
    server_of_errors: Recorder,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[Bucket], Any],
    status: int,
    code: str,
    kind: type[SiteLinkError],
) -> None:
    """Whatever was asked, whatever class obstore gives it; what the server said with it is in the log alone.

    https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    """
    server_of_errors.answer = lambda _: s3_error(status, code)
    with pytest.raises(kind) as caught:
        call(Bucket(at(server_of_errors)))
    assert type(caught.value) is kind
    if not (kind is StorageUnavailable and server_of_errors.requests[0].method == "HEAD"):  # which has no body to say it
        assert kind in (NoSuchBucket, ClockSkewed) or code in str(caught.value)
        assert f"{code}: Said by the test." in caplog.text
    assert "Said by" not in str(caught.value)


@pytest.mark.parametrize("call", [CALLS[name] for name in ("get", "head", "chunks", "get_async", "head_async")])
def test_only_an_s3_code_says_that_an_object_is_missing(server_of_errors: Recorder, call: Callable[[Bucket], Any]) -> None:
    """A page of some proxy on the way does not make an upload's source missing."""
    server_of_errors.answer = lambda _: s3_error(404, "NoSuchKey")
    with pytest.raises(ObjectMissing):
        call(Bucket(at(server_of_errors)))
    server_of_errors.answer = lambda _: Answer(404, b"<html>no route</html>")
    with pytest.raises(StorageUnavailable):
        call(Bucket(at(server_of_errors)))


def test_an_object_that_comes_between_head_and_get_is_found(server_of_errors: Recorder) -> None:
    """The second look counts."""
    found = Answer(200, b"body", (("ETag", '"e"'), ("Last-Modified", "Wed, 25 Nov 2026 03:00:00 GMT")))
    server_of_errors.answer = lambda request: Answer(404) if request.method == "HEAD" else found
    assert Bucket(at(server_of_errors)).head("a").size == 4


def test_an_object_that_may_not_be_deleted_is_told(server_of_errors: Recorder) -> None:
    """A bulk delete answers 200 and has its errors inside."""
    server_of_errors.answer = lambda _: Answer(
        200, b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error></DeleteResult>"
    )
    with pytest.raises(StorageDenied, match="AccessDenied"):
        Bucket(at(server_of_errors)).delete(["a", "b"])


def test_the_real_server_knows_wrong_credentials(s3_server: TestServer) -> None:
    """A wrong secret and a wrong key are denied; nothing that was signed is in what is said, nor in a cause that would be logged."""
    right = s3_server.new_bucket()
    for wrong in (
        BucketSettings(right.url, right.endpoint, right.access_key_id, SECRET, right.region),
        BucketSettings(right.url, right.endpoint, "nobody", right.secret_access_key, right.region),
    ):
        for name, call in CALLS.items():
            with pytest.raises(StorageDenied) as caught:
                call(Bucket(wrong))
            said = f"{caught.value} {to_application_error(caught.value)}"
            assert not re.search(rf"{SECRET}|{right.secret_access_key}|StringToSign|Signature=|<", said), name
            assert caught.value.__cause__ is None


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name != "create_async"])
def test_the_real_server_knows_a_missing_bucket(s3_server: TestServer, call: Callable[[Bucket], Any]) -> None:
    """Whatever is asked of it."""
    with pytest.raises(NoSuchBucket, match="there is no bucket never-made"):
        call(Bucket(s3_server.settings("never-made")))


def test_a_server_that_is_away_is_unavailable_soon() -> None:
    """Some tries, and not for minutes; the long wait is Temporal's."""
    bucket = Bucket(BucketSettings("s3://plans", f"http://127.0.0.1:{free_port()}", "an-id", SECRET, "auto"))
    begun = time.monotonic()
    with pytest.raises(StorageUnavailable, match="the bucket failed at a"):
        bucket.put("a", b"x")
    assert 0.5 < time.monotonic() - begun < 100  # obstore alone would go on for three minutes


# Health


async def test_full_server_is_not_ready(recorder: Recorder, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """A server that still answers reads and takes no object any more is told by one small PUT, which is not sent at every call."""
    async with client_of(make_app(bucket, FakeTemporal())) as client:
        for _ in range(10):
            assert (await client.get("/readyz")).status_code == 200
        assert [request.method for request in recorder.requests].count("PUT") == 1

    def answer(request: Request) -> Answer | None:
        return s3_error(507, "XMinioStorageFull", "at /srv/data") if request.method == "PUT" else None

    recorder.answer = answer
    async with client_of(make_app(bucket, FakeTemporal())) as client:
        for _ in range(3):
            answer_now = await client.get("/readyz")
            assert (answer_now.status_code, answer_now.json()["type"]) == (503, "StorageUnavailable")
            assert "/srv" not in answer_now.text
        assert (await client.get("/livez")).status_code == 200


# Patience


@pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (503, "SlowDown"), (500, "InternalError")])
async def test_a_busy_server_is_asked_again_with_back_off(recorder: Recorder, bucket: Bucket, status: int, code: str) -> None:
    """R2 answers 429 and S3 503 when it is too much: the same request comes again, each time after a pause, and then is done."""
    asked: list[float] = []

    def answer(_: Request) -> Answer | None:
        asked.append(time.monotonic())
        return s3_error(status, code) if len(asked) <= 2 else None

    recorder.answer = answer
    await asyncio.to_thread(bucket.put, "a", b"x")
    assert (await bucket.get_async("a")).body == b"x"
    assert [request.method for request in recorder.requests] == ["PUT", "PUT", "PUT", "GET"]
    assert asked[1] - asked[0] > 0.25
    assert asked[2] - asked[1] > 0.25


def test_set_up_is_asked_again_too(server_of_errors: Recorder) -> None:
    """boto3 retries 429 and 503 likewise."""
    answers = iter([s3_error(429, "TooManyRequests"), s3_error(503, "SlowDown"), Answer(429), Answer(200, b"<CORS/>")])
    server_of_errors.answer = lambda _: next(answers)
    BucketSetup(at(server_of_errors)).allow_origins(["https://plans.example.com"])
    assert len(server_of_errors.requests) == 4


def test_a_server_that_stays_busy_is_unavailable(server_of_errors: Recorder) -> None:
    """In the end the attempt fails under its name, with the code that the server gave, and Temporal waits."""
    server_of_errors.answer = lambda _: s3_error(503, "SlowDown", "Please reduce your request rate.")
    with pytest.raises(StorageUnavailable, match=r"^the bucket failed at a: SlowDown$"):
        Bucket(at(server_of_errors)).put("a", b"x")
    assert len(server_of_errors.requests) == 5


@pytest.mark.parametrize(("method", "call"), [("PUT", CALLS["put_async"]), ("GET", CALLS["get"])])
async def test_a_slow_server_is_no_error(recorder: Recorder, bucket: Bucket, method: str, call: Callable[[Bucket], Any]) -> None:
    """An answer that takes its time is waited for, and nothing is asked twice."""
    bucket.put("a/b", b"x")
    released = threading.Event()

    def slow(_: Request) -> None:
        assert released.wait(DEADLINE_S)

    recorder.answer = slow
    waiting = asyncio.create_task(asyncio.to_thread(call, bucket))
    await until_async(lambda: recorder.sent(method, "a/b")[-1:] == recorder.requests[1:])
    assert not waiting.done()
    released.set()
    await waiting
    assert [request.method for request in recorder.requests] == ["PUT", method]


async def test_two_deletions_at_once_are_both_done(recorder: Recorder, bucket: Bucket) -> None:
    """Each finds a mark when it looks, though the other's stands there by then."""
    ref = UploadRef("acme", "tower", "a1", "u1")
    bucket.put(ref.record, to_json(UploadRecord("a.pdf", 1, "00", UploadOptions(), "2026-01-31T09:30:00.000Z")))

    def marks(requests: list[Request]) -> int:
        return len([each for each in requests if each.method == "PUT" and each.path.endswith("/upload.json")]) - 1

    def answer(request: Request) -> Answer | None:
        if request.method == "PUT":  # both have read that there is no mark
            until(lambda: [each.method for each in recorder.answered].count("GET") >= 2)
        elif [each.method for each in recorder.requests].count("GET") > 2:  # both marks are written before one is looked at
            until(lambda: marks(recorder.answered) == 2)
        return None

    recorder.answer = answer
    status = Status(bucket, Runs(lambda: asyncio.sleep(0, None)))  # type: ignore[arg-type] # asks for no run
    await asyncio.gather(status.mark_deleted(ref), status.mark_deleted(ref))
    assert from_json(UploadRecord, bucket.get(ref.record).body).deleted_at is not None


def test_parts_of_a_long_list_are_the_whole(recorder: Recorder, bucket: Bucket) -> None:
    """However a LIST is divided, it has each object once; a part that ends where a page ends takes no second request."""
    keys = [f"objects/{number:04}" for number in range(LIST_PAGE + 50)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: bucket.put(key, b""), keys))
    recorder.requests.clear()
    for ends in ([], [keys[LIST_PAGE - 1]], [keys[0], keys[10], "objects/0010x", keys[-1]]):
        parts = [bucket.objects("objects/", *part) for part in pairwise(("", *ends, ""))]
        assert [info.key for part in parts for info in part] == keys
    assert len(recorder.sent("GET")) == 2 + 2 + 6


# Streams


async def test_a_stream_that_is_given_up_leaves_no_parts(settings: BucketSettings, bucket: Bucket) -> None:
    """The multipart upload is aborted at once, early and late; late is when the server has all whole parts, as in the next test."""

    async def body(chunks: int) -> AsyncIterator[bytes]:
        async for chunk in stream(chunks):
            yield chunk
        await until_async(lambda: asyncio.to_thread(lambda: count_parts(settings) == (chunks << 20) // PART_BYTES))
        raise FileTooLarge("20,971,520 bytes, limit 1,000")

    for chunks in (0, 1, 20):
        with pytest.raises(FileTooLarge):
            await bucket.put_stream("source.pdf", body(chunks))
    assert BucketSetup(settings).unfinished_uploads() == []
    assert list(bucket.objects("")) == []


async def test_a_stream_that_the_server_refuses_leaves_no_parts(recorder: Recorder, settings: BucketSettings, bucket: Bucket) -> None:
    """A part that is refused ends it under its name, and the multipart upload is aborted.

    The refusal comes once the server has all other parts: it keeps a part that it is still taking while the upload is aborted.
    """
    parts = 4

    def refuse_last(request: Request) -> Answer | None:
        if f"partNumber={parts}" not in request.target:
            return None
        until(lambda: sum("partNumber=" in each.target for each in recorder.answered) == parts - 1)
        return s3_error(403, "AccessDenied")

    recorder.answer = refuse_last
    with pytest.raises(StorageDenied):
        await bucket.put_stream("source.pdf", stream(30))
    recorder.answer = lambda _: None
    assert BucketSetup(settings).unfinished_uploads() == []


def test_etags_are_md5(bucket: Bucket) -> None:
    """So a LIST proves a sheet's digest without reading a tile."""
    bucket.put("a", b"x")
    assert [info.etag for info in bucket.objects("")] == ['"9dd4e461268c8034f5c8564e155c67a6"']


# Set-up


def test_set_up_says_what_it_did(s3_server: TestServer) -> None:
    """The bucket is made once; a server without lifecycle is told apart, and the rest is done."""
    settings = s3_server.settings("set-up-says")
    setup = BucketSetup(settings)
    said: list[str] = []
    assert set_up(setup, settings.url, ["https://plans.example.com"], create=False, say=said.append) == FAILED
    assert said == ["NoSuchBucket: there is no bucket set-up-says"]
    for first in ("s3://set-up-says: created", "s3://set-up-says: exists already"):
        said.clear()
        assert set_up(setup, settings.url, ["https://plans.example.com"], create=True, say=said.append) == DONE
        assert said[:3] == [
            first,
            "unfinished multipart uploads: 0",
            "CORS: pages of https://plans.example.com may read, and write to presigned URLs",
        ]
        assert said[3].startswith("lifecycle: not set. The server does not offer it")
    asked = httpx2.options(
        f"{settings.endpoint}/set-up-says/a",
        headers={"Origin": "https://plans.example.com", "Access-Control-Request-Method": "PUT"},
    )
    assert asked.headers["access-control-allow-origin"] == "https://plans.example.com"


def test_set_up_lets_pages_read_ranges(s3_server: TestServer) -> None:
    """A page of another origin may send ``Range``, and sees which part of which version came."""
    settings = s3_server.new_bucket()
    BucketSetup(settings).allow_origins(["https://plans.example.com"])
    Bucket(settings).put("a", b"0123456789")
    asked = httpx2.options(
        f"{settings.endpoint}/{settings.url.removeprefix('s3://')}/a",
        headers={
            "Origin": "https://plans.example.com",
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "range",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-headers"].lower() == "range"
    headers = {"Origin": "https://plans.example.com", "Range": "bytes=2-4"}
    answer = httpx2.get(presigned(settings, "a"), headers=headers)
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    exposed = set(answer.headers["access-control-expose-headers"].lower().split(", "))
    assert exposed >= {"accept-ranges", "content-length", "content-range", "etag"}


def test_the_command_reads_the_environment(s3_server: TestServer) -> None:
    """``python -m deploy.bucket --create``: it says each step and no secret; a directory and wrong settings are wrong use."""

    def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_"))}
        words = [sys.executable, "-m", "deploy.bucket", *arguments]
        return subprocess.run(words, env={**environ, **variables}, cwd=ROOT, capture_output=True, text=True, check=False)

    variables = s3_server.environment(s3_server.settings("by-command", "a"))
    assert command(**variables).returncode == 1
    run = command("--create", **variables)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("s3://by-command/a: created\n")
    assert "CORS: pages of http://127.0.0.1:8000, http://localhost:8000 may read" in run.stdout
    assert variables["AWS_SECRET_ACCESS_KEY"] not in run.stdout + run.stderr
    for wrong in ({}, {**variables, "AWS_SECRET_ACCESS_KEY": ""}):
        run = command(**wrong)
        assert (run.returncode, run.stdout) == (2, "")
        assert re.search(r"only a bucket on an S3 server|AWS_SECRET_ACCESS_KEY is not set", run.stderr)


def test_a_server_with_lifecycle_is_told_to_abort_after_a_week(server_of_errors: Recorder) -> None:
    """The rule as S3 documents it: https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortIncompleteMultipartUpload.html."""
    server_of_errors.answer = lambda _: Answer(200)
    BucketSetup(at(server_of_errors)).abort_stale_uploads()
    (request,) = server_of_errors.requests
    assert request.target == "/plans?lifecycle"
    for words in (f"<ID>{RULE_ID}</ID>", "<DaysAfterInitiation>7</DaysAfterInitiation>", "<Status>Enabled</Status>"):
        assert words.encode() in request.body


def test_set_up_without_permission_fails(server_of_errors: Recorder) -> None:
    """It says by name what was refused."""
    said: list[str] = []
    server_of_errors.answer = lambda request: (
        s3_error(403, "AccessDenied") if request.method == "PUT" else Answer(200, b"<ListMultipartUploadsResult/>")
    )
    assert set_up(BucketSetup(at(server_of_errors)), "s3://plans", ["https://x"], create=False, say=said.append) == FAILED
    assert said[1].startswith("CORS: not set. StorageDenied: ")


def test_a_directory_is_not_set_up() -> None:
    """It needs none."""
    with pytest.raises(ValueError, match="only a bucket on an S3 server"):
        BucketSetup(BucketSettings("file:///b"))


def test_presigned_upload_takes_equal_parts(s3_server: TestServer) -> None:
    """A client with nothing but the URLs sends a large file, within a prefix; an unfinished upload is listed and can be aborted."""
    settings = s3_server.new_bucket("site")
    setup, bucket = BucketSetup(settings), Bucket(settings)
    body, part_bytes = os.urandom(20 * MIB), 8 * MIB
    upload = setup.start_upload("source.pdf")
    assert [(unfinished.key, unfinished.upload_id) for unfinished in setup.unfinished_uploads()] == [("source.pdf", upload)]
    pieces = [body[start : start + part_bytes] for start in range(0, len(body), part_bytes)]
    urls = [setup.part_url("source.pdf", upload, number, len(piece), 60) for number, piece in enumerate(pieces, 1)]
    assert httpx2.put(urls[0].replace("source.pdf", "other.pdf"), content=pieces[0]).status_code == 403
    assert httpx2.put(urls[0], content=b"x").status_code == 403  # only the announced size
    assert httpx2.get(urls[0]).status_code == 403
    etags = [httpx2.put(url, content=piece).headers["etag"] for url, piece in zip(urls, pieces, strict=True)]
    assert setup.parts("source.pdf", upload) == [
        StoredPart(number, len(piece), etag) for number, (piece, etag) in enumerate(zip(pieces, etags, strict=True), 1)
    ]
    with pytest.raises(PartsIncomplete, match="InvalidPart"):
        setup.complete("source.pdf", upload, [*etags[:-1], '"0"'])
    setup.complete("source.pdf", upload, etags)
    assert bucket.get("source.pdf").body == body
    with pytest.raises(ObjectMissing):
        setup.parts("source.pdf", upload)
    other = setup.start_upload("other.pdf")
    setup.abort("other.pdf", other)
    setup.abort("other.pdf", other)
    assert setup.unfinished_uploads() == []


@pytest.mark.parametrize(
    ("size_bytes", "part_bytes"), [(1, 8 * MIB), (80_000 * MIB, 8 * MIB), (80_000 * MIB + 1, 9 * MIB), (5 << 40, 525 * MIB)]
)
def test_parts_grow_with_the_object(size_bytes: int, part_bytes: int) -> None:
    """Never more than 10,000 of them, up to S3's largest object."""
    assert equal_parts(size_bytes) == part_bytes
    assert -(-size_bytes // part_bytes) <= 10_000
