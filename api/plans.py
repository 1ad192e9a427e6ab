"""The requests about all uploads of a plan: list them, and reconcile each of them."""

import asyncio
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from activities.bucket.keys import ID_PATTERN, PlanRef, UploadRef
from activities.bucket.storage import Bucket
from activities.errors import UnreadableRecord, UploadNotFound
from api.paths import uploads_path
from api.progress.documents import list_entry
from api.progress.runs import Runs
from api.progress.status import Status
from workflows.messages import Reconcile

READS_AT_ONCE = 16


class Plans:
    """Answers the requests about a plan.

    Args:
        bucket: Holds the uploads.
        status: Reads the state of an upload.
        runs: Signals the workflows of the uploads.
    """

    def __init__(self, bucket: Bucket, status: Status, runs: Runs) -> None:
        self._bucket = bucket
        self._status = status
        self._runs = runs

    async def list_uploads(self, plan: PlanRef, *, limit: int, cursor: str | None) -> Response:
        """One page of a plan's uploads, newest first.

        Args:
            plan: The plan.
            limit: How many uploads the page may have.
            cursor: The last upload of the previous page; None for the first page.
        """
        # New uploads have greater ids and stand before every cursor, so the uploads that follow a cursor stay the same.
        newest = [ref for ref in await self._newest(plan) if cursor is None or ref.upload < cursor]
        entries: list[dict[str, object]] = []
        reader = _ListReader(self._status)
        while newest and len(entries) < limit:
            batch, newest = newest[: limit - len(entries)], newest[limit - len(entries) :]
            entries += [entry for entry in await asyncio.gather(*map(reader.entry, batch)) if entry is not None]
            cursor = batch[-1].upload
        headers = {"Cache-Control": "no-cache"}
        if newest:
            headers["Link"] = f'<{uploads_path(plan)}?cursor={cursor}&limit={limit}>; rel="next"'
        return JSONResponse({"uploads": entries, "nextCursor": cursor if newest else None}, headers=headers)

    async def reconcile(self, plan: PlanRef, options: Reconcile) -> Response:
        """Asks each upload of a plan to reconcile. An upload with an unreadable record is passed over and named in the answer."""
        slots = asyncio.Semaphore(READS_AT_ONCE)
        passed_over: list[dict[str, str]] = []

        async def reopen(ref: UploadRef) -> str | None:
            async with slots:
                try:
                    await self._status.check_readable(ref)
                except UploadNotFound:
                    return None
                except UnreadableRecord as error:
                    passed_over.append({"ref": str(ref), "type": error.type, "detail": str(error)})
                    return None
                await self._runs.reopen(ref, "force_reconcile", options)
            return str(ref)

        refs = [ref for ref in await asyncio.gather(*map(reopen, await self._newest(plan))) if ref]
        body = {"plan": str(plan), "refs": refs, "passedOver": passed_over}
        return JSONResponse(body, HTTPStatus.ACCEPTED, {"Cache-Control": "no-store"})

    async def _newest(self, plan: PlanRef) -> list[UploadRef]:
        """The directories that may be uploads of the plan, newest first. Some may be uploads that were never accepted."""
        names = await asyncio.to_thread(self._bucket.directories, plan.uploads_prefix)
        newest = sorted(filter(ID_PATTERN.fullmatch, names), reverse=True)
        return [UploadRef(plan.organization, plan.project, plan.plan, name) for name in newest]


class _ListReader:
    """Reads the entries of one list, several at once. When Temporal has not answered once, it is not asked again."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._slots = asyncio.Semaphore(READS_AT_ONCE)
        self._asks_temporal = True

    async def entry(self, ref: UploadRef) -> dict[str, object] | None:
        """One entry of the list; None when the upload was never accepted or is deleted."""
        async with self._slots:
            try:
                state = await self._status.read(ref, ask_temporal=self._asks_temporal, patience_s=0)
            except UploadNotFound:
                return None
        self._asks_temporal = self._asks_temporal and (state.certain or state.is_loading or state.unreadable is not None)
        return list_entry(ref, state)
