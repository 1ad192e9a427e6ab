"""SiteLink on several hosts, all of which are this machine: more than one process of each role, each with a way of its own to Temporal."""

import itertools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from deploy.process import Process, free_port
from deploy.temporal import TemporalServer
from tests.servers.link import Link
from tests.waiting import DEADLINE_S

GRACE_S = 45
"""How long a worker may take to end: longer than its own grace."""


class Fleet:
    """The processes of a site. Every tile worker has a host id and a scratch of its own.

    Args:
        directory: For Temporal's database, scratch, temporary files and logs.
        temporal_binary: The program of the Temporal server.
        settings: The environment of all processes, with the bucket.
        apis: How many API processes there are; their names are ``api-1`` and so on.
        workflow_workers: Likewise ``workflow-1`` and so on.
        tile_workers: Likewise ``tile-1`` and so on.
    """

    def __init__(
        self,
        directory: Path,
        temporal_binary: Path,
        settings: Mapping[str, str],
        *,
        apis: int = 1,
        workflow_workers: int = 1,
        tile_workers: int = 2,
    ) -> None:
        self.directory = directory.absolute()
        self.temporal = TemporalServer(temporal_binary, self.directory / "temporal" / "temporal.db")
        self.links: dict[str, Link] = {}
        """By process, its way to Temporal."""
        self.processes: dict[str, Process] = {}
        self.api_urls: list[str] = []
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_", "TEMPORAL_"))}
        self._settings: dict[str, dict[str, str]] = {}
        self._modules: dict[str, tuple[str, ...]] = {}
        self._environ = {
            **environ,
            "SITELINK_DATA_DIR": str(self.directory),
            "TEMPORAL_NAMESPACE": "default",
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        for number in range(1, apis + 1):
            port = free_port()
            self.api_urls.append(f"http://127.0.0.1:{port}")
            self._add(f"api-{number}", "api", SITELINK_PORT=str(port))
        for number in range(1, workflow_workers + 1):
            self._add(f"workflow-{number}", "worker", "workflow")
        for number in range(1, tile_workers + 1):
            # Hosts share no users either: children of two workers must not be able to signal each other.
            users = {"SITELINK_RENDER_USER": str(65_100 + 16 * number)}
            self._add(f"tile-{number}", "worker", "tile", SITELINK_SCRATCH_DIR=str(self.scratch(f"tile-{number}")), **users)
        self._urls = itertools.cycle(self.api_urls)

    def _add(self, name: str, *module: str, **settings: str) -> None:
        temporary = self.directory / "tmp" / name
        temporary.mkdir(parents=True)
        self.links[name] = link = Link(self.temporal.address, self.directory / "logs" / f"link-{name}.log")
        self._modules[name] = module
        self._settings[name] = {**self._environ, "TEMPORAL_ADDRESS": link.address, "TMPDIR": str(temporary), **settings}
        self.add_settings(name)

    def add_settings(self, name: str, **settings: str) -> None:
        """Changes the environment of a process that does not run yet."""
        self._settings[name] |= settings
        log = self.directory / "logs" / f"{name}.log"
        self.processes[name] = Process([sys.executable, "-m", *self._modules[name]], log=log, environ=self._settings[name])

    @property
    def api_url(self) -> str:
        """The address of an API process; of the next one each time."""
        return next(self._urls)

    def scratch(self, name: str) -> Path:
        """The scratch directory of a tile worker."""
        return self.directory / "scratch" / name

    def start(self) -> None:
        """Starts everything; returns when every API process is ready."""
        self.temporal.start()
        for name in self.processes:
            self.links[name].start()
            self.processes[name].start()
        opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + DEADLINE_S
        for url in self.api_urls:
            said = ""
            while True:
                assert time.monotonic() < deadline, said
                try:
                    with opener.open(f"{url}/readyz", timeout=5):
                        break
                except HTTPError as error:
                    with error:
                        said = error.read(500).decode("utf-8", "replace")
                except OSError as error:
                    said = str(error)
                time.sleep(0.1)

    def stop(self) -> None:
        """Asks every process to stop, tile workers first, as an operator does; kills what remains after a grace."""
        for role in ("tile", "workflow", "api"):
            processes = [process for name, process in self.processes.items() if name.startswith(role)]
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + GRACE_S
            for process in processes:
                process.stop(max(0.0, deadline - time.monotonic()))
        for link in self.links.values():
            link.stop()
        self.temporal.stop()
