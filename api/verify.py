"""``GET …/verify``: checks that the bucket holds every tile of the sheets that the progress shows as ready."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from activities.bucket.keys import UploadRef
from activities.bucket.records import Snapshot, to_json
from activities.bucket.report import SheetReport, UploadReport
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from activities.errors import SiteLinkError
from api.http.turns import Turns
from api.progress.status import Status

AT_ONCE, DEEP_AT_ONCE = 4, 2
"""How many uploads one process verifies at once, and how many of them deeply beside these. Of one organization half as many."""
WAITING = 32
"""How many further requests of each kind wait."""


class _Kind:
    """The threads and the turns of one kind of verification."""

    def __init__(self, at_once: int, what: str) -> None:
        self.threads = ThreadPoolExecutor(at_once, thread_name_prefix="verify-upload")
        self.turns = Turns(at_once, share=at_once // 2, line=WAITING, what=what)


class _Report(StreamingResponse):
    """An answer that begins when it is its turn."""

    def __init__(self, body: AsyncIterator[bytes], turn: AbstractAsyncContextManager[None]) -> None:
        super().__init__(body, media_type="application/json", headers={"Cache-Control": "no-store"})
        self._turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._turn:
            await super().__call__(scope, receive, send)


class Verifier:
    """Verifies uploads in threads of its own.

    Args:
        bucket: Holds the objects of the uploads.
        status: Reads which sheets are ready.
    """

    def __init__(self, bucket: Bucket, status: Status) -> None:
        self._bucket = bucket
        self._status = status
        self._names, self._deep = _Kind(AT_ONCE, "verifications"), _Kind(DEEP_AT_ONCE, "deep verifications")

    async def respond(self, ref: UploadRef, *, deep: bool) -> Response:
        """One JSON object: ``sheets`` with the report of each sheet, sent as soon as it is known, then the fields of the upload's report.

        If the bucket fails after the answer has begun, the upload's report names the failure and says that the upload is not verified.

        Raises:
            UploadNotFound: There is no such upload.
            BucketError: The bucket failed before the answer began.

        The answer itself raises ``ServerBusy`` or ``TooManyRequests`` instead of its beginning, when too many are being verified.
        """
        state = await self._status.read(ref)
        kind = self._deep if deep else self._names
        return _Report(self._body(kind.threads, ref, state.snapshot, deep=deep), kind.turns.turn(ref.organization))

    async def _body(self, threads: ThreadPoolExecutor, ref: UploadRef, progress: Snapshot, *, deep: bool) -> AsyncIterator[bytes]:
        yield b'{"sheets":['
        loop, stop = asyncio.get_running_loop(), threading.Event()
        reports: asyncio.Queue[SheetReport | UploadReport | None] = asyncio.Queue()

        def put(report: SheetReport | UploadReport | None) -> None:
            loop.call_soon_threadsafe(reports.put_nowait, report)

        work = loop.run_in_executor(threads, self._verify, ref, progress, deep, put, stop)
        try:
            separator = b"\n"
            while isinstance(report := await reports.get(), SheetReport):
                yield separator + to_json(report)
                separator = b",\n"
            await work  # raises the error, if the thread failed with one that is not a SiteLinkError
            yield b"\n]," + to_json(report)[1:] + b"\n"
        finally:
            # The client may have gone: a verification that waits for a thread is dropped, and a running one ends after its current sheets.
            work.cancel()
            stop.set()

    def _verify(
        self,
        ref: UploadRef,
        progress: Snapshot,
        deep: bool,
        put: Callable[[SheetReport | UploadReport | None], None],
        stop: threading.Event,
    ) -> None:
        try:
            with closing(verify_upload(self._bucket, ref, progress, deep=deep)) as reports:
                for report in reports:
                    put(report)
                    if stop.is_set():
                        return
        except SiteLinkError as error:
            put(UploadReport(str(ref), progress.status, deep=deep, problems=(f"not verified to the end: {error.type}: {error}",)))
        except BaseException:
            put(None)
            raise
