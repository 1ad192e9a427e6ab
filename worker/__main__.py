"""``python -m worker workflow``, ``tile`` or ``webhook``: runs one worker process."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from activities.attempt import background_task
from activities.errors import SiteLinkError, TemporalUnavailable
from activities.logs import set_up
from activities.metrics import HostMetrics
from activities.program import give_way, hide_memory, keep_what_is_loaded, run, stop_request
from activities.scratch import ScratchInUse
from activities.sealing import PasswordSeal
from activities.telemetry import Health, MetricsSettings, TemporalMetrics, new_registry, serve, watch_event_loop
from activities.tracing.settings import Tracing, start_tracing
from worker.app import run_tile_role, run_webhook_role, run_workflow_role
from worker.metrics import WorkerMetrics
from worker.settings import WebhookRoleSettings, WorkerSettings, deployment_version
from workflows.codec import codec_keys
from workflows.connection import connect
from workflows.processing.metrics import begin_counters

NICENESS = 10
"""Rendering gives way to everything else on the machine."""
GROUP_NICENESS = 5
"""The niceness of the tile worker's session. At 5, an API gets three times its CPU. At 10, a busy program would get ten times as much."""

logger = logging.getLogger("worker")


async def _run(
    role: str,
    settings: WorkerSettings | WebhookRoleSettings,
    keys: Sequence[bytes],
    metrics_settings: MetricsSettings,
    tracing: Tracing,
) -> None:
    stop = stop_request()
    registry = new_registry(role)
    health = Health(watch_event_loop(registry))
    runtime, interceptors = None, [*tracing.interceptors]
    metrics = WorkerMetrics(registry, has_workflows=role == "workflow")
    if address := serve(registry, metrics_settings, health):
        logger.info("metrics are at %s", address)
        runtime = TemporalMetrics(registry).runtime
        interceptors.append(metrics)
    try:
        client = await connect(keys, lazy=False, runtime=runtime, interceptors=interceptors)
    except RuntimeError as error:
        raise TemporalUnavailable(str(error)) from error
    if runtime is not None and role == "workflow":
        begin_counters(runtime.metric_meter, client.namespace)
    keep_what_is_loaded()
    logger.info("%s worker runs%s", role, "" if role == "tile" else ", and opens no document")
    if isinstance(settings, WebhookRoleSettings):
        await run_webhook_role(client, settings, stop, health)
    elif role == "workflow":
        async with AsyncExitStack() as tasks:
            for keep_counting in (metrics.forget_gone_runs, metrics.find_open_runs) if runtime is not None else ():
                await tasks.enter_async_context(background_task(keep_counting(client)))
            await run_workflow_role(client, stop, health, deployment_version(os.environ))
    else:
        await run_tile_role(client, settings, stop, PasswordSeal(keys), HostMetrics(registry, tracing.spans), health)
    logger.info("%s worker stopped", role)


def main() -> int:
    """Runs a worker until SIGTERM or SIGINT. Returns the exit code: 0; 2 for wrong settings; 3 when Temporal is not reached."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Runs one worker process.")
    parser.add_argument(
        "role",
        choices=("workflow", "tile", "webhook"),
        help="workflow runs the workflows; tile renders pages, uploads tiles and does most work with the bucket; webhook sends webhooks",
    )
    role = parser.parse_args().role
    try:
        set_up(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        settings = (WebhookRoleSettings if role == "webhook" else WorkerSettings).from_env(os.environ)
        if role == "tile":
            give_way(NICENESS, GROUP_NICENESS)
        hide_memory()
        keys, metrics_settings = codec_keys(os.environ), MetricsSettings.from_env(os.environ)
        tracing = start_tracing(os.environ, role)
        try:
            asyncio.run(_run(role, settings, keys, metrics_settings, tracing))
        finally:
            tracing.stop()
    except TemporalUnavailable as error:
        logger.error("Temporal is not reached: %s", error)
        return 3
    except (ValueError, ScratchInUse, SiteLinkError) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    run(main)
