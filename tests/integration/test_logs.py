"""The logs of real processes: whoever reads them finds an upload, its sheets and no secret."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from deploy.stack import Stack
from tests.chaos.guarantees import send, wait_for
from tests.resources.make_pdfs import nested_forms
from tests.servers.s3 import TestServer
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.usefixtures("temporal_binary")


OURS = ("api", "worker-workflow", "worker-tile")
TEXT_LINE = re.compile(
    r"(?P<time>\S+) (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<message>.*?)(?P<extras>( \w+=(?:\"(?:[^\"\\]|\\.)*\"|\S+))*)"
)


def json_lines(text: str) -> Iterator[dict[str, Any]]:
    """Every line, each of which must be an object."""
    for line in text.splitlines():
        yield json.loads(line)


def text_lines(text: str) -> Iterator[dict[str, Any]]:
    """Every line that begins one, with the traceback below it."""
    for entry in re.split(r"^(?=20\d\d-\d\d-\d\dT)", text, flags=re.MULTILINE)[1:]:
        line, _, trace = entry.partition("\n")
        found = TEXT_LINE.fullmatch(line)
        assert found, line
        extras = dict(re.findall(r" (\w+)=(\"(?:[^\"\\]|\\.)*\"|\S+)", found["extras"]))
        yield {**found.groupdict(), **extras, **({"exception": trace} if trace else {})}


@pytest.mark.parametrize(("log_format", "read"), [("json", json_lines), ("text", text_lines)])
def test_every_line_about_an_upload_shows_its_ref(
    new_stack: Callable[..., Stack], s3_server: TestServer, log_format: str, read: Callable[[str], Iterator[dict[str, Any]]]
) -> None:
    """And the sheet: of requests, work that is done and work that fails, by our loggers and Temporal's; no line holds a secret."""
    settings = s3_server.new_bucket()
    stack = new_stack(SITELINK_LOG_FORMAT=log_format, SITELINK_RENDER_CPU_S="3", **s3_server.environment(settings))
    upload = send(stack, nested_forms(simple_pages=1))
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert status["status"] == "partial"
    # The progress tells of the end before the manifest is written; only then does the workflow log it.
    deadline = time.monotonic() + DEADLINE_S
    while "an upload has ended" not in stack.processes["worker-workflow"].log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ready = {sheet["number"] for sheet in status["sheets"] if sheet["status"] == "ready"}
    broken = {sheet["number"] for sheet in status["sheets"] if sheet["status"] == "failed"}
    ref = status["ref"]
    # A native library that loses its server speaks up, too.
    stack.kill("temporal")
    assert httpx2.post(stack.api_url + upload + "/sheets/1/retry", timeout=60).status_code in (409, 503)
    stack.start_process("temporal")
    stack.stop()

    lines: list[dict[str, Any]] = []
    for name in OURS:
        text = stack.processes[name].log.read_text()
        for secret in (settings.secret_access_key, "X-Amz-Signature", "Authorization"):
            assert secret not in text
        lines += read(text)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    about = [line for line in lines if ref.rpartition("/")[2] in json.dumps(line)]
    assert [line for line in about if line.get("ref") != ref] == []

    def sheets(message: str, **facts: str) -> set[int]:
        found = [line for line in lines if line["message"] == message and facts.items() <= line.items()]
        assert found, message
        return {int(line["sheet"]) for line in found if "sheet" in line and line["ref"] == ref}

    assert sheets("accepted an upload") == set()
    assert sheets("finished", activity="count_pages") == set()
    assert sheets("finished", activity="upload_page") == ready
    assert sheets("Completing activity as failed", activity="tile_page") == broken
    assert sheets("an upload has ended") == set()
    assert any("Traceback" in line["exception"] for line in lines if line["message"] == "Completing activity as failed")
    assert [line["logger"] for line in lines if line["logger"] == "temporalio.core"]
