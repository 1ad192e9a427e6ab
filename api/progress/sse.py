"""The live progress of uploads: as Server-Sent Events, and as answers at the next change."""

import asyncio
import logging
from collections import Counter
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.storage import Bucket
from activities.errors import BucketError, ServerBusy, SiteLinkError, TooManyRequests, UnreadableRecord
from api.http.problems import refusal
from api.progress.delivery import EventStream, Heart, OnDelivered
from api.progress.plan import PlanCursor, PlanWatcher, read_id
from api.progress.runs import Runs
from api.progress.status import Status, UploadState
from api.progress.watcher import Cursor, Watcher, log_failure

logger = logging.getLogger(__name__)

FIRST_STATE_TIMEOUT_S = 5.0


class Hub:
    """The watchers of this process: one for each upload, and for each plan, that somebody watches.

    Args:
        bucket: Lists the uploads of a plan.
        status: Reads states.
        runs: Waits for changes.
        max_streams: How many clients may stream or wait at once; of one organization at most three quarters of them.
        on_delivered: Called when the clients of an upload were sent a change.
    """

    def __init__(
        self,
        bucket: Bucket,
        status: Status,
        runs: Runs,
        max_streams: int = 6000,
        on_delivered: OnDelivered = lambda *_: None,
    ) -> None:
        self._on_delivered = on_delivered
        self._bucket = bucket
        self._status = status
        self._runs = runs
        self._max_streams = max_streams
        self._streams: Counter[str] = Counter()
        """How many clients of each organization stream or wait."""
        self._heart = Heart()
        self._plans: dict[PlanRef, tuple[PlanWatcher, asyncio.Task[None]]] = {}
        self._watchers: dict[UploadRef, tuple[Watcher, asyncio.Task[None]]] = {}

    @property
    def connected(self) -> int:
        """How many event streams are open."""
        return len(self._heart)

    @property
    def watched(self) -> int:
        """How many uploads somebody watches."""
        return len(self._watchers)

    def subscribe(self, ref: UploadRef) -> Watcher:
        """The watcher of an upload. The caller must give it back with ``release``."""
        entry = self._watchers.get(ref)
        if entry is None or entry[0].is_over or entry[1].done():
            watcher = Watcher(ref, self._status, self._runs, self._on_delivered)
            task = asyncio.create_task(watcher.run())
            task.add_done_callback(log_failure)
            entry = self._watchers[ref] = (watcher, task)
        entry[0].subscribers += 1
        return entry[0]

    def release(self, watcher: Watcher) -> None:
        """Gives a watcher back. When its last subscriber has gone, the watcher ends."""
        watcher.subscribers -= 1
        entry = self._watchers.get(watcher.ref)
        if watcher.subscribers == 0 and entry is not None and entry[0] is watcher:
            del self._watchers[watcher.ref]
            entry[1].cancel()

    async def next_state(self, ref: UploadRef, after: int, wait_s: float) -> UploadState:
        """The state of an upload, as soon as a client with the version ``after`` should have it, and at the latest after ``wait_s``.

        Raises:
            UploadNotFound: There is no such upload, or it was deleted while the client waited.
            BucketError: The bucket failed before the upload was found, or there is no state yet.
            ServerBusy, TooManyRequests: Too many clients stream or wait already.
        """
        await self._status.check(ref)
        # There is no await between this look and the count: many clients that come at once would all get in.
        if (error := self._too_many_error(ref.organization)) is not None:
            raise error
        watcher = self._subscribe_stream(ref)
        try:
            await watcher.catch_up(after)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while not (watcher.is_over or watcher.has_news(after)):
                        await watcher.changed.wait()
            if watcher.snapshot is None or watcher.deleted:
                return await self._status.read(ref)
            with suppress(UnreadableRecord):
                return UploadState(watcher.snapshot, watcher.final, watcher.certain, await self._status.record(ref))
            return UploadState(watcher.snapshot, watcher.final, watcher.certain)
        finally:
            self._release_stream(watcher)

    def show_new(self, plan: PlanRef) -> None:
        """Shows a new upload to those who watch its plan."""
        if entry := self._plans.get(plan):
            entry[0].hint()

    def end(self, ref: UploadRef) -> None:
        """Ends the streams of an upload that was deleted."""
        if entry := self._watchers.get(ref):
            entry[0].end()
        if (plan := self._plans.get(ref.plan_ref)) and (watcher := plan[0].watchers.get(ref.upload)):
            watcher.end()

    def stop(self) -> None:
        """Ends every event stream, because this process is about to end. The clients come back, to another process."""
        self._heart.stop()

    async def close(self) -> None:
        """Ends all watching."""
        await self._heart.close()
        tasks = [task for _, task in (*self._plans.values(), *self._watchers.values())]
        self._watchers.clear()
        self._plans.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def respond(self, ref: UploadRef, request: Request) -> Response:
        """``GET …/events``.

        Raises:
            UploadNotFound: There is no such upload. No other error is raised, because an error answer ends an EventSource for good.
        """
        after = _last_version(request)
        try:
            await self._status.check(ref)
        except BucketError as error:
            logger.warning("opens an event stream before the bucket answers", extra={"ref": str(ref), "problem": str(error)})
        # As in ``next_state``.
        if (refused := self._too_many_error(ref.organization)) is not None:
            return refusal(refused, request.scope)
        watcher = self._subscribe_stream(ref)
        try:
            await _first_state(watcher)
            await watcher.catch_up(after)
            if watcher.final is not None and watcher.head is not None and watcher.head.version == after:
                self._release_stream(watcher)
                return Response(status_code=204, headers={"Cache-Control": "no-store"})
        except BaseException:
            self._release_stream(watcher)
            raise
        return EventStream(Cursor(watcher, after), watcher.audience, self._heart, lambda: self._release_stream(watcher))

    async def respond_of_plan(self, plan: PlanRef, request: Request) -> Response:
        """``GET …/plans/{plan}/events``. It does not end by itself."""
        if (error := self._too_many_error(plan.organization)) is not None:
            return refusal(error, request.scope)
        known = read_id(_last_event_id(request))
        self._count_stream(plan.organization, 1)
        watcher = self._subscribe_plan(plan)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_STATE_TIMEOUT_S):
                    await watcher.listed.wait()
            behind = [watcher.watchers[upload].catch_up(item.version) for upload, item in known.items() if upload in watcher.watchers]
            await asyncio.gather(*behind)
            unseen = [upload for upload in known if upload not in watcher.watchers]
            deleted = [upload for upload in unseen if not await self._may_exist(watcher, upload)]
            known = {upload: item for upload, item in known.items() if upload not in unseen or upload in deleted}
        except BaseException:
            self._release_plan(watcher)
            raise
        return EventStream(PlanCursor(watcher, known, deleted), watcher.audience, self._heart, lambda: self._release_plan(watcher))

    async def _may_exist(self, plan: PlanWatcher, upload: str) -> bool:
        try:
            return await plan.exists(upload)
        except BucketError:
            return True

    def _subscribe_plan(self, plan: PlanRef) -> PlanWatcher:
        entry = self._plans.get(plan)
        if entry is None or entry[1].done():
            watcher = PlanWatcher(plan, self._bucket, self._status, self.subscribe, self.release)
            task = asyncio.create_task(watcher.run())
            task.add_done_callback(log_failure)
            entry = self._plans[plan] = (watcher, task)
        entry[0].subscribers += 1
        return entry[0]

    def _release_plan(self, watcher: PlanWatcher) -> None:
        self._count_stream(watcher.plan.organization, -1)
        watcher.subscribers -= 1
        entry = self._plans.get(watcher.plan)
        if watcher.subscribers == 0 and entry is not None and entry[0] is watcher:
            del self._plans[watcher.plan]
            entry[1].cancel()

    def _count_stream(self, organization: str, difference: int) -> None:
        self._streams[organization] += difference
        if not self._streams[organization]:
            del self._streams[organization]

    def _too_many_error(self, organization: str) -> SiteLinkError | None:
        if self._streams.total() >= self._max_streams:
            return ServerBusy(f"{self._max_streams:,} event streams are open, and no more may be")
        share = max(1, self._max_streams * 3 // 4)
        if self._streams[organization] >= share:
            return TooManyRequests(f"{share:,} event streams of {organization} are open, and no more may be")
        return None

    def _subscribe_stream(self, ref: UploadRef) -> Watcher:
        self._count_stream(ref.organization, 1)
        return self.subscribe(ref)

    def _release_stream(self, watcher: Watcher) -> None:
        self._count_stream(watcher.ref.organization, -1)
        self.release(watcher)


async def _first_state(watcher: Watcher) -> None:
    try:
        async with asyncio.timeout(FIRST_STATE_TIMEOUT_S):
            while watcher.head is None and not watcher.deleted:
                await watcher.changed.wait()
    except TimeoutError:
        return


def _last_event_id(request: Request) -> str:
    return request.headers.get("last-event-id") or request.query_params.get("after") or ""


def _last_version(request: Request) -> int | None:
    """The version that a reconnecting client has. A malformed id counts as None, because an error would end an EventSource for good."""
    for text in (request.headers.get("last-event-id"), request.query_params.get("after")):
        if text and text.isascii() and text.isdigit() and len(text) <= 18:
            return int(text)
    return None
