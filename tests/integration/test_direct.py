"""Uploads that clients send in parts to a real S3 server: what goes over the wire, what is refused, and a kill in the middle."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadRecord, from_json
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from api.app import create_app
from api.settings import ApiSettings
from deploy.temporal import TemporalServer
from tests.integration.test_api import end_runs, running
from tests.servers.recorder import Answer, Recorder, Request, passed_on, recording, s3_error
from tests.servers.s3 import TestServer
from tests.unit.api_fakes import BASE, FakeTemporal, client_of
from tests.waiting import DEADLINE_S

PART = 5 << 20
FILE = b"%PDF-1.7\n" + os.urandom(2 * PART)
"""Of three parts, the last of 9 bytes."""
PIECES = [FILE[start : start + PART] for start in range(0, len(FILE), PART)]
Parts = list[dict[str, Any]]
KEY = {"Idempotency-Key": "one"}
COMPLETED = b'<?xml version="1.0"?><CompleteMultipartUploadResult><Key>k</Key><ETag>"e"</ETag></CompleteMultipartUploadResult>'


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
async def api(settings: BucketSettings) -> AsyncIterator[httpx2.AsyncClient]:
    """The API; nothing but its workflow is pretended."""
    app = create_app(Bucket(settings), FakeTemporal().connect, ApiSettings(settings))
    async with client_of(app) as client:
        yield client


@pytest.fixture
def setup(settings: BucketSettings) -> BucketSetup:
    """The bucket, for its multipart uploads."""
    return BucketSetup(settings)


async def begin(client: httpx2.AsyncClient, base: str = "", **body: object) -> dict[str, Any]:
    """Begins an upload of ``FILE``."""
    answer = await client.post(f"{base}{BASE}:begin", json={"sizeBytes": len(FILE), "partSizeBytes": PART, **body}, headers=KEY)
    assert answer.status_code == 201, answer.text
    begun: dict[str, Any] = answer.json()
    return begun


async def send(
    client: httpx2.AsyncClient, http: httpx2.AsyncClient, begun: dict[str, Any], numbers: list[int], base: str = ""
) -> list[Any]:
    """Sends parts by the URLs alone; returns them as ``complete`` takes them."""
    signed = (await client.post(base + begun["links"]["sign"], json={"numbers": numbers})).json()["parts"]

    async def put(part: dict[str, Any]) -> dict[str, Any]:
        answer = await http.put(part["url"], content=PIECES[part["number"] - 1][: part["sizeBytes"]])
        assert answer.status_code == 200, answer.text
        return {"number": part["number"], "etag": answer.headers["etag"]}

    return list(await asyncio.gather(*map(put, signed)))


async def test_parts_go_to_the_server_and_nowhere_else(
    api: httpx2.AsyncClient, http: httpx2.AsyncClient, recorder: Recorder, settings: BucketSettings, setup: BucketSetup
) -> None:
    """By URLs for one size and one hour. A wrong part is named, the parts stay, and in the end the source has every byte."""
    begun = await begin(api)
    ref, bucket = UploadRef.parse(begun["ref"]), Bucket(settings)
    assert [upload.key for upload in setup.unfinished_uploads()] == [ref.source]
    allowed = (await api.get("/livez")).headers["content-security-policy"]
    assert f"connect-src 'self' {settings.endpoint};" in allowed  # our own page sends parts there, too
    (url,) = [part["url"] for part in (await api.post(begun["links"]["sign"], json={"numbers": [1]})).json()["parts"]]
    assert "X-Amz-Expires=3600&" in url
    assert "X-Amz-SignedHeaders=content-length%3Bhost" in url
    assert (await http.put(url, content=b"x")).status_code == 403
    sent = await send(api, http, begun, [1, 2])
    stored = (await api.get(begun["links"]["parts"])).json()["stored"]
    assert [(part["number"], part["sizeBytes"], part["etag"]) for part in stored] == [(n + 1, PART, sent[n]["etag"]) for n in range(2)]
    again = await begin(api)
    assert (again["upload"], again["stored"]) == (begun["upload"], stored)
    problem = (await api.post(begun["links"]["complete"], json={"parts": [{**sent[1], "number": 1}]})).json()
    assert (problem["type"], problem["detail"]) == (
        "PartsIncomplete",
        "of 3 parts, 3 is not in the bucket; 2, 3 are not named; 1 is named with another ETag than the bucket has",
    )
    sent += await send(api, http, begun, [3])
    for _ in range(2):
        answer = await api.post(begun["links"]["complete"], json={"parts": sent})
        assert (answer.status_code, answer.json()["ref"]) == (202, begun["ref"])
    assert bucket.get(ref.source).body == FILE
    assert from_json(UploadRecord, bucket.get(ref.record).body).sha256 is None
    assert setup.unfinished_uploads() == []
    for request in recorder.requests:
        headers = {name.lower() for name in request.headers}
        assert not {"x-amz-trailer", "expect", "transfer-encoding"} & headers
        assert not [name for name in headers if "checksum" in name]


async def test_completions_at_once_have_one_answer(api: httpx2.AsyncClient, http: httpx2.AsyncClient, settings: BucketSettings) -> None:
    """The server joins the parts once; who comes later finds the source."""
    begun = await begin(api)
    sent = await send(api, http, begun, [1, 2, 3])
    answers = await asyncio.gather(*(api.post(begun["links"]["complete"], json={"parts": sent}) for _ in range(4)))
    assert {(answer.status_code, answer.json().get("ref")) for answer in answers} == {(202, begun["ref"])}
    assert Bucket(settings).get(UploadRef.parse(begun["ref"]).source).body == FILE


async def test_no_pdf_and_aborted_leave_nothing(
    api: httpx2.AsyncClient, http: httpx2.AsyncClient, settings: BucketSettings, setup: BucketSetup
) -> None:
    """A file that is no PDF is refused each time; an abort takes it away, or the parts, and frees the key."""
    begun = (await api.post(f"{BASE}:begin", json={"sizeBytes": 2000})).json()
    signed = (await api.post(begun["links"]["sign"], json={"numbers": [1]})).json()["parts"]
    etag = (await http.put(signed[0]["url"], content=b"x" * 2000)).headers["etag"]
    for _ in range(2):
        problem = await api.post(begun["links"]["complete"], json={"parts": [{"number": 1, "etag": etag}]})
        assert (problem.status_code, problem.json()["type"]) == (422, "NotAPdf")
    other = await begin(api)
    await send(api, http, other, [2])
    for each in (begun, other):
        assert (await api.delete(each["links"]["parts"])).status_code == 204
        assert (await api.get(each["links"]["parts"])).json()["type"] == "UploadNotFound"
    assert list(Bucket(settings).objects("")) == []
    assert setup.unfinished_uploads() == []


async def test_parts_that_the_server_has_dropped_are_told(api: httpx2.AsyncClient, http: httpx2.AsyncClient, setup: BucketSetup) -> None:
    """A lifecycle rule may abort a multipart upload before we do."""
    begun = await begin(api)
    sent = await send(api, http, begun, [1, 2, 3])
    (upload,) = setup.unfinished_uploads()
    setup.abort(upload.key, upload.upload_id)
    assert (await api.get(begun["links"]["parts"])).json()["stored"] == []
    problem = (await api.post(begun["links"]["complete"], json={"parts": sent})).json()
    assert (problem["type"], "abort this upload and begin anew" in problem["detail"]) == ("PartsIncomplete", True)


async def test_bucket_that_fails_is_named_and_nothing_is_lost(
    api: httpx2.AsyncClient, http: httpx2.AsyncClient, recorder: Recorder, settings: BucketSettings, s3_server: TestServer
) -> None:
    """At every step of the completion; the next try goes on, also after an answer that was lost and a confirmed write that was none."""
    begun = await begin(api)
    sent = await send(api, http, begun, [1, 2, 3])

    def lost(request: Request) -> Answer | None:
        if request.method == "POST" and not lost_answers:
            lost_answers.append(passed_on(request, s3_server.endpoint))
            return s3_error(400, "InvalidRequest")
        return None

    lost_answers: list[Answer] = []
    judges: list[Callable[[Request], Answer | None]] = [
        lambda request: s3_error(403, "AccessDenied") if request.method == "GET" and "uploadId" in request.target else None,
        lambda request: Answer(200, COMPLETED) if request.method == "POST" else None,
        lost,
        lambda request: s3_error(403, "AccessDenied") if request.method == "GET" and request.path.endswith("/source.pdf") else None,
        lambda request: s3_error(403, "AccessDenied") if request.method == "PUT" else None,
    ]
    for judge, type_ in zip(
        judges, ("StorageDenied", "StorageUnavailable", "StorageUnavailable", "StorageDenied", "StorageDenied"), strict=True
    ):
        recorder.answer = judge
        problem = await api.post(begun["links"]["complete"], json={"parts": sent})
        assert (problem.status_code, problem.json()["type"]) == (503, type_)
    assert lost_answers
    recorder.answer = lambda _: None
    assert (await api.post(begun["links"]["complete"], json={"parts": sent})).status_code == 202
    assert Bucket(settings).get(UploadRef.parse(begun["ref"]).source).body == FILE


KILLS: dict[str, tuple[Callable[[Request], bool], bool]] = {
    "before the parts are joined": (lambda request: request.method == "POST" and "uploadId" in request.target, False),
    "before it knows that they are joined": (lambda request: request.method == "POST" and "uploadId" in request.target, True),
    "before upload.json": (lambda request: request.method == "PUT" and request.path.endswith("/upload.json"), False),
    "before it knows of upload.json": (lambda request: request.method == "PUT" and request.path.endswith("/upload.json"), True),
}


@pytest.mark.parametrize("moment", KILLS)
async def test_completing_goes_on_after_a_kill(
    moment: str,
    tmp_path: Path,
    temporal_server: TemporalServer,
    temporal: Client,
    http: httpx2.AsyncClient,
    recorder: Recorder,
    s3_server: TestServer,
    settings: BucketSettings,
) -> None:
    """The process dies in the middle. Who lists the parts sees all of them, or that the upload is complete; completing again works."""
    is_moment, passes = KILLS[moment]
    reached, released = threading.Event(), threading.Event()

    def hold(request: Request) -> Answer | None:
        if not is_moment(request) or reached.is_set():
            return None
        answer = passed_on(request, s3_server.endpoint) if passes else Answer(500)
        reached.set()
        assert released.wait(DEADLINE_S)
        return answer

    with running(tmp_path / "api", temporal_server.address, **s3_server.environment(settings)) as api:
        begun = await begin(http, api.url)
        ref = UploadRef.parse(begun["ref"])
        sent = await send(http, http, begun, [1, 2, 3], api.url)
        recorder.answer = hold
        completing = asyncio.create_task(http.post(api.url + begun["links"]["complete"], json={"parts": sent}))
        assert await asyncio.to_thread(reached.wait, DEADLINE_S)
        api.end(signal.SIGKILL)
        released.set()
        with pytest.raises(httpx2.TransportError):
            await completing
        api.start()
        shown = (await http.get(api.url + begun["links"]["parts"])).json()
        if moment == "before it knows of upload.json":
            assert shown["type"] == "AlreadyFinished"
        else:
            assert [part["number"] for part in shown["stored"]] == [1, 2, 3]
            sent = shown["stored"]
        answer = await http.post(api.url + begun["links"]["complete"], json={"parts": sent})
        assert (answer.status_code, answer.json()["ref"]) == (202, begun["ref"])
        api.accepted.append(ref)
        assert (await temporal.get_workflow_handle(ref.workflow_id).describe()).id == ref.workflow_id
        await end_runs(temporal, api)
        log = api.log.read_text()
    assert Bucket(settings).get(ref.source).body == FILE
    assert BucketSetup(settings).unfinished_uploads() == []
    assert "X-Amz-Signature" not in log
    assert settings.secret_access_key not in log
