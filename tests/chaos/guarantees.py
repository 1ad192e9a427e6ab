"""What must hold after any fault, and the clients that check it while the fault lasts."""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout
from activities.bucket.report import Proof, SheetReport, UploadReport
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from api.paths import upload_path
from deploy.stack import Stack
from tests.waiting import DEADLINE_S, until

PLAN = "/v1/organizations/acme/projects/tower/plans/{plan}/uploads"


class Site(Protocol):
    """Has an API: a stack, or a fleet, whose address is that of another of its API processes each time."""

    @property
    def api_url(self) -> str:
        """The API's address."""


def accepted(stack: Site, body: bytes, plan: str = "a1", layout: Layout = Layout.EXPLODED, *, key: str = "", **options: int) -> UploadRef:
    """Sends the PDF until it is accepted, as a patient client does: each time with the same Idempotency-Key.

    Args:
        stack: Its API may be killed meanwhile.
        body: The PDF.
        plan: The plan.
        layout: The layout of the sheets.
        key: The Idempotency-Key; default: a new one.
        options: Further options of the upload, as the API takes them.
    """
    key, deadline = key or str(uuid.uuid4()), time.monotonic() + DEADLINE_S
    while True:
        answer = None
        with suppress(httpx2.TransportError):
            answer = httpx2.post(
                stack.api_url + PLAN.format(plan=plan),
                params={"filename": "plan.pdf", "layout": layout, **options},
                content=body,
                headers={"Content-Type": "application/pdf", "Idempotency-Key": key},
                timeout=DEADLINE_S,
            )
        if answer is not None and answer.status_code == 202:
            return UploadRef.parse(answer.json()["ref"])
        assert answer is None or answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def path_of(ref: UploadRef) -> str:
    """The upload's path in the API."""
    return upload_path(ref)


def address(stack: Site, ref: UploadRef) -> str:
    """The upload's URL in the stack's API."""
    return stack.api_url + path_of(ref)


def send(stack: Site, body: bytes, layout: Layout = Layout.EXPLODED) -> str:
    """Sends the PDF until it is accepted; returns the upload's path in the API."""
    return path_of(accepted(stack, body, layout=layout))


def wait_for(stack: Site, upload: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Asks for the status until the condition holds.

    Meanwhile the version never falls, and ``completedPages`` falls only by a new reconcile.

    Args:
        stack: Its API may be killed meanwhile.
        upload: The upload's path in the API.
        condition: Gets each status.
    """
    deadline = time.monotonic() + DEADLINE_S
    status: dict[str, Any] = {}
    before: dict[str, Any] = {"version": 0, "completedPages": 0, "reconciledAt": None}
    while time.monotonic() < deadline:
        try:
            status = httpx2.get(stack.api_url + upload, timeout=60).json()
        except httpx2.TransportError:
            time.sleep(0.2)
            continue
        assert status["version"] >= before["version"], status
        assert may_follow(status, before["completedPages"], before["reconciledAt"]), (status, before)
        before = status
        if condition(status):
            return status
        time.sleep(0.05)
    pytest.fail(f"not within {DEADLINE_S} s, last seen {status}")


def may_follow(state: dict[str, Any], completed: int, reconciled_at: str | None) -> bool:
    """Whether ``completedPages`` has not fallen, or has fallen by a reconcile.

    ``reconciled`` alone does not excuse a fall: it stays true for good. Each reconcile has a ``reconciledAt`` of its own.

    Args:
        state: The new state.
        completed: The ``completedPages`` before.
        reconciled_at: The ``reconciledAt`` before.
    """
    return bool(state["completedPages"] >= completed or (state["reconciled"] and state["reconciledAt"] != reconciled_at))


def wait_until_scratch_is_empty(stack: Stack) -> None:
    """Waits until the scratch holds no page and no PDF: it is freed just after the final state is known."""
    deadline = time.monotonic() + DEADLINE_S
    scratch = stack.data_dir / "scratch"
    while left := [*scratch.glob("pages/*"), *scratch.glob("sources/*")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def stop(stack: Stack, name: str) -> None:
    """Stops a process of the stack in order: waits until it has ended by itself. It is not started again."""
    process = stack.processes[name]
    pid = process.pid
    process.terminate()
    until(lambda: process.pid != pid or not process.is_running)
    stack.kill(name)


class Watch:
    """A client that watches an upload by SSE and connects again when its stream breaks; a context manager.

    It checks that versions never fall, that ``completedPages`` falls only by a new reconcile, and that no answer is an error, which would
    end a browser's EventSource for good.

    Args:
        stack: Its API may be killed meanwhile.
        ref: The upload.
        last_event_id: The last id of an earlier stream.
        completed: The number of completed sheets that the client knows of already.
        reconciled_at: The ``reconciledAt`` that the client knows of already.
    """

    def __init__(
        self, stack: Site, ref: UploadRef, last_event_id: int | None = None, completed: int = 0, reconciled_at: str | None = None
    ) -> None:
        self.states: list[dict[str, Any]] = []
        """The data of every event."""
        self.statuses: dict[int, str] = {}
        """The last known status of each sheet, by number."""
        self.warnings: set[str] = set()
        self.wrong: list[str] = []
        self.compared = 0
        """How many versions were compared with the one before."""
        self._stack, self._ref = stack, ref
        self._last, self._completed, self._reconciled_at = last_event_id, completed, reconciled_at
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True

    @property
    def last_event_id(self) -> int:
        """The version of the client's last event."""
        return self._last or 0

    def until(self, condition: "Callable[[Watch], object]", seconds: float = DEADLINE_S) -> dict[str, Any]:
        """Waits until the condition holds for this watch; returns the newest event's data."""
        with self._changed:
            met = self._changed.wait_for(lambda: self.wrong or condition(self), seconds)
        assert not self.wrong, self.wrong
        assert met, f"not within {seconds:g} s; last: {self.states[-1:]}"
        return self.states[-1]

    def end(self) -> dict[str, Any]:
        """Waits for the event ``end``; returns its data."""
        return self.until(lambda watch: watch.has_ended)

    @property
    def has_ended(self) -> bool:
        """Whether the client has got the event ``end``."""
        return self._ended

    @property
    def completed(self) -> int:
        """How many sheets the client knows to be completed."""
        return self._completed

    @property
    def reconciled_at(self) -> str | None:
        """When the upload was last reconciled, as far as the client knows."""
        return self._reconciled_at

    def _run(self) -> None:
        while not (self._ended or self._closed):
            headers = {"Accept": "text/event-stream"} | ({} if self._last is None else {"Last-Event-ID": str(self._last)})
            try:
                with httpx2.stream(
                    "GET", f"{address(self._stack, self._ref)}/events", headers=headers, timeout=httpx2.Timeout(5, read=60)
                ) as answer:
                    if answer.status_code == 200:
                        self._read(answer)
                    elif answer.status_code == 204:  # the last stream broke just before its ``end``
                        self._take_final()
                    else:
                        self._refuse(f"{answer.status_code} {answer.read()[:300]!r} ends an EventSource for good")
            except httpx2.TransportError:
                pass
            time.sleep(0.1)

    def _refuse(self, finding: str) -> None:
        with self._changed:
            self.wrong.append(finding)
            self._changed.notify_all()

    def _read(self, answer: httpx2.Response) -> None:
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
                continue
            if "data" in event:
                self._take(event)
            event = {}
            if self._ended or self._closed:
                return

    def _take_final(self) -> None:
        state = httpx2.get(address(self._stack, self._ref), timeout=60).json()
        if state.get("completedAt") is not None:
            self._take({"event": "end", "data": json.dumps(state)})

    def _take(self, event: dict[str, str]) -> None:
        state = json.loads(event["data"])
        with self._changed:
            if self._last is not None:
                self.compared += 1
                if state["version"] < self._last:
                    self.wrong.append(f"version {state['version']} after {self._last}: {event}")
            if not may_follow(state, self._completed, self._reconciled_at):
                self.wrong.append(f"{state['completedPages']} completed after {self._completed}: {event}")
            self._last, self._completed, self._reconciled_at = state["version"], state["completedPages"], state["reconciledAt"]
            self.states.append(state)
            self.statuses.update((sheet["number"], sheet["status"]) for sheet in state["sheets"])
            if state["warning"]:
                self.warnings.add(state["warning"])
            self._ended = event["event"] == "end"
            self._changed.notify_all()


def sheets_of(bucket: Bucket, ref: UploadRef) -> dict[str, str]:
    """Every object of the upload's sheets, by its key below ``sheets/``, with the digest of its bytes."""
    keys = [info.key for info in bucket.objects(ref.sheets_prefix)]
    with ThreadPoolExecutor(8) as threads:
        digests = threads.map(lambda key: hashlib.sha256(bucket.get(key).body).hexdigest(), keys)
        return {key.removeprefix(ref.sheets_prefix): digest for key, digest in zip(keys, digests, strict=True)}


def sheets_in(bucket: Path, upload: str) -> dict[str, str]:
    """The same for a bucket that is a directory: every file counts, also one that a LIST does not show.

    Args:
        bucket: The directory.
        upload: The upload's path in the API.
    """
    organization, project, plan, name = upload.split("/")[3::2]
    root = bucket / UploadRef(organization, project, plan, name).sheets_prefix
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def assert_whole(settings: BucketSettings, ref: UploadRef, expected: dict[str, str]) -> None:
    """The bucket holds the objects of an undisturbed run, ``verify`` finds every sheet whole, and no multipart upload is unfinished."""
    bucket = Bucket(settings)
    assert sheets_of(bucket, ref) == expected
    *sheets, whole = verify_upload(bucket, ref)
    assert isinstance(whole, UploadReport)
    assert whole.verified, [sheet for sheet in sheets if isinstance(sheet, SheetReport) and not sheet.verified]
    assert whole.verified_sheets == len(sheets)
    if settings.is_s3:
        assert whole.proof is Proof.DIGEST
        assert BucketSetup(settings).unfinished_uploads() == []
