"""``make run`` as a person starts and stops it: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local import Stack
from deploy.sample import write_sample
from deploy.temporal import TemporalServer

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "deploy.local"]
START_S = 60

pytestmark = [pytest.mark.usefixtures("temporal_binary"), pytest.mark.timeout(240)]


def environment(data_dir: Path) -> Mapping[str, str]:
    """What a stack of its own is told."""
    return {**os.environ, "SITELINK_DATA_DIR": str(data_dir), "SITELINK_PORT": "0"}


def processes_of(data_dir: Path) -> list[str]:
    """The command lines of all processes that were told of the data directory, guards and render children included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end meanwhile
            command = (process / "cmdline").read_bytes()
            if os.fsencode(data_dir) in command + (process / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode())
    return found


def until(condition: Callable[[], Any], seconds: float = START_S) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition does not hold in time"
        time.sleep(0.05)


@contextmanager
def running(data_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A stack in a process group of its own, as a shell would start it, once it answers."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(data_dir),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as session:
        try:
            until(lambda: (data_dir / "stack.json").exists() or session.poll() is not None)
            yield session
        finally:
            with suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGKILL)
            session.communicate()


def make_run(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``make run ONCE=1``."""
    return subprocess.run(
        ["make", "--no-print-directory", "run", "ONCE=1", *arguments],
        cwd=ROOT,
        env=environment(data_dir),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def manifests(data_dir: Path) -> list[dict[str, Any]]:
    """The final states of all uploads in the bucket."""
    return [json.loads(path.read_bytes()) for path in (data_dir / "bucket").rglob("manifest.json")]


def test_make_run_once_processes_the_sample(tmp_path: Path, temporal_server: TemporalServer) -> None:
    """``make run ONCE=1`` says where to look, brings the sample plan's sheets into the bucket by their titles, and leaves no process."""
    run = make_run(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    for word in ("Page         http://127.0.0.1:", "Temporal UI  http://127.0.0.1:", f"Logs         {tmp_path}/logs", "complete: 3 sheets"):
        assert word in run.stdout
    (manifest,) = manifests(tmp_path)
    assert manifest["status"] == "complete"
    assert [sheet["title"] for sheet in manifest["sheets"]] == [
        "A-101 - First Floor Plan",
        "A-201 - Exterior Elevations",
        "S-101 - Foundation Plan",
    ]
    assert (manifest["sheets"][0]["width"], manifest["sheets"][0]["height"]) == (10_800, 7_200)
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "stack.json").exists()
    assert temporal_server.address not in run.stdout
    assert [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o077] == []  # nobody else may read a plan


def test_make_run_once_fails_when_the_upload_does_not_complete(tmp_path: Path) -> None:
    """A file that is no PDF ends in failure, with the refusal's name, and leaves nothing running."""
    (tmp_path / "no plan.pdf").write_text("Dear Sir or Madam")
    run = make_run(tmp_path / "data", f"PDF={tmp_path / 'no plan.pdf'}")
    assert run.returncode != 0
    assert "NotAPdf" in run.stdout + run.stderr
    assert processes_of(tmp_path) == []


def test_missing_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A plan that cannot be read is wrong use, and costs no start."""
    run = subprocess.run(
        [*COMMAND, "--pdf", "nowhere/plan.pdf", "--once"], env=environment(tmp_path / "data"), capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "nowhere/plan.pdf: No such file or directory\n"
    assert not (tmp_path / "data" / "logs").exists()


def test_wrong_setting_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A setting that some process could not use is wrong use, named by its variable."""
    environ = {**environment(tmp_path / "data"), "SITELINK_RENDER_SLOTS": "many"}
    run = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert "SITELINK_RENDER_SLOTS is 'many'" in run.stderr
    assert not (tmp_path / "data" / "logs").exists()


def test_interrupt_stops_everything(tmp_path: Path) -> None:
    """A second stack on the same data directory is refused by name; Ctrl-C ends the first one and all that it started."""
    with running(tmp_path) as session:
        addresses = json.loads((tmp_path / "stack.json").read_bytes())
        second = subprocess.run([*COMMAND, "--once"], env=environment(tmp_path), capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"a stack already runs on {tmp_path}, at {addresses['api']}" in second.stderr
        until(lambda: manifests(tmp_path))
        os.killpg(session.pid, signal.SIGINT)
        said, _ = session.communicate(timeout=60)
        assert session.returncode in (0, 130), said
        assert "Stopping" in said
        assert processes_of(tmp_path) == []
        assert not (tmp_path / "stack.json").exists()


def test_second_interrupt_leaves_no_process(tmp_path: Path) -> None:
    """Whoever cannot wait for the pages at hand leaves no orphan either."""
    with running(tmp_path) as session:
        os.killpg(session.pid, signal.SIGINT)
        time.sleep(1.2)  # a second thought, not the same signal twice
        with suppress(ProcessLookupError):
            os.killpg(session.pid, signal.SIGINT)
        session.communicate(timeout=60)
        until(lambda: processes_of(tmp_path) == [], 5)


def test_killed_stack_leaves_no_process_and_starts_again(tmp_path: Path) -> None:
    """SIGKILL of the stack's own process takes all its children along; the next start finishes what was accepted."""
    with running(tmp_path) as session:
        until(lambda: list((tmp_path / "bucket").rglob("thumbnail.jpeg")))
        session.kill()
        session.wait()
        until(lambda: processes_of(tmp_path) == [], 5)
    assert manifests(tmp_path) == []
    (tmp_path / "stack.json").unlink()
    with running(tmp_path) as session:
        until(lambda: len(manifests(tmp_path)) == 2, 100)
        assert {manifest["status"] for manifest in manifests(tmp_path)} == {"complete"}
        os.killpg(session.pid, signal.SIGTERM)
        session.communicate(timeout=60)
        assert processes_of(tmp_path) == []


def test_process_that_died_is_started_again(new_stack: Callable[..., Stack]) -> None:
    """Each process that is killed from outside comes back by itself, on the same addresses."""
    stack = new_stack()
    before = {name: process.pid for name, process in stack.processes.items()}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(process.is_running and process.pid != before[name] for name, process in stack.processes.items()))

    def ready() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{stack.api_url}/readyz", timeout=5).is_success
        return False

    until(ready)


def test_stop_finishes_the_pages_at_hand(new_stack: Callable[..., Stack], tmp_path: Path) -> None:
    """A stack that is stopped in the middle of an upload ends by itself, with no finished page left on its scratch."""
    stack = new_stack()
    write_sample(tmp_path / "plan.pdf")
    for _ in range(3):
        response = httpx.post(
            f"{stack.api_url}/v1/organizations/acme/projects/tower/plans/a1/uploads",
            content=(tmp_path / "plan.pdf").read_bytes(),
            headers={"Content-Type": "application/pdf"},
        )
        assert response.status_code == 202
    until(lambda: list((stack.data_dir / "bucket").rglob("*.dzi")))
    stack.stop()
    assert "tile worker stopped" in stack.processes["worker-tile"].tail()
    assert "workflow worker stopped" in stack.processes["worker-workflow"].tail()
    assert len(manifests(stack.data_dir)) < 3
    assert list((stack.data_dir / "scratch" / "pages").iterdir()) == []
    assert processes_of(stack.data_dir) == []
