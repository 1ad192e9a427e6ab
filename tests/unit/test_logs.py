"""What a log line shows, in both forms."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from activities.bucket.keys import UploadRef
from activities.logs import JsonFormatter, TextFormatter, log_format, set_log_context
from activities.render.child import MOST_LINES, log_lines
from tests.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
REF = "acme/tower/a1/01a21885-7840-7420-ac01-824f34011755"


def record(message: str = "accepted an upload", *args: object, **extra: object) -> logging.LogRecord:
    """A record as a logger makes it."""
    return logging.getLogger("api.uploads").makeRecord("api.uploads", logging.INFO, "f.py", 1, message, args, None, extra=extra)


def failed(error: BaseException) -> logging.LogRecord:
    """A record with a traceback."""
    try:
        raise error
    except type(error):
        return logging.getLogger("x").makeRecord("x", logging.ERROR, "f.py", 1, "failed", (), sys.exc_info())


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    """The one line of JSON."""
    line = JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    document: dict[str, Any] = json.loads(line)
    return document


def test_text_shows_the_extras_after_the_message() -> None:
    """Ref and sheet are first. The time is RFC 3339 in UTC. A value with blanks is quoted."""
    line = record(size_bytes=7, problem='no "room"', sheet=3, ref=REF)
    line.created = 1_700_000_000.1239
    assert TextFormatter().format(line) == (
        f'2023-11-14T22:13:20.123Z INFO api.uploads: accepted an upload ref={REF} sheet=3 size_bytes=7 problem="no \\"room\\""'
    )


def test_json_has_the_same_fields() -> None:
    """The extras are in one object, with their types."""
    line = record("%s of %s", 1, 2, size_bytes=7, numbers=(1, 2), sheet=3, ref=REF, path=Path("a"))
    line.created = 1_700_000_000.1239
    head = {"time": "2023-11-14T22:13:20.123Z", "level": "INFO", "logger": "api.uploads", "message": "1 of 2"}
    assert as_json(line) == {**head, "ref": REF, "sheet": 3, "size_bytes": 7, "numbers": [1, 2], "path": "a"}
    assert list(as_json(line))[:6] == ["time", "level", "logger", "message", "ref", "sheet"]


def test_a_traceback_is_a_field_of_json_and_stands_below_text() -> None:
    """It does not break the line."""
    assert as_json(failed(ValueError("two\nlines")))["exception"].endswith("ValueError: two\nlines")
    first, *rest = TextFormatter().format(failed(ValueError("x"))).splitlines()
    assert first.endswith("ERROR x: failed")
    assert rest[0] == "Traceback (most recent call last):"


@example(message="\x85", value="\x85", name="note")
@given(st.text(), st.text(), st.sampled_from(["time", "level", "exception", "ref", "note"]))
def test_nobody_can_forge_a_line(message: str, value: str, name: str) -> None:
    """Whatever the name of a file or an error is, a record is one line, and no extra replaces its own fields."""
    line = record("%s", message, **{name: value})
    assert len(TextFormatter().format(line).splitlines()) == 1
    document = as_json(line)
    assert (document["level"], document["logger"], document["message"]) == ("INFO", "api.uploads", message.strip())


@pytest.mark.parametrize(
    "secret",
    [
        "https://b.example.org/k?X-Amz-Credential=AKIDHUSH%2F2026&X-Amz-Signature=HUSH0123&x-id=Get",
        "https://b.example.org/k?x-amz-security-token=HUSH",
        "{'Authorization': 'Bearer HUSH.x.y'}",
    ],
)
def test_signatures_and_tokens_are_never_shown(secret: str) -> None:
    """It is shown neither in a message, nor in an extra, nor in a traceback."""
    for line in (record(secret), record("%s", secret), record(url=secret, more={"urls": [secret]}), failed(ValueError(secret))):
        assert "HUSH" not in TextFormatter().format(line) + json.dumps(as_json(line))


async def test_lines_show_the_upload_of_their_task() -> None:
    """The context also holds in a thread of the task, but not in another task. An extra of the call replaces it."""
    both = asyncio.Barrier(2)

    async def work(ref: str, sheet: int | None) -> list[dict[str, Any]]:
        set_log_context(ref, sheet)
        await both.wait()
        return [as_json(record()), await asyncio.to_thread(lambda: as_json(record())), as_json(record(sheet=9))]

    one, two = await asyncio.gather(work(REF, 1), work("a/b/c/d", None))
    assert [(line["ref"], line["sheet"]) for line in one] == [(REF, 1), (REF, 1), (REF, 9)]
    assert [(line["ref"], line.get("sheet")) for line in two] == [("a/b/c/d", None)] * 2 + [("a/b/c/d", 9)]
    assert "ref" not in as_json(record())


@pytest.mark.parametrize("workflow_id", [UploadRef.parse(REF).workflow_id, UploadRef.parse(REF).delete_workflow_id])
def test_lines_of_the_library_show_the_upload_of_its_workflow(workflow_id: str) -> None:
    """Temporal's own loggers give the workflow's id. Fields that no operator needs are left out."""
    details = {"workflow_id": workflow_id, "workflow_run_id": "r", "namespace": "default", "activity_type": "tile_page", "attempt": 2}
    document = as_json(record("Completing activity as failed", temporal_activity=details))
    assert {name: value for name, value in document.items() if name not in ("time", "level", "logger", "message")} == {
        "ref": REF,
        "activity": "tile_page",
        "attempt": 2,
    }
    assert as_json(record(temporal_workflow={"workflow_id": workflow_id}))["ref"] == REF
    assert "ref" not in as_json(record(temporal_workflow={"workflow_id": "sitelink-sweep-2026"}))


def test_the_format_is_text_unless_told() -> None:
    """An empty value counts as absent."""
    assert [log_format({}), log_format({"SITELINK_LOG_FORMAT": ""}), log_format({"SITELINK_LOG_FORMAT": "json"})] == [
        "text",
        "text",
        "json",
    ]


@pytest.mark.parametrize("arguments", [["api"], ["api", "events"], ["worker", "workflow"], ["worker", "tile"], ["deploy.local", "--once"]])
def test_a_wrong_format_is_refused(arguments: list[str], tmp_path: Path) -> None:
    """Every program refuses it before anything starts, with exit code 2, and names the formats that exist."""
    environ = {**os.environ, "SITELINK_LOG_FORMAT": "xml", "SITELINK_DATA_DIR": str(tmp_path / "data")}
    run = subprocess.run([sys.executable, "-m", *arguments], env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "SITELINK_LOG_FORMAT is 'xml'; text or json is wanted\n")
    assert not (tmp_path / "data").exists()


def test_a_crash_and_a_warning_are_lines_too() -> None:
    """All lines on stderr are JSON, whatever happens."""
    code = """
import os, threading, warnings
from activities.logs import set_up
set_up(os.environ)
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("two\\nlines")
"""
    environ = {**os.environ, "SITELINK_LOG_FORMAT": "json"}
    run = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    warning, in_thread, last = [json.loads(line) for line in run.stderr.splitlines()]
    assert run.returncode == 1
    assert "old" in warning["message"]
    assert in_thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert last["exception"].endswith("ValueError: two\nlines")


def test_output_of_a_render_process_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each line becomes a log line, also one that is no text or has no end. So the worker's log has no other lines."""
    read, write = os.pipe()
    with open(write, "wb") as output:  # noqa: PTH123 - a descriptor
        output.write(b"VIPS-WARNING: \xff odd\n" + b"x" * 5000 + b"\n")
    log_lines(open(read, "rb"))  # noqa: PTH123, SIM115 - a descriptor, which it closes
    lines = [as_json(record)["line"] for record in caplog.records]
    assert lines == ["VIPS-WARNING: \ufffd odd", "x" * 2000, "x" * 2000, "x" * 1000]


def test_lines_of_a_render_process_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A child that was taken over does not fill the log's disk, nor write what a terminal obeys."""
    read, write = os.pipe()
    with open(write, "wb") as output:  # noqa: PTH123 - a descriptor
        output.write(b"\x1b[2J\r1\n" * 5000)
    log_lines(open(read, "rb"))  # noqa: PTH123, SIM115 - a descriptor, which it closes
    *lines, last = [as_json(record) for record in caplog.records]
    assert {line["line"] for line in lines} == {"\ufffd[2J\ufffd1"}
    assert len(lines) == MOST_LINES
    assert last["dropped"] == 5000 - MOST_LINES


def test_child_that_prints_without_end_does_not_hold_up_the_others() -> None:
    """All processes write into one stream, so it is emptied faster than they need."""
    read, write = os.pipe()

    def flood() -> None:
        with open(write, "wb") as output:  # noqa: PTH123 - a descriptor
            output.write(b"\n" * (1 << 20))

    reading = threading.Thread(target=log_lines, args=(open(read, "rb"),), daemon=True)  # noqa: PTH123, SIM115 - a descriptor
    printing = threading.Thread(target=flood, daemon=True)
    reading.start()
    printing.start()
    printing.join(DEADLINE_S)
    assert not printing.is_alive()
    reading.join()
