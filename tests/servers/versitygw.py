"""A real S3 server on this machine: versitygw on a directory. ``python -m tests.servers.versitygw`` gets the program."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from deploy.process import Process, free_port
from deploy.programs import build, find_working, get

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.7.0"
HEALTH = "/health"
START_LIMIT_S = 60
STOP_LIMIT_S = 10


class NoS3Server(Exception):
    """The S3 server's program cannot be found or built, or the server does not start; the message says what to do."""


def s3_server_binary(cache: Path, *, say: Callable[[str], None]) -> Path:
    """Finds the program ``versitygw`` on the PATH, in the cache or in Go's directories, else lets Go build it.

    Args:
        cache: A directory that may hold the program.
        say: Gets a sentence about each step that takes time.

    Raises:
        NoS3Server: The program is not found and cannot be built.
    """
    if binary := installed_s3_server(cache):
        return binary
    advice = (
        "Install Go (https://go.dev/dl) or versitygw (https://github.com/versity/versitygw), check that it is on the PATH, and start again."
    )
    # Built without C it is one static file, which an empty container can run.
    environ = {"CGO_ENABLED": "0"}
    return build("S3 server", MODULE, lambda: installed_s3_server(cache), NoS3Server, advice=advice, say=say, environ=environ)


def installed_s3_server(cache: Path) -> Path | None:
    """Finds the program without building it; None when it is not installed."""
    return find_working("versitygw", cache, "--version")


def options(listen: str) -> list[str]:
    """The server's arguments before its backend.

    Args:
        listen: Host and port.
    """
    return ["--port", listen, "--keep-alive", "--quiet", "--health", HEALTH]


class S3Server:
    """versitygw on a directory, as a process; reachable from this machine only.

    Args:
        binary: The program.
        directory: Every bucket is a directory in it; made if absent.
        access_key_id: The access key of the server's one user.
        secret_access_key: The secret key of that user.
        access_log: The file that gets a line for every request; default: no such file.
    """

    def __init__(
        self, binary: Path, directory: Path, *, access_key_id: str, secret_access_key: str, access_log: Path | None = None
    ) -> None:
        self._port = free_port()
        self._directory = directory.absolute()
        command = [str(binary), *options(f"127.0.0.1:{self._port}")]
        command += ["--access-log", str(access_log)] if access_log else []
        environ = {**os.environ, "ROOT_ACCESS_KEY": access_key_id, "ROOT_SECRET_KEY": secret_access_key}
        log = self._directory.with_name(self._directory.name + ".log")
        self.process = Process([*command, "posix", str(self._directory)], log=log, environ=environ)

    @property
    def endpoint(self) -> str:
        """The server's address for clients."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts the server, always on the same port and directory, and returns when it answers.

        Raises:
            NoS3Server: The server ended, or does not answer in time.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self.process.start()
        wait_until_healthy(self.endpoint, lambda: self.process.is_running, self.process.tail)

    def stop(self) -> None:
        """Asks the server to stop, and kills it after some seconds."""
        self.process.stop(STOP_LIMIT_S)


def wait_until_healthy(endpoint: str, is_running: Callable[[], bool], log: Callable[[], str]) -> None:
    """Returns when the server answers.

    Args:
        endpoint: The server's address.
        is_running: Tells whether the server still runs.
        log: Gives the end of the server's log.

    Raises:
        NoS3Server: The server ended, or does not answer in time.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and is_running():
        # A server on this machine is reached without a proxy.
        with suppress(OSError), build_opener(ProxyHandler({})).open(endpoint + HEALTH, timeout=5):
            return
        time.sleep(0.05)
    state = f"does not answer after {START_LIMIT_S} s" if is_running() else "ended"
    msg = f"the S3 server {state}; the end of its log:\n{log()}"
    raise NoS3Server(msg)


if __name__ == "__main__":
    sys.exit(get("S3 server", s3_server_binary, NoS3Server))
