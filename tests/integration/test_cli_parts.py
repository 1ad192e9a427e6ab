"""``sitelink upload`` of large files: in parts, straight into a directory or an S3 server, through interruptions of every kind."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, Response

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import BegunRecord, UploadRecord, timestamp, to_json
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import PART_BYTES, ROOM_KEY, Bucket
from api.cli.parts import LARGE_BYTES
from tests.integration.test_api import running
from tests.integration.test_cli import REF, accept, problem, script  # noqa: F401 - a fixture
from tests.servers.faults import Faults, Rule, answers, faulty, held_until, reset_after, reset_in_body
from tests.waiting import until

PLAN = "acme/tower/a1"
UPLOADS = "/v1/organizations/acme/projects/tower/plans/a1/uploads"
PARTS = 10
SIZE_BYTES = PARTS * PART_BYTES - 1000
assert SIZE_BYTES > LARGE_BYTES

PART = r"partNumber=|/parts/[0-9]"
"""In the address of every part: on an S3 server, in a directory."""
HELD = r"partNumber=(8|9|10)\b|/parts/(8|9|10)\b"


@dataclass
class Site:
    """An API, its bucket, and a proxy through which all parts go."""

    url: str
    bucket: Bucket
    settings: BucketSettings
    faults: Faults
    home: Path

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "api.cli", "upload", "--no-watch", "--to", PLAN, *map(str, arguments)]

    @property
    def environ(self) -> dict[str, str]:
        """What the command reads."""
        return {"PATH": os.environ["PATH"], "SITELINK_URL": self.url, "XDG_STATE_HOME": str(self.home), "PYTHONPATH": str(Path.cwd())}

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Runs the command to its end."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, check=False, encoding="utf-8", timeout=240, env=self.environ, cwd=str(Path.cwd())
        )

    def remembered(self) -> list[Path]:
        """What the command remembers."""
        return list((self.home / "sitelink").glob("*"))

    def begun(self, file: Path) -> dict[str, Any]:
        """What the server says about the upload that was begun."""
        (memory,) = self.remembered()
        answer = httpx2.post(
            f"{self.url}{UPLOADS}:begin",
            params={"filename": file.name},
            json={"sizeBytes": SIZE_BYTES},
            headers={"Idempotency-Key": memory.read_text()},
            timeout=60,
        )
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def check(self, result: "subprocess.CompletedProcess[str]", file: Path) -> None:
        """The upload is accepted, with the file's bytes, and nothing else is left."""
        assert result.returncode == 0, result.stderr
        ref = UploadRef.parse(result.stdout.splitlines()[0])
        assert self.bucket.get_record(UploadRecord, ref.record).file_name == file.name
        assert b"".join(self.bucket.chunks(ref.source)) == file.read_bytes()
        assert self.remembered() == []
        kept = {key.removeprefix(ref.prefix) for key in (info.key for info in self.bucket.objects(ref.plan_ref.uploads_prefix))}
        assert kept == {"begun.json", "source.pdf", "upload.json"}
        if self.settings.is_s3:
            assert BucketSetup(self.settings).unfinished_uploads() == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A large PDF whose parts all differ."""
    file = tmp_path / "Grundriß.pdf"
    file.write_bytes(b"%PDF-1.7\n" + random.Random(1).randbytes(SIZE_BYTES - 9))  # noqa: S311 - no secret
    return file


@pytest.fixture(params=["directory", "s3"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """An API over a bucket of either kind. Temporal is not needed to accept an upload."""
    with ExitStack() as stack:
        if request.param == "s3":
            server = request.getfixturevalue("s3_server")
            settings = server.new_bucket()
            faults = stack.enter_context(faulty(server.endpoint))
            environ = server.environment(replace(settings, endpoint=faults.url))
        else:
            settings = BucketSettings((tmp_path / "bucket").as_uri())
            environ = {"SITELINK_BUCKET": settings.url}
        api = stack.enter_context(running(tmp_path / "api", "127.0.0.1:1", **environ))
        if request.param == "directory":
            faults = stack.enter_context(faulty(api.url))
        url = api.url if settings.is_s3 else faults.url
        yield Site(url, Bucket(settings), settings, faults, tmp_path / "home")


def test_large_file_is_sent_in_parts_once(site: Site, file: Path) -> None:
    """Every part once, several at the same time, and the same command again makes another upload."""
    refs = set()
    for _ in range(2):
        before = len(site.faults.passed)
        result = site.run(file)
        assert len(site.faults.sent("PUT", PART, before)) == PARTS
        refs.add(UploadRef.parse(result.stdout.splitlines()[0]))
    assert len(refs) == 2
    site.bucket.delete([info.key for info in site.bucket.objects(max(refs, key=str).prefix)])
    result.stdout = f"{min(refs, key=str)}\n"
    site.check(result, file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_command_goes_on_where_it_was(site: Site, file: Path, number: signal.Signals) -> None:
    """However the command ends: the same command sends only the parts that the bucket does not have."""
    gate = threading.Event()
    site.faults.lay(Rule(held_until(gate), "PUT", HELD))
    process = subprocess.Popen(
        site.command(file),
        env=site.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A test run in a shell's background ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: len(site.faults.sent("PUT", HELD)) == 3 and len(site.begun(file)["stored"]) == 7, 0.2)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (130 if number is signal.SIGINT else -number, "")
        assert ("the same command goes on" in errors) == (number is signal.SIGINT)
        site.faults.lay()
        before = len(site.faults.passed)
        result = site.run(file)
        assert len(site.faults.sent("PUT", PART, before)) == 3
        assert "going on: 58.7 MB of 83.9 MB" in result.stderr
        site.check(result, file)
    finally:
        gate.set()
        process.kill()


def test_file_that_has_changed_is_another_upload(site: Site, file: Path) -> None:
    """Of the old file nothing is taken."""
    interrupt(site, file)
    file.write_bytes(b"%PDF-2.0\n" + file.read_bytes()[9:])
    result = site.run(file)
    assert result.returncode == 0, result.stderr
    assert "going on" not in result.stderr
    ref = UploadRef.parse(result.stdout.splitlines()[0])
    assert next(site.bucket.chunks(ref.source)).startswith(b"%PDF-2.0")


def interrupt(site: Site, file: Path) -> dict[str, Any]:
    """Begins an upload that lacks three parts; what the server says about it."""
    gate = threading.Event()
    site.faults.lay(Rule(held_until(gate), "PUT", HELD))
    process = subprocess.Popen(site.command(file), env=site.environ, stderr=subprocess.DEVNULL)
    until(lambda: len(site.faults.sent("PUT", HELD)) == 3 and len(site.begun(file)["stored"]) == 7, 0.2)
    process.kill()
    process.wait()
    site.faults.lay(Rule(answers(503, "SlowDown"), "PUT", HELD))
    found = site.begun(file)
    gate.set()
    site.faults.lay()
    return found


def test_upload_that_the_server_has_forgotten_begins_anew(site: Site, file: Path) -> None:
    """After 7 days, for example."""
    ref = UploadRef.parse(interrupt(site, file)["ref"])
    begun = site.bucket.get_record(BegunRecord, ref.begun)
    site.bucket.put(ref.begun, to_json(replace(begun, begun_at=timestamp(datetime.now(UTC) - timedelta(days=8)))))
    result = site.run(file)
    assert result.returncode == 0, result.stderr
    assert UploadRef.parse(result.stdout.splitlines()[0]) != ref
    assert site.remembered() == []


def test_part_that_fails_is_sent_again(site: Site, file: Path) -> None:
    """To a new URL, also when its answer was lost."""
    faults = (answers(503, "SlowDown"), answers(403, "AccessDenied"), reset_in_body, reset_after)
    site.faults.lay(*(Rule(fault, "PUT", rf"partNumber={number}\b|/parts/{number}\b", times=2) for number, fault in enumerate(faults, 2)))
    result = site.run(file)
    assert result.stderr.count("trying again") == 8
    site.check(result, file)


def test_part_that_is_always_refused_ends_the_command(site: Site, file: Path) -> None:
    """With a sentence that shows no signature; nothing that was sent is lost."""
    site.faults.lay(Rule(answers(503, "SlowDown"), "PUT", r"partNumber=3\b|/parts/3\b"))
    result = site.run(file)
    assert (result.returncode, result.stdout) == (1, "")
    assert not re.search("signature", result.stderr, re.IGNORECASE)
    assert "503" in result.stderr
    site.faults.lay()
    result = site.run(file)
    assert "going on" in result.stderr
    site.check(result, file)


def test_file_that_is_not_a_pdf_leaves_nothing(site: Site, file: Path) -> None:
    """Neither in the bucket nor in the memory of the command."""
    with file.open("r+b") as opened:
        opened.write(b"not-a-pdf")
    result = site.run(file)
    assert (result.returncode, result.stdout) == (1, "")
    assert "NotAPdf" in result.stderr
    assert site.remembered() == []
    assert [info.key for info in site.bucket.objects("") if info.key != ROOM_KEY] == []


def test_bucket_that_is_not_reached_from_here_is_passed_by(script: Any, free_port: int, file: Path, tmp_path: Path) -> None:  # noqa: F811
    """Then the file goes through the API, as a small one does, and the begun upload is forgotten. So it is with a server without parts."""
    links = {"parts": f"{UPLOADS}/x/parts", "sign": f"{UPLOADS}/x/parts/sign", "complete": f"{UPLOADS}/x/complete"}
    begun = {"ref": REF, "partSizeBytes": PART_BYTES, "partCount": PARTS, "stored": [], "links": links}
    has_parts = {True}

    async def answer(request: Any) -> Response:
        path = request.url.path
        if path.endswith(":begin"):
            return JSONResponse(begun, 201) if True in has_parts else await problem(404, "NotFound", f"nothing is at {path}")(request)
        if path.endswith("/sign"):
            return JSONResponse({"parts": [{"number": 1, "url": f"http://127.0.0.1:{free_port}/x?X-Amz-Signature=secret"}]})
        return Response(status_code=204) if request.method == "DELETE" else await accept(request)

    script.answer_with = answer
    for has in (True, False):
        has_parts = {has}
        site = Site(script.url, None, None, None, tmp_path / "home")  # type: ignore[arg-type] # only its command is used
        result = site.run(file)
        assert (result.returncode, result.stdout.splitlines()[0]) == (0, REF), result.stderr
        assert "sending through the server" in result.stderr
        assert "secret" not in result.stderr
        (*_, sent) = (request for request in script.requests if request.url.path == UPLOADS)
        assert sent.state.size_bytes == SIZE_BYTES
        assert site.remembered() == []
    assert [request.url.path for request in script.requests if request.method == "DELETE"] == [f"{base_of(REF)}/parts"]


def base_of(ref: str) -> str:
    """The path of an upload."""
    organization, project, plan, upload = ref.split("/")
    return f"/v1/organizations/{organization}/projects/{project}/plans/{plan}/uploads/{upload}"
