"""Packs and unpacks stored uploads, and tells how far that is."""

import asyncio
import time
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout, to_wire
from activities.errors import ObjectMissing, TemporalUnavailable, UploadBusy
from api.http.parameters import upload_ref
from api.progress.runs import NoRun, Runs
from api.progress.status import Status, UploadState

CLOSING_S = 10.0
CLOSING_POLL_S = 0.2


class Layouts:
    """The handlers of the routes.

    Args:
        status: Tells whether an upload exists and has ended.
        runs: Starts and asks the workflows.
    """

    def __init__(self, status: Status, runs: Runs) -> None:
        self._status = status
        self._runs = runs

    async def pack(self, request: Request) -> Response:
        """``POST …/pack``: each ready sheet becomes one object."""
        return await self._convert(upload_ref(request), Layout.PACKED)

    async def unpack(self, request: Request) -> Response:
        """``POST …/unpack``: each tile of the ready sheets becomes an object."""
        return await self._convert(upload_ref(request), Layout.EXPLODED)

    async def show(self, request: Request) -> Response:
        """``GET …/conversion``: how far the last conversion is."""
        ref = upload_ref(request)
        await self._status.check(ref)
        try:
            conversion = await self._runs.conversion(ref)
        except NoRun as error:
            msg = "no conversion of this upload is known"
            raise ObjectMissing(msg) from error
        return JSONResponse({"ref": str(ref), **to_wire(conversion)}, headers={"Cache-Control": "no-cache"})

    async def _ended_state(self, ref: UploadRef) -> UploadState:
        """The state of an upload, which may be final a moment before its run has ended."""
        deadline = time.monotonic() + CLOSING_S
        while True:
            upload = await self._status.read(ref)
            is_closing = upload.certain and upload.final is None and upload.snapshot.status.is_final
            if not is_closing or time.monotonic() > deadline:
                return upload
            await asyncio.sleep(CLOSING_POLL_S)

    async def _convert(self, ref: UploadRef, layout: Layout) -> Response:
        upload = await self._ended_state(ref)
        if upload.unreadable is not None:
            raise upload.unreadable
        if not upload.certain:
            raise TemporalUnavailable(upload.snapshot.warning)
        if upload.final is None:
            msg = f"the upload is {upload.snapshot.status}: convert it when it has ended"
            raise UploadBusy(msg)
        await self._runs.convert(ref, layout)
        return JSONResponse({"ref": str(ref)}, HTTPStatus.ACCEPTED)
