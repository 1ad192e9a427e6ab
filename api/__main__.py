"""``python -m api``: the API on a socket of this machine's loopback."""

import logging
import os
import signal
import socket
import sys

import uvicorn
from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from activities.bucket.storage import Bucket
from activities.errors import BucketError
from activities.logs import set_up
from api.app import create_app
from api.settings import ApiSettings

logger = logging.getLogger("api")

DEFAULT_TEMPORAL = "127.0.0.1:7233"
GRACE_S = 3
WRONG_USE = 2


async def connect() -> Client:
    """The Temporal client of the environment; it reaches for the server at its first call."""
    config = ClientConfig.load_client_connect_config()
    config["target_host"] = config.get("target_host") or DEFAULT_TEMPORAL
    return await Client.connect(**config, lazy=True)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; with port 0 on a free port.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen()  # so that whoever reads "listening on" in the log is not refused while the server still starts
    return listener


def main() -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        The exit code: 2 for a setting that cannot be used, 1 for a server that could not start.
    """
    try:
        set_up(os.environ)
        settings = ApiSettings.from_env(os.environ)
        bucket = Bucket(settings.bucket)
        listener = bind(settings.host, settings.port)
    except (ValueError, BucketError) as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_USE
    except OSError as error:
        sys.stderr.write(f"SITELINK_HOST {settings.host}, SITELINK_PORT {settings.port}: {error.strerror}\n")
        return WRONG_USE
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(bucket, connect, settings),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    # uvicorn raises the signal again when it is done, for the handlers that were there before: without these it would end the process
    # by the signal and not by its exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    logger.info("listening on http://%s:%d", host, listener.getsockname()[1])
    server.run(sockets=[listener])
    return 0 if server.started else 1


if __name__ == "__main__":
    os.umask(0o077)  # plans are nobody else's business
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own exit can crash in temporalio's native library: https://github.com/temporalio/sdk-python/issues/300
    os._exit(code)
