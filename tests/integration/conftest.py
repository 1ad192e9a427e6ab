"""Clients of the real servers."""

from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2
import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from deploy.temporal import TemporalServer
from workflows.upload import ProcessUpload


@pytest.fixture
async def temporal(temporal_server: TemporalServer) -> Client:
    """A client of the real server, on which no upload runs: the workers of this test would take what an earlier test has left."""
    client = await Client.connect(temporal_server.address)
    async for run in client.list_workflows(f"WorkflowType = '{ProcessUpload.__name__}' AND ExecutionStatus = 'Running'"):
        with suppress(RPCError):  # it has ended by itself
            await client.get_workflow_handle(run.id, run_id=run.run_id).terminate()
    return client


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client."""
    async with httpx2.AsyncClient(timeout=120, trust_env=False) as client:
        yield client
