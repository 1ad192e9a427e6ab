"""A real Temporal server on this machine: finds or gets its program, and runs it on a SQLite file."""

# ruff: noqa: S603 - the programs are found here, with arguments from this file

import json
import os
import re
import secrets
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
from deploy.programs import build, get, installed
from workflows.messages import SEARCH_ATTRIBUTES

CLI_VERSION = "v1.5.1"
CLI_MODULE = f"github.com/temporalio/cli/cmd/temporal@{CLI_VERSION}"
OLDEST_SERVER = (1, 29, 0)
"""The first server with fairness between tenants."""

DYNAMIC_CONFIG = {
    "matching.enableFairness": "true",
    # More partitions only add latency on one machine, and fairness holds within a partition.
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
    # By default, a shard looks for new tasks 20 times a second at most: under load each step of a run waits for up to 50 ms.
    "history.transferProcessorMaxPollRPS": "1000",
    "history.timerProcessorMaxPollRPS": "1000",
    # With more workers, the activities that a run schedules together reach their queue in any order, the last ones mostly first.
    "history.transferProcessorSchedulerWorkerCount": "1",
    # The server's HTTP API is not used. No Host is this one, so the API refuses every request, also that of a browser's page.
    "frontend.httpAllowedHosts": '["none.invalid"]',
}
"""https://github.com/temporalio/temporal/blob/v1.29.1/common/dynamicconfig/constants.go"""

PRAGMAS = ("journal_mode=WAL", "synchronous=2")
"""The server answers only after a commit is on the disk."""

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
    """The Temporal server's program cannot be found, downloaded or built; the message says what to do."""


class TemporalFailed(Exception):
    """The server did not start; the message has the end of its log."""


def temporal_binary(cache: Path, *, say: Callable[[str], None]) -> Path:
    """Finds the program ``temporal`` on the PATH, in the cache or in Go's directories; else downloads it; else builds it with Go.

    Args:
        cache: The directory for a downloaded program.
        say: Gets a sentence about each step that takes time, and about each program that is too old.

    Raises:
        NoTemporal: No program was found, and neither download nor build worked.
    """
    return installed_binary(cache, say=say) or _download(cache, say) or _build(cache, say)


def installed_binary(cache: Path, *, say: Callable[[str], None]) -> Path | None:
    """Finds the program without downloading or building it; None when it is not installed."""
    for candidate in installed("temporal", cache):
        version = _server_version(candidate)
        if version is not None and version >= OLDEST_SERVER:
            return candidate
        if version is not None:
            found, oldest = (".".join(map(str, numbers)) for numbers in (version, OLDEST_SERVER))
            say(f"{candidate} is Temporal server {found}, which is too old: SiteLink needs {oldest} or newer. Looking for another one.")
    return None


def _server_version(binary: Path) -> tuple[int, ...] | None:
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"Server (\d+)\.(\d+)\.(\d+)", said)
    return tuple(int(part) for part in match.groups()) if match else None


def _download(cache: Path, say: Callable[[str], None]) -> Path | None:
    """Lets the SDK download the program, as it does when it starts a server.

    This happens in another process, because the download cannot be interrupted.
    """
    say(f"downloading a Temporal server: version {CLI_VERSION}, at most {DOWNLOAD_LIMIT_S} s")
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
        "check that `temporal` or `go` is on the PATH, and start again."
    )
    say("the download did not work")
    return build("Temporal server", CLI_MODULE, lambda: installed_binary(cache, say=say), NoTemporal, advice=advice, say=say)


class TemporalServer:
    """``temporal server start-dev`` on a SQLite file that survives kills, with its UI; reachable from this machine only.

    The server runs in the file's directory and is told only the file's name. It copies the name unescaped into a URI, so a ``?``, ``#`` or
    ``%`` in a whole path would name another file. https://github.com/temporalio/temporal/blob/v1.29.1/common/persistence/sql/sqlplugin/sqlite/plugin.go

    Args:
        binary: The program.
        database: The SQLite file, made if absent.
        port: The server's port; 0 picks a free one, once.
        codec_url: Where pages of the UI find their codec server, as an address or a path; default: nowhere.
        dynamic_config: More dynamic settings of the server, as JSON values.
        log: The file for the server's output; default: beside the database.
    """

    def __init__(
        self,
        binary: Path,
        database: Path,
        *,
        port: int = 0,
        codec_url: str | None = None,
        dynamic_config: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._binary = binary
        self.database = database.absolute()
        self._port = port or free_port()
        # The UI answers any page, under any host name. On this address no page of another site finds it: 2^24 addresses with 12,000 ports.
        self._ui_host = f"127.{'.'.join(str(secrets.choice(range(1, 255))) for _ in range(3))}"
        self._ui_port = free_port(self._ui_host)
        command = [
            str(binary.absolute()),
            *("server", "start-dev", "--ip", "127.0.0.1", "--port", str(self._port)),
            *("--ui-ip", self._ui_host, "--ui-port", str(self._ui_port)),
            *(("--ui-codec-endpoint", codec_url) if codec_url else ()),
            *("--db-filename", self.database.name, "--disable-config-env", "--disable-config-file"),
            *(argument for pragma in PRAGMAS for argument in ("--sqlite-pragma", pragma)),
            *(argument for name in SEARCH_ATTRIBUTES for argument in ("--search-attribute", f"{name}=Keyword")),
        ]
        for key, value in {**DYNAMIC_CONFIG, **(dynamic_config or {})}.items():
            command += ["--dynamic-config-value", f"{key}={value}"]
        log = log or self.database.with_suffix(".log")
        # The server needs no setting of ours, and none of our secrets.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_", "TEMPORAL_"))}
        self.process = Process(command, log=log, environ=environ, directory=self.database.parent)

    @property
    def address(self) -> str:
        """The server's host and port for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def ui_url(self) -> str:
        """The address of the UI's own server. Browsers reach it by ``deploy.temporal_ui``."""
        return f"http://{self._ui_host}:{self._ui_port}"

    def start(self) -> None:
        """Starts the server, always on the same ports and database, and returns when it answers.

        Raises:
            TemporalFailed: The server ended, or does not answer in time.
        """
        self._remove_half_made_database()
        # The server looks for some free inner ports before it binds them: another program may bind one first, and the start fails.
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
        """Kills the server by SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """Asks the server to stop, and kills it after some seconds."""
        self.process.stop(STOP_LIMIT_S)

    @property
    def _ready_mark(self) -> Path:
        return self.database.with_name(self.database.name + ".ready")

    def _remove_half_made_database(self) -> None:
        """Removes the database of a server that never answered: it holds no workflow, and a server cannot start on half of its tables."""
        self.database.parent.mkdir(parents=True, exist_ok=True)
        if not self._ready_mark.exists():
            for suffix in ("", "-wal", "-shm"):
                self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if not self.process.is_running:
                break
            # The UI's server asks the Temporal server, so an answer shows that both run.
            with suppress(OSError, ValueError, URLError):
                self._get("/api/v1/namespaces/default")
                return
            time.sleep(0.05)
        state = f"does not answer after {START_LIMIT_S} s" if self.process.is_running else "ended"
        msg = f"the Temporal server {state}; the end of {self.process.log}:\n{self.process.tail()}"
        raise TemporalFailed(msg)

    def _add_search_attributes(self) -> None:
        """Adds search attributes that an existing database lacks: the server's flag counts only for a new database."""
        deadline = time.monotonic() + START_LIMIT_S
        while missing := self._missing_search_attributes():
            if time.monotonic() > deadline:
                msg = f"the Temporal server does not take the search attributes {', '.join(missing)}"
                raise TemporalFailed(msg)
            each = [argument for name in missing for argument in ("--name", name, "--type", "Keyword")]
            create = ["operator", "search-attribute", "create", "--address", self.address, *each]
            with suppress(subprocess.TimeoutExpired):
                # Only the next listing counts: a server that has just started may refuse an attribute as known before it lists it.
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
        # A server on this machine is reached without a proxy.
        with build_opener(ProxyHandler({})).open(self.ui_url + path, timeout=timeout_s) as response:
            document: dict[str, Any] = json.load(response)
            return document


if __name__ == "__main__":
    sys.exit(get("Temporal server", temporal_binary, NoTemporal))
