"""nginx in front of the API, with the configuration of ``deploy/nginx``."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from api.access.tokens import sign
from api.paths import upload_path
from deploy.process import free_port
from deploy.temporal import TemporalServer
from tests.integration.test_api import ApiProcess, running, streaming
from tests.unit.api_fakes import BASE, PDF
from tests.waiting import DEADLINE_S, until, until_async

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "sitelink.conf"
MAX_FILE_BYTES = 100_000
SECRET = "a secret of one's own backend for the tests"  # noqa: S105 - for tests
CLAIMS = {"sub": "jo", "org": "acme", "scope": "read write operate"}
HOST = "plans.example.com"
MAIN = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/sitelink.conf;
}}
"""


@pytest.fixture(scope="module")
def program() -> str:
    """Nginx. Without it a test run on CI fails; elsewhere its tests are skipped."""
    if found := shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return found
    reason = "No nginx here; on Debian: apt-get install nginx-light."
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def api(temporal_server: TemporalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API process. No worker runs, so nothing happens to an upload until a test asks for it."""
    directory = tmp_path_factory.mktemp("nginx") / "api"
    access = {"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET": SECRET, "SITELINK_PUBLIC_HOSTS": HOST}
    with running(directory, temporal_server.address, SITELINK_MAX_FILE_BYTES=str(MAX_FILE_BYTES), **access) as process:
        yield process


@pytest.fixture(scope="module")
def access_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The access log of nginx."""
    return tmp_path_factory.mktemp("nginx-log") / "access.log"


@pytest.fixture(scope="module")
def site(program: str, api: ApiProcess, access_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of nginx. Only the addresses in its configuration are changed."""
    directory, port = tmp_path_factory.mktemp("nginx"), free_port()
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{api.port}",
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "/var/log/nginx/sitelink.log": str(access_log),
    }
    text = CONFIGURATION.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "sitelink.conf").write_text(text)
    (directory / "nginx.conf").write_text(MAIN.format(directory=directory))
    directory.chmod(0o755)
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([program, "-p", directory, "-c", directory / "nginx.conf", "-g", "user root;"], stderr=log)
        try:
            until(lambda: _answers(f"http://127.0.0.1:{port}/livez", server, directory / "log"))
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(DEADLINE_S)


def _answers(url: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, log.read_text()
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A client with a token."""
    token = sign(SECRET.encode(), CLAIMS, issuer="sitelink", audience="sitelink", expires_at=int(time.time()) + 3600)
    async with httpx2.AsyncClient(timeout=120, trust_env=False, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


async def send(http: httpx2.AsyncClient, site: str) -> UploadRef:
    """Uploads a PDF through nginx."""
    answer = await http.post(site + BASE, content=PDF)
    assert answer.status_code == 202, answer.text
    return UploadRef.parse(answer.json()["ref"])


async def test_stream_is_not_held_back(http: httpx2.AsyncClient, site: str) -> None:
    """An event arrives while the stream goes on; what ends the stream at the API ends it here."""
    ref = await send(http, site)
    async with streaming(http, site + upload_path(ref)) as stream:
        assert (await stream.next())[0] == "snapshot"
        assert (await http.delete(site + upload_path(ref))).status_code == 202
        assert await stream.rest() == []
    assert (await http.get(site + upload_path(ref))).json()["type"] == "UploadNotFound"


async def test_wait_for_a_change_comes_through(http: httpx2.AsyncClient, site: str) -> None:
    """With its ETag: when time is up, the client that has the current version gets a 304."""
    ref = await send(http, site)
    answer = await http.get(site + upload_path(ref))
    headers, query = {"If-None-Match": answer.headers["etag"]}, {"after": answer.json()["version"], "wait": 1}
    assert (await http.get(site + upload_path(ref), params=query, headers=headers)).status_code == 304


async def test_refusals_are_the_words_of_the_api(http: httpx2.AsyncClient, site: str) -> None:
    """Nginx has no limit on a body of its own."""
    answer = await http.post(site + BASE, content=PDF + bytes(MAX_FILE_BYTES))
    assert (answer.status_code, answer.json()["type"]) == (413, "FileTooLarge")
    assert f"limit {MAX_FILE_BYTES:,}" in answer.json()["detail"]


async def test_only_the_own_page_may_change_something(http: httpx2.AsyncClient, site: str) -> None:
    """The API sees host and origin as the browser sent them. A session works under the public name, by https."""
    plan = f"{site}{BASE.removesuffix('/uploads')}"
    for origin, status in ((site, 202), ("https://evil.example", 403), (site.replace("127.0.0.1", "127.0.0.1.evil.example"), 403)):
        assert (await http.post(f"{plan}/reconcile", headers={"Origin": origin})).status_code == status
    begun = await http.post(f"{site}/v1/session", headers={"Host": HOST, "Origin": f"https://{HOST}"})
    page = {"Cookie": begun.headers["set-cookie"].split(";")[0], "Host": HOST, "Origin": f"https://{HOST}"}
    async with httpx2.AsyncClient(trust_env=False) as browser:
        assert (await browser.post(f"{plan}/reconcile", headers=page)).status_code == 202
        assert (await browser.post(f"{plan}/reconcile", headers=page | {"Origin": "https://evil.example"})).status_code == 403


async def test_log_has_no_ticket(http: httpx2.AsyncClient, site: str, access_log: Path) -> None:
    """Nginx writes no query string."""
    ticket = (await http.post(f"{site}{BASE.removesuffix('/uploads')}/tickets")).json()["ticket"]
    async with httpx2.AsyncClient(trust_env=False) as viewer:
        assert (await viewer.get(site + BASE, params={"ticket": ticket})).status_code == 200
    await until_async(lambda: f"GET {BASE} 200" in access_log.read_text())
    assert ticket not in await asyncio.to_thread(access_log.read_text)


async def test_one_request_id_for_both(http: httpx2.AsyncClient, site: str) -> None:
    """Nginx takes the client's id or makes one."""
    given = await http.get(f"{site}/livez", headers={"X-Request-ID": "mine-7"})
    assert given.headers["x-request-id"] == "mine-7"
    made = await asyncio.gather(*(http.get(f"{site}/livez") for _ in range(2)))
    assert len({answer.headers["x-request-id"] for answer in made}) == 2
