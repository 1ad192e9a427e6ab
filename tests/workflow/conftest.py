"""A client of a real Temporal server, and an upload of its own for every test."""

import secrets

import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from deploy.temporal import TemporalServer
from tests.temporal import idle_client


@pytest.fixture
async def client(temporal_server: TemporalServer) -> Client:
    """A client of the real server."""
    return await idle_client(temporal_server)


@pytest.fixture
def ref() -> UploadRef:
    """An upload of its own for every test."""
    return UploadRef("acme", "tower", "a1", secrets.token_hex(8))
