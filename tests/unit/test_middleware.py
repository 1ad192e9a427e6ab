"""The middleware that names requests, and the one that makes refusals problems. ``test_api_app.py`` tests the guard."""

import asyncio
import json
import logging

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from activities.bucket.keys import UploadRef
from activities.logs import JsonFormatter
from api.http.middleware import AboutRequests, ProblemAnswers
from api.http.problems import PROBLEM_TYPE
from api.paths import upload_path, uploads_path
from tests.unit.api_fakes import client_of

REF = UploadRef("acme", "tower", "a1", "01a21885-7840-7420-ac01-824f34011755")
LINE = logging.makeLogRecord({"name": "api.uploads", "msg": "accepted an upload"})


@pytest.mark.parametrize(
    ("path", "ref", "sheet"),
    [
        (f"{upload_path(REF)}/events", str(REF), None),
        (f"{upload_path(REF)}/sheets/7/retry", str(REF), 7),
        (f"{upload_path(REF)}/sheets/sheet-7/thumbnail.jpeg", str(REF), 7),
        (f"{upload_path(REF)}/sheets/{'7' * 5000}/retry", str(REF), None),
        (f"{uploads_path(REF.plan_ref)}/{'a' * 5000}", None, None),
        (uploads_path(REF.plan_ref), None, None),
        ("/readyz", None, None),
    ],
)
async def test_lines_of_a_request_are_about_the_upload_of_its_path(path: str, ref: str | None, sheet: int | None) -> None:
    """Any logger's lines get the upload and the sheet."""
    lines = []

    async def app(*_: object) -> None:
        lines.append(json.loads(JsonFormatter().format(LINE)))

    await asyncio.create_task(AboutRequests(app)({"type": "http", "path": path, "headers": []}, None, None))  # type: ignore[arg-type] # never called
    assert [(line.get("ref"), line.get("sheet")) for line in lines] == [(ref, sheet)]


async def test_lines_of_a_request_are_not_about_the_previous_request() -> None:
    """Uvicorn serves the next request of a connection in the context of the previous request."""
    lines = []

    async def app(*_: object) -> None:
        lines.append(json.loads(JsonFormatter().format(LINE)))

    async def connection() -> None:
        for path in (upload_path(REF), "/readyz"):
            await AboutRequests(app)({"type": "http", "path": path, "headers": []}, None, None)  # type: ignore[arg-type] # never called

    await asyncio.create_task(connection())
    assert [line.get("ref") for line in lines] == [str(REF), None]


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("3f2a-7.b_c~1", True),
        ("Root=1-67891233-abcdef01", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ('a"b', False),
        ("ä", False),
    ],
)
async def test_request_id_is_taken_or_made(given: str, is_taken: bool) -> None:
    """It is in the answer and in the log lines. An id that could not stand in a log line is replaced; no two made ids are the same."""
    lines = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        lines.append(json.loads(JsonFormatter().format(LINE))["request_id"])
        await Response()(scope, receive, send)

    async with client_of(AboutRequests(app)) as client:
        headers = [(b"X-Request-ID", given.encode())] if given else []
        answered = [(await client.get("/readyz", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert answered == lines
    assert answered == [given, given] if is_taken else len({given, *answered}) == 3


@pytest.mark.parametrize(
    ("plain", "status", "kept"),
    [
        (PlainTextResponse("no", 404), 404, {}),
        (PlainTextResponse("", 416, {"Content-Range": "bytes */5"}), 416, {"content-range": "bytes */5"}),
        (PlainTextResponse("", 429, {"Retry-After": "7", "X-Other": "gone"}), 429, {"retry-after": "7"}),
    ],
)
async def test_plain_refusal_becomes_a_problem(plain: Response, status: int, kept: dict[str, str]) -> None:
    """Its status and the headers that belong to the status stay; its body does not."""
    async with client_of(ProblemAnswers(plain)) as client:
        answer = await client.get("/x")
    assert (answer.status_code, answer.json()["status"], answer.headers["content-type"]) == (status, status, PROBLEM_TYPE)
    assert answer.headers.items() >= kept.items()
    assert "x-other" not in answer.headers


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_request_that_is_cancelled_is_told_to_come_again(accept: str) -> None:
    """A server that stops says so by a problem; an EventSource, which no error may reach, gets a stream that ends."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "path": "/x", "method": "GET", "headers": [(b"accept", accept.encode())]}
    request = asyncio.create_task(ProblemAnswers(app)(scope, None, send))  # type: ignore[arg-type] # never called
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    if accept == "text/event-stream":
        assert (sent[0]["status"], sent[1]["body"]) == (200, b"retry: 1000\n: the server stops\n\n")
    else:
        assert (sent[0]["status"], json.loads(sent[1]["body"])["type"]) == (503, "ServiceUnavailable")
