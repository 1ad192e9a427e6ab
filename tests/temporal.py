"""Clients of the Temporal server that the tests of a process share."""

import warnings
from contextlib import suppress
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from deploy.temporal import TemporalServer


def lose_database(directory: Path) -> None:
    """Removes the database of a server that does not run, with the files beside it."""
    for path in directory.glob("temporal.db*"):
        path.unlink()


async def idle_client(server: TemporalServer) -> Client:
    """A client of a server on which no workflow runs: the workers of a test would take the workflows that an earlier test has left.

    A server on a slow disk was seen to say that its only namespace does not exist, until the end: it takes an error of its database for
    an absent row. Such a server is started again on its file, with a warning that has the end of its log.
    https://github.com/temporalio/temporal/blob/v1.29.1/common/namespace/nsregistry/registry.go (``getNamespaceByNamePersistence``)
    """
    client = await Client.connect(server.address, identity="test")
    try:
        await _end_runs(client)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(f"the Temporal server has lost its namespace: {error}\n{server.process.tail(40)}", stacklevel=2)
        server.stop()
        server.start()
        await _end_runs(client)
    return client


async def _end_runs(client: Client) -> None:
    async for run in client.list_workflows("ExecutionStatus = 'Running'"):
        with suppress(RPCError):  # it has ended by itself
            await client.get_workflow_handle(run.id, run_id=run.run_id).terminate()
