"""The live progress of a plan: the events of its newest uploads in one stream.

The stream follows the newest ``FOLLOWED`` uploads of the plan, whether they have ended or not. A new upload shows up by itself. An upload
that has ended is looked at from time to time, because somebody may reopen or delete it.

The id of an event is what the client has: the version of each upload, and whether its ``end`` was sent. So any process can resume exactly.
"""

import asyncio
import base64
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from activities.bucket.keys import ID_PATTERN, PlanRef, UploadRef
from activities.bucket.storage import Bucket
from activities.errors import SiteLinkError, UploadNotFound
from activities.logs import set_log_context
from api.progress.delivery import Audience
from api.progress.status import Status
from api.progress.watcher import Cursor, Watcher

logger = logging.getLogger(__name__)

FOLLOWED = 32
"""How many uploads of a plan a stream follows: the newest."""
SCAN_S = 5.0
"""How often a plan is listed. An upload that this process has accepted or deleted is noticed at once."""
ENDED_PER_SCAN = 4
"""How many of the uploads that have ended are looked at after each listing."""

Subscribe = Callable[[UploadRef], Watcher]
Release = Callable[[Watcher], None]


@dataclass(frozen=True)
class Known:
    """The state of an upload that a client has already received.

    Args:
        version: The version.
        ended: Whether it has ``end`` of this version.
    """

    version: int
    ended: bool


class PlanWatcher:
    """Keeps the watchers of a plan's newest uploads, while somebody watches the plan.

    Args:
        plan: The plan.
        bucket: Lists the uploads.
        status: Tells whether an upload exists and has ended.
        subscribe: Gives the watcher of an upload.
        release: Takes it back.
    """

    def __init__(self, plan: PlanRef, bucket: Bucket, status: Status, subscribe: Subscribe, release: Release) -> None:
        self.plan = plan
        self.subscribers = 0
        self.audience = Audience()
        self.watchers: dict[str, Watcher] = {}
        """The watchers of the uploads that are followed, by upload."""
        self.listed = asyncio.Event()
        """Set when the plan was listed once."""
        self._bucket = bucket
        self._status = status
        self._subscribe = subscribe
        self._release = release
        self._hint = asyncio.Event()
        self._turn = 0

    def hint(self) -> None:
        """Lists the plan now."""
        self._hint.set()

    async def run(self) -> None:
        """Watches until this task is cancelled."""
        set_log_context(None)
        try:
            while True:
                self._hint.clear()
                try:
                    await self._scan()
                except SiteLinkError as error:
                    logger.warning("a plan is not listed", extra={"plan": str(self.plan), "problem": str(error)})
                except Exception:
                    logger.exception("a plan is not listed", extra={"plan": str(self.plan)})
                self.listed.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SCAN_S):
                        await self._hint.wait()
        finally:
            for upload in list(self.watchers):
                self._unfollow(upload)

    async def _scan(self) -> None:
        for upload in [upload for upload, watcher in self.watchers.items() if watcher.deleted]:
            self._unfollow(upload)
        names = await asyncio.to_thread(self._bucket.directories, self.plan.uploads_prefix)
        newest: list[str] = []
        for upload in sorted(filter(ID_PATTERN.fullmatch, names), reverse=True):
            if len(newest) == FOLLOWED:
                break
            if upload in self.watchers or await self.exists(upload):
                newest.append(upload)
        for upload in self.watchers.keys() - newest:
            if upload in names:  # newer uploads are followed instead
                self._unfollow(upload)
            elif not await self.exists(upload):
                self.watchers[upload].end()
        for upload in newest:
            if upload not in self.watchers:
                self._follow(upload)
        await self._look_at_ended()

    async def _look_at_ended(self) -> None:
        ended = sorted(upload for upload, watcher in self.watchers.items() if watcher.final is not None)
        for offset in range(min(ENDED_PER_SCAN, len(ended))):
            upload = ended[(self._turn + offset) % len(ended)]
            try:
                state = await self._status.read(self._ref(upload))
            except UploadNotFound:
                self.watchers[upload].end()
                continue
            if state.certain and state.final != self.watchers[upload].final:  # somebody has reopened it
                self._unfollow(upload)
                self._follow(upload)
        self._turn += ENDED_PER_SCAN

    async def exists(self, upload: str) -> bool:
        """Whether an upload was accepted and is not deleted.

        Raises:
            BucketError: The bucket failed.
        """
        try:
            await self._status.check(self._ref(upload))
        except UploadNotFound:
            return False
        return True

    def _ref(self, upload: str) -> UploadRef:
        return UploadRef(self.plan.organization, self.plan.project, self.plan.plan, upload)

    def _follow(self, upload: str) -> None:
        watcher = self.watchers[upload] = self._subscribe(self._ref(upload))
        watcher.listeners.add(self.audience.notify)
        self.audience.notify()

    def _unfollow(self, upload: str) -> None:
        watcher = self.watchers.pop(upload)
        watcher.listeners.discard(self.audience.notify)
        self._release(watcher)
        self.audience.notify()


class PlanCursor:
    """The next event for one client of a plan.

    Args:
        plan: The plan's watcher.
        known: What the client has, by upload.
        deleted: The uploads that the client has and that were deleted while it was away.
    """

    is_over = False

    def __init__(self, plan: PlanWatcher, known: Mapping[str, Known], deleted: Iterable[str]) -> None:
        self._plan = plan
        self._known = dict(known)
        self._deleted = list(deleted)
        self._cursors: dict[str, Cursor] = {}

    def take(self) -> bytes | None:
        """The next event of any upload; None if the client has the current state of all of them."""
        self._follow()
        while self._deleted:
            upload = self._deleted.pop()
            if self._known.pop(upload, None) is not None:
                return self._event("deleted", json.dumps({"upload": upload}).encode())
        for upload, cursor in self._cursors.items():
            if not cursor.is_over and (event := cursor.take()) is not None:
                self._known[upload] = Known(cursor.version or 0, cursor.is_over)
                return self._of_upload(upload, event)
        return None

    def _follow(self) -> None:
        """Takes over which uploads are followed, and by which watchers."""
        watchers = self._plan.watchers
        for upload, cursor in list(self._cursors.items()):
            if cursor.watcher.deleted:
                self._deleted.append(upload)
                del self._cursors[upload]
            elif watchers.get(upload) is not cursor.watcher:
                del self._cursors[upload]
                if upload not in watchers:  # newer uploads are followed instead
                    self._known.pop(upload, None)
        for upload, watcher in watchers.items():
            if upload in self._cursors or watcher.deleted or watcher.head is None:
                continue
            known = self._known.get(upload)
            cursor = self._cursors[upload] = Cursor(watcher, known.version if known else None)
            cursor.is_over = known is not None and known.ended and watcher.final is not None and watcher.head.version == known.version

    def _of_upload(self, upload: str, event: bytes) -> bytes:
        """The event of an upload's own stream, with the id of the plan's stream, and with the upload in its data."""
        _, _, rest = event.partition(b"\n")
        name, _, data = rest.partition(b"\ndata: {")
        return b'id: %b\n%b\ndata: {"upload":"%b",%b' % (write_id(self._known), name, upload.encode(), data)

    def _event(self, name: str, data: bytes) -> bytes:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (write_id(self._known), name.encode(), data)


def write_id(known: Mapping[str, Known]) -> bytes:
    """The id of an event: for each upload its id, its version, and ``!`` if it has ended. Ids that are UUIDs take 22 characters."""
    return ".".join(f"{_short(upload)}~{item.version:x}{'!' if item.ended else ''}" for upload, item in known.items()).encode() or b"-"


def read_id(text: str) -> dict[str, Known]:
    """Reads what ``write_id`` wrote. Parts that it cannot have written are left out, because an error would end an EventSource for good."""
    known = {}
    for part in islice(text.split("."), 2 * FOLLOWED):
        upload, _, version = part.partition("~")
        with suppress(ValueError):
            known[_long(upload)] = Known(int(version.removesuffix("!")[:15], 16), version.endswith("!"))
    return known


def _short(upload: str) -> str:
    with suppress(ValueError):
        number = uuid.UUID(upload)
        if str(number) == upload:
            return base64.urlsafe_b64encode(number.bytes).decode().rstrip("=")
    return f"={upload}"


def _long(short: str) -> str:
    upload = short[1:] if short.startswith("=") else str(uuid.UUID(bytes=base64.urlsafe_b64decode(f"{short}==")))
    if not ID_PATTERN.fullmatch(upload):
        raise ValueError(upload)
    return upload
