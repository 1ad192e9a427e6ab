"""Clients of the real servers."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from temporalio.client import Client

from deploy.temporal import TemporalServer
from tests.temporal import idle_client


@pytest.fixture
async def temporal(temporal_server: TemporalServer) -> Client:
    """A client of the real server."""
    return await idle_client(temporal_server)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client."""
    async with httpx2.AsyncClient(timeout=120, trust_env=False) as client:
        yield client
