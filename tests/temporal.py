"""Clients of the Temporal server that the tests of a process share."""

from contextlib import suppress

from temporalio.client import Client
from temporalio.service import RPCError

from deploy.temporal import TemporalServer


async def idle_client(server: TemporalServer) -> Client:
    """A client of a server on which no workflow runs: the workers of a test would take the workflows that an earlier test has left."""
    client = await Client.connect(server.address, identity="test")
    async for run in client.list_workflows("ExecutionStatus = 'Running'"):
        with suppress(RPCError):  # it has ended by itself
            await client.get_workflow_handle(run.id, run_id=run.run_id).terminate()
    return client
