"""``make run`` as a person starts and stops it: real processes, real signals."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from api.addresses import StackAddresses, is_locked
from api.cli.__main__ import DEFAULT_PLAN
from deploy.stack import Stack
from deploy.temporal import TemporalServer
from tests.resources.make_pdfs import nested_forms, plan_set
from tests.waiting import ASK_S, DEADLINE_S, until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "deploy.local"]

pytestmark = pytest.mark.usefixtures("temporal_binary")


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


@contextmanager
def running(
    data_dir: Path, plan: Path | None = None, *, cwd: Path | None = None, until_ready: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """A stack in a process group of its own, as a shell would start it, once it answers; it processes the plan, by default the sample."""
    with subprocess.Popen(
        [*COMMAND, *(["--pdf", str(plan)] if plan else [])],
        env=environment(data_dir),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as session:
        try:
            until(lambda: not until_ready or StackAddresses.read(data_dir) or session.poll() is not None)
            assert session.poll() is None, session.communicate()[0]
            yield session
        finally:
            with suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGKILL)
            session.communicate()


def make_run(data_dir: Path, *arguments: str, once: str = "1") -> subprocess.CompletedProcess[str]:
    """``make run ONCE=1``."""
    return subprocess.run(
        ["make", "--no-print-directory", "run", f"ONCE={once}", *arguments],
        cwd=ROOT,
        env=environment(data_dir),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def small_plan(directory: Path) -> Path:
    """A plan of two sheets that take no time."""
    path = directory / "my plan.pdf"
    path.write_bytes(plan_set(2, 300, 200))
    return path


def no_plan(directory: Path) -> Path:
    """A file that is no PDF."""
    path = directory / "no plan.pdf"
    path.write_text("Dear Sir or Madam")
    return path


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


def test_second_run_uses_the_stack_that_runs(tmp_path: Path) -> None:
    """Without a plan it says where that is, with one it hands it over and shows how it ends; the first one and its addresses stay."""
    data_dir, plan = tmp_path / "data", small_plan(tmp_path)
    with running(data_dir, plan) as session:
        until(lambda: manifests(data_dir))
        said = (data_dir / "stack.json").read_bytes()
        addresses = json.loads(said)
        second = make_run(data_dir, f"SITELINK_PORT={addresses['api'].rpartition(':')[2]}", once="")
        assert second.returncode == 0, second.stderr
        for line in (f"Page         {addresses['api']}/", f"Temporal UI  {addresses['temporalUi']}/", f"Logs         {data_dir}/logs"):
            assert line in second.stdout
        assert len(manifests(data_dir)) == 1
        second = make_run(data_dir, f"PDF={plan}", once="")
        assert second.returncode == 0, second.stderr
        assert "A-101 - Floor 1: ready" in second.stdout
        assert "complete: 2 sheets" in second.stdout
        second = make_run(data_dir, f"PDF={no_plan(tmp_path)}", once="")
        assert second.returncode != 0
        assert "NotAPdf" in second.stdout + second.stderr
        assert len(manifests(data_dir)) == 2
        second = make_run(data_dir)
        assert second.returncode == 0, second.stderr
        assert len(manifests(data_dir)) == 3
        assert (data_dir / "stack.json").read_bytes() == said
        assert session.poll() is None


def test_second_run_waits_for_a_start_or_a_stop(tmp_path: Path) -> None:
    """It hands its plan to a stack that was about to start, and is a stack of its own after one that was about to stop.

    Ctrl-C ends the first stack and all that it started. The other one fails with the refusal's name, for its file is no PDF, and leaves
    nothing running either.
    """
    data_dir, plan = tmp_path / "data", small_plan(tmp_path)
    with running(data_dir, plan, until_ready=False) as session:
        until(lambda: is_locked(data_dir))
        second = make_run(data_dir, f"PDF={plan}")
        assert second.returncode == 0, second.stderr
        assert session.poll() is None, session.communicate()[0]
        assert "SiteLink already runs" in second.stdout
        before = processes_of(data_dir)
        os.killpg(session.pid, signal.SIGINT)
        until(lambda: not (data_dir / "stack.json").exists())
        third = make_run(data_dir, f"PDF={no_plan(tmp_path)}")
        assert third.returncode == 2, third.stdout  # of `make`
        assert "Ready after" in third.stdout
        assert "NotAPdf" in third.stdout + third.stderr
        said, _ = session.communicate(timeout=DEADLINE_S)
        assert session.returncode in (0, 130), said
        assert "Stopped." in said
    assert len(before) > 0
    assert processes_of(data_dir) == []
    assert not (data_dir / "stack.json").exists()


def test_second_interrupt_leaves_no_process(tmp_path: Path) -> None:
    """Whoever cannot wait for the pages at hand leaves no orphan either."""
    (tmp_path / "endless.pdf").write_bytes(nested_forms())
    data_dir = tmp_path / "data"

    def ended_by_another_interrupt() -> bool:
        # Those that come together with the first one count as one with it.
        with suppress(ProcessLookupError):
            os.killpg(session.pid, signal.SIGINT)
        return session.poll() is not None

    with running(data_dir, tmp_path / "endless.pdf") as session:
        until(lambda: list((data_dir / "scratch" / "pages").glob("*")))
        until(ended_by_another_interrupt)
        said, _ = session.communicate(timeout=DEADLINE_S)
        assert session.returncode == 130, said
        assert "Stopping" in said
        assert "Stopped." not in said
        until(lambda: processes_of(data_dir) == [])


def test_processes_that_died_start_again_and_a_stop_finishes_the_pages_at_hand(new_stack: Callable[..., Stack]) -> None:
    """Each process that is killed from outside comes back by itself, on the same addresses, and works.

    A stack that is stopped in the middle of an upload ends by itself, with no finished page left on its scratch.
    """
    stack = new_stack()
    before = {name: process.pid for name, process in stack.processes.items()}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(process.is_running and process.pid != before[name] for name, process in stack.processes.items()))

    def ready() -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{stack.api_url}/readyz", timeout=60).is_success
        return False

    until(ready, ASK_S)
    response = httpx2.post(
        f"{stack.api_url}/v1/organizations/acme/projects/tower/plans/a1/uploads",
        content=plan_set(16),
        headers={"Content-Type": "application/pdf"},
        timeout=DEADLINE_S,
    )
    assert response.status_code == 202
    until(lambda: list((stack.data_dir / "bucket").rglob("*.dzi")))
    stack.stop()
    assert "tile worker stopped" in stack.processes["worker-tile"].tail()
    assert "workflow worker stopped" in stack.processes["worker-workflow"].tail()
    assert manifests(stack.data_dir) == []
    assert list((stack.data_dir / "scratch" / "pages").iterdir()) == []
    assert processes_of(stack.data_dir) == []


async def result(address: str, ref: UploadRef) -> None:
    """Waits for the end of an upload's run on a Temporal server; raises when that does not know it."""
    client = await Client.connect(address)
    await client.get_workflow_handle(ref.workflow_id).result()


def test_killed_stack_starts_again_in_any_directory(tmp_path: Path) -> None:
    """SIGKILL takes all children along; nobody trusts the addresses that were left, and the next start finds and finishes the run.

    So it is whatever stands in the path of checkout and data. All is written there. SIGTERM stops the stack as Ctrl-C does.
    """
    checkout = tmp_path / "no. 7 #1?mode=memory&a;100%41 \"Größe\" '図' [x] $HOME"
    for package in ("activities", "api", "deploy", "worker", "workflows"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    data_dir = checkout / "var"
    with running(data_dir, cwd=checkout) as session:
        until(lambda: list((data_dir / "bucket").rglob("thumbnail.jpeg")))
        session.kill()
        session.wait()
        until(lambda: processes_of(data_dir) == [])
    assert manifests(data_dir) == []
    assert (data_dir / "stack.json").exists()
    assert StackAddresses.read(data_dir) is None
    with running(data_dir, small_plan(checkout), cwd=checkout) as session:
        until(lambda: len(manifests(data_dir)) == 2)
        assert {manifest["status"] for manifest in manifests(data_dir)} == {"complete"}
        address = json.loads((data_dir / "stack.json").read_bytes())["temporal"]
        for path in (data_dir / "bucket").rglob("manifest.json"):
            asyncio.run(result(address, UploadRef.parse(f"{DEFAULT_PLAN}/{path.parent.name}")))
        os.killpg(session.pid, signal.SIGTERM)
        said, _ = session.communicate(timeout=DEADLINE_S)
        assert session.returncode in (0, 130), said
        assert processes_of(data_dir) == []
    assert list(tmp_path.iterdir()) == [checkout]
    assert (data_dir / "temporal.db").is_file()
