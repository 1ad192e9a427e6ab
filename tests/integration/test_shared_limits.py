"""Two API processes that count requests in one Redis server."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from deploy.process import free_port
from deploy.temporal import TemporalServer
from tests.integration.test_api import ApiProcess, running
from tests.missing import miss
from tests.unit.api_fakes import BASE
from tests.waiting import DEADLINE_S, until

PASSWORD = "in-a-file-" + "r" * 32


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Redis server that asks for a password, and its port. Without it a test run on CI fails; elsewhere its tests are skipped."""
    program = shutil.which("redis-server")
    if program is None:
        reason = "No redis-server here; on Debian: apt-get install redis-server."
        miss(reason)
    port, settings, log = free_port(), tmp_path / "redis.conf", tmp_path / "redis.log"
    settings.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {PASSWORD}\nsave ""\ndir {tmp_path}\nlogfile {log}\n')
    with subprocess.Popen([program, str(settings)], stdout=subprocess.DEVNULL) as server:
        try:
            until(lambda: log.exists() and "Ready to accept connections" in log.read_text())
            yield server, port
        finally:
            with suppress(ProcessLookupError):
                server.kill()


def shown_by(api: ApiProcess) -> str:
    """The log, the command line and the environment of the API. Only root may read the environment; for other users it is empty here."""
    environ = Path(f"/proc/{api.pid}/environ").read_text() if os.geteuid() == 0 else ""
    return api.log.read_text() + environ + api.title


async def test_two_processes_share_a_limit(
    redis: tuple[subprocess.Popen[bytes], int], temporal_server: TemporalServer, tmp_path: Path, http: httpx2.AsyncClient
) -> None:
    """What an organization sends to one counts at the other. Without the server nobody is refused; its password is in no log."""
    server, port = redis
    (tmp_path / "storage").write_text(f"redis://:{PASSWORD}@127.0.0.1:{port}\n")
    settings = {"SITELINK_LIMITS_STORAGE_FILE": str(tmp_path / "storage"), "SITELINK_LIMIT_ORGANIZATION": "4/hour"}
    with (
        running(tmp_path / "one", temporal_server.address, **settings) as one,
        running(tmp_path / "two", temporal_server.address, **settings) as two,
    ):
        both = [one.url + BASE, two.url + BASE]
        assert [(await http.get(url)).status_code for url in both * 3] == [200] * 4 + [429] * 2
        assert (await http.get(both[0].replace("acme", "other"))).status_code == 200
        server.send_signal(signal.SIGKILL)
        server.wait(DEADLINE_S)
        assert [(await http.get(url)).status_code for url in both] == [200] * 2
        for api in (one, two):
            assert "the counters of requests do not answer" in api.log.read_text()
            assert PASSWORD not in shown_by(api)
