"""What must hold after any fault, and the client that sees it hold meanwhile."""

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx2 as httpx

from activities.bucket.keys import UploadRef
from activities.bucket.report import Proof, SheetReport, UploadReport
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket, BucketSettings
from activities.bucket.verify import verify_upload
from deploy.local import Stack

PLAN = "/v1/organizations/acme/projects/tower/plans/{plan}/uploads"
DEADLINE_S = 240


def accepted(stack: Stack, body: bytes, plan: str = "a1") -> UploadRef:
    """Sends the PDF until it is accepted, as a client does: always with the same Idempotency-Key."""
    key, deadline = str(uuid.uuid4()), time.monotonic() + DEADLINE_S
    while True:
        answer = httpx.post(
            stack.api_url + PLAN.format(plan=plan),
            content=body,
            headers={"Content-Type": "application/pdf", "Idempotency-Key": key},
            timeout=DEADLINE_S,
        )
        if answer.status_code == 202:
            return UploadRef.parse(answer.json()["ref"])
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text


def address(stack: Stack, ref: UploadRef) -> str:
    """Where the upload's progress is."""
    return f"{stack.api_url}{PLAN.format(plan=ref.plan)}/{ref.upload}"


class Watch:
    """A client that watches an upload by SSE and comes back when its stream breaks; a context manager.

    It holds that versions never fall, that no counter falls in a change that does not say ``reconciled``, and that the stream ends once.

    Args:
        stack: Its API; read anew for every connection.
        ref: The upload.
        last_event_id: Of an earlier stream.
        completed: What the client knows to be completed already.
    """

    def __init__(self, stack: Stack, ref: UploadRef, last_event_id: int | None = None, completed: int = 0) -> None:
        self.states: list[dict[str, Any]] = []
        """The data of every event."""
        self.statuses: dict[int, str] = {}
        """The last known status of each sheet."""
        self.warnings: set[str] = set()
        self.wrong: list[str] = []
        self._stack, self._ref = stack, ref
        self._last, self._completed = last_event_id, completed
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
        """The version that the client has."""
        return self._last or 0

    def until(self, condition: "Callable[[Watch], object]", seconds: float = DEADLINE_S) -> dict[str, Any]:
        """Waits until the condition holds for the watch; the newest state."""
        with self._changed:
            met = self._changed.wait_for(lambda: self.wrong or condition(self), seconds)
        assert not self.wrong, self.wrong
        assert met, f"not within {seconds:g} s; last: {self.states[-1:]}"
        return self.states[-1]

    def end(self) -> dict[str, Any]:
        """Waits for the end; the final state."""
        return self.until(lambda watch: watch._ended)

    @property
    def completed(self) -> int:
        """How many sheets the client knows to be completed."""
        return self._completed

    def _run(self) -> None:
        while not (self._ended or self._closed):
            headers = {} if self._last is None else {"Last-Event-ID": str(self._last)}
            try:
                with httpx.stream(
                    "GET", f"{address(self._stack, self._ref)}/events", headers=headers, timeout=httpx.Timeout(5, read=60)
                ) as answer:
                    if answer.status_code == 200:
                        self._read(answer)
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def _read(self, answer: httpx.Response) -> None:
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

    def _take(self, event: dict[str, str]) -> None:
        state = json.loads(event["data"])
        with self._changed:
            if self._last is not None and state["version"] < self._last:
                self.wrong.append(f"version {state['version']} after {self._last}: {event}")
            if state["completedPages"] < self._completed and not state["reconciled"]:
                self.wrong.append(f"{state['completedPages']} completed after {self._completed}: {event}")
            self._last, self._completed = state["version"], state["completedPages"]
            self.states.append(state)
            self.statuses.update((sheet["number"], sheet["status"]) for sheet in state["sheets"])
            if state["warning"]:
                self.warnings.add(state["warning"])
            self._ended = event["event"] == "end"
            self._changed.notify_all()


def sheets_of(bucket: Bucket, ref: UploadRef) -> dict[str, str]:
    """Every object below ``sheets/`` with the digest of its bytes."""
    keys = [info.key for info in bucket.objects(ref.sheets_prefix)]
    with ThreadPoolExecutor(8) as threads:
        digests = threads.map(lambda key: hashlib.sha256(bucket.get(key).body).hexdigest(), keys)
        return {key.removeprefix(ref.sheets_prefix): digest for key, digest in zip(keys, digests, strict=True)}


def assert_whole(settings: BucketSettings, ref: UploadRef, expected: dict[str, str]) -> None:
    """The bucket holds what an undisturbed run has left, ``verify`` says so, and no multipart upload is unfinished."""
    bucket = Bucket(settings)
    assert sheets_of(bucket, ref) == expected
    *sheets, whole = verify_upload(bucket, ref)
    assert isinstance(whole, UploadReport)
    assert whole.verified, [sheet for sheet in sheets if isinstance(sheet, SheetReport) and not sheet.verified]
    assert whole.verified_sheets == len(sheets)
    if settings.is_s3:
        assert whole.proof is Proof.DIGEST
        assert BucketSetup(settings).unfinished_uploads() == []
