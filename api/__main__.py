"""``python -m api`` serves the API on this machine's loopback; ``python -m api events`` takes R2 events from a queue."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from activities.errors import BucketError, SiteLinkError
from activities.logs import set_up
from activities.program import hide_memory, keep_what_is_loaded, run, stop_request
from activities.render.confinement import check_decoder
from activities.telemetry import Health, MetricsSettings, TemporalMetrics, host_in_url, new_registry, watch_event_loop
from activities.telemetry import serve as serve_metrics
from activities.tracing.settings import Tracing, start_tracing
from api.app import create_app
from api.http.connections import BoundedServer, ConnectionLimits, possible_connections
from api.metrics import r2_event_counter
from api.r2.settings import PullSettings
from api.settings import ApiSettings
from workflows.codec import codec_keys
from workflows.connection import connect, connection_settings

logger = logging.getLogger("api")

GRACE_S = 3
OK, FAILED, WRONG_USE = 0, 1, 2


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0 picks a free port.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen()  # so that no client that has read "listening on" in the log is refused while the server starts
    return listener


def serve() -> int:
    """Serves the API until SIGTERM or SIGINT.

    Returns:
        The exit code: 2 for a setting that cannot be used, 1 for a server that could not start.
    """
    try:
        settings = ApiSettings.from_env(os.environ)
        connection_settings(os.environ)  # a server that connects later must not learn only then that they are wrong
        limits = ConnectionLimits(possible_connections(settings.max_connections))
        check_decoder(must_confine=settings.must_confine)
        bucket = Bucket(settings.bucket)
        registry = new_registry("api")
        metrics_address = serve_metrics(registry, MetricsSettings.from_env(os.environ))
        runtime = TemporalMetrics(registry).runtime
        listener = bind(settings.host, settings.port)
        tracing = start_tracing(os.environ, "api")
        connect_later = partial(connect, settings.codec_keys, lazy=True, runtime=runtime, interceptors=tracing.interceptors)
        app = create_app(bucket, connect_later, settings, registry, tracing.tracer)
    except (ValueError, BucketError) as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_USE
    except OSError as error:
        sys.stderr.write(f"SITELINK_HOST {settings.host}, SITELINK_PORT {settings.port}: {error.strerror}\n")
        return WRONG_USE
    server = BoundedServer(app, limits, GRACE_S, app.state.stop, settings.proxies)
    # After uvicorn has stopped, it raises the signal again for the earlier handlers. The default handler would end the process and lose
    # the exit code, so uvicorn's own handler is set here as the earlier one.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    keep_what_is_loaded()
    if metrics_address:
        logger.info("metrics are at %s", metrics_address)
    logger.info("listening on http://%s:%d", host_in_url(settings.host), listener.getsockname()[1])
    server.run(sockets=[listener])
    tracing.stop()
    return OK if server.started else FAILED


def consume() -> int:
    """Takes R2 events from the queue until SIGTERM or SIGINT.

    Returns:
        The exit code: 2 for a setting that is missing or cannot be used.
    """
    try:
        settings = PullSettings.from_env(os.environ)
        connection_settings(os.environ)
        if settings is None:
            names = "SITELINK_EVENTS_ACCOUNT, SITELINK_EVENTS_QUEUE and SITELINK_EVENTS_TOKEN"
            msg = f"{names} are not set: there is no queue to take events from"
            raise ValueError(msg)
        metrics_settings, keys = MetricsSettings.from_env(os.environ), codec_keys(os.environ)
        bucket_settings = BucketSettings.from_env(os.environ)
        tracing = start_tracing(os.environ, "events")
        asyncio.run(_consume(metrics_settings, settings, bucket_settings, keys, tracing))
        tracing.stop()
    except (ValueError, SiteLinkError) as error:
        logger.error("%s", error)
        return WRONG_USE
    return OK


async def _consume(
    metrics_settings: MetricsSettings, settings: PullSettings, bucket_settings: BucketSettings, keys: Sequence[bytes], tracing: Tracing
) -> None:
    from api.r2.pull import take_events  # imported here, because it loads an HTTP client that the server does not need

    stop = stop_request()
    registry = new_registry("events")
    health = Health(watch_event_loop(registry))
    if address := serve_metrics(registry, metrics_settings, health):
        logger.info("metrics are at %s", address)
    logger.info("takes R2 events from a queue, and opens no document")
    readiness = asyncio.create_task(health.ready_until(stop))
    try:
        client = partial(connect, keys, lazy=True, interceptors=tracing.interceptors)
        await take_events(client, settings, bucket_settings, stop, r2_event_counter(registry))
    finally:
        readiness.cancel()
    logger.info("takes no R2 events any more")


def main() -> int:
    """Runs the program that the arguments name; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m api", description="Serves the API, or takes R2 events from a queue.")
    parser.add_argument("program", choices=("events",), nargs="?", help="events: take R2 events from a queue; default: serve the API")
    program = parser.parse_args().program
    hide_memory()
    try:
        set_up(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_USE
    return consume() if program == "events" else serve()


if __name__ == "__main__":
    run(main)
