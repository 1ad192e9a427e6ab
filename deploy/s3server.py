"""A real S3 server on this machine for tests and trials: versitygw over a directory. A bucket of your own needs none of this."""

# ruff: noqa: S603 - the program is found here, its arguments are ours

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from deploy.process import Process, free_port
from deploy.programs import get, go_install, installed

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.7.0"
HEALTH = "/health"
START_LIMIT_S = 60
STOP_LIMIT_S = 10


class NoS3Server(Exception):
    """No program of an S3 server can be had; the message says what to do."""


def s3_server_binary(cache: Path, *, say: Callable[[str], None]) -> Path:
    """Finds the program ``versitygw`` on the PATH, in the cache or where Go installs, else lets Go build it.

    Args:
        cache: Directory where a program may have been put.
        say: Gets a sentence about anything that takes time.

    Raises:
        NoS3Server: It is not there and cannot be built.
    """
    if binary := installed_s3_server(cache):
        return binary
    advice = (
        "Install Go (https://go.dev/dl) or versitygw (https://github.com/versity/versitygw), so that one is on the PATH, and start again."
    )
    go = shutil.which("go")
    if go is None:
        msg = f"No S3 server here: `versitygw` is not on the PATH, and there is no Go to build it. {advice}"
        raise NoS3Server(msg)
    say(f"building an S3 server: go install {MODULE} (about 2 minutes the first time)")
    # Without C it is one static file, which an empty container can run.
    failure = go_install(go, MODULE, say=say, environ={"CGO_ENABLED": "0"})
    binary = installed_s3_server(cache)
    if failure is not None or binary is None:
        msg = f"Building the S3 server failed:\n{failure or 'Go has installed it where it is not found'}\n{advice}"
        raise NoS3Server(msg)
    return binary


def installed_s3_server(cache: Path) -> Path | None:
    """Finds the program where ``s3_server_binary`` looks first; None when it would have to be built."""
    for candidate in installed("versitygw", cache):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([candidate, "--version"], capture_output=True, timeout=30, check=True)
            return candidate
    return None


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
        directory: Its buckets are directories in here; made if absent.
        access_key_id: Of its one user.
        secret_access_key: Of its one user.
        access_log: Gets a line for every request; default: none is written.
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
        """Its address for clients."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it, on the same port and directory as before, and returns when it answers.

        Raises:
            NoS3Server: It ended, or does not answer in time.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self.process.start()
        wait_until_healthy(self.endpoint, lambda: self.process.is_running, self.process.tail)

    def stop(self) -> None:
        """Asks it to stop, and kills it when it does not within seconds."""
        self.process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_S
        while self.process.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        self.process.kill()


def wait_until_healthy(endpoint: str, is_running: Callable[[], bool], log: Callable[[], str]) -> None:
    """Returns when the server answers.

    Args:
        endpoint: Its address.
        is_running: Says whether it can still come to answer.
        log: Gives the end of its log.

    Raises:
        NoS3Server: It ended, or does not answer in time.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and is_running():
        # No proxy is asked for a server on this machine.
        with suppress(OSError), build_opener(ProxyHandler({})).open(endpoint + HEALTH, timeout=5):
            return
        time.sleep(0.05)
    what = f"does not answer after {START_LIMIT_S} s" if is_running() else "ended"
    msg = f"the S3 server {what}; the end of its log:\n{log()}"
    raise NoS3Server(msg)


if __name__ == "__main__":
    sys.exit(get("S3 server", s3_server_binary, NoS3Server))
