"""Access control over real sockets: two API processes that share a secret in a file, the real workflow, the command line."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from api.access.principal import Principal, Scope
from api.access.tokens import SKEW_S, OwnTokens
from api.paths import upload_path, uploads_path
from deploy.temporal import TemporalServer
from tests.integration.test_api import Activities, ApiProcess, running
from tests.unit.api_fakes import PDF, PLAN
from tests.waiting import DEADLINE_S, until_async
from tests.workflow.fakes import pages, working

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - for tests


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """The secret as an orchestrator hands it over."""
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    return file


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """The bucket of both processes."""
    return Bucket(BucketSettings((tmp_path / "bucket").as_uri()))


@pytest.fixture
def apis(tmp_path: Path, bucket: Bucket, secret_file: Path, temporal_server: TemporalServer) -> Iterator[list[ApiProcess]]:
    """Two API processes."""
    environ = {"SITELINK_BUCKET": (tmp_path / "bucket").as_uri(), "SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET_FILE": str(secret_file)}
    with ExitStack() as processes:
        yield [processes.enter_context(running(tmp_path / name, temporal_server.address, **environ)) for name in ("one", "two")]


async def sitelink(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("SITELINK_")}
    command = [sys.executable, "-m", "api.cli", *words]
    return await asyncio.to_thread(
        subprocess.run, command, env=known | environ, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )


async def token_of(secret_file: Path, *words: str) -> str:
    """A token that ``sitelink token`` made."""
    made = await sitelink("token", *words, SITELINK_JWT_SECRET_FILE=str(secret_file))
    assert (made.returncode, made.stderr) == (0, "")
    return made.stdout.strip()


async def send(http: httpx2.AsyncClient, api: ApiProcess, token: str) -> UploadRef:
    """Uploads a PDF."""
    answer = await http.post(api.url + uploads_path(PLAN), content=PDF, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 202, answer.text
    return UploadRef.parse(answer.json()["ref"])


async def test_command_line_works_with_its_own_tokens(
    apis: list[ApiProcess], bucket: Bucket, secret_file: Path, temporal: Client, tmp_path: Path
) -> None:
    """Upload and watch with a token; refused without one, and with one that only reads."""
    file = tmp_path / "plan.pdf"
    file.write_bytes(PDF)
    words = ("upload", str(file), "--to", str(PLAN), "--json")
    async with working(temporal, Activities(pages(2), bucket)):
        refused = await sitelink(*words, SITELINK_URL=apis[0].url)
        assert (refused.returncode, refused.stderr.split(":")[0]) == (1, "CredentialRequired")
        reader = await token_of(secret_file, "--org", "acme")
        refused = await sitelink(*words, SITELINK_URL=apis[0].url, SITELINK_TOKEN=reader)
        assert (refused.returncode, refused.stderr.split(":")[0]) == (1, "NotAllowed")
        writer = await token_of(secret_file, "--org", "acme", "--project", "tower", "--scope", "read write", "--ttl", "10m")
        done = await sitelink(*words, SITELINK_URL=apis[1].url, SITELINK_TOKEN=writer)
        assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["data"]["status"]) == ("end", "complete")
    for api in apis:
        log = api.log.read_text()
        assert not any(secret in log for secret in (SECRET, reader, writer))
    assert "action=upload status=202 sub=sitelink-token" in apis[1].log.read_text()


async def test_ticket_streams_from_any_process_until_it_expires(
    apis: list[ApiProcess], bucket: Bucket, secret_file: Path, temporal: Client, http: httpx2.AsyncClient
) -> None:
    """The stream gets the changes, and ends by saying so; the same address is then refused, and a new ticket resumes it."""
    token = await token_of(secret_file, "--org", "acme", "--scope", "read write")
    fake = Activities(pages(3), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        ref = await send(http, apis[0], token)
        await until_async(lambda: fake.in_flight == 3)
        reader = Principal("jo", "acme", 0, "tower", "a1", ref.upload, frozenset({Scope.READ}))
        events = apis[1].url + upload_path(ref) + "/events"
        for left_s in (3, 15, 60):  # a slow machine gets a longer ticket
            text = OwnTokens("ticket", (SECRET,)).make(reader, int(time.time()) - SKEW_S + 1 + left_s)
            answer = await http.get(events, params={"ticket": text})
            if answer.status_code == 200:
                break
        told = answer.text.strip().split("\n\n")
        assert "event: snapshot" in told[0]
        assert told[-1].startswith("event: expired\n")
        assert (await http.get(events, params={"ticket": text})).status_code == 401
        version = max(int(line[4:]) for line in answer.text.splitlines() if line.startswith("id: "))
        asked = await http.post(apis[0].url + upload_path(ref) + "/tickets", headers={"Authorization": f"Bearer {token}"})
        again = {"params": {"ticket": asked.json()["ticket"]}, "headers": {"Last-Event-ID": str(version)}}
        async with http.stream("GET", events, **again) as response:  # type: ignore[arg-type]
            fake.gate.set()
            rest = (await response.aread()).decode()
        assert "event: snapshot" not in rest
        assert "event: end" in rest


async def test_refusal_comes_before_the_body(apis: list[ApiProcess]) -> None:
    """A stranger's gigabyte is not read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", apis[0].port)
    host = f"Host: 127.0.0.1:{apis[0].port}\r\n"
    writer.write(f"POST {uploads_path(PLAN)} HTTP/1.1\r\n{host}Content-Length: 1000000000\r\n\r\n%PDF-".encode())
    async with asyncio.timeout(DEADLINE_S):
        assert b" 401 " in await reader.readline()
    writer.close()


async def test_secret_is_not_in_what_temporal_keeps(
    apis: list[ApiProcess], bucket: Bucket, secret_file: Path, temporal: Client, http: httpx2.AsyncClient
) -> None:
    """Nor is the token: not in the history, the memo or the search attributes; nor in the title of a process."""
    token = await token_of(secret_file, "--org", "acme", "--scope", "write")
    async with working(temporal, Activities(pages(1), bucket)):
        ref = await send(http, apis[0], token)
        run = temporal.get_workflow_handle(ref.workflow_id)
        await run.result()
        kept = (await run.fetch_history()).to_json() + str((await run.describe()).raw_description)
    assert SECRET not in kept
    assert token not in kept
    for api in apis:
        assert SECRET not in api.title
