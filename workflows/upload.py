"""``ProcessUpload``: the story of one upload.

A run reads from the bucket what is done already, counts the pages, keeps a window of sheets in flight until no sheet is left to do,
and writes the manifest. Signals may ask for more at any time. The parts of the story stand in ``workflows/processing``:

    window.py     which sheets are to do, in flight or being judged, and which requests wait
    sheet.py      the work on one sheet
    checks.py     the comparison with the bucket
    calls.py      the activities, with their timeouts and retries
    failures.py   how a cancellation and the failure of an activity are read
    patches.py    changes to the commands; a run with an older history goes on without them
    progress.py   the progress that clients see
    display.py    what operators see
    announcements.py  the webhooks about the upload
"""

import asyncio
from dataclasses import replace
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.bucket.keys import UploadRef
    from activities.bucket.records import SheetStatus, Snapshot, UploadStatus
    from activities.bucket.weight import most_weight
    from activities.errors import Terminated
    from activities.interface import BucketState
    from workflows.messages import Change, Continued, ProgressAfter, Reconcile, SheetNumbers, UploadInput
    from workflows.processing.announcements import Announcements
    from workflows.processing.calls import Calls, Patience
    from workflows.processing.checks import BucketChecks
    from workflows.processing.display import Display
    from workflows.processing.failures import is_cancelled, is_due_to_cancel, quiet_if_deleted, reason_and_detail, stop_if_cancelled
    from workflows.processing.metrics import Backlog, count_sheet, count_upload
    from workflows.processing.patches import CHECK_SHEETS, OBEY_REQUESTS_AFTER_CANCEL, RECORD_REOPENINGS, STAY_TERMINATED
    from workflows.processing.progress import Progress
    from workflows.processing.sheet import SheetWork
    from workflows.processing.window import Requests, Retry, Window

MAX_WAITERS = 7
"""Updates that may wait at once: Temporal does not refuse the 11th, but retries it silently for ever."""

MOST_CHANGE_BYTES = 256 << 10
"""The most bytes of JSON for the sheets that an update returns."""

GATHERING_TIME = timedelta(seconds=1)
"""How long a comparison with the bucket waits for further requests, so that one comparison serves all of them."""


@workflow.defn
class ProcessUpload:
    """Turns one accepted PDF into sheets in the bucket, and tells their progress while it runs."""

    patience = Patience()

    @workflow.init
    def __init__(self, args: UploadInput) -> None:
        continued = args.continued or Continued()
        self._ref = UploadRef.parse(args.ref)
        self._options = continued.options
        self._progress = Progress(workflow.now(), continued.snapshot)
        self._loaded = continued.snapshot is not None
        self._bucket_state: BucketState | None = None
        self._follows_lost_run = args.lost
        self._reopened = continued.reopened
        """The version of the manifest that ``reopened.json`` names; 0 if there is none."""
        self._requests = args.asked
        self._requests_after_cancel = Requests()
        self._waiters: dict[str, None] = {}
        self._window = Window(self._options.window, continued.prioritized)
        self._sheet_tasks: dict[int, asyncio.Task[None]] = {}
        self._check_task: asyncio.Task[None] | None = None
        self._display = Display()
        self._calls = Calls(self._ref, self.patience, self._display, args.sealed_password)
        self._sheet_work = SheetWork(self._calls, self._progress, self._window, continued.hosts)
        self._checks = BucketChecks(self._calls, self._progress, self._window, self._display)
        self._announcements = Announcements(self._ref, self._progress, continued.webhooks)

    @workflow.run
    async def run(self, args: UploadInput) -> Snapshot:
        """Works until every sheet is ready or failed.

        A cancellation also ends the requests that came before it. Temporal lets nobody take a cancellation back, so the next run does the
        requests that come after it, while this run closes.

        Returns:
            The final progress, without its sheets.

        Raises:
            ApplicationError: The upload failed; the type is the reason.
            CancelledError: The upload was cancelled.
        """
        reopened = args.reopened
        while True:
            cancelled = False
            try:
                await self._load(reopened=reopened)
                await self._process_sheets()
            except (asyncio.CancelledError, ActivityError) as error:
                await self._stop_sheets()
                cancelled = is_due_to_cancel(error)
                if not cancelled:
                    raise  # the upload was deleted, so there is nothing to write; in an old history, a look at the bucket failed
                if reopened and not self._loaded and not workflow.patched(OBEY_REQUESTS_AFTER_CANCEL):
                    raise asyncio.CancelledError from error
            # A cancellation must not interrupt the closing, because nothing else leaves a final state in the bucket. So the closing is a
            # task of its own, and the run always waits for its end.
            closing = asyncio.create_task(self._close(reopened=reopened, cancelled=cancelled))
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = True
                await closing
            # There is no await from here to the end: a signal that arrived after this look at the requests would be lost.
            if cancelled and self._requests_after_cancel and workflow.patched(OBEY_REQUESTS_AFTER_CANCEL):
                workflow.continue_as_new(UploadInput(str(self._ref), reopened=True, asked=self._requests_after_cancel))
            if cancelled or not self._requests:
                return self._result(cancelled=cancelled)
            reopened = True
            self._calls.sealed_password = ""

    # ------------------------------------------------------------------ queries, updates and signals

    @workflow.query(description="The progress, with every sheet")
    def progress(self) -> Snapshot:
        """The whole snapshot."""
        return self._progress.snapshot()

    @workflow.query(description="For workers: what this run has to do")
    def backlog(self) -> Backlog:
        """What this run has to do. A worker's metrics read it at any time, also from another thread."""
        return Backlog(self._progress.open_sheets, self._progress.version / 1000)

    @workflow.query(description="For hosts: the names of the tiled pages that are not uploaded yet")
    def tiles_wanted(self) -> list[str]:
        """The names of the tiled pages, on all hosts, that are not uploaded yet; a host may remove every other tiled page."""
        return sorted(self._sheet_work.tiled_pages.values())

    @workflow.update
    async def progress_after(self, args: ProgressAfter) -> Change:
        """Waits until the version is newer than the caller's; returns the counters and the sheets that changed since.

        When too many callers wait, the oldest gets the unchanged counters. So does a caller whom so much has changed for that the answers
        to all callers might not fit into one message to Temporal, 4 MB; it should query then.
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
        changes = self._progress.changes_since(args.version)
        if most_weight(changes.sheets) > MOST_CHANGE_BYTES:
            changes = replace(changes, version=args.version, sheets=())
        return Change(**vars(changes), committed=tuple(at for version, at in self._sheet_work.commits if version > args.version))

    @workflow.signal(description='Compare with the bucket, and repair. {} is enough; {"deep": true} reads every tile')
    def force_reconcile(self, args: Reconcile = Reconcile()) -> None:  # noqa: B008 - frozen
        """Compare the progress with the bucket, and repair the differences; many requests at once make one comparison."""
        self._add_requests(args, Requests(reconcile=True, deep=args.deep))

    @workflow.signal(description='Judge sheets that another program has written: {"sheets": [3]}')
    def sheets_stored(self, args: SheetNumbers) -> None:
        """Judge these sheets, whose commit marker the bucket has reported, unless they are ready or in flight."""
        self._add_requests(args, Requests(stored=args.sheets))

    @workflow.signal(description='Tile these sheets next: {"sheets": [3]}')
    def prioritize(self, args: SheetNumbers) -> None:
        """Tile these sheets next."""
        self._window.prioritize(args.sheets)

    @workflow.signal(description='Try failed sheets again: {} for all of them, or {"sheets": [3]}; a cancelled upload is resumed')
    def retry_sheets(self, args: SheetNumbers) -> None:
        """Try failed sheets again, or resume a cancelled upload."""
        self._add_requests(args, Requests(retries=(Retry(args.sheets),)))

    def _add_requests(self, args: SheetNumbers | Reconcile, new: Requests) -> None:
        # When a signal and a cancellation arrive in one task, Temporal applies the signal first. Only the sender knows that the
        # cancellation came first, so it names the cancelled run.
        new = replace(new, sealed_password=args.sealed_password)
        if is_cancelled() or args.after_cancel_of == workflow.info().run_id:
            self._requests_after_cancel += new
        else:
            self._requests += new

    # ------------------------------------------------------------------ the story

    async def _load(self, *, reopened: bool) -> None:
        """Reads from the bucket what earlier runs have done, and plans the rest."""
        if not self._progress.total_pages:
            trusts_descriptors = reopened and not workflow.patched(CHECK_SHEETS)
            if trusts_descriptors:
                self._requests = self._requests.without_reconcile()
            self._bucket_state = state = await self._list_sheets()
            self._options = state.options
            self._window.size = state.options.window
            self._announcements.subscriptions = state.webhooks
            if state.manifest is not None:
                self._restore(state.manifest, state)
            else:
                self._announcements.announce_accepted()
            if state.reopened is not None and self._follows_lost_run:
                self._requests = Requests.of_record(state.reopened) + self._requests
            if state.manifest is not None:
                await self._record_reopening()
            if not self._progress.total_pages:
                await self._count_pages(state)
            elif trusts_descriptors or self._requests.retries:
                self._take_committed(state)
            stop_if_cancelled()
            self._announcements.skip_sheets()
        elif self._progress.status.is_final:  # this run has written a manifest, and then a request came
            await self._record_reopening()
        self._loaded = True
        self._window.plan(self._progress.sheets_to_do)
        self._display.show(self._progress)

    async def _list_sheets(self) -> BucketState:
        state = await self._calls.list_sheets()
        return state if state.reopened is None or workflow.patched(RECORD_REOPENINGS) else replace(state, reopened=None)

    def _restore(self, manifest: Snapshot, state: BucketState) -> None:
        """Restores the progress from the manifest of an earlier run.

        If a run went on from it and did not end, clients know newer versions, and sheets that are ready since then.
        """
        self._progress.restore(manifest)
        if state.reopened is not None:
            self._reopened = state.reopened.manifest_version
            self._take_committed(state)

    def _take_committed(self, state: BucketState) -> None:
        """Makes the progress agree with the committed sheets, as a reconcile. Its version is newer then, whatever they are."""
        if not self._progress.total_pages:
            self._progress.show_committed(state.committed, workflow.now())
        committed = {*state.confirmed, *(record.number for record in state.committed)}
        not_committed = set(range(1, self._progress.total_pages + 1)) - committed
        self._progress.reconcile(state.committed, not_committed, workflow.now())

    async def _record_reopening(self) -> None:
        """Writes ``reopened.json``: this run goes on with an upload that had ended, and has these requests."""
        if workflow.patched(RECORD_REOPENINGS):
            self._announcements.skip_sheets()  # a run that is cancelled here announces none
            stop_if_cancelled()
            self._reopened = self._reopened or self._progress.version
            await self._calls.record_reopening(self._requests.record(self._reopened))
            stop_if_cancelled()

    async def _count_pages(self, state: BucketState) -> None:
        # While the upload has no sheets, a retry or a reconcile can only count the pages, so this count serves the requests that wait now.
        # Requests that come during the count are kept.
        self._take_password()
        waiting, self._requests = self._requests, Requests()
        head = self._progress.head
        stays_ended = not waiting.retries and (
            (head.status is UploadStatus.CANCELLED and workflow.patched(OBEY_REQUESTS_AFTER_CANCEL))
            or (head.reason == Terminated.__name__ and workflow.patched(STAY_TERMINATED))
        )
        try:
            document = await self._calls.count_pages()
        except ActivityError as error:
            if is_due_to_cancel(error):
                raise
            if state.committed:  # by a run that could open the document, and was lost with its password: clients know of these sheets
                self._progress.show_committed(state.committed, workflow.now())
            self._progress.fail(*reason_and_detail(error), workflow.now())
        else:
            self._progress.begin(document.pages, state.committed, workflow.now(), document.forecast, resume=not stays_ended)
            for page in document.pages:
                if page.reason is not None:
                    count_sheet(SheetStatus.FAILED, page.reason)
            self._requests += Requests(waiting.reconcile, waiting.deep)

    async def _process_sheets(self) -> None:
        """Keeps a window of sheets in flight until no sheet is left to do."""
        while self._progress.total_pages:
            self._start_requested_work()
            stop_if_cancelled()
            if not self._should_continue_as_new():
                self._fill_window()
                if not self._has_work_in_flight:
                    return
            elif not self._has_work_in_flight:
                await self._continue_as_new()
                continue
            # Signals and tasks run only during this await, so the state does not change while the loop decides which sheets to begin.
            await workflow.wait_condition(self._has_news)
            self._land()

    @property
    def _has_work_in_flight(self) -> bool:
        """Whether a sheet is in flight, or a comparison with the bucket is under way."""
        return bool(self._sheet_tasks) or self._check_task is not None

    def _has_news(self) -> bool:
        """Whether the loop has something to do: a task has ended, a request can be started, or a judged sheet can begin."""
        if any(task.done() for task in self._sheet_tasks.values()) or self._requests.retries:
            return True
        if self._check_task is None:
            return bool(self._requests)
        return self._check_task.done() or (self._window.has_next() and not self._should_continue_as_new())

    def _take_password(self) -> None:
        """Takes the newest password that a request has brought. It opens the document for this run's further activities."""
        self._calls.sealed_password = self._requests.sealed_password or self._calls.sealed_password
        self._requests = self._requests.without_password()

    def _start_requested_work(self) -> None:
        self._take_password()
        if self._check_task is None and self._requests.needs_check:
            self._check_task = asyncio.create_task(self._check_bucket())
        if self._requests.retries:
            retries, self._requests = self._requests.take_retries()
            for retry in retries:
                self._progress.retry(retry.sheets, workflow.now())
            self._land()  # a sheet that has just failed leaves the window first, so that it can be planned again
            self._window.plan(self._progress.sheets_to_do)

    async def _check_bucket(self) -> None:
        await workflow.sleep(GATHERING_TIME, summary="gather requests for one comparison with the bucket")
        # The requests are taken after the sleep, and there is no await between the taking and the comparison: a request that comes later
        # gets a comparison of its own.
        requests, self._requests = self._requests.take_check()
        await self._checks.reconcile(requests)

    def _fill_window(self) -> None:
        while (number := self._window.next()) is not None:
            self._sheet_tasks[number] = asyncio.create_task(self._sheet_work.process(number, self._options))

    def _land(self) -> None:
        """Takes the sheets whose work has ended out of the window. A bug in a task is raised here, so that Temporal reports it."""
        for number in [number for number, task in self._sheet_tasks.items() if task.done()]:
            self._window.land(number)
            self._sheet_tasks.pop(number).result()
        if self._check_task is not None and self._check_task.done():
            check, self._check_task = self._check_task, None
            check.result()
        self._display.show(self._progress)
        self._announcements.gather_sheets()

    # ------------------------------------------------------------------ how a run ends

    async def _stop_sheets(self) -> None:
        """Cancels the sheets in flight, and returns when all work has ended."""
        self._window.plan(())
        # This await lets tasks take the results that arrived together with the cancellation: cancelling a task would hide its result.
        await workflow.wait_condition(lambda: True)
        for task in self._sheet_tasks.values():
            task.cancel()
        # The comparison with the bucket is not cancelled: it ends soon by itself, and the progress must show its repairs.
        tasks = [*self._sheet_tasks.values(), *([self._check_task] if self._check_task else [])]
        if tasks:
            # The closing judges the half sheets in the bucket, so this await lets every writer of this run end first.
            await workflow.wait(tasks)
        self._window.plan(())  # the comparison may have planned sheets that it found broken
        for number in self._sheet_tasks:
            self._window.land(number)
        self._sheet_tasks.clear()
        self._check_task = None
        self._display.show(self._progress)

    def _should_continue_as_new(self) -> bool:
        """Whether the history has become long. A run that has not landed a sheet goes on, so that a chain of runs always ends."""
        return workflow.info().is_continue_as_new_suggested() and self._window.landed > 0 and bool(self._window.to_do)

    async def _continue_as_new(self) -> None:
        """Hands over to a new run; returns only when a request came while the updates were answered."""
        await self._announcements.announce_sheets()
        self._waiters.clear()
        # An update that waits would fail with the run; this await lets each of them answer.
        await workflow.wait_condition(workflow.all_handlers_finished)
        # There is no await between this look at the requests and the handover: a request that arrived in between would be lost.
        if self._requests:
            return
        workflow.continue_as_new(
            UploadInput(
                ref=str(self._ref),
                continued=Continued(
                    snapshot=self._progress.snapshot(),
                    options=self._options,
                    prioritized=self._window.prioritized_to_do,
                    hosts=tuple(sorted(self._sheet_work.hosts)),
                    webhooks=self._announcements.subscriptions,
                    reopened=self._reopened,
                ),
                sealed_password=self._calls.sealed_password,
            )
        )

    async def _close(self, *, reopened: bool, cancelled: bool) -> None:
        """Removes half sheets, frees the scratch of the hosts, and writes the manifest. No sheet is in flight."""
        manifest_stands = not self._loaded and workflow.patched(OBEY_REQUESTS_AFTER_CANCEL) and await self._restore_manifest()
        if not manifest_stands:
            with quiet_if_deleted():
                # The half sheets are judged before the final status is set, because a sheet that turns out to be whole changes the status.
                await self._checks.discard_undone(self._sheet_work.silence_noticed, self.patience.late_write)
            self._decide_ending()
            if cancelled and self._progress.version == self._reopened:
                # A late write of ``reopened.json`` must not bring the cancelled requests back. Beside a newer manifest it has no meaning.
                self._progress.renew(workflow.now())
        self._loaded = True
        self._display.show(self._progress)
        freeing = (self._calls.discard_scratch(queue) for queue in sorted(self._sheet_work.hosts))
        await asyncio.gather(*freeing, self._announcements.announce_sheets())
        self._sheet_work.hosts.clear()
        if not manifest_stands:
            with quiet_if_deleted():
                manifest = self._progress.snapshot()
                # The manifest is written last, because its readers take the upload as ended.
                written = await self._calls.write_manifest(manifest, reopened=self._reopened)
                if written is not None:
                    await self._announcements.announce_ended(manifest, written.webhooks)
                workflow.logger.info("an upload has ended", extra={"status": manifest.status.value})
                if not reopened:
                    count_upload(manifest)
            self._reopened = 0
        self._display.refresh()
        self._waiters.clear()
        # An update that waits would fail with the run; this await lets each of them answer.
        await workflow.wait_condition(workflow.all_handlers_finished)

    async def _restore_manifest(self) -> bool:
        """Restores the progress from the manifest of an earlier run, or else counts the committed sheets.

        The run calls this when it was cancelled before it had loaded.

        Returns:
            Whether the manifest can stay: there is one, and no ``reopened.json`` beside it.
        """
        with quiet_if_deleted():
            state = self._bucket_state or await self._list_sheets()
            if state.manifest is not None:
                self._restore(state.manifest, state)
                return not self._reopened
            if not self._progress.total_pages:
                self._progress.show_committed(state.committed, workflow.now())
        return False

    def _decide_ending(self) -> None:
        if self._progress.total_pages and not self._progress.sheets_in(SheetStatus.PENDING):
            self._progress.finish(workflow.now())
        elif not self._progress.status.is_final:  # a refused document has failed already, and a stopped upload keeps its status
            self._progress.cancel(workflow.now())

    def _result(self, *, cancelled: bool) -> Snapshot:
        result = self._progress.head
        if result.status is UploadStatus.CANCELLED and cancelled:
            raise asyncio.CancelledError
        if result.status is UploadStatus.FAILED:
            raise ApplicationError(result.detail or "", type=result.reason, non_retryable=True)
        return result
