"""Runs the Worker that forwards R2's events in Cloudflare's own runtime, with real queues: miniflare from npm, which brings workerd."""

import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.servers.npm_packages import NoPackages, installed_packages

HERE = Path(__file__).with_name("npm")
WORKER = Path(__file__).parents[2] / "deploy" / "r2-events"
ANSWER_LIMIT_S = 240


def installed_workerd() -> Path:
    """The directory of the locked packages, which npm installs once into the cache.

    Raises:
        NoPackages: There is no Node.js or npm, or npm failed.
    """
    return installed_packages(HERE, "workerd")


class RunningWorker:
    """The Worker in its runtime; its queue takes messages."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self._lines: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self._lines.put(line.strip())
        self._lines.put(None)

    def send(self, body: Any, content_type: str = "json") -> None:
        """Puts a message into the queue; bytes with their own content type."""
        message = {"base64": b64encode(body).decode()} if isinstance(body, bytes) else {"body": body}
        self.tell({**message, "contentType": content_type}, "sent")

    def tell(self, message: Any, answer: str) -> None:
        """Sends a message as a line of JSON and waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line: str | None = ""
        with suppress(Empty):
            while line not in (answer, None):
                line = self._lines.get(timeout=ANSWER_LIMIT_S)
        assert line == answer, self.log

    @property
    def log(self) -> str:
        """The output of the runtime and the Worker."""
        return self._log.read_text()


@contextmanager
def running_worker(packages: Path, log: Path, url: str, secret: str) -> Iterator[RunningWorker]:
    """Runs ``deploy/r2-events`` with the settings of its ``wrangler.toml``.

    Args:
        packages: The directory from ``installed_workerd``.
        log: The file for the output.
        url: The push endpoint.
        secret: The secret for the signatures.
    """
    wrangler = tomllib.loads((WORKER / "wrangler.toml").read_text())
    (consumer,) = wrangler["queues"]["consumers"]
    settings = {
        "script": str(WORKER / wrangler["main"]),
        "compatibilityDate": wrangler["compatibility_date"],
        "bindings": {**wrangler["vars"], "SITELINK_EVENTS_URL": url, "SITELINK_EVENTS_SECRET": secret},
        "queue": consumer["queue"],
        "consumer": {
            "maxBatchSize": consumer["max_batch_size"],
            "maxBatchTimeout": consumer["max_batch_timeout"],
            "maxRetries": consumer["max_retries"],
            "deadLetterQueue": consumer["dead_letter_queue"],
        },
    }
    draft = packages / f"run.mjs.{os.getpid()}"
    shutil.copy(HERE / "run.mjs", draft)
    draft.replace(packages / "run.mjs")  # it must lie beside the packages to import them; another test may be reading it
    process = subprocess.Popen(
        ["node", str(packages / "run.mjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    worker = RunningWorker(process, log)
    try:
        worker.tell(settings, "ready")
        yield worker
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def main() -> int:
    """Gets the runtime and says where it is; returns the exit code."""
    try:
        sys.stdout.write(f"Cloudflare's runtime: {installed_workerd()}\n")
    except (NoPackages, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
