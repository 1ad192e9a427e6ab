"""The middleware that adds the upload to log lines. ``test_api_app.py`` tests the refusals of the guard."""

import asyncio
import json
import logging

import pytest

from activities.bucket.keys import UploadRef
from activities.logs import JsonFormatter
from api.http.middleware import AboutRequests
from api.paths import upload_path, uploads_path

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

    await asyncio.create_task(AboutRequests(app)({"type": "http", "path": path}, None, None))  # type: ignore[arg-type] # never called
    assert [(line.get("ref"), line.get("sheet")) for line in lines] == [(ref, sheet)]


async def test_lines_of_a_request_are_not_about_the_previous_request() -> None:
    """Uvicorn serves the next request of a connection in the context of the previous request."""
    lines = []

    async def app(*_: object) -> None:
        lines.append(json.loads(JsonFormatter().format(LINE)))

    async def connection() -> None:
        for path in (upload_path(REF), "/readyz"):
            await AboutRequests(app)({"type": "http", "path": path}, None, None)  # type: ignore[arg-type] # never called

    await asyncio.create_task(connection())
    assert [line.get("ref") for line in lines] == [str(REF), None]
