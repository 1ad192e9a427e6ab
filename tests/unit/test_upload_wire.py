"""Uploads on a real socket: announced digests, ``Expect``, chunked and encoded bodies, and connections that are cut."""

import asyncio
import base64
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from activities.bucket.keys import ROOT, UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import PART_BYTES, Bucket
from api.access.settings import AccessSettings, Mode
from tests.servers.s3 import count_parts
from tests.unit.api_fakes import BASE, PDF, FakeTemporal, files_below, make_app, make_bucket
from tests.unit.api_server import RawConnection, serving
from tests.waiting import until_async

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LIMIT = 32 << 20
FORM_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n'
FORM = FORM_HEAD + PDF + b"\r\n--b--\r\n"
IS_FORM = "Content-Type: multipart/form-data; boundary=b"


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return make_bucket(tmp_path / "bucket")


@pytest.fixture
async def port(bucket: Bucket, temporal: FakeTemporal) -> AsyncIterator[int]:
    """The API's port; files may have 32 MiB."""
    async with serving(make_app(bucket, temporal, max_file_bytes=LIMIT)) as port:
        yield port


def head(*lines: str, path: str = BASE) -> str:
    """The head of an upload."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "\r\n"])


def chunked(*pieces: bytes) -> bytes:
    """The pieces as chunks of a body, without the last chunk: https://www.rfc-editor.org/rfc/rfc9112#section-7.1."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def digest(algorithm: str, body: bytes) -> str:
    """A member of a digest field."""
    return f"{algorithm}=:{base64.b64encode(hashlib.new(algorithm.replace('-', ''), body).digest()).decode()}:"


async def answer_of(connection: RawConnection) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and document of the next answer."""
    status, *lines = (await connection.until(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, json.loads(await connection.exactly(int(headers["content-length"])))


async def post(port: int, body: bytes, *lines: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Sends a body with its length; gives the answer."""
    connection = await RawConnection.open(port, head(f"Content-Length: {len(body)}", *lines).encode() + body)
    try:
        return await answer_of(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("field", ["Content-Digest", "Repr-Digest"])
@pytest.mark.parametrize("body", [PDF, FORM])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_announced_digest_is_checked(port: int, bucket: Bucket, field: str, body: bytes, algorithm: str) -> None:
    """The right one is accepted. With a wrong one, also beside a right one, the upload is refused by name, and nothing stays."""
    lines = [IS_FORM] if body is FORM else []
    wrong, right = digest(algorithm, b"another"), digest(algorithm, body)
    for announced in (
        [f"{field}: {wrong}"],
        [f"Content-Digest: {right}", f"Repr-Digest: {wrong}"],
        [f"{field}: {right}", f"{field}: {digest('sha-256' if algorithm == 'sha-512' else 'sha-512', b'another')}"],
    ):
        status, _, problem = await post(port, body, *lines, *announced)
        assert (status, problem["type"]) == (400, "DigestMismatch")
        assert algorithm.partition("-")[0] in problem["detail"]
        assert list(bucket.objects("")) == []
    status, _, accepted = await post(port, body, *lines, f"{field}: {right}, md5=:AAAA:, new;a=1")
    assert status == 202
    assert bucket.get(UploadRef.parse(accepted["ref"]).source).body == PDF


async def test_wrong_digest_leaves_no_key(port: int, bucket: Bucket) -> None:
    """The same ``Idempotency-Key`` may be used again for the file as it should be. Then another file is refused before its body."""
    key = "Idempotency-Key: k"
    assert (await post(port, PDF + b"damaged", key, f"Content-Digest: {digest('sha-256', PDF)}"))[0] == 400
    status, _, first = await post(port, PDF, key, f"Content-Digest: {digest('sha-256', PDF)}")
    assert status == 202
    assert (await post(port, PDF, key, f"Content-Digest: {digest('sha-256', PDF)}"))[2]["ref"] == first["ref"]
    status, _, problem = await post(port, PDF + b"damaged", key, f"Content-Digest: {digest('sha-256', PDF)}")
    assert (status, problem["type"]) == (400, "DigestMismatch")
    other = await RawConnection.open(
        port, head(key, "Expect: 100-continue", "Content-Length: 9", f"Repr-Digest: {digest('sha-256', b'x')}")
    )
    status, _, problem = await answer_of(other)
    assert (status, problem["type"]) == (422, "IdempotencyConflict")
    other.close()


@pytest.mark.parametrize(
    "value",
    ["sha-256=abc", "sha-256", "sha-256=:AAAA:", "sha-256=:!:", '"text"', "sha-256=:AAAA:;", "sha-512=1", "md5=:AAAA:,", "x" * 5000],
)
async def test_malformed_digest_is_refused_before_the_body(port: int, value: str) -> None:
    """As an InvalidRequest that names the field."""
    for field in ("Content-Digest", "Repr-Digest"):
        connection = await RawConnection.open(port, head("Content-Length: 5009", "Expect: 100-continue", f"{field}: {value}"))
        status, _, problem = await answer_of(connection)
        assert (status, problem["type"]) == (400, "InvalidRequest")
        assert field in problem["detail"]
        connection.close()


@pytest.mark.parametrize(
    ("lines", "query", "status", "name"),
    [
        (["Content-Length: 9", "Content-Type: image/png"], "", 415, "UnsupportedMediaType"),
        (["Content-Length: 9", "Content-Encoding: gzip"], "", 415, "EncodedContent"),
        (["Transfer-Encoding: chunked", "Content-Encoding: br, gzip"], "", 415, "EncodedContent"),
        ([f"Content-Length: {LIMIT + 1}"], "", 413, "FileTooLarge"),
        (["Content-Length: 9", "Content-Range: bytes 0-8/20"], "", 400, "InvalidRequest"),
        (["Content-Length: 9"], "?dpi=1", 400, "InvalidRequest"),
        (["Content-Length: 9", "Idempotency-Key: used"], "?dpi=100", 422, "IdempotencyConflict"),
        (["Content-Length: 9", "Origin: https://elsewhere.example"], "", 403, "ForeignOrigin"),
    ],
)
async def test_request_that_must_fail_is_refused_before_its_body(
    port: int, bucket: Bucket, lines: list[str], query: str, status: int, name: str
) -> None:
    """A client that waits for ``100 Continue`` gets the final answer at once, and is told that the connection ends."""
    await post(port, PDF, "Idempotency-Key: used")
    before = sorted(info.key for info in bucket.objects(""))
    connection = await RawConnection.open(port, head(*lines, "Expect: 100-continue", path=BASE + query))
    found, headers, problem = await answer_of(connection)
    assert (found, headers["connection"]) == (status, "close")
    assert problem["type"] == name
    assert await connection.rest() == b""
    assert sorted(info.key for info in bucket.objects("")) == before


async def test_full_quota_and_bad_token_are_refused_before_the_body(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Who may not send is not asked for a byte, and neither is an organization that has its quota."""
    temporal.open_runs = 1000
    access = AccessSettings(Mode.JWT, secrets=("s" * 32,), ticket_secrets=("s" * 32,))
    for app, name in ((make_app(bucket, temporal), "QuotaExceeded"), (make_app(bucket, temporal, access=access), "CredentialRequired")):
        async with serving(app) as port:
            connection = await RawConnection.open(port, head("Content-Length: 9", "Expect: 100-continue", "Authorization: Bearer x"))
            _, headers, problem = await answer_of(connection)
            assert (problem["type"], headers["connection"]) == (name, "close")
            assert await connection.rest() == b""


async def test_body_is_asked_for_once_nothing_else_can_fail(port: int, bucket: Bucket) -> None:
    """A good request gets ``100 Continue``, its body is taken, and the connection may be used again."""
    connection = await RawConnection.open(port, head(f"Content-Length: {len(PDF)}", "Expect: 100-continue"))
    assert await connection.until(b"\r\n\r\n") == CONTINUE
    for _ in range(2):
        await connection.send(PDF)
        status, headers, accepted = await answer_of(connection)
        assert (status, headers.get("connection")) == (202, None)
        assert bucket.get(UploadRef.parse(accepted["ref"]).source).body == PDF
        await connection.send(head(f"Content-Length: {len(PDF)}"))
    connection.close()


async def test_encoded_body_says_what_is_taken(port: int, bucket: Bucket) -> None:
    """``Accept-Encoding`` says that the body must come as it is. ``identity`` is no encoding."""
    body = gzip.compress(PDF)
    status, headers, problem = await post(port, body, "Content-Encoding: gzip")
    assert (status, problem["type"], headers["accept-encoding"]) == (415, "EncodedContent", "identity")
    assert list(bucket.objects("")) == []
    assert (await post(port, PDF, "Content-Encoding: identity"))[0] == 202


async def test_chunked_body_is_accepted_up_to_the_limit(port: int, bucket: Bucket) -> None:
    """A body without a length is taken whole, whatever its chunks; one that is too large is refused while it comes."""
    chunks = "Transfer-Encoding: chunked"
    body = PDF + bytes(range(256)) * 40_000
    connection = await RawConnection.open(port, head(chunks))
    for size in (1, 1000, 100_000, len(body)):
        piece, body = body[:size], body[size:]
        await connection.send(chunked(piece))
    await connection.send(b"0\r\n\r\n")
    status, _, accepted = await answer_of(connection)
    assert status == 202
    assert bucket.get(UploadRef.parse(accepted["ref"]).source).body == PDF + bytes(range(256)) * 40_000
    before = sorted(info.key for info in bucket.objects(""))
    await connection.send(head(chunks))
    await connection.send(chunked(PDF, *[bytes(1 << 20)] * 32))
    status, _, problem = await answer_of(connection)
    assert (status, problem["type"]) == (413, "FileTooLarge")
    connection.close()
    assert sorted(info.key for info in bucket.objects("")) == before


@pytest.fixture(params=["directory", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> BucketSettings:
    """An empty bucket of either kind."""
    made: BucketSettings = (
        BucketSettings((tmp_path / "bucket").as_uri())
        if request.param == "directory"
        else request.getfixturevalue("s3_server").new_bucket()
    )
    return made


def unfinished(settings: BucketSettings) -> list[object]:
    """All that is in a bucket: objects, half-written files, and multipart uploads."""
    if not settings.is_s3:
        return [*files_below(settings.directory)]
    return [*Bucket(settings).objects(""), *BucketSetup(settings).unfinished_uploads()]


def parts_sent(settings: BucketSettings) -> int:
    """How many parts of multipart uploads an S3 server has; a directory has none, there a half-written file counts as all of them."""
    if not settings.is_s3:
        return WHOLE_PARTS if unfinished(settings) else 0
    return count_parts(settings)


CUTS = {
    "length": (["Content-Length: 33000000"], b"%s"),
    "chunks": (["Transfer-Encoding: chunked"], b"2000000\r\n%s"),
    "form": (["Content-Length: 33000000", IS_FORM], FORM_HEAD + b"%s"),
    "bad chunk": (["Transfer-Encoding: chunked"], b"1400000\r\n%s\r\n"),
}
SENT_BYTES = 20 << 20
WHOLE_PARTS = SENT_BYTES // PART_BYTES


@pytest.mark.parametrize("how", CUTS)
async def test_upload_that_is_cut_leaves_nothing(settings: BucketSettings, temporal: FakeTemporal, how: str) -> None:
    """No object, no part, no half-written file, and no key: with a length, in chunks, in a form, and where the chunks are broken.

    The cut comes when the server has all whole parts: one that is on its way when its upload is aborted may be stored after it,
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html, and stays until the sweep.
    """
    lines, body = CUTS[how]
    bucket = Bucket(settings)
    async with serving(make_app(bucket, temporal, max_file_bytes=LIMIT << 1)) as port:
        connection = await RawConnection.open(port, head("Idempotency-Key: k", *lines))
        await connection.send(body % (PDF + bytes(SENT_BYTES - len(PDF))))
        await until_async(lambda: asyncio.to_thread(lambda: parts_sent(settings) == WHOLE_PARTS))
        if how == "bad chunk":
            await connection.send(b"no length\r\n")
            assert (await connection.until(b"\r\n")).startswith(b"HTTP/1.1 400")
        connection.close()
        await until_async(lambda: asyncio.to_thread(lambda: unfinished(settings) == []))
        assert temporal.starts == []
        assert not list(bucket.objects(ROOT))
