"""What every kind of test may ask for: a Temporal server, the whole stack, a free port."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import process
from deploy.temporal import CACHE, NoTemporal, TemporalServer
from deploy.temporal import temporal_binary as find_temporal_binary


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    return process.free_port()


@pytest.fixture(scope="session")
def temporal_binary() -> Path:
    """The program of the Temporal server. Without one a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    said: list[str] = []
    try:
        return find_temporal_binary(CACHE, say=said.append)
    except NoTemporal as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(" ".join([*said, str(error)]))


@pytest.fixture(scope="session")
def temporal_server(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A Temporal server with its own database, for the whole run."""
    server = TemporalServer(temporal_binary, tmp_path_factory.mktemp("temporal") / "temporal.db")
    server.start()
    yield server
    server.stop()
