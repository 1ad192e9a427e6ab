"""nginx in front of the API, with the configuration of ``deploy/nginx``."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from api.paths import upload_path
from deploy.process import free_port
from deploy.temporal import TemporalServer
from tests.integration.test_api import ApiProcess, running, streaming
from tests.unit.api_fakes import BASE, PDF
from tests.waiting import DEADLINE_S, until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "sitelink.conf"
MAX_FILE_BYTES = 100_000
ACCESS_LOG = "access.log"
MAIN = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
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
    with running(directory, temporal_server.address, SITELINK_MAX_FILE_BYTES=str(MAX_FILE_BYTES)) as process:
        yield process


@pytest.fixture(scope="module")
def site(program: str, api: ApiProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of nginx."""
    with nginx(program, api, tmp_path_factory.mktemp("nginx")) as address:
        yield address


@contextmanager
def nginx(program: str, api: ApiProcess, directory: Path) -> Iterator[str]:
    """Runs nginx in front of the API; gives its address. Only the addresses and the path of the log in its configuration are changed."""
    port = free_port()
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{api.port}",
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "/var/log/nginx/sitelink.log": str(directory / ACCESS_LOG),
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


@pytest.mark.parametrize(
    ("origin", "status"), [("http://localhost:8080", 202), ("https://evil.example", 403), ("http://localhost.evil.example", 403)]
)
async def test_only_the_own_page_may_change_something(http: httpx2.AsyncClient, site: str, origin: str, status: int) -> None:
    """The API sees its own origin for the page of this server, and that of any other page as it is."""
    answer = await http.post(f"{site}{BASE.removesuffix('/uploads')}/reconcile".replace("a1", "a2"), headers={"Origin": origin})
    assert answer.status_code == status


async def test_one_request_id_for_both(http: httpx2.AsyncClient, site: str) -> None:
    """Nginx takes the client's id or makes one."""
    given = await http.get(f"{site}/livez", headers={"X-Request-ID": "mine-7"})
    assert given.headers["x-request-id"] == "mine-7"
    made = await asyncio.gather(*(http.get(f"{site}/livez") for _ in range(2)))
    assert len({answer.headers["x-request-id"] for answer in made}) == 2


async def test_clients_have_their_own_address(
    http: httpx2.AsyncClient, program: str, temporal_server: TemporalServer, tmp_path: Path
) -> None:
    """The API counts the requests of the address that nginx sees: not those of nginx, nor those of an address that the client made up."""
    directory = tmp_path / "nginx"
    directory.mkdir()
    limited = running(tmp_path / "api", temporal_server.address, SITELINK_LIMIT_ADDRESS="2/hour")
    with limited as api, nginx(program, api, directory) as site:
        answers = [await http.get(site, headers={"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "127.0.0.1" in answers[-1].json()["detail"]
        own = await http.get(f"http://127.0.0.1:{api.port}/", headers={"X-Forwarded-For": "192.0.2.9"})
        assert own.status_code == 200


async def test_log_holds_no_ticket(http: httpx2.AsyncClient, program: str, api: ApiProcess, tmp_path: Path) -> None:
    """It has the path and the request id, and no query: whoever reads the log must not be able to use the tickets in it."""
    with nginx(program, api, tmp_path) as site:
        await http.get(
            f"{site}/livez", params={"ticket": "a-secret"}, headers={"X-Request-ID": "mine-8", "Referer": f"{site}/?ticket=a-secret"}
        )
    log = (tmp_path / ACCESS_LOG).read_text()
    assert '"GET /livez HTTP/1.1" 200' in log
    assert "mine-8" in log
    assert "a-secret" not in log
