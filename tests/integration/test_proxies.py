"""Proxies in front of the API, with the configurations of ``deploy``: what a client sees is the same."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from api.access.tokens import sign
from api.paths import upload_path
from deploy.process import free_port
from deploy.programs import CACHE, installed
from deploy.temporal import TemporalServer
from tests.integration.test_api import ApiProcess, running, streaming
from tests.missing import miss
from tests.unit.api_fakes import BASE, PDF
from tests.waiting import DEADLINE_S, until

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGURATIONS = {"nginx": DEPLOY / "nginx" / "sitelink.conf", "caddy": DEPLOY / "caddy" / "Caddyfile"}
PACKAGES = {"nginx": "nginx-light", "caddy": "caddy"}
LOGGED = {"nginx": '"GET /livez HTTP/1.1" 200', "caddy": '"uri":"/livez"'}
MAX_FILE_BYTES = 100_000
ACCESS_LOG = "access.log"
SECRET = "a secret of one's own backend for the tests"  # noqa: S105 - for tests
HOST = "plans.example.com"
ACCESS = {"SITELINK_ACCESS": "jwt", "SITELINK_JWT_SECRET": SECRET, "SITELINK_PUBLIC_HOSTS": HOST}
CLAIMS = {"sub": "jo", "org": "acme", "scope": "read write operate"}
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
def api(temporal_server: TemporalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API process. No worker runs, so nothing happens to an upload until a test asks for it."""
    directory = tmp_path_factory.mktemp("proxied") / "api"
    with running(directory, temporal_server.address, SITELINK_MAX_FILE_BYTES=str(MAX_FILE_BYTES), **ACCESS) as process:
        yield process


def program_of(name: str) -> str:
    """The path of a proxy. Without it a test run on CI fails; elsewhere its tests are skipped."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") or next(installed(name, CACHE), None)
    if found is None:
        miss(f"No {name} here; on Debian: apt-get install {PACKAGES[name]}.")
    return str(found)


def command_of(name: str, directory: Path, configuration: str) -> list[str]:
    """Writes the configuration; returns the command that runs the proxy with it."""
    if name == "nginx":
        (directory / "sitelink.conf").write_text(configuration)
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory))
        return ["-p", str(directory), "-c", str(directory / "nginx.conf"), "-g", "user root;"]
    # Caddy's port for administration would be the same for all.
    (directory / "Caddyfile").write_text(configuration.replace("{\n\tservers", "{\n\tadmin off\n\tservers", 1))
    return ["run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def name(request: pytest.FixtureRequest) -> str:
    """Which proxy."""
    return str(request.param)


@pytest.fixture(scope="module")
def site(name: str, api: ApiProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a proxy."""
    with proxy(name, api, tmp_path_factory.mktemp("proxy")) as address:
        yield address


@contextmanager
def proxy(name: str, api: ApiProcess, directory: Path) -> Iterator[str]:
    """Runs a proxy in front of the API; gives its address. Only addresses, names and the log's path in its configuration are changed."""
    program, port = program_of(name), free_port()
    text = CONFIGURATIONS[name].read_text()
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{api.port}",
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        f"/var/log/{name}/sitelink.log": str(directory / ACCESS_LOG),
    }
    if name == "caddy":
        changes["http://localhost:8080"] = f"http://{HOST}:{port}"
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    directory.chmod(0o755)
    environ = {**os.environ, "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([program, *command_of(name, directory, text)], stderr=log, env=environ)
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
    """Uploads a PDF through the proxy."""
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
    """The proxy has no limit on a body of its own."""
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


async def test_one_request_id_for_both(http: httpx2.AsyncClient, site: str) -> None:
    """The proxy takes the client's id or makes one."""
    given = await http.get(f"{site}/livez", headers={"X-Request-ID": "mine-7"})
    assert given.headers["x-request-id"] == "mine-7"
    made = await asyncio.gather(*(http.get(f"{site}/livez") for _ in range(2)))
    assert len({answer.headers["x-request-id"] for answer in made}) == 2


async def test_clients_have_their_own_address(http: httpx2.AsyncClient, name: str, temporal_server: TemporalServer, tmp_path: Path) -> None:
    """The API counts the requests of the address that the proxy sees: not those of the proxy, nor of an address that a client made up."""
    directory = tmp_path / "proxy"
    directory.mkdir()
    limited = running(tmp_path / "api", temporal_server.address, SITELINK_LIMIT_ADDRESS="2/hour")
    with limited as api, proxy(name, api, directory) as site:
        answers = [await http.get(site, headers={"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "127.0.0.1" in answers[-1].json()["detail"]
        own = await http.get(f"http://127.0.0.1:{api.port}/", headers={"X-Forwarded-For": "192.0.2.9"})
        assert own.status_code == 200


async def test_log_holds_no_ticket(http: httpx2.AsyncClient, name: str, api: ApiProcess, tmp_path: Path) -> None:
    """It has the path and the request id, and no query: whoever reads the log must not be able to use the tickets in it."""
    with proxy(name, api, tmp_path) as site:
        await http.get(
            f"{site}/livez", params={"ticket": "a-secret"}, headers={"X-Request-ID": "mine-8", "Referer": f"{site}/?ticket=a-secret"}
        )
    log = (tmp_path / ACCESS_LOG).read_text()
    assert LOGGED[name] in log
    assert "mine-8" in log
    assert "a-secret" not in log
