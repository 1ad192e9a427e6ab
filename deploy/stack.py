"""The embedded stack: a Temporal server, the guard of its UI, the workers and the API as separate processes on this machine.

Each process of the stack has its own process group, so that Ctrl-C in the terminal reaches only the process that started the stack.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from activities.environment import secret
from activities.telemetry import MetricsSettings, host_in_url
from activities.webhooks.settings import WebhookSettings
from api.addresses import FILE, LOCK, StackAddresses
from api.r2.settings import PullSettings
from deploy.process import Process, take_port
from deploy.programs import CACHE
from deploy.temporal import TemporalFailed, TemporalServer, temporal_binary
from deploy.temporal_ui import CODEC_PATH

Say = Callable[[str], None]

READY_LIMIT_S = 60

GRACE_S = 30
"""How long the tile worker may take to finish the pages that are being tiled or uploaded."""
QUICK_GRACE_S = 10
"""How long the other processes may take to end. They have no pages to finish."""

CHECK_INTERVAL_S = 0.2
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
HEALTHY_S = 60
"""A process that ended after a longer run is started again without delay."""

LOCK_TIMEOUT_S = 1.0
"""How long to try to get the lock. A process that checks whether a stack runs holds the lock for a moment."""

TRACED = ("api", "worker-workflow", "worker-tile", "worker-webhook", "r2-events")
"""The processes that export traces, if any are wanted."""

SECRETS = {
    "SITELINK_JWT_SECRET": ("api",),
    "SITELINK_TICKET_SECRET": ("api",),
    "SITELINK_LIMITS_STORAGE": ("api",),
    "SITELINK_CODEC_KEY": ("api", "worker-workflow", "worker-tile", "worker-webhook", "r2-events", "temporal-ui"),
    "SITELINK_EVENTS_SECRET": ("api",),
    "SITELINK_EVENTS_TOKEN": ("r2-events",),
    "SITELINK_WEBHOOK_SECRET": ("api", "worker-webhook"),
    "AWS_SECRET_ACCESS_KEY": ("api", "worker-tile", "worker-webhook", "r2-events"),
    "OTEL_EXPORTER_OTLP_HEADERS": TRACED,
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": TRACED,
    "SITELINK_TOKEN": ("sitelink",),
}
"""The processes that need a secret; no other process gets it."""


def secrets_for(process: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the secrets that a process does not need, and without the files that hold them."""
    foreign = {name for name, processes in SECRETS.items() if process not in processes}
    return {name: value for name, value in environ.items() if name.removesuffix("_FILE") not in foreign}


class StackInUse(Exception):
    """Another stack runs, starts or stops on the data directory."""


class StackFailed(Exception):
    """A process of the stack did not start. The message has the end of its log."""


@dataclass
class _Supervision:
    """The supervisor's state of one process."""

    started_at: float = 0.0
    delay_s: float = FIRST_DELAY_S
    start_at: float | None = None
    """When an ended process is started again; None while it runs."""
    is_wanted: bool = False
    """Whether the process should run."""


class Stack:
    """The whole of SiteLink on one data directory.

    Args:
        data_dir: Holds the bucket, the database, the scratch, the logs and the addresses in use.
        environ: Settings for the processes; default: the environment of this process. The stack sets data directory, addresses and ports.
        port: The API's port. A free port is taken when it is 0 or in use.
        temporal_ports: The ports of the Temporal server and its UI, likewise.
        dynamic_config: Further dynamic settings of the Temporal server, as JSON values.
        say: Called with a sentence when a step takes time, or when a process has ended.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        environ: Mapping[str, str] | None = None,
        port: int = 8000,
        temporal_ports: tuple[int, int] = (7233, 8233),
        dynamic_config: Mapping[str, str] | None = None,
        say: Say = lambda _: None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.logs = self.data_dir / "logs"
        self.processes: dict[str, Process] = {}
        self._environ = dict(os.environ if environ is None else environ)
        self._port, self._temporal_ports, self._dynamic_config = port, temporal_ports, dict(dynamic_config or {})
        self._say = say
        self._temporal: TemporalServer | None = None
        self._lock_file: IO[str] | None = None
        self._claims: list[socket.socket] = []
        self._supervisions: dict[str, _Supervision] = {}
        self._mutex = threading.RLock()
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self.api_url = ""
        """This and the two addresses below are known once the stack has started."""
        self.temporal_address = ""
        self.temporal_ui_url = ""
        self.metrics_urls: dict[str, str] = {}
        """By process, where it answers Prometheus; empty unless ``SITELINK_METRICS_PORT`` is set."""

    @property
    def addresses(self) -> StackAddresses:
        """The addresses of the stack."""
        return StackAddresses(self.api_url, self.temporal_address, self.temporal_ui_url)

    def start(self) -> None:
        """Starts all processes; returns when the API is ready.

        Raises:
            StackInUse: Another stack runs on the data directory.
            NoTemporal: There is no Temporal server to run.
            StackFailed: A process did not start.
            OSError: The data directory cannot be used.
        """
        self._lock()
        try:
            self._stopping.clear()
            self.forget_addresses()  # a stack that was killed has left its addresses
            self._say("Starting Temporal, the workers and the API ...")
            self._start_temporal()
            self._start_programs()
            self._wait_until_ready()
            self.addresses.write(self.data_dir)
        except BaseException:
            self.stop(grace_s=0)
            raise
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Stops all processes, each one after those that need it. The tile worker is first: its last uploads need the workflow worker.

        Args:
            grace_s: Seconds that the tile worker may take to end.
        """
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()
            self._supervisor = None
        self.forget_addresses()
        self._stop_processes(grace_s, "worker-tile")
        self._stop_processes(min(grace_s, QUICK_GRACE_S), "r2-events", "worker-webhook", "worker-workflow", "api", "temporal-ui")
        if self._temporal is not None:
            self._temporal.stop()
        while self._claims:
            self._claims.pop().close()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def forget_addresses(self) -> None:
        """Removes this stack's addresses from the data directory; the addresses of another stack stay."""
        if self._lock_file is not None:
            (self.data_dir / FILE).unlink(missing_ok=True)

    def _stop_processes(self, grace_s: float, *names: str) -> None:
        processes = [self.processes[name] for name in names if name in self.processes]
        deadline = time.monotonic() + grace_s
        if grace_s:
            for process in processes:
                process.terminate()
        while any(process.is_running for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in processes:
            process.kill()

    def kill(self, name: str) -> None:
        """Kills a process and its group at once. It is not started again before ``start_process``."""
        with self._mutex:
            self._supervisions[name].is_wanted = False
            self.processes[name].kill()

    def start_process(self, name: str) -> None:
        """Starts a process, or starts it again with the same settings. The Temporal server answers when this returns."""
        with self._mutex:
            if name == "temporal" and self._temporal is not None:
                self._temporal.start()
            else:
                self.processes[name].start()
            self._supervisions[name] = _Supervision(started_at=time.monotonic(), is_wanted=True)

    def _lock(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        lock_file = (self.data_dir / LOCK).open("w")
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock_file.close()
                    msg = f"another stack runs on {self.data_dir}, or starts or stops there"
                    raise StackInUse(msg) from None
                time.sleep(0.05)
        self._lock_file = lock_file

    def _start_temporal(self) -> None:
        binary = temporal_binary(CACHE, say=self._say)
        port, ui_port = map(self._take_port, self._temporal_ports)
        has_key = bool(secret(self._environ, "SITELINK_CODEC_KEY"))
        server = TemporalServer(
            binary,
            self.data_dir / "temporal.db",
            port=port,
            codec_url=CODEC_PATH if has_key else None,
            dynamic_config=self._dynamic_config,
            log=self._new_log("temporal"),
        )
        self._temporal = server
        self.temporal_address, self.temporal_ui_url = server.address, f"http://127.0.0.1:{ui_port}"
        self.processes["temporal"] = server.process
        try:
            self.start_process("temporal")
        except TemporalFailed as error:
            raise StackFailed(str(error)) from error
        environ = secrets_for("temporal-ui", self._own_environ()) | {"SITELINK_DATA_DIR": str(self.data_dir)}
        guard = [sys.executable, "-m", "deploy.temporal_ui", str(ui_port), server.ui_url]
        self.processes["temporal-ui"] = Process(guard, log=self._new_log("temporal-ui"), environ=environ)
        self.start_process("temporal-ui")

    def _start_programs(self) -> None:
        host = self._environ.get("SITELINK_HOST") or "127.0.0.1"
        port = self._take_port(self._port, host)
        self.api_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        environ = self._own_environ() | {
            "SITELINK_DATA_DIR": str(self.data_dir),
            "SITELINK_PORT": str(port),
            "TEMPORAL_ADDRESS": self.temporal_address,
            "TEMPORAL_NAMESPACE": "default",
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "PYTHONUNBUFFERED": "1",
        }
        programs = [("worker-workflow", ("worker", "workflow")), ("worker-tile", ("worker", "tile")), ("api", ("api",))]
        if WebhookSettings.from_env(environ).secrets:
            programs.append(("worker-webhook", ("worker", "webhook")))
        if PullSettings.from_env(environ) is not None:
            programs.append(("r2-events", ("api", "events")))
        metrics = MetricsSettings.from_env(environ)
        for index, (name, module) in enumerate(programs):
            own = secrets_for(name, environ)
            if metrics.port is not None:
                port = self._take_port(metrics.port and metrics.port + index, metrics.host)
                own["SITELINK_METRICS_PORT"] = str(port)
                self.metrics_urls[name] = f"http://{host_in_url(metrics.host)}:{port}/metrics"
            self.processes[name] = Process([sys.executable, "-m", *module], log=self._new_log(name), environ=own)
            self.start_process(name)

    def _own_environ(self) -> dict[str, str]:
        """The environment without settings for another Temporal server, such as a profile or a key."""
        return {name: value for name, value in self._environ.items() if not name.startswith("TEMPORAL_")}

    def _take_port(self, port: int, host: str = "127.0.0.1") -> int:
        port, claim = take_port(port, host)
        if claim is not None:
            self._claims.append(claim)
        return port

    def _new_log(self, name: str) -> Path:
        """The path of a process's log. Keeps the log of the previous start beside it."""
        log = self.logs / f"{name}.log"
        with suppress(FileNotFoundError):
            log.replace(self.logs / f"{name}.before.log")
        return log

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        opener = build_opener(ProxyHandler({}))
        last_answer = ""
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                if not process.is_running:
                    msg = f"{name} ended (exit code {process.kill()}); the end of {process.log}:\n{process.tail()}"
                    raise StackFailed(msg)
            try:
                with opener.open(f"{self.temporal_ui_url}/healthz", timeout=5), opener.open(f"{self.api_url}/readyz", timeout=5):
                    return
            except HTTPError as error:
                with error:
                    last_answer = error.read(500).decode("utf-8", "replace")
            except OSError:
                pass
            time.sleep(0.05)
        api = self.processes["api"]
        msg = f"the API is not ready after {READY_LIMIT_S} s. {last_answer}\nThe end of {api.log}:\n{api.tail()}"
        raise StackFailed(msg)

    def _supervise(self) -> None:
        while not self._stopping.wait(CHECK_INTERVAL_S):
            for name in self.processes:
                with self._mutex:
                    self._restart_if_ended(name)

    def _restart_if_ended(self, name: str) -> None:
        process, supervision, now = self.processes[name], self._supervisions[name], time.monotonic()
        if not supervision.is_wanted or process.is_running:
            return
        if supervision.start_at is None:
            code = process.kill()
            delay_s = 0.0 if now - supervision.started_at > HEALTHY_S else supervision.delay_s
            supervision.start_at = now + delay_s
            supervision.delay_s = FIRST_DELAY_S if not delay_s else min(LONGEST_DELAY_S, delay_s * 2)
            how = f"by signal {-code}" if code and code < 0 else f"with exit code {code}"
            self._say(f"{name} ended {how}; it starts again in {delay_s:g} s. Its log: {process.log}")
        elif now >= supervision.start_at:
            supervision.start_at, supervision.started_at = None, now
            try:
                process.start()
            except OSError as error:
                self._say(f"{name} cannot be started: {error}")
