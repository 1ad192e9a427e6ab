"""``GET …/verify``: proves that the bucket holds every tile that the progress says is there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from starlette.responses import Response, StreamingResponse

from activities.bucket.keys import UploadRef
from activities.bucket.records import Snapshot, to_json
from activities.bucket.report import SheetReport, UploadReport
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from activities.errors import SiteLinkError
from api.progress.status import Status

AT_ONCE = 2
"""Uploads verified at once in one process; the next ones wait."""


class Verifier:
    """Verifies uploads in threads of its own.

    Args:
        bucket: Where their objects are.
        status: Knows which sheets are ready.
    """

    def __init__(self, bucket: Bucket, status: Status) -> None:
        self._bucket = bucket
        self._status = status
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="verify-upload")

    async def respond(self, ref: UploadRef, *, deep: bool) -> Response:
        """One JSON object: ``sheets`` with the report of each sheet, sent as soon as it is known, then the fields of the upload's report.

        When the bucket fails in the middle, the answer has begun: the upload's report then says so, and that it is not verified.

        Raises:
            UploadNotFound: There is no such upload.
            BucketError: The bucket failed before the answer began.
        """
        known = await self._status.read(ref)
        body = self._body(ref, known.snapshot, deep=deep)
        return StreamingResponse(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _body(self, ref: UploadRef, progress: Snapshot, *, deep: bool) -> AsyncIterator[bytes]:
        yield b'{"sheets":['
        loop, stop = asyncio.get_running_loop(), threading.Event()
        reports: asyncio.Queue[SheetReport | UploadReport | None] = asyncio.Queue()

        def put(report: SheetReport | UploadReport | None) -> None:
            loop.call_soon_threadsafe(reports.put_nowait, report)

        work = loop.run_in_executor(self._threads, self._verify, ref, progress, deep, put, stop)
        try:
            separator = b"\n"
            while isinstance(report := await reports.get(), SheetReport):
                yield separator + to_json(report)
                separator = b",\n"
            await work  # raises an error that has no name
            yield b"\n]," + to_json(report)[1:] + b"\n"
        finally:
            # The client may have gone: a verification that waits for a thread is dropped, one that runs ends with the sheets at hand.
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
