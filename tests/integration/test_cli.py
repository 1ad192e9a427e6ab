"""The command line as a process, against a server whose every answer is scripted, those too that a real one cannot be made to give."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from activities.bucket.keys import UploadRef
from activities.bucket.records import to_wire
from activities.bucket.report import UploadReport
from api.addresses import StackAddresses
from api.cli.client import Server
from api.cli.errors import NotReached
from api.cli.transfer import Patience, follow
from api.cli.views import JsonView

REF = "local/demo/plan/0198c0de-0000-7000-8000-000000000001"
BASE = "/v1/organizations/local/projects/demo/plans/plan/uploads"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

Answer = Callable[[Request], Awaitable[Response]]


class Script:
    """A server that gives the answers it was told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.events: deque[Answer] = deque()
        """One for each connection to the event stream."""
        self.posts: deque[Answer] = deque()
        """One for each file that is sent."""
        self.document: dict[str, Any] = {}
        """What a GET of the upload or of the list says."""
        self.requests: list[Request] = []
        self.answer_with: Answer | None = None
        """Answers everything, if it is set."""

    async def answer(self, request: Request) -> Response:
        """Any request."""
        self.requests.append(request)
        if self.answer_with is not None:
            return await self.answer_with(request)
        if request.url.path.endswith(":begin"):
            return await problem(404, "NotFound", "a server of an earlier release")(request)
        if request.url.path.endswith("/events"):
            return await self.events.popleft()(request)
        if request.method == "POST" and request.url.path == BASE:
            return await self.posts.popleft()(request)
        if request.method in ("POST", "DELETE"):
            return JSONResponse({"ref": REF, "refs": [REF]}, 202)
        return JSONResponse(self.document)


@pytest.fixture
def script() -> Iterator[Script]:
    """A scripted server on a free port."""
    script = Script()
    app = Starlette(routes=[Route("/{path:path}", script.answer, methods=["GET", "POST", "DELETE"])])
    listener = socket.create_server(("127.0.0.1", 0))
    script.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield script
    server.should_exit = True
    thread.join(60)
    listener.close()


def environment(url: str, **more: str) -> dict[str, str]:
    """What the command line reads, and nothing of ours."""
    return {"PATH": os.environ["PATH"], "SITELINK_URL": url, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **more}


def sitelink(url: str, *arguments: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line with its output in pipes."""
    command = [sys.executable, "-m", "api.cli", *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=240,
        cwd=cwd,
        env=environment(url, PYTHONPATH=str(root), **more),
    )


def sheet(number: int, status: str, **more: object) -> dict[str, Any]:
    """A sheet as the wire has it."""
    return {
        "number": number,
        "status": status,
        "version": 1,
        "title": None,
        "tiles": 10,
        "bytes": 1000,
        "reason": None,
        "detail": None,
        **more,
    }


def snapshot(status: str, *sheets: dict[str, Any], completed: int = 0, total: int = 2, **more: object) -> dict[str, Any]:
    """A snapshot or a change as the wire has it."""
    return {
        "status": status,
        "version": 1,
        "updatedAt": "2026-01-31T09:30:05.000Z",
        "completedPages": completed,
        "totalPages": total,
        "progress": 100 * completed // total if total else 0,
        "startedAt": "2026-01-31T09:30:00.000Z",
        "completedAt": None if status in ("queued", "processing") else "2026-01-31T09:30:04.500Z",
        "warning": None,
        "reason": None,
        "detail": None,
        "sheets": list(sheets),
        "schema": 1,
        **more,
    }


def event(name: str, version: int, document: dict[str, Any]) -> bytes:
    """One event of the stream, its lines ended as sse-starlette does."""
    return f"id: {version}\r\nevent: {name}\r\ndata: {json.dumps(document, ensure_ascii=False)}\r\n\r\n".encode()


def stream(*pieces: bytes | threading.Event, cut: bool = False) -> Answer:
    """An event stream of these bytes, with pauses until an event is set; at its end the connection is cut or ends well."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                assert await asyncio.to_thread(piece.wait, 240)
        if cut:
            msg = "cut"
            raise ConnectionError(msg)

    async def answer(_: Request) -> Response:
        return StreamingResponse(body(), media_type="text/event-stream")

    return answer


def problem(status: int, name: str, detail: str) -> Answer:
    """A problem document (RFC 9457)."""

    async def answer(_: Request) -> Response:
        document = {"type": name, "title": "A title", "status": status, "detail": detail, "instance": "/"}
        return JSONResponse(document, status, media_type="application/problem+json")

    return answer


async def accept(request: Request) -> Response:
    """Takes a file whole."""
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
    request.state.size_bytes = size_bytes
    links = {"self": f"{BASE}/x", "events": f"{BASE}/x/events", "page": f"/?ref={REF}"}
    return JSONResponse({"ref": REF, "upload": REF.rsplit("/", 1)[1], "status": "queued", "links": links}, 202)


WHOLE = (
    b"retry: 1000\r\n\r\n",
    event("snapshot", 1, snapshot("processing", sheet(1, "tiling", title="A-101 - First Floor Plan"), sheet(2, "pending"))),
    b": ping\r\n\r\n",
    event("change", 2, snapshot("processing", sheet(1, "ready", title="A-101 - First Floor Plan"), sheet(2, "tiling"), completed=1)),
    event("end", 3, snapshot("complete", sheet(1, "ready", title="A-101 - First Floor Plan"), sheet(2, "ready"), completed=2)),
)


def test_watch_into_a_pipe_prints_plain_lines(script: Script) -> None:
    """Without a terminal there is one line for each change that means something, and no control character."""
    script.events.append(stream(*WHOLE))
    result = sitelink(script.url, "watch", REF)
    assert result.stdout.splitlines() == [
        "processing: 0 of 2 sheets ready",
        "sheet-1 A-101 - First Floor Plan: ready, 1 of 2",
        "sheet-2: ready, 2 of 2",
        "complete: 2 sheets, 20 tiles, 2.0 kB, 4.5 s",
        f"{script.url}/?ref={REF}",
    ]
    assert (result.returncode, result.stderr) == (0, "")
    assert not CONTROL.search(result.stdout)


FORECAST = {
    "tiles": 20,
    "puts": 28,
    "bytesLow": 1_200,
    "bytesHigh": 4_900,
    "seconds": 3.2,
    "secondsLow": 2.2,
    "secondsHigh": 5.1,
    "classA": 32,
    "classB": 12,
    "dollars": 0.000148,
    "priceClassA": 4.5,
    "priceClassB": 0.36,
}
RECEIPT = {"tiles": 20, "puts": 28, "bytes": 2000, "seconds": 4.5, "classA": 32, "classB": 12, "dollars": 0.41}


def test_watch_shows_the_forecast_once_and_again_beside_what_it_was(script: Script) -> None:
    """As soon as the pages are counted, and below the summary; status shows both; an upload that has ended shows it once."""
    running = snapshot("processing", sheet(1, "tiling"), sheet(2, "pending"), forecast=FORECAST, receipt=None)
    ready = snapshot("processing", sheet(1, "ready"), completed=1, forecast=FORECAST, receipt=None)
    final = snapshot("complete", sheet(1, "ready"), sheet(2, "ready"), completed=2, forecast=FORECAST, receipt=RECEIPT)
    script.events.append(
        stream(
            event("snapshot", 1, snapshot("queued", total=0, forecast=None, receipt=None)),
            event("change", 2, running),
            event("change", 3, ready),
            event("end", 4, final),
        )
    )
    forecast = "forecast: 20 tiles, 1.2 to 4.9 kB, 2 to 5 s, less than $0.01 of bucket operations"
    end = ["complete: 2 sheets, 20 tiles, 2.0 kB, 4.5 s, $0.41 of bucket operations", forecast]
    result = sitelink(script.url, "watch", REF)
    assert result.stdout.splitlines()[:-1] == [
        "queued",
        "processing: 0 of 2 sheets ready",
        forecast,
        "sheet-1: ready, 1 of 2",
        "sheet-2: ready, 2 of 2",
        *end,
    ]
    script.events.append(stream(event("snapshot", 4, final), event("end", 4, final)))
    assert sitelink(script.url, "watch", REF).stdout.splitlines()[:-1] == end
    script.document = final | {"fileName": "plan.pdf", "sizeBytes": 1234, "createdAt": "2026-01-31T09:29:59.000Z"}
    assert sitelink(script.url, "status", REF).stdout.splitlines()[2:4] == [f"  {line}" for line in end]
    assert json.loads(sitelink(script.url, "status", "--json", REF).stdout)["data"]["receipt"] == RECEIPT


def test_watch_json_prints_every_event_as_it_came(script: Script) -> None:
    """--json is one line an event, with the data unchanged, and nothing else."""
    script.events.append(stream(*WHOLE))
    result = sitelink(script.url, "watch", "--json", REF)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["snapshot", "change", "end"]
    assert lines[2]["data"] == snapshot("complete", sheet(1, "ready", title="A-101 - First Floor Plan"), sheet(2, "ready"), completed=2)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("status", "code"), [("complete", 0), ("partial", 1), ("failed", 1), ("cancelled", 1)])
def test_watch_exit_code_is_the_outcome(script: Script, status: str, code: int) -> None:
    """Only a complete upload ends in 0, also for who comes late."""
    final = snapshot(status, total=0, reason="NotAPdf", detail="plan.pdf is no PDF")
    script.events.append(stream(event("snapshot", 1, final), event("end", 1, final)))
    result = sitelink(script.url, "watch", REF)
    assert result.returncode == code
    assert result.stdout.splitlines()[0] == f"{status}: NotAPdf: plan.pdf is no PDF"


def test_watch_names_failed_sheets_as_they_fail(script: Script) -> None:
    """A failed sheet is shown with the name and the sentence of its reason."""
    failed = sheet(2, "failed", reason="PageUnreadable", detail="the page has no area")
    script.events.append(
        stream(
            event("snapshot", 1, snapshot("processing", sheet(1, "ready"), sheet(2, "tiling"), completed=1)),
            event("change", 2, snapshot("processing", failed, completed=1, warning="StorageUnavailable: slow")),
            event("end", 3, snapshot("partial", sheet(1, "ready"), failed, completed=1)),
        )
    )
    result = sitelink(script.url, "watch", REF)
    assert result.stdout.splitlines()[:4] == [
        "processing: 1 of 2 sheets ready",
        "sheet-2: failed, PageUnreadable: the page has no area",
        "warning: StorageUnavailable: slow",
        "partial: 1 of 2 sheets, 10 tiles, 1.0 kB, 4.5 s",
    ]
    assert result.returncode == 1


def test_watch_resumes_after_a_cut_in_the_middle_of_an_event(script: Script) -> None:
    """Half an event counts for nothing: the next connection asks for what follows the last whole one, and says that it was lost."""
    script.events.append(stream(*WHOLE[:2], WHOLE[3][:60], cut=True))
    script.events.append(problem(503, "StorageUnavailable", "not now"))
    script.events.append(stream(*WHOLE[3:]))
    result = sitelink(script.url, "watch", REF)
    assert result.returncode == 0
    assert result.stdout.splitlines()[1:3] == ["sheet-1 A-101 - First Floor Plan: ready, 1 of 2", "sheet-2: ready, 2 of 2"]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "1", "1"]
    assert re.fullmatch(
        r"trying again in 1 s: the connection to .* broke .*\n"
        r"trying again in 2 s: the server answers StorageUnavailable: not now\n"
        r"connected again\n",
        result.stderr,
    )


def test_watch_resumes_after_a_stream_that_ends_without_an_end(script: Script) -> None:
    """A server that shuts down politely is not the end of the upload; a 204 later is, and the status says which."""
    script.events.append(stream(*WHOLE[:2]))
    script.events.append(status_204)
    script.document = snapshot("partial", sheet(1, "ready"), sheet(2, "failed", reason="RenderTimeout"), completed=1)
    result = sitelink(script.url, "watch", REF)
    assert result.returncode == 1
    assert "sheet-2: failed, RenderTimeout" in result.stdout.splitlines()


async def status_204(_: Request) -> Response:
    """Nothing follows."""
    return Response(status_code=204)


def test_watch_takes_a_title_as_text(script: Script) -> None:
    """A title can neither steer the terminal nor end a line."""
    title = "A\u2028B \x1b[31m[red]\x07\u202e"
    script.events.append(stream(event("snapshot", 1, snapshot("processing", sheet(1, "failed", title=title))), *WHOLE[-1:]))
    result = sitelink(script.url, "watch", REF)
    assert "sheet-1 A\ufffdB \ufffd[31m[red]\ufffd\ufffd: failed, " in result.stdout.split("\n")[1]
    assert result.returncode == 0


def test_watch_gives_up_when_patience_ends(script: Script) -> None:
    """A server that stays away is said to be not reached, but only after the time given."""
    script.events.append(stream(*WHOLE[:2], cut=True))
    for _ in range(9):
        script.events.append(problem(503, "StorageUnavailable", "not now"))
    patience = Patience(limit_s=2, clock=lambda: len(script.requests))  # a second goes by with every request
    with Server(script.url) as server, pytest.raises(NotReached, match=r"not reached any more: .*StorageUnavailable"):
        follow(server, UploadRef.parse(REF), JsonView(), patience)
    assert len(script.events) == 7


@pytest.mark.parametrize("command", ["watch", "status", "cancel"])
def test_a_server_that_is_not_there_is_not_reached_at_once(command: str) -> None:
    """Exit code 3 and a sentence that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = sitelink(f"http://127.0.0.1:{port}", command, REF)
    assert (result.returncode, result.stdout) == (3, "")
    assert re.match(rf"server not reached: nothing answers at http://127.0.0.1:{port} .*make run", result.stderr)


def test_upload_is_one_upload_though_the_connection_breaks(script: Script, tmp_path: Path) -> None:
    """The second try carries the key of the first; any file name and every option arrive as they are."""
    file = tmp_path / "Grundriß 100% #1 'a' \"b\" &=+;?.pdf"
    file.write_bytes(b"%PDF-" + bytes(300_000))

    async def half_an_answer() -> AsyncIterator[bytes]:
        yield b'{"ref"'
        msg = "cut"
        raise ConnectionError(msg)

    async def cut_at_once(_: Request) -> Response:
        return StreamingResponse(half_an_answer(), 202)

    async def cut_when_accepted(request: Request) -> Response:
        await accept(request)
        return StreamingResponse(half_an_answer(), 202)

    script.posts.extend([cut_at_once, cut_when_accepted, accept])
    script.events.append(stream(*WHOLE))
    options = ("--dpi", "72", "--tile-size", "512", "--layout", "packed", "--layers=-A,+B", "--no-markups")
    result = sitelink(script.url, "upload", file, *options, SITELINK_TOKEN="secret")  # noqa: S106 - none
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == [REF, f"{script.url}/?ref={REF}"]
    assert result.stderr.count("sending again in 1 s") == 2
    first, _, second, _ = script.requests
    assert len({request.headers["idempotency-key"] for request in script.requests[:3]}) == 1
    chosen = {"dpi": "72", "tileSize": "512", "layout": "packed", "layers": "-A,+B", "markups": "false"}
    assert dict(second.query_params) == {"filename": file.name, **chosen}
    assert second.state.size_bytes == file.stat().st_size
    assert second.headers["content-type"] == "application/pdf"
    assert second.headers["authorization"] == "Bearer secret"
    script.posts.append(accept)
    sitelink(script.url, "upload", file, "--no-watch")
    assert script.requests[-1].headers["idempotency-key"] != first.headers["idempotency-key"]


def test_upload_without_watching_leaves_when_accepted(script: Script, tmp_path: Path) -> None:
    """REF stands alone on the first line, for scripts; --json says the whole answer."""
    file = tmp_path / "plan.pdf"
    file.write_bytes(b"%PDF-")
    script.posts.extend([accept, accept])
    result = sitelink(script.url, "upload", file, "--no-watch", "--to", "local/demo/plan")
    assert (result.returncode, result.stdout) == (0, f"{REF}\n{script.url}/?ref={REF}\n")
    result = sitelink(script.url, "upload", file, "--no-watch", "--json")
    assert json.loads(result.stdout)["data"]["ref"] == REF


def test_upload_takes_constant_memory(script: Script, tmp_path: Path) -> None:
    """A file of 400 MB goes through a process of less than 100."""
    file = tmp_path / "large.pdf"
    with file.open("wb") as sparse:
        sparse.truncate(400 << 20)
    script.posts.append(accept)
    process = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "upload", "--no-watch", file],
        env=environment(script.url, XDG_STATE_HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    peak_kib = 0
    while process.poll() is None:
        # Not ru_maxrss: that of a new process starts with what the one that started it had.
        with suppress(OSError, IndexError):
            peak_kib = max(peak_kib, int(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]))
        time.sleep(0.01)
    assert REF in process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0
    assert 10 * 1024 < peak_kib < 100 * 1024
    assert script.requests[-1].state.size_bytes == 400 << 20


def test_upload_shows_a_refusal_that_comes_early(script: Script, tmp_path: Path) -> None:
    """The server may refuse before it has read the file: the name and the sentence arrive, once."""
    file = tmp_path / "large.pdf"
    with file.open("wb") as sparse:
        sparse.truncate(50 << 20)
    script.posts.append(problem(413, "FileTooLarge", "52,428,800 bytes, limit 1,000"))
    result = sitelink(script.url, "upload", file)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "FileTooLarge: 52,428,800 bytes, limit 1,000\n")
    assert len(script.requests) == 1


def test_upload_with_an_option_out_of_range_is_wrong_use(script: Script, tmp_path: Path) -> None:
    """The server knows the ranges; its 400 is the caller's mistake."""
    file = tmp_path / "plan.pdf"
    file.write_bytes(b"%PDF-")
    script.posts.append(problem(400, "InvalidOption", "dpi is 5, allowed are 30 to 1,200"))
    result = sitelink(script.url, "upload", file, "--dpi", "5")
    assert (result.returncode, result.stderr) == (2, "InvalidOption: dpi is 5, allowed are 30 to 1,200\n")


def start(script: Script, *arguments: str | Path) -> "subprocess.Popen[str]":
    """Starts the command line; its first line is there when this returns."""
    command = [sys.executable, "-u", "-m", "api.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        env=environment(script.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_ctrl_c_leaves_the_upload_and_says_how_to_go_on(script: Script) -> None:
    """130, and the command that watches it again."""
    left = threading.Event()
    script.events.append(stream(WHOLE[1], left))
    process = start(script, "watch", REF)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    left.set()
    assert process.returncode == 130
    assert errors.strip() == f"The upload goes on. Watch it again: sitelink watch {REF}"


def test_a_reader_that_leaves_is_no_error(script: Script) -> None:
    """`sitelink watch | head -1` prints no traceback."""
    left = threading.Event()
    script.events.append(stream(WHOLE[1], left, *WHOLE[3:]))
    process = start(script, "watch", REF)
    assert process.stdout is not None
    process.stdout.close()
    left.set()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(240) == 141


def redirected(url: str, how: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line by a shell that redirects its streams."""
    command = ["/bin/sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-m", "api.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=240, env=environment(url), cwd=Path(__file__).parents[2]
    )


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--json"], ["status", REF], ["watch", REF], ["watch", "--json", REF], ["cancel", REF], ["--help"]],
    ids=" ".join,
)
def test_a_closed_or_full_output_is_one_sentence(script: Script, arguments: list[str]) -> None:
    """Exit code 4, no traceback; with a closed stdout nothing is asked for. Without stderr the exit code says it alone."""
    upload = {"ref": REF, "fileName": "plan.pdf", "sizeBytes": 999, "createdAt": "2026-01-31T09:30:00.000Z", "warning": None}
    script.document = {"uploads": [{**upload, **snapshot("complete")}], **snapshot("complete"), **upload}
    script.events.extend(stream(*WHOLE[1:]) for _ in range(2))
    for closed, said in ((">&-", "stdout is closed: the output cannot be written\n"), (">&- 2>&-", ""), (">&- 2>/dev/full", "")):
        result = redirected(script.url, closed, *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (4, "", said)
    assert script.requests == []
    for full, said in ((">/dev/full", "the output cannot be written: No space left on device\n"), (">/dev/full 2>&1", "")):
        result = redirected(script.url, full, *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (4, "", said)


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_a_closed_or_full_stderr_changes_no_outcome(script: Script, how: str) -> None:
    """What would have been said there is lost, and does not turn up among the results."""
    for arguments, code in ((["status", "a/b"], 2), (["list"], 3), (["upload", "/nowhere/plan.pdf"], 2), (["verify", "--json", REF], 3)):
        result = redirected("http://127.0.0.1:9", how, *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (code, "", "")
    script.document = {"uploads": []}
    assert redirected(script.url, how, "list").returncode == 0
    script.events.extend([stream(WHOLE[1], cut=True), stream(*WHOLE[1:])])
    result = redirected(script.url, how, "watch", "--json", REF)
    assert result.returncode == 0
    assert all(json.loads(line)["event"] in ("snapshot", "change", "end") for line in result.stdout.splitlines())


def test_commands_ask_the_server_and_say_so(script: Script) -> None:
    """reconcile, cancel and retry are one POST each, retry for each failed sheet."""
    script.document = snapshot("partial", sheet(1, "ready"), sheet(2, "failed"), sheet(3, "failed"), completed=1, total=3)
    for arguments in (["reconcile", REF], ["cancel", REF], ["retry", REF], ["retry", REF, "1", "sheet-3"]):
        result = sitelink(script.url, *arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert f"sitelink watch {REF}" in result.stdout
    posts = [request.url.path.removeprefix(f"{BASE}/{REF.rsplit('/', 1)[1]}") for request in script.requests if request.method == "POST"]
    assert posts == ["/reconcile", "/cancel", "/sheets/2/retry", "/sheets/3/retry", "/sheets/1/retry", "/sheets/3/retry"]


def test_delete_asks_nothing_and_says_what_happened(script: Script) -> None:
    """One DELETE of the upload; with ``--json`` one line that says so."""
    result = sitelink(script.url, "delete", REF)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"deleted: {REF}")
    result = sitelink(script.url, "delete", REF, "--json")
    assert (result.returncode, json.loads(result.stdout)["event"]) == (0, "accepted")
    assert [(request.method, request.url.path) for request in script.requests] == [("DELETE", f"{BASE}/{REF.rsplit('/', 1)[1]}")] * 2


def test_watch_of_an_upload_that_is_deleted_ends(script: Script) -> None:
    """Its stream ends without an ``end``; the next connection is told that it was deleted, and that is no success."""
    script.events.extend(
        [
            stream(event("snapshot", 5, snapshot("processing", sheet(1, "tiling")))),
            problem(404, "UploadNotFound", f"the upload {REF} was deleted"),
        ]
    )
    result = sitelink(script.url, "watch", REF)
    assert result.returncode == 1
    assert "UploadNotFound: the upload" in result.stderr


def test_retry_resumes_an_upload_that_ended_early(script: Script) -> None:
    """Its sheets that were not done are pending: one POST is enough for all of them."""
    script.document = snapshot("cancelled", sheet(1, "ready"), sheet(2, "pending"), sheet(3, "pending"), completed=1, total=3)
    assert sitelink(script.url, "retry", REF).returncode == 0
    script.document = snapshot("cancelled", sheet(4, "ready"), completed=1, total=0)  # before its pages were counted
    assert sitelink(script.url, "retry", REF).returncode == 0
    script.document = {**snapshot("failed", sheet(1, "ready"), sheet(2, "pending"), completed=1, total=2), "reason": "Terminated"}
    assert sitelink(script.url, "retry", REF).returncode == 0  # an operator has terminated its run
    posts = [request.url.path.rsplit("/", 3)[1:] for request in script.requests if request.method == "POST"]
    assert posts == [["sheets", "2", "retry"], ["sheets", "1", "retry"], ["sheets", "2", "retry"]]


def test_reconcile_takes_a_whole_plan(script: Script) -> None:
    """One POST to the plan; each upload that was asked is told."""
    result = sitelink(script.url, "reconcile", REF.rsplit("/", 1)[0], "--deep")
    assert (result.returncode, result.stderr) == (0, "")
    assert "sitelink watch" in result.stdout
    (request,) = [request for request in script.requests if request.method == "POST"]
    assert str(request.url).endswith(f"{BASE.removesuffix('/uploads')}/reconcile?deep=true")


@pytest.mark.parametrize(
    ("status", "code"), [("queued", 0), ("processing", 0), ("complete", 0), ("partial", 1), ("failed", 1), ("cancelled", 1)]
)
def test_status_exit_code_is_the_outcome_so_far(script: Script, status: str, code: int) -> None:
    """What still runs has not failed."""
    extra: dict[str, Any] = {"ref": REF, "fileName": "a\x1bb.pdf", "sizeBytes": 12_345_678, "createdAt": "2026-01-31T09:29:59.000Z"}
    script.document = snapshot(status, sheet(1, "ready"), sheet(2, "failed", reason="RenderTimeout", detail="120 s"), completed=1, **extra)
    result = sitelink(script.url, "status", REF)
    assert result.returncode == code
    assert "a\ufffdb.pdf, 12.3 MB, 2026-01-31T09:29:59.000Z" in result.stdout
    assert f"{status}: 1 of 2 sheets, 10 tiles" in result.stdout
    assert "sheet-2: failed, RenderTimeout: 120 s" in result.stdout
    result = sitelink(script.url, "status", "--json", REF)
    assert json.loads(result.stdout) == {"event": "snapshot", "data": script.document}


def test_list_prints_one_upload_a_line(script: Script, tmp_path: Path) -> None:
    """REF comes first; the server is that of the data directory's stack when none is named."""
    upload = {"ref": REF, "fileName": "plan.pdf", "sizeBytes": 999, "createdAt": "2026-01-31T09:30:00.000Z", "status": "processing"}
    script.document = {"uploads": [{**upload, "completedPages": 1, "totalPages": 1200}]}
    StackAddresses(script.url, "", "").write(tmp_path)
    with (tmp_path / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = sitelink("", "list", SITELINK_DATA_DIR=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{REF}  2026-01-31T09:30:00.000Z  processing    1/1,200  999 bytes  plan.pdf\n"


def test_list_and_dry_run_take_every_page(script: Script) -> None:
    """All uploads of a plan, however many pages the server makes of them."""
    ids = [f"{number:04}" for number in range(401, 0, -1)]
    asked: list[tuple[str, str]] = []
    verified: list[str] = []

    async def answer(request: Request) -> Response:
        *_, upload, action = request.url.path.split("/")
        if action == "reconcile":
            verified.append(upload)
            return JSONResponse({**to_wire(UploadReport(f"a/b/c/{upload}", None, verified=True)), "sheets": []})
        limit, cursor = request.query_params["limit"], request.query_params.get("cursor", "")
        asked.append((limit, cursor))
        page = [one for one in ids if not cursor or one < cursor][: int(limit)]
        more = {"fileName": None, "sizeBytes": None, "createdAt": "2026-01-31T09:30:00.000Z", "status": "queued", "warning": "odd"}
        entries = [{"ref": f"a/b/c/{one}", "completedPages": 0, "totalPages": 0, **more} for one in page]
        return JSONResponse({"uploads": entries, "nextCursor": page[-1] if page[-1] != ids[-1] else None})

    script.answer_with = answer
    result = sitelink(script.url, "list", "a/b/c")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.findall(r"^a/b/c/(\d+)  .*\? bytes  \?\n  warning: odd$", result.stdout, re.MULTILINE) == ids
    assert asked == [("200", ""), ("200", "0202"), ("200", "0002")]
    result = sitelink(script.url, "reconcile", "a/b/c", "--dry-run")
    assert (result.returncode, verified) == (0, ids), result.stderr


def test_reconcile_of_a_plan_tells_what_was_passed_over(script: Script) -> None:
    """On stderr, and by the exit code."""

    async def answer(_: Request) -> Response:
        passed_over = [{"ref": "a/b/c/two", "type": "DamagedRecord", "detail": "x cannot be read"}]
        return JSONResponse({"plan": "a/b/c", "refs": [REF], "passedOver": passed_over}, 202)

    script.answer_with = answer
    result = sitelink(script.url, "reconcile", "a/b/c")
    assert (result.returncode, result.stdout) == (1, f"asked to reconcile: sitelink watch {REF}\n")
    assert result.stderr == "passed over a/b/c/two: DamagedRecord: x cannot be read\n"


def test_an_answer_of_another_server_is_named(script: Script) -> None:
    """A page of HTML is no event stream and no status."""

    async def page(_: Request) -> Response:
        return Response("<html>", media_type="text/html")

    script.events.append(page)
    result = sitelink(script.url, "watch", REF)
    assert (result.returncode, result.stderr) == (1, f"the server at {script.url} is not a SiteLink server\n")


@pytest.mark.parametrize("data", ["{", "[]", "{}", "7"])
def test_an_event_that_is_none_of_ours_is_named(script: Script, data: str) -> None:
    """No traceback for what is no JSON or no snapshot."""
    script.events.append(stream(f"event: snapshot\ndata: {data}\n\n".encode()))
    result = sitelink(script.url, "watch", REF)
    assert (result.returncode, result.stderr) == (1, f"the server at {script.url} is not a SiteLink server\n")


def plain(shown: str) -> str:
    """What a terminal shows, without the sequences that steer it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def on_a_terminal(script: Script, *arguments: str | Path, cues: dict[str, threading.Event]) -> tuple[int, str]:
    """Runs the command line on a terminal of its own: exit code and all that was shown. Sets each event once its words are shown."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "api.cli", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(script.url), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        while True:
            try:
                piece = screen.read(65536)
            except OSError:  # how Linux says that the other side has closed
                break
            if not piece:
                break
            shown += piece
            for words, cue in cues.items():
                if words in plain(shown.decode(errors="ignore")):
                    cue.set()
    return process.wait(240), shown.decode()


def test_a_terminal_shows_a_bar_and_is_left_as_it_was(script: Script, tmp_path: Path) -> None:
    """Bytes while sending, then sheets with titles, the lost connection, the failed sheet; the cursor comes back."""
    file = tmp_path / "plan.pdf"
    file.write_bytes(bytes(1 << 20))
    script.posts.append(accept)
    failed = sheet(2, "failed", title="[bold]A-102", reason="PageUnreadable", detail="the page has no area")
    tiling, uploading = threading.Event(), threading.Event()
    script.events.append(stream(WHOLE[1], tiling, cut=True))
    script.events.append(
        stream(
            event("change", 2, snapshot("processing", sheet(1, "uploading", title="A-101"), failed, forecast=FORECAST)),
            uploading,
            event("end", 3, snapshot("partial", sheet(1, "ready"), failed, completed=1)),
        )
    )
    cues = {"tiling     sheet-1 A-101 - First Floor Plan": tiling, "uploading  sheet-1 A-101": uploading}
    code, shown = on_a_terminal(script, "upload", file, cues=cues)
    assert code == 1
    for words in (
        "sending",
        REF,
        "0 %  0 of 2 sheets",
        "tiling     sheet-1 A-101 - First Floor Plan",
        "trying again in 1 s",
        "sheet-2 [bold]A-102: failed, PageUnreadable: the page has no area",
        "uploading  sheet-1 A-101",
        "forecast: 20 tiles, 1.2 to 4.9 kB, 2 to 5 s, less than $0.01 of bucket operations",
        "partial: 1 of 2 sheets, 10 tiles, 1.0 kB, 4.5 s",
    ):
        assert words in plain(shown), plain(shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
