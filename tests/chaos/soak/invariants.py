"""What must hold when all faults are over, and the measure of it: what each document becomes in a run without faults."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from temporalio.client import Client
from temporalio.service import RPCError

from activities.bucket.keys import walk_uploads
from activities.bucket.report import SheetReport
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import ROOM_KEY
from activities.bucket.uploads import UploadStore
from activities.bucket.verify import verify_upload
from activities.interface import WORKFLOW_QUEUE, SweepBucket, Swept
from api.paths import upload_path
from tests.chaos.guarantees import Watch, address, sheets_of
from tests.chaos.soak.customers import PATIENCE_S, VERSION_NEVER_FELL, Book, Customer, Sent
from tests.chaos.soak.documents import Document
from tests.chaos.soak.site import Site, say
from tests.waiting import until_async
from workflows.codec import data_converter
from workflows.starting import is_running, start_deletion
from workflows.sweep import Sweep

CODEC_KEY = bytes.fromhex("50a4" * 16)
UNSTABLE = {"RenderTimeout", "RenderCrashed", "RenderOutOfMemory"}
"""Faults of a page that depend on the time that a busy machine takes. A sheet of a document that has one need not be as it was."""
IDLE_S = 20
"""After so long without work, render children have ended."""
MORE_DESCRIPTORS, MORE_BYTES = 48, 200 << 20
"""So much more than before the faults a process may have when it is idle again: connections that are kept, histories in the cache."""
AT_ONCE = 4


@dataclass(frozen=True)
class Expected:
    """What a document becomes.

    Args:
        refused: The error, if it is refused at once.
        status: The final status.
        sheets: By sheet, its status and its reason.
        objects: The objects below ``sheets/``, each with the digest of its bytes.
        ref: The upload that became so; empty if the document is refused.
    """

    refused: str = ""
    status: str = ""
    sheets: tuple[tuple[str, str | None], ...] = ()
    objects: dict[str, str] = field(default_factory=dict, hash=False)
    ref: str = ""

    @property
    def is_stable(self) -> bool:
        """Whether another run must end the same way."""
        return not UNSTABLE.intersection(reason for _, reason in self.sheets if reason)

    def objects_of(self, number: int) -> dict[str, str]:
        """The objects of one sheet."""
        return {key: digest for key, digest in self.objects.items() if key.startswith(f"sheet-{number}/")}


def undisturbed(site: Site, documents: list[Document]) -> dict[str, Expected]:
    """Sends every document while nothing fails; by its name, what became of it."""

    def run(document: Document) -> Expected:
        book = Book()
        sent = Customer(site, book, documents, 0).send(document, "reference")
        if sent is None:
            (refused,) = book.refused
            return Expected(refused=refused)
        with Watch(site.fleet, sent.ref) as watch:
            watch.until(lambda watch: watch.has_ended, PATIENCE_S)
        status = httpx2.get(address(site.fleet, sent.ref), timeout=60, trust_env=False).json()
        assert document.kind in ("hostile", "corpus") or status["status"] == "complete", status
        return Expected("", status["status"], _outcomes(status), sheets_of(site.bucket, sent.ref), str(sent.ref))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(zip((document.name for document in documents), threads.map(run, documents), strict=True))


def _outcomes(status: dict[str, Any]) -> tuple[tuple[str, str | None], ...]:
    return tuple((sheet["status"], sheet["reason"]) for sheet in status["sheets"])


@dataclass(frozen=True)
class Vitals:
    """What an idle process takes."""

    descriptors: int
    memory_bytes: int
    children: int


def vitals(site: Site) -> dict[str, Vitals]:
    """By name, what each process of the fleet takes now."""
    found = {}
    for name, process in site.fleet.processes.items():
        root = Path("/proc") / str(process.pid)
        pages = int((root / "statm").read_text().split()[1])
        children = len(list(_descendants({process.pid or 0})))
        found[name] = Vitals(sum(1 for _ in (root / "fd").iterdir()), pages * os.sysconf("SC_PAGE_SIZE"), children)
    return found


def _descendants(of: set[int]) -> Iterator[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = set(of)
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        yield from grown
        found |= grown


class Judge:
    """Checks every invariant; what does not hold goes into the book as a finding.

    Args:
        site: The site, without any fault by now.
        book: What the customers have done.
        expected: What each document becomes.
        before: What each process took before the faults.
    """

    def __init__(self, site: Site, book: Book, expected: dict[str, Expected], before: dict[str, Vitals]) -> None:
        self._site, self._book, self._expected, self._before = site, book, expected, before
        self.checked: Counter[str] = Counter()
        """How often each invariant was checked."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """How many uploads ended how, by kind of document and outcome."""
        self.multiparts: Counter[str] = Counter()
        """How many requests of each kind about multipart uploads came among the faults, and how many of the uploads stayed unfinished."""
        self._undisturbed_requests = len(site.faults.passed)

    def _check(self, invariant: str, holds: object, finding: object = "") -> None:
        self.checked[invariant] += 1
        if not holds:
            self._book.find(f"{invariant}: {finding}")

    def judge(self) -> None:
        """Checks everything while the fleet runs."""
        sent = list(self._book.sent)
        # The schedules are as new as the database is, so their hourly sweep, which finds what was lost with it, would come too late.
        asyncio.run(self._sweep("first"))
        say(f"waits for the end of {len(sent)} uploads")
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self._final, sent))
            asyncio.run(self._until_nothing_runs(sent))  # a request that was sent twice may have reopened an upload
            finals = list(threads.map(self._final, sent))
        say("checks the bucket")
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self._judge_upload, sent, finals))
        for name, times in self._book.refused.items():
            document = name.partition(":")[0]
            self._check("a refused document is one that is always refused", self._expected[document].refused == name, f"{times} x {name}")
        asyncio.run(self._judge_temporal(sent))
        self._judge_keys(sent)
        self._judge_hosts()
        self.checked[VERSION_NEVER_FELL] = self._book.compared

    # ------------------------------------------------------------------ each upload

    def _final(self, sent: Sent) -> dict[str, Any]:
        """The final state; an empty one of a deleted upload, or of one that has no final state."""
        customer = Customer(self._site, self._book, [sent.document], 0)
        try:
            if sent.is_deleted:
                return {}
            status = customer.until(sent.ref, lambda status: status["completedAt"] is not None)
            lost = [sheet["number"] for sheet in status["sheets"] if sheet["reason"] == "WorkerLost"]
            if lost or self._lost_its_password(sent, status):
                status = customer.repair(sent, status)
            return status
        except AssertionError as error:
            self._check("every accepted upload ends in one final state", holds=False, finding=error)
            return {}

    def _lost_its_password(self, sent: Sent, status: dict[str, Any]) -> bool:
        reasons = {status.get("reason"), *(sheet["reason"] for sheet in status["sheets"])}
        return "PasswordRequired" in reasons and bool(sent.document.password)

    def _judge_upload(self, sent: Sent, final: dict[str, Any]) -> None:
        try:
            self.outcomes[sent.document.kind, final.get("status", "deleted" if sent.is_deleted else "no end")] += 1
            if sent.is_deleted:
                self._judge_deleted(sent)
            elif final:
                self._judge_ended(sent, final)
        except Exception as error:  # noqa: BLE001 - reported
            self._book.find(f"{sent.ref} ({sent.document.name}, {sent.story}) could not be judged: {error!r}")

    def _judge_deleted(self, sent: Sent) -> None:
        """Only the mark stays, and what a frozen process wrote after it: nobody waits here for the deletion's second look, in an hour."""
        deadline, keys = time.monotonic() + PATIENCE_S, ["?"]
        while keys and time.monotonic() < deadline:
            objects = {info.key: info.modified for info in self._site.bucket.objects(sent.ref.prefix)}
            marked_at = objects.pop(sent.ref.record, datetime.max.replace(tzinfo=UTC))
            keys = [key for key, modified in objects.items() if modified <= marked_at]
            time.sleep(0.5)
        self._check("of a deleted upload only its mark stays", not keys, f"{sent.ref} ({sent.story}): {keys[:5]}")

    def _judge_ended(self, sent: Sent, final: dict[str, Any]) -> None:
        what = f"{sent.ref} ({sent.document.name}, {sent.story})"
        again = [httpx2.get(f"{url}{upload_path(sent.ref)}", timeout=60, trust_env=False).json() for url in self._site.fleet.api_urls]
        manifest = UploadStore(self._site.bucket).manifest(sent.ref)
        states = [(status["status"], status["version"], status["completedPages"]) for status in (final, *again)]
        if manifest is not None:
            snapshot = manifest.snapshot
            states.append((snapshot.status.value, snapshot.version, snapshot.completed_pages))
        self._check("every accepted upload ends in one final state", manifest is not None and len(set(states)) == 1, f"{what}: {states}")

        is_open = manifest is not None and UploadStore(self._site.bucket).reopened_record(sent.ref, manifest.snapshot) is not None
        self._check("no ended upload says that a run goes on from it", not is_open, what)

        expected = self._expected[sent.document.name]
        outcomes, objects = _outcomes(final), sheets_of(self._site.bucket, sent.ref)
        is_stopped = final["status"] == "cancelled" and sent.may_be_cancelled
        if expected.is_stable and not is_stopped:
            same = (final["status"], outcomes) == (expected.status, expected.sheets)
            self._check("the outcome is that of a run without faults", same, f"{what}: {final['status']} {outcomes} {final.get('detail')}")
        if is_stopped:
            wanted = {
                key: digest
                for sheet in final["sheets"]
                if sheet["status"] == "ready"
                for key, digest in expected.objects_of(sheet["number"]).items()
            }
        else:
            wanted = expected.objects
        if expected.is_stable:
            differing = sorted(key for key in {*objects, *wanted} if objects.get(key) != wanted.get(key))
            self._check(
                "sheets/** is byte for byte that of a run without faults", not differing, f"{what}: {len(differing)}: {differing[:5]}"
            )
        ready = {sheet["number"] for sheet in final["sheets"] if sheet["status"] == "ready"}
        reports = [report for report in verify_upload(self._site.bucket, sent.ref) if isinstance(report, SheetReport)]
        broken = [report.number for report in reports if report.number in ready and not report.verified]
        marked = {int(key.partition("/")[0].removeprefix("sheet-")) for key in objects if key.endswith((".dzi", ".pmtiles"))}
        self._check("a commit marker exists only with all its tiles", not broken and marked == ready, f"{what}: {broken} {marked ^ ready}")

    # ------------------------------------------------------------------ Temporal

    async def _client(self) -> Client:
        return await Client.connect(self._site.fleet.temporal.address, data_converter=data_converter([CODEC_KEY]))

    async def _until_nothing_runs(self, sent: list[Sent]) -> None:
        client = await self._client()
        for each in sent:
            with suppress(TimeoutError):
                await until_async(partial(self._has_ended, client, each))
            ended = await self._has_ended(client, each)
            self._check("no run of an ended upload is left", ended, f"{each.ref} ({each.story})")

    async def _has_ended(self, client: Client, sent: Sent) -> bool:
        return not await is_running(client, sent.ref)

    async def _judge_temporal(self, sent: list[Sent]) -> None:
        client = await self._client()
        self._count_multiparts()
        say("deletes for good, and sweeps")
        for each in sent:
            if each.is_deleted:
                handle = client.get_workflow_handle(each.ref.delete_workflow_id)
                with suppress(RPCError):
                    await handle.terminate()  # it waits for an hour before it looks again
                await start_deletion(client, each.ref, look_again_s=0.5)
                async with asyncio.timeout(PATIENCE_S):
                    await client.get_workflow_handle(each.ref.delete_workflow_id).result()
        await asyncio.sleep(2)
        swept = await self._sweep("last", abandoned_after_s=1)
        self._check("the sweep passes over nothing", swept.passed_over.count == 0, swept.passed_over)
        undone = (swept.started, swept.mended, swept.terminated, swept.deleted)
        self._check("nothing is left for a sweep to begin", not any(names.count for names in undone), undone)

    def _count_multiparts(self) -> None:
        """Counts multipart uploads before the last sweep. If none was begun among the faults, then nothing shows that none is left."""
        for what, method, target in (
            ("begun", "POST", r"\?uploads\b"),
            ("completed", "POST", "[?&]uploadId="),
            ("aborted", "DELETE", "[?&]uploadId="),
        ):
            self.multiparts[f"{what} (requests)"] = len(self._site.faults.sent(method, target, self._undisturbed_requests))
        self.multiparts["unfinished before the last sweep"] = len(BucketSetup(self._site.settings).unfinished_uploads())
        self._check("multipart uploads were begun among the faults", self.multiparts["begun (requests)"], "none")

    async def _sweep(self, name: str, **args: int) -> Swept:
        client = await self._client()
        return await client.execute_workflow(Sweep.run, SweepBucket(**args), id=f"soak-{name}-sweep", task_queue=WORKFLOW_QUEUE)

    # ------------------------------------------------------------------ the bucket

    def _judge_keys(self, sent: list[Sent]) -> None:
        """Checks that the bucket has only what it should have after the last sweep.

        That no multipart upload is left proves that the API completes or aborts its own, and that the sweep aborts those of killed
        processes. It does not prove that the API alone leaves none: ``multiparts`` counts those that the sweep found.
        """
        bucket, setup = self._site.bucket, BucketSetup(self._site.settings)
        left = [upload.key for upload in setup.unfinished_uploads()]
        self._check("no multipart upload is left", not left, left[:5])
        accepted, now = {str(each.ref) for each in sent if not each.is_deleted}, datetime.now(UTC)
        accepted |= {each.ref for each in self._expected.values() if each.ref}
        there = {str(ref): ref for ref in walk_uploads(bucket.directories)}
        for name in sorted(there.keys() - accepted):
            # By its id it was made in the future, by a clock that was wrong: a sweep removes it when that time has come.
            is_early = not bucket.has(there[name].record) and (there[name].made_at or now) > now
            self._check("every upload in the bucket was accepted, once", is_early, name)
        for name in sorted(accepted):
            is_there = name in there and bucket.has(there[name].record) and bucket.has(there[name].manifest)
            self._check("every accepted upload is there after the last sweep", is_there, name)
        for info in bucket.objects(""):
            is_ours = "/uploads/" in info.key or "/keys/" in info.key or info.key == ROOM_KEY
            if not is_ours:
                self._check("no stray object is left", holds=False, finding=info.key)
            if "/keys/" in info.key:
                record = UploadStore(bucket).key_record(info.key)
                prefix = info.key.partition("/keys/")[0]
                is_there = record is not None and bucket.has(f"{prefix}/uploads/{record.upload}/upload.json")
                self._check("every Idempotency-Key leads to an upload", is_there, info.key)
        self.checked["no stray object is left"] += 1

    # ------------------------------------------------------------------ the hosts

    def _judge_hosts(self) -> None:
        say("waits until everything is idle")
        fleet = self._site.fleet

        def scratch() -> list[str]:
            roots = [fleet.scratch(name) for name in fleet.processes if name.startswith("tile")]
            return [
                str(path.relative_to(fleet.directory))
                for root in roots
                for where in ("sources", "pages", "uploads")
                for path in (root / where).glob("*")
            ]

        def temporary() -> list[str]:
            return [str(path.relative_to(fleet.directory)) for path in (fleet.directory / "tmp").glob("*/*")]

        def too_much() -> list[str]:
            return [
                f"{name}: {now}, before {self._before[name]}"
                for name, now in vitals(self._site).items()
                if _has_grown(now, self._before[name])
            ]

        for invariant, look in (
            ("the scratch is empty", scratch),
            ("no process, descriptor or memory is left", too_much),
            ("no temporary file is left", temporary),
        ):
            left = _until_empty(look)
            self._check(invariant, not left, f"{len(left)}: {left[:5]}")

    def judge_end(self) -> None:
        """Asks every process to stop, and checks that it ends, and all its children with it, before anybody kills its group."""
        processes = self._site.fleet.processes
        for role in ("tile", "workflow", "api"):
            groups = {process.pid: name for name, process in processes.items() if name.startswith(role)}
            for name in groups.values():
                processes[name].terminate()
            left = _until_empty(partial(_members, groups))
            self._check("every process ends when it is asked to, and its children with it", not left, left)


def _members(groups: Mapping[int | None, str]) -> list[str]:
    """The processes of these groups that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z" and (name := groups.get(int(group))):
                command = (stat.parent / "cmdline").read_text().replace("\0", " ")
                found.append(f"{name}: {command[:200]}")
    return found


def _has_grown(now: Vitals, before: Vitals) -> bool:
    return (
        now.descriptors > before.descriptors + MORE_DESCRIPTORS
        or now.memory_bytes > before.memory_bytes + MORE_BYTES
        or now.children > before.children
    )


def _until_empty(look: Callable[[], list[str]]) -> list[str]:
    """Waits until a list is empty; returns what is left after a long time."""
    deadline = time.monotonic() + 180
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return left
