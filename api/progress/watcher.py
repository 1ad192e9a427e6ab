"""Watches uploads. One watcher per upload asks Temporal; any number of clients get its state.

A watcher keeps one current state and no log. A client has a version, and gets the sheets that changed since that version. So a slow client
gets fewer and larger changes, and never delays another client.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from activities.bucket.keys import UploadRef
from activities.bucket.records import Snapshot, to_json
from activities.errors import SiteLinkError, TemporalUnavailable, UploadNotFound
from activities.logs import set_log_context
from api.progress.delivery import Audience, OnDelivered, encode_event
from api.progress.live import LiveProgress
from api.progress.runs import NoRun, Runs
from api.progress.status import Status, UploadState, is_unloaded

logger = logging.getLogger(__name__)

POLL_S = 1.0
MAX_POLL_S = 5.0
LONGEST_PAUSE_S = 30.0
"""The longest pause after an unexpected failure of a watcher, such as a change that this release cannot read during a deploy."""
POLLING_S = 60.0
"""How long the watcher only queries, after its update has failed to deliver a change, or was pushed out by those of other processes."""
REPEAT_PAUSE_S = 0.05
MAX_FRAMES = 16
"""How many events a watcher keeps for its clients. Nearly all clients need the newest change or the snapshot."""
_PROCESS = secrets.token_hex(6)
"""Names this process in the ids of its updates."""


class Watcher:
    """Keeps the current progress of one upload, while somebody watches it.

    Args:
        ref: The upload.
        status: Reads the upload's state.
        runs: Waits for its changes.
        on_delivered: Called when the clients were sent a change.
    """

    def __init__(self, ref: UploadRef, status: Status, runs: Runs, on_delivered: OnDelivered = lambda *_: None) -> None:
        self.ref = ref
        self.subscribers = 0
        self.audience = Audience(on_delivered)
        """The event streams of this upload."""
        self.listeners: set[Callable[[], None]] = set()
        """Called at each change."""
        self.certain = True
        """False when Temporal or the bucket does not answer, so that ``snapshot`` is only the last known state."""
        self.final: bytes | None = None
        """The data of the event ``end``, once the run has ended."""
        self.deleted = False
        """Whether the upload was deleted."""
        self.changed = asyncio.Event()
        """Set at the next change; then a new event takes its place."""
        self._status = status
        self._runs = runs
        self._live: LiveProgress | None = None
        self._frames: dict[int | None, bytes] = {}
        self._last_frame: tuple[int | None, bytes] | None = None
        """The last answer of ``frame``: nearly all clients have the same version."""
        self._reading = asyncio.Lock()
        """Held from a read until its state is published: a state that was read earlier is not published later."""
        self._ended_updates = 0
        """Counts the updates that ended without a change: their ids are used up."""
        self._unchanged_at: int | None = None
        """The version at which an update last ended without a change."""
        self._polling_until = 0.0
        """Until then, on the clock of ``time.monotonic``, only queries are made."""

    @property
    def is_over(self) -> bool:
        """Whether this watcher will publish no further change."""
        return self.deleted or self.final is not None

    @property
    def head(self) -> Snapshot | None:
        """The current progress without its sheets; None while there is no state yet."""
        return self._live.head if self._live else None

    @property
    def snapshot(self) -> Snapshot | None:
        """The whole current progress; None while there is no state yet."""
        return self._live.snapshot if self._live else None

    def has_news(self, after: int) -> bool:
        """Whether a client with the version ``after`` should have the current state. A state that would take it back is no news."""
        head = self.head
        if head is None or head.version == after:
            return False
        return head.version > after or (self.certain and not is_unloaded(head))

    def frame(self, since: int | None) -> bytes:
        """The event that brings a client from version ``since`` to the current state; None is a client without a version.

        It is encoded once for all clients. Clients that lack the same sheets share it, whatever version they name, so there are at most as
        many events as versions of sheets. Only the last ``MAX_FRAMES`` of them are kept.
        """
        if self._last_frame is None or self._last_frame[0] != since:
            self._last_frame = (since, self._shared_frame(since))
        return self._last_frame[1]

    def _shared_frame(self, since: int | None) -> bytes:
        assert self._live is not None  # noqa: S101 - clients ask once there is a state
        if since is None:
            known, state = None, self._live.snapshot
        else:
            known, state = self._live.changes_since(since)
        if known not in self._frames:
            if len(self._frames) >= MAX_FRAMES:
                del self._frames[next(iter(self._frames))]
            self._frames[known] = encode_event("snapshot" if since is None else "change", str(state.version), to_json(state))
        return self._frames[known]

    def _publish(self, snapshot: Snapshot | None, *, certain: bool = True, final: bytes | None = None, deleted: bool = False) -> None:
        if self.deleted or (snapshot, certain, final, deleted) == (self.snapshot, self.certain, self.final, self.deleted):
            return
        if snapshot is not None and snapshot != self.snapshot:
            self._live = LiveProgress(snapshot)
        self.certain, self.final, self.deleted = certain, final, deleted
        self._announce()

    def _announce(self) -> None:
        self._frames.clear()
        self._last_frame = None
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        self.audience.notify()
        for listener in self.listeners:
            listener()

    def end(self) -> None:
        """Ends every stream, because the upload was deleted. A client that reconnects gets ``UploadNotFound``."""
        self._publish(self.snapshot, deleted=True)

    async def run(self) -> None:
        """Watches until the run has ended, the upload is deleted or this task is cancelled. Even an unexpected failure does not end it."""
        set_log_context(str(self.ref))  # the watcher serves many requests, not only the first one
        pause_s = POLL_S
        while not self.is_over:
            version = self.head.version if self.head else None
            try:
                await self._watch()
            except Exception:
                if self.head is not None and self.head.version != version:
                    pause_s = POLL_S
                logger.exception("a watcher failed, it begins again", extra={"ref": str(self.ref), "pause_s": pause_s})
                self._publish_doubt("the server's log says why")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _publish_doubt(self, why: object) -> None:
        """Publishes the last known state again, with a warning."""
        if self.snapshot is not None:
            self._publish(replace(self.snapshot, warning=f"this may not be the latest state: {why}"), certain=False)

    async def _watch(self) -> None:
        pause_s = POLL_S
        overdue = False
        while not self.is_over:
            async with self._reading:
                state = await self._read()
                is_newer = state is not None and self.head is not None and state.snapshot.version > self.head.version
                if state is not None and state.certain:
                    if is_newer:  # no update has brought this change: it is late
                        self.audience.take_times(state.snapshot.version / 1000, ())
                    self._publish(state.snapshot, final=state.final)
            if state is None or not state.certain:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_POLL_S)
                continue
            pause_s = POLL_S
            if overdue and is_newer:
                # The update should have delivered this change. Too many updates wait already, so Temporal silently retries ours.
                logger.info("the update does not deliver, queries instead", extra={"ref": str(self.ref)})
                self._polling_until = time.monotonic() + POLLING_S
            overdue = False
            if time.monotonic() < self._polling_until and not self.is_over:
                await asyncio.sleep(POLL_S)
            elif not self.is_over and self._live is not None:
                overdue = await self._follow(self._live)

    async def _read(self) -> UploadState | None:
        try:
            state = await self._status.with_standstill_warning(self.ref, await self._status.read(self.ref))
        except UploadNotFound:
            self.end()
            return None
        except SiteLinkError as error:  # the bucket failed
            self._publish_doubt(error)
            return None
        if not state.certain and (self.head is None or state.snapshot.version >= self.head.version):
            self._publish(state.snapshot, certain=False)
        return state

    async def catch_up(self, version: int | None) -> None:
        """Reads the state again if a client has a newer version than this watcher: another process may have told the client earlier."""
        head = self.head
        if version is None or head is None or version <= head.version or not self.certain or self.is_over:
            return
        async with self._reading:
            state = await self._read()
            head = self.head
            if state is not None and state.certain and head is not None and state.snapshot.version > head.version and not self.is_over:
                self._publish(state.snapshot, final=state.final)

    async def _follow(self, live: LiveProgress) -> bool:
        """Publishes changes until the whole state must be read again.

        Args:
            live: The current state, which takes the changes.

        Returns:
            Whether it must be read because no change came in time.
        """
        while True:
            live = self._live or live
            version = live.head.version
            try:
                answer = await self._runs.progress_after(self.ref, version, f"watch-{_PROCESS}-{version}-{self._ended_updates}")
            except NoRun:
                await asyncio.sleep(REPEAT_PAUSE_S)
                return False
            except TemporalUnavailable:  # also when the run has had all the updates that Temporal allows, while its queries are answered
                await asyncio.sleep(POLL_S)
                return False
            if not answer:  # the wait has ended without a change
                return True
            change, committed = answer
            if change.version == version:
                # Too many updates wait, the run is closing, or the change is too large for an update. The update with this id has ended, so
                # the next wait needs a new id.
                self._ended_updates += 1
                is_again, self._unchanged_at = self._unchanged_at == version, version
                if is_again and not change.status.is_final:
                    # Too many updates wait. Each new one would push out that of another process, which would do the same, without end, and
                    # Temporal allows a run 2,000 of them.
                    self._polling_until = time.monotonic() + POLLING_S
                await asyncio.sleep(REPEAT_PAUSE_S if change.status.is_final and not is_again else POLL_S)
                return False
            if self.deleted:
                return False
            if self._live is not live:  # the state was read again meanwhile, so this change may be known already
                continue
            if change.version < version:  # the change holds the whole state
                self._live = live = LiveProgress(change)
            else:
                live.apply(change)
            self._status.remember(self.ref, live)
            self.audience.take_times(change.version / 1000, committed)
            self._announce()


class Cursor:
    """The next event for one client of an upload.

    Args:
        watcher: The upload's watcher.
        after: The version that the client has, if any. Such a client gets no state that would take it back: neither a last known state that
            is older than its version, nor the state of a run that lost its history and has not counted the pages again.
    """

    __slots__ = ("_knows_pages", "_warning", "is_over", "version", "watcher")

    def __init__(self, watcher: Watcher, after: int | None) -> None:
        self.watcher = watcher
        self.version = after
        """The version that the client has, if any."""
        self._knows_pages = after is not None  # a client that has a version has probably seen the pages
        self._warning: str | None = None
        self.is_over = False
        """Whether no event follows."""

    def take(self) -> bytes | None:
        """The event that brings the client to the current state; None if it has this state."""
        watcher, head, after = self.watcher, self.watcher.head, self.version
        if watcher.deleted or self.is_over:
            self.is_over = True
            return None
        if head is None:
            return None
        is_sent = (head.version, head.warning) == (after, self._warning)
        if not is_sent and not (self._is_ahead(head) or (self._knows_pages and is_unloaded(head))):
            self.version, self._warning = head.version, head.warning
            self._knows_pages = self._knows_pages or not is_unloaded(head)
            return watcher.frame(after if after is not None and after <= head.version else None)
        if watcher.final is not None:
            self.is_over = True
            return encode_event("end", str(head.version), watcher.final)
        return None

    def _is_ahead(self, head: Snapshot) -> bool:
        """Whether the watcher has only a last known state, and this state is older than the client's."""
        return not self.watcher.certain and self.version is not None and head.version < self.version


def log_failure(task: asyncio.Task[Any]) -> None:
    """Logs the error with which a task ended."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a watcher failed", exc_info=task.exception())
