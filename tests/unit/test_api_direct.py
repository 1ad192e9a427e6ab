"""Uploads that clients send in parts, over a bucket that is a directory: what is answered, what is refused, what is left."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import BegunRecord, UploadRecord, from_json, timestamp, to_json
from activities.bucket.storage import Bucket
from activities.webhooks.settings import WebhookSettings
from api.access.settings import AccessSettings, Mode
from api.app import create_app
from api.direct import part_signature
from api.settings import ApiSettings
from tests.unit.api_fakes import BASE, PLAN, UNAVAILABLE, FakeTemporal, RawRequest, client_of, files_in, make_app, make_bucket
from tests.waiting import until_async

PART = 5 << 20
FILE = b"%PDF-1.7\n" + bytes(range(256)) * (2 * PART // 256)
"""Of three parts, the last of 9 bytes."""
PIECES = [FILE[start : start + PART] for start in range(0, len(FILE), PART)]
BEGIN = f"{BASE}:begin"
KEY = {"Idempotency-Key": "one"}
SECRET = "a secret of 32 bytes for the test"  # noqa: S105 - for tests


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
    """The API."""
    return make_app(bucket, temporal, max_file_bytes=100 << 20)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(app) as client:
        yield client


async def begin(client: httpx2.AsyncClient, *, query: str = "", headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    """Begins an upload of ``FILE``."""
    answer = await client.post(BEGIN + query, json={"sizeBytes": len(FILE), "partSizeBytes": PART, **body}, headers=headers)
    assert answer.status_code == 201, answer.text
    begun: dict[str, Any] = answer.json()
    assert answer.headers["location"] == begun["links"]["parts"]
    return begun


async def urls_of(client: httpx2.AsyncClient, begun: dict[str, Any], numbers: list[int]) -> list[str]:
    """The URLs of parts."""
    answer = await client.post(begun["links"]["sign"], json={"numbers": numbers})
    assert answer.status_code == 200, answer.text
    assert [part["number"] for part in answer.json()["parts"]] == numbers
    return [part["url"] for part in answer.json()["parts"]]


async def send(client: httpx2.AsyncClient, begun: dict[str, Any], numbers: list[int]) -> list[dict[str, Any]]:
    """Sends parts; returns them as ``complete`` takes them."""
    sent = []
    for number, url in zip(numbers, await urls_of(client, begun, numbers), strict=True):
        answer = await client.put(url, content=PIECES[number - 1])
        assert answer.status_code == 200, answer.text
        sent.append({"number": number, "etag": answer.headers["etag"]})
    return sent


async def complete(client: httpx2.AsyncClient, begun: dict[str, Any], parts: list[dict[str, Any]]) -> httpx2.Response:
    """Completes an upload."""
    return await client.post(begun["links"]["complete"], json={"parts": parts})


async def test_parts_become_the_upload(client: httpx2.AsyncClient, bucket: Bucket, directory: Path, temporal: FakeTemporal) -> None:
    """The source has every byte, the record says what was begun, the workflow runs, and no part is left."""
    digest = hashlib.sha256(FILE).hexdigest()
    begun = await begin(client, query="?filename=dir/a.pdf&dpi=150", sha256=digest)
    ref = UploadRef.parse(begun["ref"])
    assert (begun["fileName"], begun["partSizeBytes"], begun["partCount"], begun["stored"]) == ("a.pdf", PART, 3, [])
    assert (await client.get(f"{BASE}/{begun['upload']}")).status_code == 404
    assert (await client.get(BASE)).json()["uploads"] == []
    sent = await send(client, begun, [3, 1, 2])
    shown = (await client.get(begun["links"]["parts"])).json()
    assert [(part["number"], part["sizeBytes"]) for part in shown["stored"]] == [(1, PART), (2, PART), (3, 9)]
    assert {part["number"]: part["etag"] for part in shown["stored"]} == {part["number"]: part["etag"] for part in sent}
    answer = await complete(client, begun, sent)
    assert (answer.status_code, answer.json()["ref"], answer.json()["status"]) == (202, begun["ref"], "queued")
    assert answer.headers["location"] == begun["links"]["self"]
    record = from_json(UploadRecord, bucket.get(ref.record).body)
    assert (record.file_name, record.size_bytes, record.sha256, record.options.dpi) == ("a.pdf", len(FILE), digest, 150)
    assert bucket.get(ref.source).body == FILE
    assert files_in(directory) == [f"uploads/{ref.upload}/{name}" for name in ("begun.json", "source.pdf", "upload.json")]
    assert [start["id"] for start in temporal.starts] == [ref.workflow_id]
    again = await complete(client, begun, [])
    assert (again.status_code, again.json()["ref"]) == (202, begun["ref"])
    for request in (client.get(begun["links"]["parts"]), client.delete(begun["links"]["parts"])):
        assert (await request).json()["type"] == "AlreadyFinished"


async def test_small_file_is_one_part(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """The server chooses the size of the parts, and nobody has to know a digest."""
    begun = (await client.post(BEGIN, content='{"sizeBytes": 9.0}')).json()
    assert (begun["partSizeBytes"], begun["partCount"], begun["sha256"]) == (8 << 20, 1, None)
    (url,) = await urls_of(client, begun, [1])
    etag = (await client.put(url, content=b"%PDF-1.7\n")).headers["etag"]
    assert (await complete(client, begun, [{"number": 1, "etag": etag}])).status_code == 202
    assert from_json(UploadRecord, bucket.get(UploadRef.parse(begun["ref"]).record).body).sha256 is None


@pytest.mark.parametrize(
    ("body", "type_", "words"),
    [
        ("", "InvalidRequest", "JSON object"),
        ("[]", "InvalidRequest", "JSON object"),
        ("{}", "InvalidRequest", "sizeBytes is missing"),
        ('{"sizeBytes": 0}', "InvalidRequest", "sizeBytes"),
        ('{"sizeBytes": 1.5}', "InvalidRequest", "whole number"),
        ('{"sizeBytes": true}', "InvalidRequest", "whole number"),
        ('{"sizeBytes": -1}', "InvalidRequest", "whole number"),
        ('{"sizeBytes": 104857601}', "FileTooLarge", "104,857,601 bytes, limit 104,857,600"),
        ('{"sizeBytes": 9, "sha256": "ABC"}', "InvalidRequest", "64 hexadecimal digits"),
        ('{"sizeBytes": 9, "partSizeBytes": 5242879}', "InvalidRequest", "5,242,880"),
        ('{"sizeBytes": 9, "sha512": ""}', "InvalidRequest", "'sha512'"),
    ],
)
async def test_beginning_is_refused_by_name(client: httpx2.AsyncClient, directory: Path, body: str, type_: str, words: str) -> None:
    """And leaves nothing."""
    problem = (await client.post(BEGIN, content=body)).json()
    assert problem["type"] == type_
    assert words in problem["detail"]
    assert files_in(directory) == []


@pytest.mark.parametrize("query", ["?dpi=9000", "?resolution=1", "?dpi=x"])
async def test_wrong_option_is_refused(client: httpx2.AsyncClient, directory: Path, query: str) -> None:
    """As for any other upload."""
    assert (await client.post(BEGIN + query, json={"sizeBytes": 9})).json()["type"] == "InvalidRequest"
    assert files_in(directory) == []


@pytest.mark.parametrize("numbers", [None, [], [0], [4], ["1"], [True], [1] * 101, 1])
async def test_only_parts_are_signed(client: httpx2.AsyncClient, numbers: object) -> None:
    """1 to 100 at once."""
    begun = await begin(client)
    assert (await client.post(begun["links"]["sign"], json={"numbers": numbers})).json()["type"] == "InvalidRequest"


async def test_url_is_for_one_part_and_an_hour(client: httpx2.AsyncClient, directory: Path, bucket: Bucket) -> None:
    """Another part, another time, another upload, another signature or none: the same 403, whether or not there is such an upload."""
    begun, other = await begin(client), await begin(client)
    (url,) = await urls_of(client, begun, [1])
    expires = url.partition("expires=")[2].partition("&")[0]
    absent = url.replace(begun["upload"], "0198c0de-0000-7000-8000-000000000001")
    wrong = {
        "another part": url.replace("/parts/1?", "/parts/2?"),
        "no part": url.replace("/parts/1?", "/parts/99?"),
        "another upload": url.replace(begun["upload"], other["upload"]),
        "no upload": absent,
        "a later time": url.replace(expires, str(int(expires) + 1)),
        "no signature": url.partition("&")[0],
        "no ASCII": url.partition("&")[0] + "&signature=ä",
        "nothing": url.partition("?")[0],
    }
    details = set()
    for name, address in wrong.items():
        answer = await client.put(address, content=PIECES[0])
        assert (answer.status_code, answer.json()["type"]) == (403, "NotAllowed"), name
        details.add(answer.json()["detail"])
    assert details == {"the address of the part is not one that this server has signed"}
    assert [name for name in files_in(directory) if "/parts/" in name] == []


async def test_url_expires(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """Also if its signature is right."""
    begun = await begin(client)
    record = from_json(BegunRecord, bucket.get(UploadRef.parse(begun["ref"]).begun).body)
    past = int(datetime.now(UTC).timestamp()) - 1
    answer = await client.put(f"{begun['links']['parts']}/1?expires={past}&signature={part_signature(record, 1, past)}", content=PIECES[0])
    assert (answer.status_code, answer.json()["detail"]) == (403, "the address of the part has expired, ask for a new one")


async def test_part_of_another_length_is_refused(app: Starlette, client: httpx2.AsyncClient, directory: Path) -> None:
    """By its header before the body is read, else when it is counted; an earlier part of the number stays."""
    begun = await begin(client)
    await send(client, begun, [1])
    (url,) = await urls_of(client, begun, [1])

    async def pieces(*given: bytes) -> AsyncIterator[bytes]:
        for piece in given:
            yield piece

    for content in (PIECES[0][:-1], PIECES[0] + b"x", b""):
        problem = (await client.put(url, content=content)).json()
        assert (problem["type"], "part 1 has 5,242,880" in problem["detail"]) == ("InvalidRequest", True)
        problem = (await client.put(url, content=pieces(content[:100], content[100:]))).json()
        assert (problem["type"], "part 1 has 5,242,880" in problem["detail"]) == ("InvalidRequest", True)
    assert [name for name in files_in(directory) if "/parts/" in name] == [f"uploads/{begun['upload']}/parts/part-1"]
    unread = RawRequest(app, "PUT", url.removeprefix("http://127.0.0.1:8000"), {"Content-Length": "7"})
    await until_async(lambda: unread.status == 400)


async def test_sender_of_a_part_that_goes_away_leaves_nothing(app: Starlette, client: httpx2.AsyncClient, directory: Path) -> None:
    """The part can be sent again."""
    begun = await begin(client)
    (url,) = await urls_of(client, begun, [1])
    request = RawRequest(app, "PUT", url.removeprefix("http://127.0.0.1:8000"), {})
    request.feed(PIECES[0][:-1])
    request.disconnect()
    await until_async(lambda: request.task.done())
    assert [name for name in files_in(directory) if "/parts/" in name] == []


async def test_wrong_parts_are_named_and_nothing_is_lost(client: httpx2.AsyncClient, bucket: Bucket, directory: Path) -> None:
    """What is missing can be sent, and the upload completed."""
    begun = await begin(client)
    ref = UploadRef.parse(begun["ref"])
    sent = await send(client, begun, [1, 2])
    bucket.put(ref.part(4), b"of nobody")
    other = [{**sent[0], "etag": sent[1]["etag"]}, {"number": 7, "etag": '"x"'}]
    problem = await complete(client, begun, other)
    assert (problem.status_code, problem.json()["type"]) == (409, "PartsIncomplete")
    assert problem.json()["detail"] == (
        "of 3 parts, 3 is not in the bucket; 2, 3 are not named; 1 is named with another ETag than the bucket has; "
        "4, 7 are more than there may be"
    )
    bucket.delete([ref.part(4)])
    bucket.put(ref.part(3), b"12345678")
    assert "3 is not of the announced size" in (await complete(client, begun, sent)).json()["detail"]
    assert f"uploads/{ref.upload}/parts/part-2" in files_in(directory)
    assert (await complete(client, begun, sent + await send(client, begun, [3]))).status_code == 202


@pytest.mark.parametrize("parts", [None, "x", [1], [{"number": 1}], [{"number": 10001, "etag": "x"}], [{"number": 1, "etag": 1}]])
async def test_unreadable_parts_are_refused(client: httpx2.AsyncClient, parts: object) -> None:
    """By name."""
    begun = await begin(client)
    assert (await client.post(begun["links"]["complete"], json={"parts": parts})).json()["type"] == "InvalidRequest"


async def test_no_pdf_is_refused_each_time(client: httpx2.AsyncClient, directory: Path) -> None:
    """The upload is never accepted, and can be aborted."""
    begun = (await client.post(BEGIN, json={"sizeBytes": 2000})).json()
    (url,) = await urls_of(client, begun, [1])
    parts = [{"number": 1, "etag": (await client.put(url, content=b"x" * 2000)).headers["etag"]}]
    for _ in range(2):
        problem = await complete(client, begun, parts)
        assert (problem.status_code, problem.json()["type"]) == (422, "NotAPdf")
    assert (await client.get(begun["links"]["self"])).status_code == 404
    assert (await client.delete(begun["links"]["parts"])).status_code == 204
    assert files_in(directory) == []


async def test_aborted_upload_leaves_nothing(client: httpx2.AsyncClient, directory: Path) -> None:
    """Neither a part nor its key, so that the same request begins anew."""
    begun = await begin(client, headers=KEY)
    (url,) = await urls_of(client, begun, [2])
    await send(client, begun, [1])
    assert (await client.delete(begun["links"]["parts"])).status_code == 204
    assert files_in(directory) == []
    for request in (client.get(begun["links"]["parts"]), client.delete(begun["links"]["parts"]), complete(client, begun, [])):
        assert (await request).json()["type"] == "UploadNotFound"
    assert (await client.put(url, content=PIECES[1])).json()["type"] == "NotAllowed"
    assert (await begin(client, headers=KEY))["upload"] != begun["upload"]


async def test_same_key_resumes(client: httpx2.AsyncClient, directory: Path) -> None:
    """On another day and at another process: the same upload with the parts that it has; when it is complete, the answer says so."""
    begun = await begin(client, headers=KEY)
    sent = await send(client, begun, [1, 3])
    again = await begin(client, headers=KEY)
    assert (again["upload"], [part["number"] for part in again["stored"]]) == (begun["upload"], [1, 3])
    assert (await complete(client, again, sent + await send(client, again, [2]))).status_code == 202
    body = {"sizeBytes": len(FILE), "partSizeBytes": PART}
    answer = await client.post(BEGIN, json=body, headers=KEY)
    assert (answer.status_code, answer.json()["ref"]) == (202, begun["ref"])
    for other in ({"sizeBytes": len(FILE)}, {**body, "sizeBytes": 7}, {**body, "sha256": "0" * 64}):
        assert (await client.post(BEGIN, json=other, headers=KEY)).json()["type"] == "IdempotencyConflict"
    assert (await client.post(f"{BEGIN}?dpi=150", json=body, headers=KEY)).json()["type"] == "IdempotencyConflict"
    assert (await client.post(BASE, content=FILE, headers=KEY)).json()["type"] == "IdempotencyConflict"
    assert len([name for name in files_in(directory) if name.endswith("begun.json")]) == 1


async def test_completing_goes_on_after_a_kill(client: httpx2.AsyncClient, bucket: Bucket, directory: Path) -> None:
    """The process died when the parts were joined and half removed: who asks for the parts sees all, and completing again works."""
    begun = await begin(client)
    ref = UploadRef.parse(begun["ref"])
    sent = await send(client, begun, [1, 2, 3])
    bucket.put(f"{ref.prefix}source.pdf#1", FILE[:-1])
    bucket.put(ref.source, FILE)
    bucket.delete([ref.part(1), ref.part(2)])
    shown = (await client.get(begun["links"]["parts"])).json()["stored"]
    assert [part["number"] for part in shown] == [1, 2, 3]
    for parts in (sent, shown):
        assert (await complete(client, begun, parts)).status_code == 202
    assert bucket.get(ref.source).body == FILE
    assert [name for name in files_in(directory) if "/parts/" in name] == []


async def test_completions_at_once_have_one_answer(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A client that was cut off asks again while its first request still works."""
    begun = await begin(client)
    sent = await send(client, begun, [1, 2, 3])
    answers = await asyncio.gather(*(complete(client, begun, sent) for _ in range(5)))
    assert {(answer.status_code, answer.json()["ref"]) for answer in answers} == {(202, begun["ref"])}
    assert bucket.get(UploadRef.parse(begun["ref"]).source).body == FILE
    assert {start["id"] for start in temporal.starts} == {UploadRef.parse(begun["ref"]).workflow_id}


async def test_expired_upload_is_gone(client: httpx2.AsyncClient, bucket: Bucket) -> None:
    """After 7 days, whether or not the sweep has come."""
    begun = await begin(client, headers=KEY)
    assert datetime.fromisoformat(begun["expiresAt"]) - datetime.now(UTC) > timedelta(days=6.9)
    ref = UploadRef.parse(begun["ref"])
    record = from_json(BegunRecord, bucket.get(ref.begun).body)
    bucket.put(ref.begun, to_json(replace(record, begun_at=timestamp(datetime.now(UTC) - timedelta(days=7)))))
    answer = await client.get(begun["links"]["parts"])
    assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")
    again = await client.post(BEGIN, json={"sizeBytes": len(FILE), "partSizeBytes": PART}, headers=KEY)
    assert again.json()["type"] == "IdempotencyConflict"


async def test_upload_is_accepted_without_temporal(client: httpx2.AsyncClient, temporal: FakeTemporal) -> None:
    """Its workflow starts later."""
    temporal.start_error = UNAVAILABLE
    begun = await begin(client)
    assert (await complete(client, begun, await send(client, begun, [1, 2, 3]))).status_code == 202


async def test_unfinished_uploads_are_limited(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Neither begun nor completed while the organization has too many; what was begun and accepted stays."""
    settings = ApiSettings(BucketSettings("file:///unused"), max_open_uploads=5)
    async with client_of(create_app(bucket, temporal.connect, settings)) as client:
        begun = await begin(client, headers=KEY)
        sent = await send(client, begun, [1, 2, 3])
        temporal.open_runs = 5
        body = {"sizeBytes": len(FILE), "partSizeBytes": PART}
        assert (await client.post(BEGIN, json=body)).json()["type"] == "QuotaExceeded"
        assert (await begin(client, headers=KEY))["upload"] == begun["upload"]
        refused = await complete(client, begun, sent)
        assert (refused.status_code, refused.json()["type"], refused.headers["retry-after"]) == (429, "QuotaExceeded", "60")
        temporal.open_runs = 4
        assert (await complete(client, begun, sent)).status_code == 202
        temporal.open_runs = 5
        assert (await complete(client, begun, sent)).status_code == 202


async def test_webhook_of_the_beginning_is_the_upload_s(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Its secret comes when the upload is accepted, each time the same."""
    webhooks = WebhookSettings((SECRET,))
    async with client_of(create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), webhooks=webhooks))) as client:
        begun = await begin(client, headers={"SiteLink-Webhook": "https://hooks.example.com/plan"})
        sent = await send(client, begun, [1, 2, 3])
        answers = [(await complete(client, begun, sent)).json() for _ in range(2)]
    assert answers[0]["webhookSecret"].startswith("whsec_")
    assert answers[0]["webhookSecret"] == answers[1]["webhookSecret"]
    record = from_json(UploadRecord, bucket.get(UploadRef.parse(begun["ref"]).record).body)
    assert record.webhook is not None
    assert record.webhook.url == "https://hooks.example.com/plan"


async def test_part_needs_no_credential(bucket: Bucket, temporal: FakeTemporal) -> None:
    """The signature in its URL is enough, as at an S3 server; every other request needs one."""
    app = make_app(bucket, temporal, access=AccessSettings(Mode.JWT, secrets=(SECRET,), ticket_secrets=(SECRET,)))
    async with client_of(make_app(bucket, temporal, max_file_bytes=100 << 20)) as trusted, client_of(app) as client:
        begun = await begin(trusted)
        (url,) = await urls_of(trusted, begun, [3])
        assert (await client.put(url, content=PIECES[2])).status_code == 200
        for method, path in (("GET", "parts"), ("DELETE", "parts"), ("POST", "sign"), ("POST", "complete")):
            assert (await client.request(method, begun["links"][path])).status_code == 401


async def test_secrets_are_in_no_answer_and_no_log(client: httpx2.AsyncClient, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """Neither what signs the URLs, nor a signed URL in the log."""
    caplog.set_level("DEBUG")
    begun = await begin(client)
    record = from_json(BegunRecord, bucket.get(UploadRef.parse(begun["ref"]).begun).body)
    assert record.part_secret
    (url,) = await urls_of(client, begun, [1])
    await client.put(url, content=b"")
    logged = "\n".join(entry.getMessage() + str(entry.__dict__) for entry in caplog.records if not entry.name.startswith("httpx"))
    assert record.part_secret not in json.dumps(begun) + repr(record) + logged
    assert url.partition("signature=")[2] not in logged
    assert PLAN.plan in begun["ref"]
