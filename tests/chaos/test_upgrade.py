"""Upgrades of the workflow code while uploads run: by versions side by side, and by a rolling restart. The steps are those of UPGRADING.md.

Two versions of the code are two folders: the program, and a copy whose runs issue one more command. So the copy cannot go on with a run of
the program, unless the command is behind ``workflow.patched``. The tile worker is stopped to hold uploads in the middle.
"""

import asyncio
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from temporalio.api.enums.v1 import EventType, VersioningBehavior
from temporalio.client import Client, WorkflowHistory

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from deploy.check.table import Finding, Grade
from deploy.check.temporal import check_temporal
from deploy.check.versions import CHECK
from deploy.process import Process
from deploy.stack import Stack
from tests.chaos.guarantees import Watch, accepted, address, assert_whole, path_of, sheets_of, stop, wait_for
from tests.resources.make_pdfs import plan_set
from tests.servers.recorder import Answer, recording
from tests.waiting import ASK_S, DEADLINE_S, until

ROOT = Path(__file__).parents[2]
PAGES = 10
DEPLOYMENT = "sitelink"

LISTING = "            self._bucket_state = state = await self._list_sheets()\n"
SLEEP = "            await workflow.sleep(0.001)\n"
PATCHED_SLEEP = f'            if workflow.patched("sleep-first"):\n    {SLEEP}'


def changed(directory: Path, change: str) -> Path:
    """A folder with the program, where a run does something more before it reads the bucket."""
    for package in ("activities", "worker"):
        (directory / package).symlink_to(ROOT / package)
    shutil.copytree(ROOT / "workflows", directory / "workflows", ignore=shutil.ignore_patterns("__pycache__"))
    story = directory / "workflows" / "upload.py"
    source = story.read_text()
    assert source.count(LISTING) == 1
    story.write_text(source.replace(LISTING, change + LISTING))
    return directory


class Deploys:
    """The workflow workers of a stack, by version, and Temporal's command line.

    Args:
        stack: The stack.
        temporal: The program.
    """

    def __init__(self, stack: Stack, temporal: Path) -> None:
        self._stack, self._temporal = stack, temporal
        self._workers = ExitStack()

    def __enter__(self) -> "Deploys":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def environ(self, build: str = "") -> dict[str, str]:
        """The variables of a workflow worker; without a build it is not versioned."""
        version = {"TEMPORAL_DEPLOYMENT_NAME": DEPLOYMENT, "TEMPORAL_WORKER_BUILD_ID": build} if build else {}
        return {
            "PATH": os.environ["PATH"],
            "SITELINK_DATA_DIR": str(self._stack.data_dir),
            "TEMPORAL_ADDRESS": self._stack.temporal_address,
            "TEMPORAL_CONFIG_FILE": os.devnull,
            **version,
        }

    def start(self, build: str = "", code: Path = ROOT) -> Process:
        """Starts a workflow worker."""
        log = self._stack.logs / f"worker-{build or secrets.token_hex(4)}.log"
        worker = Process([sys.executable, "-m", "worker", "workflow"], log=log, environ=self.environ(build), directory=code)
        worker.start()
        self._workers.callback(worker.kill)
        return worker

    def temporal(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Runs Temporal's command line."""
        command = [str(self._temporal), *words, "--address", self._stack.temporal_address]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def route(self, command: str, *target: str) -> None:
        """Lets a version have the new uploads."""
        self._command("worker", "deployment", command, "--deployment-name", DEPLOYMENT, *target)

    def status(self, build: str) -> str:
        """The drainage status of a version that is not current any more."""
        words = ("worker", "deployment", "describe-version", "--deployment-name", DEPLOYMENT, "--build-id", build, "--output", "json")
        return str(json.loads(self.temporal(*words).stdout)["drainageInfo"]["drainageStatus"])

    def findings(self, build: str = "") -> list[Finding]:
        """What ``deploy.check`` says of versions, where a workflow worker has this version."""
        return [found for found in asyncio.run(check_temporal(self.environ(build), ())) if found.check == CHECK]

    def follow(self, advice: str) -> None:
        """Runs the command in what ``deploy.check`` advises."""
        program, *words = shlex.split(advice[advice.index("temporal ") :])
        assert program == "temporal"
        self._command(*(word for word in words if word != "--yes"))

    def _command(self, *words: str) -> None:
        """Runs a command that changes something. Temporal may not find a version for a moment after its first worker has asked for work."""
        until(lambda: self.temporal(*words, "--yes").returncode == 0)


def runs(stack: Stack, query: str) -> list[tuple[str, str]]:
    """Build id and behavior of each run that the query finds, the oldest first."""

    async def ask() -> list[tuple[str, str]]:
        client = await Client.connect(stack.temporal_address)
        found = [run async for run in client.list_workflows(query)]
        described = [
            await client.get_workflow_handle(run.id, run_id=run.run_id).describe() for run in sorted(found, key=lambda run: run.start_time)
        ]
        versions = [run.raw_description.workflow_execution_info.versioning_info for run in described]
        return [
            (each.deployment_version.build_id, VersioningBehavior.Name(each.behavior).removeprefix("VERSIONING_BEHAVIOR_"))
            for each in versions
        ]

    return asyncio.run(ask())


def runs_of(stack: Stack, ref: UploadRef) -> list[tuple[str, str]]:
    """The same of the runs of an upload."""
    return runs(stack, f"WorkflowId = '{ref.workflow_id}'")


def history(stack: Stack, ref: UploadRef) -> WorkflowHistory:
    """The history of the upload's last run."""

    async def ask() -> WorkflowHistory:
        client = await Client.connect(stack.temporal_address)
        return await client.get_workflow_handle(ref.workflow_id).fetch_history()

    return asyncio.run(ask())


def kinds(events: WorkflowHistory) -> set[str]:
    """The types of the events of a history."""
    return {EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in events.events}


def workers(events: WorkflowHistory) -> set[str]:
    """The identities, process id and host, of the workers that have made the steps of a history."""
    return {event.workflow_task_completed_event_attributes.identity for event in events.events}


def wait_until_completed(stack: Stack, ref: UploadRef, sheets: int) -> None:
    """Waits until so many sheets are ready, then stops the tile worker: the upload stays in the middle."""
    wait_for(stack, path_of(ref), lambda status: status["completedPages"] >= sheets)
    stop(stack, "worker-tile")
    assert httpx2.get(address(stack, ref), timeout=DEADLINE_S).json()["completedAt"] is None


def wait_until_complete(stack: Stack, ref: UploadRef) -> None:
    """Waits for the end of the upload, which must be good."""
    status = wait_for(stack, path_of(ref), lambda status: status["completedAt"] is not None)
    assert status["status"] == "complete", status
    assert status["completedPages"] == status["totalPages"]


@pytest.fixture
def body() -> bytes:
    """A PDF of ``PAGES`` pages."""
    return plan_set(PAGES, 900, 600)


@pytest.fixture
def new_deploys(temporal_binary: Path) -> Iterator[Callable[[Stack], Deploys]]:
    """Makes ``Deploys`` of a stack; their workers end with the test."""
    with ExitStack() as all_deploys:
        yield lambda stack: all_deploys.enter_context(Deploys(stack, temporal_binary))


QUICK_DRAIN = {
    "matching.wv.VersionDrainageStatusVisibilityGracePeriod": '"1s"',
    "matching.wv.VersionDrainageStatusRefreshInterval": '"1s"',
    "limit.historyCount.suggestContinueAsNew": "60",
}


def test_uploads_stay_on_their_version(
    new_stack: Callable[..., Stack], new_deploys: Callable[[Stack], Deploys], tmp_path: Path, body: bytes
) -> None:
    """From workers without a version to version A, to version B, which cannot go on with A's runs, and back to workers without a version.

    An upload ends on the version on which it began, in however many runs. A new upload, and one that is reopened, takes the current
    version. So does a webhook that was started on A: a version is drained when its uploads have ended.
    """
    with recording() as receiver:
        receiver.answer = lambda _: Answer(204)
        stack = new_stack(
            QUICK_DRAIN,
            SITELINK_RENDER_SLOTS="1",
            SITELINK_WEBHOOK_SECRET=secrets.token_hex(32),
            SITELINK_WEBHOOK_NETWORKS="127.0.0.1/32",
        )
        stack.kill("worker-webhook")
        hooks = {"url": f"{receiver.url}/hook", "events": ["upload.accepted"]}
        httpx2.put(f"{stack.api_url}/v1/organizations/acme/webhooks", json=hooks, timeout=DEADLINE_S).raise_for_status()
        deploys = new_deploys(stack)
        assert deploys.findings() == []

        before = accepted(stack, body, window=2)
        wait_until_completed(stack, before, 1)
        (found,) = deploys.findings("A")
        assert (found.grade, found.result) == (Grade.NOTE, "no worker of version A of sitelink has started")
        worker_a = deploys.start("A")
        until(lambda: deploys.findings("A")[0].grade is Grade.WRONG)
        (found,) = deploys.findings("A")
        assert found.result == "workers without a version: new uploads; version A of sitelink: none"
        deploys.follow(found.advice)
        until(lambda: deploys.findings("A") == [Finding(CHECK, Grade.OK, "version A of sitelink: new uploads")])
        (found,) = deploys.findings()
        assert (found.grade, found.result) == (Grade.WRONG, "version A of sitelink: new uploads; workers without a version: none")
        stop(stack, "worker-workflow")
        first = accepted(stack, body, window=2)
        stack.start_process("worker-tile")
        wait_until_completed(stack, first, 2)

        worker_b = deploys.start("B", changed(tmp_path, SLEEP))
        deploys.route("set-ramping-version", "--build-id", "B", "--percentage", "5")
        shares = "version B of sitelink: 5 % of the new uploads; version A of sitelink: the others"
        assert deploys.findings("B")[0] == Finding(CHECK, Grade.OK, shares)
        deploys.route("set-current-version", "--build-id", "B")
        assert deploys.findings("A")[0].result.endswith("version A of sitelink: none, because it was replaced")
        assert Finding(
            CHECK, Grade.NOTE, "version A of sitelink: 2 open runs", "let its workers run until these have ended"
        ) in deploys.findings("B")
        second = accepted(stack, body, window=2)
        stack.start_process("worker-tile")
        for ref in (before, first, second):
            wait_until_complete(stack, ref)
        settings = BucketSettings((stack.data_dir / "bucket").as_uri())
        for ref in (before, first):
            assert_whole(settings, ref, sheets_of(Bucket(settings), second))
        assert set(runs_of(stack, before)[1:]) <= {("A", "PINNED")}
        assert runs_of(stack, before)[-1] == ("A", "PINNED")
        assert len(runs_of(stack, first)) > 1
        assert set(runs_of(stack, first)) == {("A", "PINNED")}
        assert set(runs_of(stack, second)) == {("B", "PINNED")}

        # The webhooks about all three are on their way, and keep no worker of A.
        assert len(runs(stack, "WorkflowType = 'DeliverWebhook' AND ExecutionStatus = 'Running'")) == 3
        until(lambda: deploys.status("A") == "drained")
        worker_a.stop(DEADLINE_S)
        assert httpx2.post(f"{address(stack, first)}/reconcile", timeout=DEADLINE_S).status_code == 202
        wait_for(stack, path_of(first), lambda status: status["reconciled"] and status["completedAt"] is not None)
        assert runs_of(stack, first)[-1] == ("B", "PINNED")
        stack.start_process("worker-webhook")
        until(lambda: not runs(stack, "WorkflowType = 'DeliverWebhook' AND ExecutionStatus = 'Running'"))
        assert set(runs(stack, "WorkflowType = 'DeliverWebhook'")) == {("B", "AUTO_UPGRADE")}
        assert len(receiver.answered) == 3

        stack.start_process("worker-workflow")
        deploys.follow(deploys.findings()[0].advice)
        worker_b.stop(DEADLINE_S)
        last = accepted(stack, plan_set(1))
        wait_until_complete(stack, last)
        assert runs_of(stack, last) == [("", "UNSPECIFIED")]


def test_uploads_of_lost_workers_are_moved(
    new_stack: Callable[..., Stack], new_deploys: Callable[[Stack], Deploys], tmp_path: Path, body: bytes
) -> None:
    """A version's workers are gone for good: its uploads wait, and say so. One command moves them to a version that cannot replay them.

    No committed sheet is made again.
    """
    stack = new_stack({"matching.PollerHistoryTTL": '"5s"'}, SITELINK_RENDER_SLOTS="1")
    stack.kill("worker-workflow")
    deploys = new_deploys(stack)
    worker_a = deploys.start("A")
    deploys.route("set-current-version", "--build-id", "A")
    ref = accepted(stack, body)
    with Watch(stack, ref) as watch:
        wait_until_completed(stack, ref, 2)
        worker_a.kill()
        deploys.start("B", changed(tmp_path, SLEEP))
        deploys.route("set-current-version", "--build-id", "B")
        stack.start_process("worker-tile")
        wait_for(stack, path_of(ref), lambda status: status["warning"] is not None)

        def lost() -> list[Finding]:
            return [found for found in deploys.findings("B") if found.grade is Grade.WRONG]

        until(lost)
        (found,) = lost()
        assert found.result == "version A of sitelink: 1 open runs wait, because it has no workers"
        # The new code cannot go on with the run as it is.
        move = ("workflow", "update-options", "--workflow-id", ref.workflow_id, "--versioning-override-behavior", "pinned")
        assert (
            deploys.temporal(*move, "--versioning-override-deployment-name", DEPLOYMENT, "--versioning-override-build-id", "B").returncode
            == 0
        )
        until(lambda: "WORKFLOW_TASK_FAILED" in kinds(history(stack, ref)))
        undo = ("workflow", "update-options", "--workflow-id", ref.workflow_id, "--versioning-override-behavior", "unspecified")
        assert deploys.temporal(*undo).returncode == 0
        settings = BucketSettings((stack.data_dir / "bucket").as_uri())
        bucket = Bucket(settings)
        markers = {info.key: info.modified for info in bucket.objects(ref.sheets_prefix) if info.key.endswith(".dzi")}
        assert len(markers) >= 2

        deploys.follow(found.advice)
        assert watch.end()["status"] == "complete"
    after = {info.key: info.modified for info in bucket.objects(ref.sheets_prefix) if info.key.endswith(".dzi")}
    assert {key: after[key] for key in markers} == markers
    second = accepted(stack, body)
    wait_until_complete(stack, second)
    assert_whole(settings, ref, sheets_of(bucket, second))
    assert [found.grade for found in deploys.findings("B")] == [Grade.OK]


def test_rolling_restart_to_changed_code(
    new_stack: Callable[..., Stack], new_deploys: Callable[[Stack], Deploys], tmp_path: Path, body: bytes
) -> None:
    """Without versions, every process is replaced while uploads run, the workflow worker by one with a change behind ``workflow.patched``.

    A run of the old code goes on without the change, a new run has it. The old code, started again, cannot go on with new runs: they
    wait, and lose nothing. One begins anew on the old code, one ends once the new code is back.
    """
    stack = new_stack(SITELINK_RENDER_SLOTS="1")
    deploys = new_deploys(stack)
    first = accepted(stack, body)
    with ExitStack() as watches:
        watch = watches.enter_context(Watch(stack, first))
        wait_until_completed(stack, first, 1)
        stack.processes["api"].stop(DEADLINE_S)
        stack.start_process("api")
        new = deploys.start(code=changed(tmp_path, PATCHED_SLEEP))
        stop(stack, "worker-workflow")
        stack.start_process("worker-tile")
        identity = f"{new.pid}@"
        until(lambda: any(done.startswith(identity) for done in workers(history(stack, first))), ASK_S)
        others = accepted(stack, body), accepted(stack, body)
        for ref in others:
            wait_for(stack, path_of(ref), lambda status: status["totalPages"] > 0)
        stop(stack, "worker-tile")
        again, late = (watches.enter_context(Watch(stack, ref)) for ref in others)
        new.stop(DEADLINE_S)
        stack.start_process("worker-workflow")
        stack.start_process("worker-tile")
        assert watch.end()["status"] == "complete"
        for ref in others:
            until(lambda ref=ref: "WORKFLOW_TASK_FAILED" in kinds(history(stack, ref)))  # type: ignore[misc]
        query = f"WorkflowId = '{others[0].workflow_id}' AND ExecutionStatus = 'Running'"
        deploys.follow(f'temporal workflow reset --type FirstWorkflowTask --reason moved --query "{query}"')
        assert again.end()["status"] == "complete"
        assert httpx2.get(address(stack, others[1]), timeout=DEADLINE_S).json()["completedAt"] is None
        stop(stack, "worker-workflow")
        deploys.start(code=tmp_path)
        assert late.end()["status"] == "complete"
    assert "MARKER_RECORDED" in kinds(history(stack, others[1]))
    assert "TIMER_STARTED" not in kinds(history(stack, first))
    settings = BucketSettings((stack.data_dir / "bucket").as_uri())
    for ref in others:
        assert_whole(settings, ref, sheets_of(Bucket(settings), first))
