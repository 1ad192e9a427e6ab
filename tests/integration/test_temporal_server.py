"""The Temporal server on its SQLite file."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from temporalio.client import Client

from deploy.temporal import TemporalServer
from workflows.messages import SEARCH_ATTRIBUTES

LISTENING = "0A"
"""A state in /proc/net/tcp."""


@pytest.fixture
def server(temporal_binary: Path, tmp_path: Path) -> Iterator[TemporalServer]:
    """A server that a test may kill."""
    server = TemporalServer(temporal_binary, tmp_path / "temporal.db")
    server.start()
    yield server
    server.stop()


def search_attributes(server: TemporalServer) -> set[str]:
    """Those that the namespace knows besides its own."""
    with urlopen(f"{server.ui_url}/api/v1/namespaces/default/search-attributes", timeout=10) as response:  # noqa: S310 - ours
        return set(json.load(response)["customAttributes"])


async def test_started_workflow_survives_kills(server: TemporalServer) -> None:
    """What the server acknowledged is there after SIGKILL and a start on the same file and ports, each time."""
    address = server.address
    client = await Client.connect(address)
    for number in range(3):
        await client.start_workflow("Nobody", id=f"kept-{number}", task_queue="nobody")
        server.kill()
        server.start()
        assert server.address == address
        for earlier in range(number + 1):
            assert (await client.get_workflow_handle(f"kept-{earlier}").describe()).workflow_type == "Nobody"


def listening_ports(directory: Path) -> set[int]:
    """The ports on which the process with this working directory listens."""
    sockets = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == directory:
                sockets |= {str(file.readlink()) for file in (process / "fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in sockets}


def test_http_api_answers_nobody(server: TemporalServer, tmp_path: Path) -> None:
    """A page of another site, under a host name of its own that leads here, gets nothing from the HTTP API."""
    ports = listening_ports(tmp_path) - {urlsplit(server.ui_url).port}
    refusals = 0
    for port in ports:
        for host in ("evil.example", f"localhost:{port}", f"127.0.0.1:{port}"):
            try:
                urlopen(Request(f"http://127.0.0.1:{port}/api/v1/namespaces/default", headers={"Host": host}), timeout=10)
                pytest.fail(f"port {port} answers to {host}")
            except HTTPError as error:
                refusals += error.code == 403
            except OSError:
                pass  # another protocol
    assert (len(ports) > 2, refusals) == (True, 3)


def test_search_attributes_are_known_after_every_start(server: TemporalServer) -> None:
    """The namespace knows the attributes of the design, on a new database and on an old one."""
    assert search_attributes(server) == set(SEARCH_ATTRIBUTES)
    server.stop()
    server.start()
    assert search_attributes(server) == set(SEARCH_ATTRIBUTES)


def test_half_made_database_is_made_again(temporal_binary: Path, tmp_path: Path) -> None:
    """A server that was killed while it made its tables starts the next time."""
    (tmp_path / "temporal.db").touch()
    server = TemporalServer(temporal_binary, tmp_path / "temporal.db")
    server.start()
    assert search_attributes(server) == set(SEARCH_ATTRIBUTES)
    server.stop()
