"""A client of a real Temporal server, and an upload of its own for every test."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from deploy.temporal import TemporalServer
from tests.temporal import idle_client


@pytest.fixture(scope="module")
def forgetful_server(temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server that suggests continue-as-new after 60 events."""
    server = TemporalServer(
        temporal_binary,
        tmp_path_factory.mktemp("forgetful") / "temporal.db",
        dynamic_config={"limit.historyCount.suggestContinueAsNew": "60"},
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(temporal_server: TemporalServer) -> Client:
    """A client of the real server."""
    return await idle_client(temporal_server)


@pytest.fixture
def ref() -> UploadRef:
    """An upload of its own for every test."""
    return UploadRef("acme", "tower", "a1", secrets.token_hex(8))
