"""``python -m worker workflow``, ``tile`` or ``events``: one worker process of a role."""

import argparse
import asyncio
import logging
import os
import signal
import sys

from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from activities.errors import SiteLinkError, TemporalUnavailable
from activities.logs import set_up
from activities.scratch import ScratchInUse
from api.r2.pull import run_events_role
from api.r2.settings import EventsSettings
from worker.app import run_tile_role, run_workflow_role
from worker.settings import WorkerSettings

NICENESS = 10
"""Rendering gives way to everything else on the machine."""

logger = logging.getLogger("worker")


async def _run(role: str, settings: WorkerSettings, events: EventsSettings | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if events is not None:
        logger.info("%s worker runs", role)
        await run_events_role(lambda: _connect(lazy=True), events, settings.bucket, stop)
    else:
        try:
            client = await _connect(lazy=False)
        except RuntimeError as error:
            raise TemporalUnavailable(str(error)) from error
        logger.info("%s worker runs", role)
        if role == "workflow":
            await run_workflow_role(client, stop)
        else:
            await run_tile_role(client, settings, stop)
    logger.info("%s worker stopped", role)


async def _connect(*, lazy: bool) -> Client:
    connection = ClientConfig.load_client_connect_config()
    connection.setdefault("target_host", "127.0.0.1:7233")
    return await Client.connect(**connection, lazy=lazy)


def _events_settings() -> EventsSettings:
    settings = EventsSettings.from_env(os.environ)
    if settings is None:
        msg = "SITELINK_EVENTS_ACCOUNT, SITELINK_EVENTS_QUEUE and SITELINK_EVENTS_TOKEN are not set: there is no queue to take events from"
        raise ValueError(msg)
    return settings


def main() -> int:
    """Runs until SIGTERM or SIGINT; returns the exit code: 0, 2 for wrong settings, 3 when Temporal is not reached."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Runs one worker process.")
    meaning = "workflow decides; tile renders, uploads and talks to the bucket; events takes R2's event notifications from a queue"
    parser.add_argument("role", choices=("workflow", "tile", "events"), help=meaning)
    role = parser.parse_args().role
    try:
        set_up(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        settings = WorkerSettings.from_env(os.environ)
        if role == "tile":
            os.nice(NICENESS)
        asyncio.run(_run(role, settings, _events_settings() if role == "events" else None))
    except TemporalUnavailable as error:
        logger.error("Temporal is not reached: %s", error)
        return 3
    except (ValueError, ScratchInUse, SiteLinkError) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    os.umask(0o077)  # plans are nobody else's business
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # The client's native threads may abort the interpreter's own exit: https://github.com/temporalio/sdk-python/issues/300
    os._exit(code)
