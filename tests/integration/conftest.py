"""Clients of the real servers."""

from collections.abc import AsyncIterator

import httpx2 as httpx
import pytest
from temporalio.client import Client

from deploy.temporal import TemporalServer


@pytest.fixture
async def temporal(temporal_server: TemporalServer) -> Client:
    """A client of the real server."""
    return await Client.connect(temporal_server.address)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client."""
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        yield client
