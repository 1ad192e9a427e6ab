"""``ProcessUpload``: the story of one upload."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeout
from temporalio.types import MethodAsyncSingleParam

with workflow.unsafe.imports_passed_through():
    from activities.bucket.keys import UploadRef
    from activities.bucket.records import SheetRecord, SheetState, SheetStatus, Snapshot, UploadOptions, UploadStatus
    from activities.errors import RenderOutOfMemory, Terminated, TilesMissing, UploadNotFound, WorkerLost, is_named
    from activities.interface import (
        STORAGE_QUEUE,
        TILE_QUEUE,
        BucketState,
        CheckSheets,
        CountPages,
        DiscardScratch,
        HalvePage,
        ListSheets,
        Page,
        PruneSheets,
        TiledPage,
        TilePage,
        UploadActivities,
        UploadPage,
        WriteManifest,
    )
    from workflows.messages import Asked, Continued, ProgressAfter, Reconcile, SheetNumbers, UploadInput
    from workflows.progress import NOT_RECONCILED, Progress
    from workflows.retries import HEARTBEAT, RETRIES

A = TypeVar("A")
T = TypeVar("T")

MAX_WAITERS = 7
"""Updates that may wait at once: Temporal retries the 11th silently for ever."""

MAX_LOSSES = 3
"""How often a sheet whose host disappeared is tiled again."""

GATHER = timedelta(seconds=1)
"""A reconcile waits so long for others that are asked for at the same moment: one pass serves them all."""

SHEETS_AT_ONCE = 32
"""Sheets that one activity judges; none of them is tiled meanwhile."""

DISCARDED_AT_ONCE = 250
"""Sheets that were not done, of which one activity removes what is there; most were never begun."""

LATE_WRITE = timedelta(seconds=30)
"""A host that falls silent may have sent a ``.dzi`` that the bucket takes a little later. The end of a run waits for so long, counted from
when the silence was noticed, before it removes half sheets: a sheet whose ``.dzi`` comes late is then whole, and counted."""

LATE = "late-writes"
"""Runs without this patch do not wait for that."""

CHECKED = "check-sheets"
"""Runs without this patch trust every ``.dzi`` when they reconcile, and leave what is there of a sheet that was not done."""

HEARD = "heard-after-cancel"
"""Runs without this patch forget what is asked after their cancellation, leave no manifest when they are cancelled before they know
whether there is one, and end when a check fails."""

HALVED = "half-resolution"
"""Runs without this patch fail a sheet that needs too much memory, instead of halving its resolution."""

STOPPED = "stays-terminated"
"""Runs without this patch resume an upload that an operator had ended before its pages were counted, whatever they are asked for."""

STATUS = SearchAttributeKey.for_keyword("SiteLinkStatus")
REASON = SearchAttributeKey.for_keyword("SiteLinkReason")

UPLOAD_RETRIES = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(seconds=60),
    non_retryable_error_types=[TilesMissing.__name__, "TemporalTimeout:Heartbeat"],
)
STORAGE_TIMEOUT = timedelta(minutes=10)
COUNT_TIMEOUT = timedelta(minutes=5)
SHEET_TIMEOUT = timedelta(hours=1)
HOST_TIMEOUT = timedelta(seconds=45)
DISCARD_TIMEOUT = timedelta(seconds=10)
"""Short, for the upload ends only after it; a host that is slower cleans up by itself."""
CANCELLATION = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED


@workflow.defn
class ProcessUpload:
    """Turns one accepted PDF into sheets in the bucket and holds the truth about its progress."""

    @workflow.init
    def __init__(self, args: UploadInput) -> None:
        continued = args.continued
        self._ref = UploadRef.parse(args.ref)
        self._progress = Progress(workflow.now(), continued.snapshot if continued else None)
        self._options = continued.options if continued else UploadOptions()
        self._loaded = continued is not None
        self._to_do: deque[int] = deque()
        self._prioritized: set[int] = set(continued.prioritized if continued else ())
        self._in_flight: dict[int, asyncio.Task[None]] = {}
        self._hosts: set[str] = set(continued.hosts if continued else ())
        self._landed = 0
        self._on_scratch: dict[int, str] = {}
        self._fell_silent: datetime | None = None
        self._asked = args.asked
        self._asked_after_cancel = Asked()
        self._state: BucketState | None = None
        self._reconciling: asyncio.Task[None] | None = None
        self._checking: set[int] = set()
        self._finding = ""
        self._waiters: dict[str, None] = {}
        self._published: tuple[str, str | None] = ("", None)

    @workflow.run
    async def run(self, args: UploadInput) -> Snapshot:
        """Works until every sheet is ready or failed.

        A cancellation ends what was asked for before it. What is asked for after it, while the run closes, is done by the next run:
        Temporal lets nobody take a cancellation back.

        Returns:
            The final progress, without its sheets.

        Raises:
            ApplicationError: The upload failed; the type is the reason.
            CancelledError: It was cancelled.
        """
        reopened = args.reopened
        while True:
            cancelled = False
            try:
                await self._load(reopened=reopened)
                await self._process_sheets()
            except (asyncio.CancelledError, ActivityError) as error:
                await self._stop_sheets()
                cancelled = self._was_cancelled(error)
                if not cancelled:
                    raise  # the records cannot be read, so none is written over them
                if reopened and not self._loaded and not workflow.patched(HEARD):
                    raise asyncio.CancelledError from error
            closing = asyncio.create_task(self._close())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = True
                await closing
            if cancelled and self._asked_after_cancel and workflow.patched(HEARD):
                workflow.continue_as_new(UploadInput(str(self._ref), reopened=True, asked=self._asked_after_cancel))
            if cancelled or not self._asked:
                return self._result(cancelled=cancelled)
            reopened = True

    # ------------------------------------------------------------------ what the world asks

    @workflow.query
    def progress(self) -> Snapshot:
        """The whole snapshot."""
        return self._progress.snapshot()

    @workflow.query
    def tiles_wanted(self) -> list[str]:
        """The names of the tiled pages that are being uploaded, or wait for it, on all hosts; no other one is wanted any more."""
        return sorted(self._on_scratch.values())

    @workflow.update
    async def progress_after(self, args: ProgressAfter) -> Snapshot:
        """Waits until the version is newer than the caller's; returns the counters and the sheets that changed since.

        The oldest of too many waiters is let go unchanged.
        """
        info = workflow.current_update_info()
        waiter = info.id if info else ""
        self._waiters[waiter] = None
        while len(self._waiters) > MAX_WAITERS:
            del self._waiters[next(iter(self._waiters))]
        await workflow.wait_condition(
            lambda: waiter not in self._waiters or (self._loaded and self._progress.version != args.version),
        )
        self._waiters.pop(waiter, None)
        return self._progress.changes_since(args.version)

    @workflow.signal
    def force_reconcile(self, args: Reconcile = Reconcile()) -> None:  # noqa: B008 - frozen
        """Compare the progress with what the bucket really holds, and do what is missing; many requests make one pass."""
        self._hear(args, Asked(reconcile=True, deep=args.deep))

    @workflow.signal
    def sheets_stored(self, args: SheetNumbers) -> None:
        """The bucket told of the ``.dzi`` of these sheets: those that are not ready are judged; one in flight tells it by itself."""
        self._hear(args, Asked(stored=args.sheets))

    @workflow.signal
    def prioritize(self, args: SheetNumbers) -> None:
        """Tile these sheets next."""
        self._prioritized.update(args.sheets)
        for number in reversed(args.sheets):
            if number in self._to_do:
                self._to_do.remove(number)
                self._to_do.appendleft(number)

    @workflow.signal
    def retry_sheets(self, args: SheetNumbers) -> None:
        """Try failed sheets again, or resume a cancelled upload."""
        self._hear(args, Asked(retries=(args,)))

    def _hear(self, args: SheetNumbers | Reconcile, asked: Asked) -> None:
        # Of what reaches the worker in one task, signals are applied before a cancel, whichever came first.
        if self._is_cancelled or args.after_cancel_of == workflow.info().run_id:
            self._asked_after_cancel += asked
        else:
            self._asked += asked

    # ------------------------------------------------------------------ the story

    async def _load(self, *, reopened: bool) -> None:
        """Begins with what the bucket says was done before."""
        if not self._progress.total_pages:
            trusts_descriptors = reopened and not workflow.patched(CHECKED)
            if trusts_descriptors:
                self._asked = replace(self._asked, reconcile=False)
            self._state = state = await self._list_sheets()
            self._options = state.options
            if state.manifest is not None:
                self._progress = Progress(workflow.now(), state.manifest)
            if not self._progress.total_pages:
                await self._count_pages(state)
            elif trusts_descriptors or self._asked.retries:
                committed = {record.number for record in state.committed}
                not_committed = set(range(1, self._progress.total_pages + 1)) - committed
                self._progress.reconcile(state.committed, not_committed, workflow.now())
            self._stop_if_cancelled()
        self._loaded = True
        self._plan_work()
        self._publish()

    async def _list_sheets(self) -> BucketState:
        return await self._on_bucket(UploadActivities.list_sheets, ListSheets(str(self._ref)), "list committed sheets")

    async def _count_pages(self, state: BucketState) -> None:
        # Of a document without sheets, to count again is all that can be retried or reconciled.
        asked, self._asked = self._asked, Asked()
        head = self._progress.changes_since(self._progress.version)
        stays_ended = not asked.retries and (
            (head.status is UploadStatus.CANCELLED and workflow.patched(HEARD))
            or (head.reason == Terminated.__name__ and workflow.patched(STOPPED))
        )
        try:
            document = await workflow.execute_activity_method(
                UploadActivities.count_pages,
                CountPages(str(self._ref)),
                task_queue=TILE_QUEUE,
                start_to_close_timeout=COUNT_TIMEOUT,
                heartbeat_timeout=HEARTBEAT,
                retry_policy=RETRIES,
                cancellation_type=CANCELLATION,
                priority=self._priority(first=True),
                summary="count pages",
            )
        except ActivityError as error:
            if self._was_cancelled(error):
                raise
            self._progress.fail(*_reason(error), workflow.now())
        else:
            self._progress.begin(document.pages, state.committed, workflow.now(), document.forecast, resume=not stays_ended)
            self._asked += Asked(asked.reconcile, asked.deep)

    async def _process_sheets(self) -> None:
        """Keeps a window of sheets in flight until none is left to do."""
        while self._progress.total_pages:
            self._do_what_was_asked()
            self._stop_if_cancelled()
            if not self._should_continue_as_new():
                self._fill_window()
                if not self._in_flight and self._reconciling is None:
                    return
            elif not self._in_flight and self._reconciling is None:
                await self._continue_as_new()
                continue
            await workflow.wait_condition(self._can_go_on)
            self._land()

    def _can_go_on(self) -> bool:
        if any(task.done() for task in self._in_flight.values()) or self._asked.retries:
            return True
        if self._reconciling is None:
            return bool(self._asked)
        return self._reconciling.done() or (self._next_to_do() is not None and not self._should_continue_as_new())

    def _do_what_was_asked(self) -> None:
        if self._reconciling is None and (self._asked.reconcile or self._asked.stored):
            self._reconciling = asyncio.create_task(self._reconcile())
        if self._asked.retries:
            retries, self._asked = self._asked.retries, replace(self._asked, retries=())
            for retry in retries:
                self._progress.retry(retry.sheets, workflow.now())
            self._land()  # one that has just failed may be planned again
            self._plan_work()

    def _plan_work(self) -> None:
        if self._progress.status is UploadStatus.PROCESSING:
            pending = [number for number in self._progress.sheets_in(SheetStatus.PENDING) if number not in self._in_flight]
            self._to_do = deque(sorted(pending, key=lambda number: number not in self._prioritized))

    def _next_to_do(self) -> int | None:
        """The next sheet, unless the window is full; one that is being judged waits."""
        if len(self._in_flight) >= self._options.window:
            return None
        return next((number for number in self._to_do if number not in self._checking), None)

    def _fill_window(self) -> None:
        while (number := self._next_to_do()) is not None:
            self._to_do.remove(number)
            self._in_flight[number] = asyncio.create_task(self._process_sheet(number))

    async def _process_sheet(self, number: int) -> None:
        counted = self._progress.sheet(number)
        try:
            for _ in range(1 + MAX_LOSSES):
                self._progress.tiling(number, workflow.now())
                tiled = await self._tile_in_memory(number)
                self._hosts.add(tiled.queue)
                self._stop_if_cancelled()
                self._progress.uploading(number, workflow.now())
                self._on_scratch[number] = tiled.scratch
                try:
                    record = await self._upload(self._progress.sheet(number), tiled)
                except ActivityError as error:
                    if _timed_out(error, TimeoutType.HEARTBEAT):
                        self._fell_silent = workflow.now()
                    if self._is_cancelled or not _is_host_lost(error):
                        raise
                else:
                    self._progress.ready([record], workflow.now())
                    return
                finally:
                    del self._on_scratch[number]
            detail = f"the host that held the sheet's tiles disappeared {1 + MAX_LOSSES} times"
            self._progress.failed(number, WorkerLost.__name__, detail, workflow.now())
        except (asyncio.CancelledError, ActivityError) as error:
            if self._was_cancelled(error):
                self._progress.pending(number, workflow.now())
            else:
                reason, detail = _reason(error)
                if reason == RenderOutOfMemory.__name__:
                    # A retry begins with what was counted: there may be more memory then.
                    self._progress.resized(number, counted, workflow.now())
                self._progress.failed(number, reason, detail, workflow.now())

    async def _tile_in_memory(self, number: int) -> TiledPage:
        """Tiles a page, at half its resolution if it needs more memory than a render child has."""
        try:
            return await self._tile(self._progress.sheet(number))
        except ActivityError as error:
            if self._is_cancelled or _reason(error)[0] != RenderOutOfMemory.__name__ or not workflow.patched(HALVED):
                raise
            half = await self._halve(self._progress.sheet(number))
            if half is None:
                raise
        self._stop_if_cancelled()
        self._progress.resized(number, half, workflow.now())
        return await self._tile(self._progress.sheet(number))

    def _land(self) -> None:
        """Takes the sheets that are done out of the window; a bug in one of them is raised here, where it is seen."""
        for number in [number for number, task in self._in_flight.items() if task.done()]:
            self._in_flight.pop(number).result()
            self._landed += 1
        if self._reconciling is not None and self._reconciling.done():
            done, self._reconciling = self._reconciling, None
            done.result()
        self._publish()

    # ------------------------------------------------------------------ reconciliation

    async def _reconcile(self) -> None:
        """Judges every sheet, or those that the bucket told of, by what the bucket holds; one in flight once it has landed."""
        await workflow.sleep(GATHER)
        asked, self._asked = self._asked, Asked(retries=self._asked.retries)
        whole = asked.reconcile
        numbers = set(range(1, self._progress.total_pages + 1))
        if not whole:
            numbers &= set(asked.stored) - self._in_flight.keys() - set(self._progress.sheets_in(SheetStatus.READY))
        wrong = removed = 0
        looked_at_all = True
        while numbers and not self._is_cancelled:
            now_judged = sorted(numbers - self._in_flight.keys())[:SHEETS_AT_ONCE]
            if not now_judged:
                await workflow.wait_condition(lambda: self._is_cancelled or not numbers <= self._in_flight.keys())
                continue
            numbers.difference_update(now_judged)
            try:
                counts = await self._check(now_judged, repair=whole, deep=asked.deep)
                wrong, removed = wrong + counts[0], removed + counts[1]
            except ActivityError as error:
                looked_at_all = False
                kind = NOT_RECONCILED if whole else ""
                self._not_done(error, f"{kind}sheets {now_judged[0]} to {now_judged[-1]} could not be checked")
        if whole and not self._is_cancelled:
            prune = PruneSheets(str(self._ref), self._progress.total_pages)
            try:
                removed += await self._on_bucket(UploadActivities.prune_sheets, prune, "remove what no sheet owns")
            except ActivityError as error:
                looked_at_all = False
                self._not_done(error, f"{NOT_RECONCILED}what no sheet owns could not be removed")
            if looked_at_all:
                self._progress.warn(None, workflow.now())
                self._progress.reconcile((), (), workflow.now())
                done_at = f"{workflow.now():%Y-%m-%d %H:%M:%S} UTC"
                self._finding = f"last reconciled {done_at}: {wrong} sheets were wrong, {removed} objects removed"

    def _not_done(self, error: ActivityError, what: str) -> None:
        """A look at the bucket that failed is a finding for the operator; the sheets go on.

        Raises:
            ActivityError: The upload was deleted, or the run began in a release that ended with any such failure.
        """
        reason, detail = _reason(error)
        if reason == UploadNotFound.__name__ or not workflow.patched(HEARD):
            raise error
        self._finding = f"{what}: {reason}: {detail}"
        workflow.logger.warning("a look at the bucket failed: %s", self._finding)
        self._progress.warn(self._finding, workflow.now())

    async def _check(self, numbers: Sequence[int], *, repair: bool = True, discard: bool = False, deep: bool = False) -> tuple[int, int]:
        """Has sheets judged and says so in the progress; returns how many it had wrong, and how many objects were removed."""
        sheets = tuple(self._progress.sheet(number) for number in numbers)
        self._checking.update(numbers)
        try:
            checked = await self._on_bucket(
                UploadActivities.check_sheets,
                CheckSheets(str(self._ref), sheets, repair=repair, discard=discard, deep=deep),
                f"check sheets {numbers[0]} to {numbers[-1]}",
                SHEET_TIMEOUT,
            )
        finally:
            self._checking.difference_update(numbers)
        for sheet in checked.broken:
            workflow.logger.warning("a sheet is broken: %s", sheet.detail, extra={"sheet": sheet.number})
        wrong = 0
        if checked.committed or (repair and checked.broken):
            wrong = self._progress.reconcile(checked.committed, [sheet.number for sheet in checked.broken], workflow.now())
            meter = workflow.metric_meter()
            meter.create_counter("progress_reconciliation_discrepancy", "Sheets that the progress had wrong", "sheets").add(wrong)
            self._plan_work()
        return wrong, checked.removed

    @property
    def _is_cancelled(self) -> bool:
        return workflow.cancellation_reason() is not None

    def _was_cancelled(self, error: BaseException) -> bool:
        """Temporal tries nothing again after a cancel: whatever ended an activity then is no verdict on its work."""
        return self._is_cancelled or is_cancelled_exception(error)

    def _stop_if_cancelled(self) -> None:
        """An activity that ends well swallows the cancellation that reached its caller meanwhile.

        Raises:
            CancelledError: The workflow was cancelled.
        """
        if self._is_cancelled:
            raise asyncio.CancelledError

    async def _stop_sheets(self) -> None:
        self._to_do.clear()
        # What arrived together with the cancel lands first: cancelling an activity that is done would hide its result.
        await workflow.wait_condition(lambda: True)
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        if self._reconciling is not None:
            tasks.append(self._reconciling)  # ends by itself: what it has repaired must be told
        if tasks:
            await workflow.wait(tasks)
        self._to_do.clear()
        self._in_flight.clear()
        self._reconciling = None
        self._publish()

    def _should_continue_as_new(self) -> bool:
        return workflow.info().is_continue_as_new_suggested() and self._landed > 0 and bool(self._to_do)

    async def _continue_as_new(self) -> None:
        """Hands over to a new run; returns only when something was asked meanwhile."""
        self._waiters.clear()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._asked:
            return
        workflow.continue_as_new(
            UploadInput(
                ref=str(self._ref),
                continued=Continued(
                    snapshot=self._progress.snapshot(),
                    options=self._options,
                    prioritized=tuple(sorted(self._prioritized.intersection(self._to_do))),
                    hosts=tuple(sorted(self._hosts)),
                ),
            )
        )

    def _end(self) -> None:
        if self._progress.total_pages and not self._progress.sheets_in(SheetStatus.PENDING):
            self._progress.finish(workflow.now())
        elif not self._progress.status.is_final:  # a refused document has failed already, one that was stopped stays so
            self._progress.cancel(workflow.now())

    async def _close(self) -> None:
        """Nothing is in flight: removes what is half done, frees the hosts' scratch and writes the manifest."""
        manifest_stands = not self._loaded and workflow.patched(HEARD) and await self._has_ended_before()
        if not manifest_stands:
            with _nothing_left_if_deleted():
                await self._discard_undone()
            self._end()
        self._loaded = True
        self._publish()
        await asyncio.gather(*(self._discard_scratch(queue) for queue in sorted(self._hosts)))
        self._hosts.clear()
        if not manifest_stands:
            with _nothing_left_if_deleted():
                manifest = WriteManifest(str(self._ref), self._progress.snapshot())
                await self._on_bucket(UploadActivities.write_manifest, manifest, "write the manifest")
                workflow.logger.info("an upload has ended", extra={"status": manifest.snapshot.status.value})
        self._waiters.clear()
        await workflow.wait_condition(workflow.all_handlers_finished)

    async def _has_ended_before(self) -> bool:
        """Whether a run that was cancelled before it had loaded finds an earlier one's manifest; else the committed sheets are told."""
        with _nothing_left_if_deleted():
            state = self._state or await self._list_sheets()
            if state.manifest is not None:
                self._progress = Progress(workflow.now(), state.manifest)
                return True
            if not self._progress.total_pages:
                self._progress.found(state.committed, workflow.now())
        return False

    async def _discard_undone(self) -> None:
        """No half of a sheet stays; one that was committed after all is counted."""
        undone = self._progress.sheets_in(*(status for status in SheetStatus if status is not SheetStatus.READY))
        if undone and workflow.patched(CHECKED):
            if self._fell_silent is not None and workflow.now() < self._fell_silent + LATE_WRITE and workflow.patched(LATE):
                await workflow.sleep(self._fell_silent + LATE_WRITE - workflow.now())
            for start in range(0, len(undone), DISCARDED_AT_ONCE):
                try:
                    await self._check(undone[start : start + DISCARDED_AT_ONCE], discard=True)
                except ActivityError as error:
                    self._not_done(error, "what is there of sheets that are not done could not be removed")

    def _result(self, *, cancelled: bool) -> Snapshot:
        result = self._progress.changes_since(self._progress.version)
        if result.status is UploadStatus.CANCELLED and cancelled:
            raise asyncio.CancelledError
        if result.status is UploadStatus.FAILED:
            raise ApplicationError(result.detail or "", type=result.reason, non_retryable=True)
        return result

    def _publish(self) -> None:
        """Shows the state to operators."""
        head = self._progress.changes_since(self._progress.version)
        failures = [self._progress.sheet(number) for number in self._progress.sheets_in(SheetStatus.FAILED)]
        lines = [f"**{head.status}**: {head.completed_pages} of {head.total_pages} sheets ready, {len(failures)} failed"]
        if head.reason:
            lines.append(f"{head.reason}: {head.detail}")
        if self._finding:
            lines.append(self._finding)
        lines += [f"- sheet {sheet.number}: {sheet.reason}: {sheet.detail}" for sheet in failures[:20]]
        workflow.set_current_details("\n\n".join(lines))
        reason = head.reason or (failures[0].reason if failures else None)
        if (head.status, reason) != self._published:
            self._published = (head.status, reason)
            workflow.upsert_search_attributes([STATUS.value_set(head.status), REASON.value_set(reason) if reason else REASON.value_unset()])

    # ------------------------------------------------------------------ activities

    def _priority(self, *, first: bool = False) -> Priority:
        return Priority(priority_key=1 if first else None, fairness_key=self._ref.organization)

    async def _on_bucket(
        self, method: MethodAsyncSingleParam[UploadActivities, A, T], args: A, summary: str, timeout: timedelta = STORAGE_TIMEOUT
    ) -> T:
        return await workflow.execute_activity_method(
            method,
            args,
            task_queue=STORAGE_QUEUE,
            start_to_close_timeout=timeout,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RETRIES,
            cancellation_type=CANCELLATION,
            priority=self._priority(),
            summary=summary,
        )

    async def _tile(self, sheet: SheetState) -> TiledPage:
        return await workflow.execute_activity_method(
            UploadActivities.tile_page,
            TilePage(str(self._ref), sheet.number, sheet.width or 0, sheet.height or 0, self._options),
            task_queue=TILE_QUEUE,
            start_to_close_timeout=SHEET_TIMEOUT,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RETRIES,
            cancellation_type=CANCELLATION,
            priority=self._priority(first=sheet.number in self._prioritized),
            summary=_summary(sheet),
        )

    async def _halve(self, sheet: SheetState) -> Page | None:
        return await workflow.execute_activity_method(
            UploadActivities.halve_page,
            HalvePage(str(self._ref), sheet.number, sheet.dpi or 0),
            task_queue=TILE_QUEUE,
            start_to_close_timeout=2 * COUNT_TIMEOUT,  # it counts twice
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RETRIES,
            cancellation_type=CANCELLATION,
            priority=self._priority(first=sheet.number in self._prioritized),
            summary=f"halve the resolution of {_summary(sheet)}",
        )

    async def _upload(self, sheet: SheetState, tiled: TiledPage) -> SheetRecord:
        page = Page(sheet.number, sheet.title, sheet.width or 0, sheet.height or 0, sheet.dpi or 0, scaled=sheet.scaled, notes=sheet.notes)
        return await workflow.execute_activity_method(
            UploadActivities.upload_page,
            UploadPage(str(self._ref), page, self._options, tiled),
            task_queue=tiled.queue,
            schedule_to_start_timeout=HOST_TIMEOUT,
            start_to_close_timeout=SHEET_TIMEOUT,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=UPLOAD_RETRIES,
            cancellation_type=CANCELLATION,
            summary=_summary(sheet),
        )

    async def _discard_scratch(self, queue: str) -> None:
        try:
            await workflow.execute_activity_method(
                UploadActivities.discard_scratch,
                DiscardScratch(str(self._ref)),
                task_queue=queue,
                schedule_to_start_timeout=DISCARD_TIMEOUT,
                start_to_close_timeout=timedelta(minutes=1),
                retry_policy=RetryPolicy(maximum_attempts=1),
                cancellation_type=CANCELLATION,
                summary="free the scratch",
            )
        except ActivityError as error:
            # A host that is gone has no scratch to free; one that comes back cleans up when it starts.
            workflow.logger.info("scratch of %s was not freed: %s", queue, error.cause)


@contextmanager
def _nothing_left_if_deleted() -> Iterator[None]:
    """The upload may be deleted under its run, which then ends quietly."""
    try:
        yield
    except ActivityError as error:
        if not (isinstance(error.cause, ApplicationError) and error.cause.type == UploadNotFound.__name__):
            raise
        workflow.logger.info("the upload was deleted")


def _summary(sheet: SheetState) -> str:
    return f"sheet {sheet.number}: {sheet.title}" if sheet.title else f"sheet {sheet.number}"


def _timed_out(error: ActivityError, *types: TimeoutType) -> bool:
    return isinstance(error.cause, TemporalTimeout) and error.cause.type in types


def _is_host_lost(error: ActivityError) -> bool:
    cause = error.cause
    if _timed_out(error, TimeoutType.HEARTBEAT, TimeoutType.SCHEDULE_TO_START):
        return True
    return isinstance(cause, ApplicationError) and cause.type == TilesMissing.__name__


def _reason(error: BaseException) -> tuple[str, str]:
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type and is_named(cause.type):
        return cause.type, cause.message
    return "InternalError", "something is wrong on the server; the worker's log says what"
