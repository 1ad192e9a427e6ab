"""Accepting uploads: which requests are accepted or refused, and that no half object stays."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import KeyRecord, Layout, UploadOptions, UploadRecord, from_json, to_json, to_wire
from activities.bucket.storage import Bucket
from activities.errors import InvalidRequest, StorageUnavailable
from api.settings import ApiSettings
from api.uploads import FORM_OVERHEAD_BYTES, IncomingFile, Patience, new_upload_id, read_options
from tests.unit.api_fakes import (
    BASE,
    PDF,
    PLAN,
    REF,
    UNAVAILABLE,
    FakeTemporal,
    RawRequest,
    accept,
    client_of,
    files_in,
    make_app,
    make_bucket,
)
from tests.waiting import DEADLINE_S, until_async

KEY = {"Idempotency-Key": "one"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The bucket's directory."""
    return tmp_path / "bucket"


@pytest.fixture
def bucket(directory: Path) -> Bucket:
    """An empty bucket."""
    return make_bucket(directory)


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API, with a limit of 1 MiB a file."""
    return make_app(bucket, temporal)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(app) as client:
        yield client


def record_of(bucket: Bucket, answer: httpx2.Response) -> UploadRecord:
    """The ``upload.json`` of an accepted upload."""
    return from_json(UploadRecord, bucket.get(UploadRef.parse(answer.json()["ref"]).record).body)


async def test_raw_body_is_accepted(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The PDF is stored unchanged, the record describes it, the workflow is started, and the answer has the links."""
    answer = await client.post(BASE, params={"filename": "A-101 Grundriß.pdf", "dpi": "150"}, content=PDF)
    assert answer.status_code == 202
    body = answer.json()
    ref = UploadRef.parse(body["ref"])
    here = f"{BASE}/{ref.upload}"
    assert body == {
        "ref": f"{PLAN}/{ref.upload}",
        "upload": ref.upload,
        "status": "queued",
        "links": {"self": here, "events": f"{here}/events", "page": f"/?ref={ref}"},
    }
    assert answer.headers["location"] == here
    assert bucket.get(ref.source).body == PDF
    record = record_of(bucket, answer)
    assert (record.file_name, record.size_bytes, record.sha256) == ("A-101 Grundriß.pdf", len(PDF), hashlib.sha256(PDF).hexdigest())
    assert record.options.dpi == 150
    assert [start["id"] for start in temporal.starts] == [ref.workflow_id]


@pytest.mark.parametrize(
    ("query", "disposition", "name"),
    [
        ("", None, "plan.pdf"),
        ("", 'attachment; filename="site plan.pdf"', "site plan.pdf"),
        ("", "attachment; filename*=UTF-8''Gr%C3%BCn.pdf", "Grün.pdf"),
        ("?filename=first.pdf", 'attachment; filename="second.pdf"', "first.pdf"),
        ("?filename=..%2F..%2Fetc%2Fpasswd", None, "passwd"),
        ("?filename=C%3A%5Cplans%5Ca.pdf", None, "a.pdf"),
        ("?filename=a%1B%5B2Jb%0Ac.pdf", None, "a[2Jbc.pdf"),
        ("?filename=..%2F", None, "plan.pdf"),
    ],
)
async def test_file_name_is_only_a_name(client: httpx2.AsyncClient, bucket: Bucket, query: str, disposition: str | None, name: str) -> None:
    """The name comes from the query or the header, without directories and control characters."""
    headers = {"Content-Disposition": disposition} if disposition else {}
    answer = await client.post(BASE + query, content=PDF, headers=headers)
    assert record_of(bucket, answer).file_name == name


async def test_form_is_accepted(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """The one file of a form arrives byte for byte, also beside other fields, and with text like a boundary in it."""
    pdf = PDF + b"\r\n--not the boundary\r\n" + bytes(range(256)) * 2000
    answer = await client.post(BASE, files={"file": ("Grün.pdf", pdf, "application/pdf")}, data={"comment": "hello"})
    assert answer.status_code == 202, answer.text
    assert bucket.get(UploadRef.parse(answer.json()["ref"]).source).body == pdf
    assert record_of(bucket, answer).file_name == "Grün.pdf"


@pytest.mark.parametrize(
    ("files", "data", "sentence"),
    [
        ({"a": ("a.pdf", PDF), "b": ("b.pdf", PDF)}, {}, "more than one file"),
        (None, {"comment": "hello"}, "no file"),
    ],
)
async def test_form_without_exactly_one_file_is_refused(
    client: httpx2.AsyncClient, directory: Path, files: dict[str, tuple[str, bytes]] | None, data: dict[str, str], sentence: str
) -> None:
    """Such a form is an InvalidRequest, and nothing is stored."""
    request = client.build_request("POST", BASE, files=files or {"x": (None, b"")}, data=data)
    answer = await client.send(request)
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest"), answer.text
    assert sentence in answer.json()["detail"]
    assert files_in(directory) == []


async def test_form_that_is_cut_off_is_refused(client: httpx2.AsyncClient, directory: Path) -> None:
    """A form without its last boundary is not accepted, though its file may look whole."""
    request = client.build_request("POST", BASE, files={"file": ("a.pdf", PDF)})
    body = await request.aread()
    answer = await client.post(BASE, content=body[:-10], headers={"Content-Type": request.headers["content-type"]})
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert files_in(directory) == []


@pytest.mark.parametrize(
    ("content", "headers", "status", "problem", "sentence"),
    [
        (b"", {}, 422, "NotAPdf", "empty"),
        (b"<html>" * 1000, {}, 422, "NotAPdf", "%PDF-"),
        (b"tiny", {}, 422, "NotAPdf", "%PDF-"),
        (b"x" * 1020 + PDF, {}, 422, "NotAPdf", "1,024"),
        (PDF, {"Content-Type": "image/png"}, 415, "UnsupportedMediaType", "image/png"),
        (PDF, {"Content-Type": "multipart/form-data"}, 400, "InvalidRequest", "boundary"),
        (PDF, {"Content-Length": "1048577"}, 413, "FileTooLarge", "1,048,577 bytes, limit 1,048,576"),
        (PDF, {"Idempotency-Key": "k" * 256}, 400, "InvalidRequest", "256"),
    ],
)
async def test_refusal_is_named_and_leaves_nothing(
    client: httpx2.AsyncClient,
    directory: Path,
    temporal: FakeTemporal,
    content: bytes,
    headers: dict[str, str],
    status: int,
    problem: str,
    sentence: str,
) -> None:
    """A file that cannot be used is refused by name, with a sentence, and nothing is stored."""
    answer = await client.post(BASE, content=content, headers=headers)
    body = answer.json()
    assert (answer.status_code, body["status"], body["type"]) == (status, status, problem)
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["instance"] == BASE
    assert sentence in body["detail"]
    assert files_in(directory) == []
    assert temporal.starts == []


async def test_header_may_begin_late(client: httpx2.AsyncClient) -> None:
    """A file with ``%PDF-`` anywhere in the first 1,024 bytes counts as a PDF, as in other readers."""
    assert (await client.post(BASE, content=b"x" * 1019 + PDF)).status_code == 202


@pytest.mark.parametrize(
    "query",
    [
        "dpi=29",
        "dpi=x",
        "dpi=-1",
        "tilesize=256",
        "quality=101",
        "window=0",
        "budgetBytes=1",
        "layout=",
        "layout=Packed",
        "layers=",
        "layers=-",
        "layers=-A,%2BA",
        f"layers={'x' * 256}",
        "layers=-%00",
        "layers=%7B",
        'layers={"A":1}',
        'layers={"\\ud800":true}',
        "layers=" + ",".join(f"layer-of-furniture-{number}" for number in range(200)),
        "markups=0",
        "markups=True",
    ],
)
async def test_wrong_option_is_refused_before_the_body_is_read(app: Starlette, query: str) -> None:
    """An option that is unknown or out of its range is an InvalidRequest, and no byte of the body is read."""
    request = RawRequest(app, "POST", f"{BASE}?{query}", {})
    await request.task
    assert (request.status, request.received) == (400, 0)


def test_options_have_their_wire_names() -> None:
    """Every option of an upload is set by its name on the wire."""
    query = {
        "dpi": "100",
        "tileSize": "512",
        "overlap": "2",
        "quality": "90",
        "budgetBytes": "2000000",
        "window": "8",
        "filename": "x",
        "layout": "both",
        "layers": "-Furniture, A-WALL,+Demolition,--odd",
        "markups": "false",
    }
    options = read_options(query)
    assert options.layers == {"Furniture": False, "A-WALL": True, "Demolition": True, "-odd": False}
    assert options.markups is False
    assert read_options({"layers": '{"A, B": false, "+C": true}'}).layers == {"A, B": False, "+C": True}
    assert (options.dpi, options.tile_size, options.overlap, options.quality, options.layout) == (100, 512, 2, 90, Layout.BOTH)
    assert (options.budget_bytes, options.window) == (2_000_000, 8)


def test_budget_is_within_the_memory_of_a_render_process() -> None:
    """Two thirds of it, as the setting of the tile worker says. The default is not above the limit, so that it is never refused."""
    small = ApiSettings.from_env({"SITELINK_RENDER_MEMORY_BYTES": str(300 << 20)}).most_budget_bytes
    assert (small, ApiSettings.from_env({}).most_budget_bytes) == (200 << 20, 2 << 30)
    assert read_options({}, small).budget_bytes == 200 << 20
    assert read_options({}).budget_bytes == UploadOptions().budget_bytes
    with pytest.raises(InvalidRequest, match=r"^budgetBytes is 209,715,201, limit 209,715,200: "):
        read_options({"budgetBytes": str((200 << 20) + 1)}, small)


async def test_file_that_is_not_a_pdf_is_refused_after_its_first_kilobyte(app: Starlette) -> None:
    """The rest of the body is not read."""
    request = RawRequest(app, "POST", BASE, {})
    request.feed(b"not a pdf" * 200)
    await request.task
    assert (request.status, request.received) == (422, 1)


async def test_too_large_body_without_a_length_leaves_nothing(app: Starlette, directory: Path) -> None:
    """A body without ``Content-Length`` is refused at the limit, and nothing is stored."""
    request = RawRequest(app, "POST", BASE, {"transfer-encoding": "chunked"})
    request.feed(PDF)
    for _ in range(20):
        request.feed(bytes(100_000))
    await request.task
    assert request.status == 413
    assert request.received < 13
    assert files_in(directory) == []


@pytest.mark.parametrize("headers", [{}, KEY])
async def test_sender_that_goes_away_leaves_nothing(directory: Path, temporal: FakeTemporal, headers: dict[str, str]) -> None:
    """A connection that ends in the middle makes no upload and leaves no half object."""
    app = make_app(make_bucket(directory), temporal, max_file_bytes=1 << 30)
    request = RawRequest(app, "POST", BASE, headers)
    request.feed(PDF)
    for _ in range(8):
        request.feed(bytes(1 << 20))
    await until_async(lambda: files_in(directory) != [])
    request.disconnect()
    await request.task
    assert files_in(directory) == []
    assert temporal.starts == []


async def test_cancelled_request_leaves_nothing(directory: Path, temporal: FakeTemporal) -> None:
    """A server that stops in the middle of an upload waits until the write is aborted."""
    app = make_app(make_bucket(directory), temporal, max_file_bytes=1 << 30)
    async with app.router.lifespan_context(app):
        request = RawRequest(app, "POST", BASE, {})
        request.feed(PDF)
        for _ in range(8):
            request.feed(bytes(1 << 20))
        await until_async(lambda: files_in(directory) != [])
        request.task.cancel()
    assert files_in(directory) == []
    with pytest.raises(asyncio.CancelledError):
        await request.task


class _FullBucket(Bucket):
    """Its disk is full after the first chunk."""

    async def put_stream(self, key: str, body: AsyncIterator[bytes]) -> None:
        async for _ in body:
            msg = "no space left on device"
            raise StorageUnavailable(msg)


async def test_bucket_that_fails_is_named_at_once(directory: Path, temporal: FakeTemporal) -> None:
    """The sender of a large file gets a 503 with ``Retry-After`` as soon as the bucket has failed."""
    app = make_app(_FullBucket(BucketSettings(directory.as_uri())), temporal, max_file_bytes=1 << 30)
    request = RawRequest(app, "POST", BASE, {})
    request.feed(PDF)
    for _ in range(5):
        request.feed(bytes(1 << 20))
    await asyncio.wait_for(request.task, 120)
    assert request.status == 503
    assert json.loads(request.sent[1]["body"])["type"] == "StorageUnavailable"
    assert (b"retry-after", b"5") in request.sent[0]["headers"]


async def test_upload_is_accepted_without_temporal(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The upload is queued, and the first GET with Temporal starts its workflow."""
    temporal.start_error = UNAVAILABLE
    answer = await client.post(BASE, content=PDF)
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    temporal.start_error = None
    state = await client.get(answer.headers["location"])
    assert (state.json()["status"], len(temporal.starts)) == ("queued", 1)


async def test_same_key_and_file_is_the_same_upload(client: httpx2.AsyncClient, directory: Path, temporal: FakeTemporal) -> None:
    """A repeated request gets the upload of the first and stores nothing more."""
    first = await client.post(BASE, content=PDF, headers=KEY)
    before = files_in(directory)
    again = await client.post(BASE, content=PDF, headers=KEY)
    assert (again.status_code, again.json()["ref"]) == (202, first.json()["ref"])
    assert files_in(directory) == before


async def test_same_key_with_another_file_is_refused(client: httpx2.AsyncClient, directory: Path) -> None:
    """The first upload stays as it was."""
    await client.post(BASE, content=PDF, headers=KEY)
    before = files_in(directory)
    other = await client.post(BASE, content=PDF + b"!", headers=KEY)
    assert (other.status_code, other.json()["type"]) == (422, "IdempotencyConflict")
    assert files_in(directory) == before
    assert (await client.post(BASE, content=PDF + b"!", headers={"Idempotency-Key": "two"})).status_code == 202


async def test_same_key_with_other_options_is_refused(client: httpx2.AsyncClient, bucket: Bucket, directory: Path) -> None:
    """An option with its default value equals an option that is not given. The file name is not an option."""
    first = await client.post(f"{BASE}?dpi=150&window=16", content=PDF, headers=KEY)
    before = files_in(directory)
    for query in ("?dpi=150", "?dpi=150&quality=85&filename=b.pdf"):
        again = await client.post(BASE + query, content=PDF, headers=KEY)
        assert (again.status_code, again.json()["ref"]) == (202, first.json()["ref"])
    for query in ("", "?dpi=300", "?dpi=150&overlap=0"):
        other = await client.post(BASE + query, content=PDF, headers=KEY)
        assert (other.status_code, other.json()["type"]) == (422, "IdempotencyConflict"), query
        assert "other options" in other.json()["detail"]
    assert files_in(directory) == before


async def test_key_record_without_options_matches_any_options(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """A record that was written before options were recorded is still accepted."""
    first = await client.post(f"{BASE}?dpi=150", content=PDF, headers=KEY)
    record = to_wire(bucket.get_record(KeyRecord, PLAN.idempotency_key("one")))
    del record["options"]
    await bucket.put_async(PLAN.idempotency_key("one"), json.dumps(record).encode())
    again = await client.post(BASE, content=PDF, headers=KEY)
    assert (again.status_code, again.json()["ref"]) == (202, first.json()["ref"])


@pytest.mark.parametrize("body", [b"{", b'{"schema": 2}'])
async def test_key_whose_record_cannot_be_read_is_refused(client: httpx2.AsyncClient, bucket: Bucket, directory: Path, body: bytes) -> None:
    """Nothing is stored, because the key's upload is unknown."""
    await bucket.put_async(PLAN.idempotency_key("one"), body)
    before = files_in(directory)
    answer = await client.post(BASE, content=PDF, headers=KEY)
    assert (answer.status_code, answer.json()["type"]) == (409, "NewerSchema" if b"schema" in body else "DamagedRecord")
    assert files_in(directory) == before
    assert bucket.get(PLAN.idempotency_key("one")).body == body


async def test_part_of_a_file_is_refused(app: Starlette, directory: Path) -> None:
    """A request with ``Content-Range`` is refused before its body is read."""
    request = RawRequest(app, "POST", BASE, {"Content-Range": "bytes 0-1048575/57857339"})
    await request.task
    assert (request.status, request.received) == (400, 0)
    answer = json.loads(request.sent[1]["body"])
    assert (answer["type"], answer["detail"].split(":")[0]) == ("InvalidRequest", "Content-Range")
    assert files_in(directory) == []


@pytest.mark.parametrize("same", [True, False])
async def test_racing_requests_with_one_key_make_one_upload(bucket: Bucket, directory: Path, temporal: FakeTemporal, same: bool) -> None:
    """Two API processes that get the same key at the same time make one upload. Another file is refused."""
    apps = [make_app(bucket, temporal), make_app(bucket, temporal)]
    bodies = [PDF, PDF if same else PDF + b"!"]
    requests = [RawRequest(app, "POST", BASE, KEY) for app in apps]
    for request, body in zip(requests, bodies, strict=True):
        request.feed(body[:3000])
    await until_async(lambda: all(request.received == 2 for request in requests))
    for request, body in zip(requests, bodies, strict=True):
        request.feed(body[3000:], more=False)
    await asyncio.gather(*(request.task for request in requests))
    assert sorted(request.status or 0 for request in requests) == ([202, 202] if same else [202, 422])
    refs = {json.loads(request.sent[1]["body"])["ref"] for request in requests if request.status == 202}
    assert len(refs) == 1
    ref = UploadRef.parse(refs.pop())
    winner = next(body for request, body in zip(requests, bodies, strict=True) if request.status == 202)
    assert bucket.get(ref.source).body == winner
    assert [name for name in files_in(directory) if name.startswith("uploads/")] == [
        f"uploads/{ref.upload}/source.pdf",
        f"uploads/{ref.upload}/upload.json",
    ]


async def test_retry_completes_an_upload_after_a_crash(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The first request died between the key's record and ``upload.json``; the repeated request completes its upload."""
    await bucket.put_async(REF.source, PDF)
    await bucket.put_async(PLAN.idempotency_key("one"), to_json(KeyRecord(REF.upload, hashlib.sha256(PDF).hexdigest())))
    answer = await client.post(BASE, content=PDF, headers=KEY)
    assert (answer.status_code, answer.json()["ref"]) == (202, str(REF))
    assert record_of(bucket, answer).size_bytes == len(PDF)
    assert [start["id"] for start in temporal.starts] == [REF.workflow_id]


@pytest.mark.parametrize("marked", [True, False])
async def test_key_of_a_deleted_upload_is_refused(client: httpx2.AsyncClient, bucket: Bucket, marked: bool) -> None:
    """A repeated request does not bring a deleted upload back."""
    if marked:
        await accept(bucket, deleted_at="2026-01-31T00:00:00.000Z")
    await bucket.put_async(PLAN.idempotency_key("one"), to_json(KeyRecord(REF.upload, hashlib.sha256(PDF).hexdigest())))
    answer = await client.post(BASE, content=PDF, headers=KEY)
    assert (answer.status_code, answer.json()["type"]) == (422, "IdempotencyConflict")
    assert "deleted" in answer.json()["detail"]


def test_upload_ids_are_ordered_by_time() -> None:
    """Ids are UUIDv7 in lower case, all different, and sort in the order of their creation."""
    ids = []
    for _ in range(200):
        ids.append(new_upload_id())
        made_ns = time.time_ns()
        while time.time_ns() < made_ns + 250:  # ids of the same quarter of a microsecond have no order
            pass
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one) for one in ids)
    assert len(set(ids)) == 200
    assert ids == sorted(ids)
    assert abs(int(ids[0].replace("-", "")[:12], 16) / 1000 - time.time()) < 120


async def test_silent_sender_is_cut_off() -> None:
    """A connection without data ends with 408 after the idle timeout."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope = {"type": "http", "method": "POST", "headers": [], "query_string": b""}
    file = IncomingFile(Request(scope, receive), 1000, Patience(silence_s=0.01))
    with pytest.raises(HTTPException) as refusal:
        await anext(file.chunks())
    assert refusal.value.status_code == 408


@pytest.mark.parametrize("allowed", [{"silence_s": 0.2, "bytes_per_s": 1 << 20}, {"longest_s": 0.2}])
async def test_sender_that_trickles_is_cut_off(allowed: dict[str, float]) -> None:
    """A byte now and then does not keep a request alive: the average counts, and so does the whole time."""

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    async def receive(patience: Patience, stream: AsyncIterator[bytes]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await patience.next(stream):
                pass

    with pytest.raises(HTTPException) as refusal:
        await receive(Patience(**allowed), trickle())
    assert refusal.value.status_code == 408


async def test_sender_earns_one_silence() -> None:
    """A fast sender may pause as long as any other, and the time that the bucket takes is not the sender's."""
    patience = Patience(silence_s=0.4, bytes_per_s=100)

    async def pauses() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.15)
            yield b"x" * 100

    stream, pieces = pauses(), 0
    while await patience.next(stream):
        pieces += 1
        await asyncio.sleep(0.5)  # the bucket's time
    assert pieces == 4


@pytest.mark.parametrize(("beginning", "status"), [(b"\r\n", 413), (b"X-Long: ", 400)])
async def test_bytes_beside_the_file_of_a_form_are_counted(app: Starlette, directory: Path, beginning: bytes, status: int) -> None:
    """A form cannot send without end in a field or a header, past the limit of a file."""
    request = RawRequest(app, "POST", BASE, {"Content-Type": "multipart/form-data; boundary=b"})
    header = b'Content-Disposition: form-data; name="a"\r\n'
    request.feed(b"--b\r\n" + header + beginning)
    for _ in range(FORM_OVERHEAD_BYTES // 1000 + 2):
        request.feed(b"x" * 1000)
    await request.task
    assert request.status == status
    assert files_in(directory) == []
