"""Attacks on ``python -m api`` that are meant to use it up, each with small numbers and bounded memory."""

import asyncio
import resource
from collections.abc import Iterator

import httpx2
import pytest

from tests.integration.test_api import ApiProcess, running
from tests.unit.api_server import RawConnection

NO_TEMPORAL = "127.0.0.1:1"
DESCRIPTORS = 256


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API process without Temporal, with few descriptors and small limits."""
    directory = tmp_path_factory.mktemp("exhaustion") / "api"
    with running(directory, NO_TEMPORAL, SITELINK_MAX_CONNECTIONS="64") as process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        yield process


async def test_half_sent_requests_use_up_no_descriptors(http: httpx2.AsyncClient, api: ApiProcess) -> None:
    """``/livez`` answers while more requests are half sent than the process has descriptors."""
    half = await asyncio.gather(*(RawConnection.open(api.port, "GET /livez HTTP/1.1\r\nX-Half: ") for _ in range(DESCRIPTORS + 50)))
    try:
        for _ in range(3):
            answer = await http.get(f"{api.url}/livez", headers={"Connection": "close"}, timeout=20)
            assert answer.status_code == 200
    finally:
        for connection in half:
            connection.close()
