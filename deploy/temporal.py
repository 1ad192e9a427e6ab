"""A real Temporal server on this machine: where its program comes from, and how it runs on a SQLite file."""

# ruff: noqa: S603 - the programs are found here, their arguments are ours

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from deploy.process import Process, free_port
from deploy.programs import get, go_install, installed
from workflows.messages import SEARCH_ATTRIBUTES

CLI_VERSION = "v1.5.1"
CLI_MODULE = f"github.com/temporalio/cli/cmd/temporal@{CLI_VERSION}"
OLDEST_SERVER = (1, 29, 0)
"""Fairness between tenants is in no older one."""

DYNAMIC_CONFIG = {
    "matching.enableFairness": "true",
    # More partitions only add latency on one machine, and fairness holds within a partition.
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
}
"""https://github.com/temporalio/temporal/blob/v1.29.1/common/dynamicconfig/constants.go"""

PRAGMAS = ("journal_mode=WAL", "synchronous=2")
"""Every commit is on the disk before it is answered."""

DOWNLOAD_LIMIT_S = 90
START_LIMIT_S = 60
STOP_LIMIT_S = 10
STARTS = 3

_DOWNLOAD = """\
import asyncio, sys
from temporalio.testing import WorkflowEnvironment

async def main():
    environment = await WorkflowEnvironment.start_local(download_dest_dir=sys.argv[1], dev_server_download_version=sys.argv[2])
    await environment.shutdown()

asyncio.run(main())
"""


class NoTemporal(Exception):
    """No program of a Temporal server can be had; the message says what to do."""


class TemporalFailed(Exception):
    """The server did not start; the message has the end of its log."""


def temporal_binary(cache: Path, *, say: Callable[[str], None]) -> Path:
    """Finds the program ``temporal``, or gets it.

    On the PATH, in the cache, where Go installs; else the SDK's own download; else built by Go.

    Args:
        cache: Directory for a downloaded program.
        say: Gets a sentence about anything that takes time or was passed over.

    Raises:
        NoTemporal: None of these worked.
    """
    return installed_binary(cache, say=say) or _download(cache, say) or _build(cache, say)


def installed_binary(cache: Path, *, say: Callable[[str], None]) -> Path | None:
    """Finds the program where ``temporal_binary`` looks first; None when it would have to be got."""
    for candidate in installed("temporal", cache):
        version = _server_version(candidate)
        if version is not None and version >= OLDEST_SERVER:
            return candidate
        if version is not None:
            found, wanted = (".".join(map(str, numbers)) for numbers in (version, OLDEST_SERVER))
            say(f"{candidate} is Temporal server {found}; at least {wanted} is wanted, looking further")
    return None


def _server_version(binary: Path) -> tuple[int, ...] | None:
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"Server (\d+)\.(\d+)\.(\d+)", said)
    return tuple(int(part) for part in match.groups()) if match else None


def _download(cache: Path, say: Callable[[str], None]) -> Path | None:
    """By the SDK, which downloads when it starts a server of its own: in a process of its own, for it cannot be interrupted."""
    say(f"getting a Temporal server: download of version {CLI_VERSION}, at most {DOWNLOAD_LIMIT_S} s")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            [sys.executable, "-c", _DOWNLOAD, str(cache), CLI_VERSION],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=DOWNLOAD_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    for file in cache.glob("temporal-*"):
        if _server_version(file) is not None:
            return file.replace(cache / "temporal")
    return None


def _build(cache: Path, say: Callable[[str], None]) -> Path:
    advice = (
        "Install the Temporal CLI (https://docs.temporal.io/cli/setup-cli) or Go (https://go.dev/dl), "
        "so that `temporal` or `go` is on the PATH, and start again."
    )
    go = shutil.which("go")
    if go is None:
        msg = (
            f"No Temporal server here: `temporal` is not on the PATH, it could not be downloaded, and there is no Go to build it. {advice}"
        )
        raise NoTemporal(msg)
    say(f"the download did not work; building it: go install {CLI_MODULE} (3 to 6 minutes the first time)")
    failure = go_install(go, CLI_MODULE, say=say)
    binary = installed_binary(cache, say=say)
    if failure is not None or binary is None:
        msg = f"Building the Temporal server failed:\n{failure or 'Go has installed it where it is not found'}\n{advice}"
        raise NoTemporal(msg)
    return binary


class TemporalServer:
    """``temporal server start-dev`` on a SQLite file that survives kills, with its UI; reachable from this machine only.

    It runs in the file's directory and is told its name alone: it puts what it is told into a URI as it is, so that a ``?``, ``#`` or ``%``
    in the path would name another file. https://github.com/temporalio/temporal/blob/v1.29.1/common/persistence/sql/sqlplugin/sqlite/plugin.go

    Args:
        binary: The program.
        database: The SQLite file, made if absent.
        port: Of the server; 0 picks a free one, which then stays.
        ui_port: Of its UI, likewise.
        dynamic_config: Settings of the server besides ours, as JSON values.
        log: Gets its output; default: beside the database.
    """

    def __init__(
        self,
        binary: Path,
        database: Path,
        *,
        port: int = 0,
        ui_port: int = 0,
        dynamic_config: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._binary = binary
        self._database = database.absolute()
        self._port = port or free_port()
        self._ui_port = ui_port or free_port()
        command = [
            str(binary.absolute()),
            *("server", "start-dev", "--ip", "127.0.0.1", "--port", str(self._port), "--ui-port", str(self._ui_port)),
            *("--db-filename", self._database.name, "--disable-config-env", "--disable-config-file"),
            *(argument for pragma in PRAGMAS for argument in ("--sqlite-pragma", pragma)),
            *(argument for name in SEARCH_ATTRIBUTES for argument in ("--search-attribute", f"{name}=Keyword")),
        ]
        for key, value in {**DYNAMIC_CONFIG, **(dynamic_config or {})}.items():
            command += ["--dynamic-config-value", f"{key}={value}"]
        log = log or self._database.with_suffix(".log")
        self.process = Process(command, log=log, environ=os.environ, directory=self._database.parent)

    @property
    def address(self) -> str:
        """Host and port for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def ui_url(self) -> str:
        """The address of its UI."""
        return f"http://127.0.0.1:{self._ui_port}"

    def start(self) -> None:
        """Starts it, on the same ports and database as before, and returns when it answers.

        Raises:
            TemporalFailed: It ended, or does not answer in time.
        """
        self._forget_half_made_database()
        # It takes some inner ports that it found free a moment before: another program may be quicker.
        for remaining in reversed(range(STARTS)):
            self.process.start()
            try:
                self._wait_until_it_answers()
                break
            except TemporalFailed:
                self.process.kill()
                if not remaining:
                    raise
        self._ready_mark.touch()
        self._add_search_attributes()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """Asks it to stop, and kills it when it does not within seconds."""
        self.process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_S
        while self.process.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        self.process.kill()

    @property
    def _ready_mark(self) -> Path:
        return self._database.with_name(self._database.name + ".ready")

    def _forget_half_made_database(self) -> None:
        """A server killed while it made its tables cannot start on them again; one that never answered holds nothing."""
        self._database.parent.mkdir(parents=True, exist_ok=True)
        if not self._ready_mark.exists():
            for suffix in ("", "-wal", "-shm"):
                self._database.with_name(self._database.name + suffix).unlink(missing_ok=True)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if not self.process.is_running:
                break
            # The UI's server asks the Temporal server, so this one answer speaks for both.
            with suppress(OSError, ValueError, URLError):
                self._get("/api/v1/namespaces/default")
                return
            time.sleep(0.05)
        what = f"does not answer after {START_LIMIT_S} s" if self.process.is_running else "ended"
        msg = f"the Temporal server {what}; the end of {self.process.log}:\n{self.process.tail()}"
        raise TemporalFailed(msg)

    def _add_search_attributes(self) -> None:
        """The server's flag only counts for a new database; an older release's has fewer."""
        deadline = time.monotonic() + START_LIMIT_S
        while missing := self._missing_search_attributes():
            if time.monotonic() > deadline:
                msg = f"the Temporal server does not take the search attributes {', '.join(missing)}"
                raise TemporalFailed(msg)
            each = [argument for name in missing for argument in ("--name", name, "--type", "Keyword")]
            create = ["operator", "search-attribute", "create", "--address", self.address, *each]
            with suppress(subprocess.TimeoutExpired):
                # Whether it worked is asked again: a server that has just started may list them a moment later, and refuse them as known.
                subprocess.run(
                    [self._binary, *create, "--disable-config-env", "--disable-config-file"],
                    check=False,
                    timeout=START_LIMIT_S,
                    capture_output=True,
                )

    def _missing_search_attributes(self) -> list[str]:
        known = self._get("/api/v1/namespaces/default/search-attributes", START_LIMIT_S).get("customAttributes", {})
        return [name for name in SEARCH_ATTRIBUTES if name not in known]

    def _get(self, path: str, timeout_s: float = 5) -> dict[str, Any]:
        # No proxy is asked for a server on this machine.
        with build_opener(ProxyHandler({})).open(self.ui_url + path, timeout=timeout_s) as response:
            document: dict[str, Any] = json.load(response)
            return document


if __name__ == "__main__":
    sys.exit(get("Temporal server", temporal_binary, NoTemporal))
