"""The API: its routes, and the short handlers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.bucket.storage import Bucket
from activities.errors import AlreadyFinished, SheetNotFound, TemporalUnavailable
from api.http.caching import cacheable
from api.http.client_files import ClientFiles
from api.http.middleware import AboutRequests, Guard
from api.http.parameters import flag, page_cursor, page_limit, plan_ref, sheet_number, upload_ref
from api.http.problems import HANDLERS
from api.paths import PLAN, R2_EVENTS, UNREADABLE_EVENTS, UPLOAD, UPLOADS
from api.plans import Plans
from api.progress.documents import full_document
from api.progress.runs import NoRun, Runs
from api.progress.sse import Hub
from api.progress.status import Status, UploadState
from api.r2.events import R2Events, unreadable_events
from api.r2.push import PushEndpoint
from api.readiness import Readiness
from api.settings import ApiSettings
from api.tiles import Tiles
from api.uploads import Uploads
from api.verify import Verifier
from workflows.messages import Reconcile, SheetNumbers

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
CLIENT = Path(__file__).parent / "client"
LIVE, READY = "/livez", "/readyz"


class Api:
    """The handlers of the routes.

    Args:
        bucket: Holds the uploads.
        connect: Gives the Temporal client when it is first needed.
        settings: Limits of the API, and the secrets of R2's push.
    """

    def __init__(self, bucket: Bucket, connect: Callable[[], Awaitable[Client]], settings: ApiSettings) -> None:
        self._bucket = bucket
        self._runs = Runs(connect)
        self._status = Status(bucket, self._runs)
        self._hub = Hub(self._status, self._runs)
        self._uploads = Uploads(bucket, self._status, self._runs, settings.max_file_bytes)
        self._tiles = Tiles(bucket, self._status)
        self._verifier = Verifier(bucket, self._status)
        self._plans = Plans(bucket, self._status, self._runs)
        self._readiness = Readiness(bucket, self._runs)
        self._r2_events = R2Events(bucket, self._status, self._runs, attempts=settings.push.attempts, gather_s=settings.push.gather_s)
        self._push = PushEndpoint(self._r2_events, settings.push.secrets) if settings.push.secrets else None

    def routes(self) -> list[Route | Mount]:
        """Every route of the API and of the page."""
        return [
            Route(f"{PLAN}/reconcile", self.reconcile_plan, methods=["POST"]),
            Route(UPLOADS, self.create, methods=["POST"]),
            Route(UPLOADS, self.list_uploads, methods=["GET"]),
            Route(UPLOAD, self.show, methods=["GET"]),
            Route(UPLOAD, self.delete, methods=["DELETE"]),
            Route(f"{UPLOAD}/events", self.stream_events, methods=["GET"]),
            Route(f"{UPLOAD}/verify", self.verify, methods=["GET"]),
            Route(f"{UPLOAD}/cancel", self.cancel, methods=["POST"]),
            Route(f"{UPLOAD}/reconcile", self.reconcile, methods=["POST"]),
            Route(f"{UPLOAD}/sheets/{{sheet}}/prioritize", self.prioritize, methods=["POST"]),
            Route(f"{UPLOAD}/sheets/{{sheet}}/retry", self.retry, methods=["POST"]),
            Route(f"{UPLOAD}/sheets/{{path:path}}", self.sheet_object, methods=["GET"]),
            *([Route(R2_EVENTS, self._push.respond, methods=["POST"])] if self._push else []),
            Route(UNREADABLE_EVENTS, self.list_unreadable_events, methods=["GET"]),
            Route(LIVE, self.live, methods=["GET"]),
            Route(READY, self.ready, methods=["GET"]),
            Route("/", self.page, methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
            Mount("/client", ClientFiles(directory=CLIENT, check_dir=False)),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ends the watchers, the handling of R2 events and the writes of uploads when the server stops."""
        yield
        await self._hub.close()
        await self._r2_events.close()
        await self._uploads.close()

    async def create(self, request: Request) -> Response:
        """Accepts a PDF as a new upload."""
        return await self._uploads.create(plan_ref(request), request)

    async def list_uploads(self, request: Request) -> Response:
        """The plan's uploads, newest first, page by page."""
        return await self._plans.list_uploads(plan_ref(request), limit=page_limit(request), cursor=page_cursor(request))

    async def show(self, request: Request) -> Response:
        """The whole progress of an upload."""
        ref = upload_ref(request)
        upload = await self._status.with_standstill_warning(ref, await self._status.read(ref))
        body = json.dumps(full_document(ref, upload), ensure_ascii=False, separators=(",", ":")).encode()
        etag = f'"{sha256(body).hexdigest()[:32]}"'
        return cacheable(request, body, etag=etag, media_type="application/json", cache_control="no-cache")

    async def stream_events(self, request: Request) -> Response:
        """The progress of an upload as Server-Sent Events."""
        return await self._hub.respond(upload_ref(request), request)

    async def verify(self, request: Request) -> Response:
        """Reports whether the bucket holds every tile of the ready sheets; changes nothing."""
        return await self._verifier.respond(upload_ref(request), deep=flag(request, "deep"))

    async def cancel(self, request: Request) -> Response:
        """Stops an upload that still runs; a second request is no error."""
        ref = upload_ref(request)
        await self._status.check(ref)
        try:
            await self._runs.cancel(ref)
        except NoRun:
            upload = await self._status.read(ref)  # this starts an accepted upload that never ran
            if upload.unreadable is not None:
                raise upload.unreadable from None
            if not upload.certain:
                raise TemporalUnavailable(upload.snapshot.warning) from None
            if upload.final is None:
                await self._cancel_started(ref)
            elif upload.snapshot.status is not UploadStatus.CANCELLED:
                msg = f"the upload is {upload.snapshot.status}: there is nothing to cancel"
                raise AlreadyFinished(msg) from None
        return _accepted(ref)

    async def _cancel_started(self, ref: UploadRef) -> None:
        try:
            await self._runs.cancel(ref)
        except NoRun as error:
            msg = "the upload has just ended: there is nothing to cancel"
            raise AlreadyFinished(msg) from error

    async def reconcile(self, request: Request) -> Response:
        """Reconciles an upload with the bucket, even if the upload has ended. A dry run only reports the repairs."""
        ref, options = upload_ref(request), Reconcile(deep=flag(request, "deep"))
        if flag(request, "dryRun"):
            return await self._verifier.respond(ref, deep=options.deep)
        await self._status.check_readable(ref)
        await self._runs.reopen(ref, "force_reconcile", options)
        return _accepted(ref)

    async def reconcile_plan(self, request: Request) -> Response:
        """Reconciles every upload of a plan."""
        return await self._plans.reconcile(plan_ref(request), Reconcile(deep=flag(request, "deep")))

    async def delete(self, request: Request) -> Response:
        """Removes an upload and all its sheets for good; a second request is no error."""
        ref = upload_ref(request)
        await self._status.mark_deleted(ref)
        self._hub.end(ref)
        try:
            await self._runs.delete(ref)
        except TemporalUnavailable as error:
            # The mark already hides the upload from every client. The sweep will find the mark and start the removal.
            logger.warning("the removal of a deleted upload is not started yet", extra={"ref": str(ref), "problem": str(error)})
        return _accepted(ref)

    async def prioritize(self, request: Request) -> Response:
        """Asks the run to tile a sheet next."""
        ref, sheet = upload_ref(request), sheet_number(request)
        await self._check_sheet(ref, sheet)
        try:
            await self._runs.prioritize(ref, sheet)
        except NoRun as error:
            msg = "the upload has ended: no sheet waits for its turn"
            raise AlreadyFinished(msg) from error
        return _accepted(ref)

    async def retry(self, request: Request) -> Response:
        """Tries a failed sheet again, even if the upload has ended; the sheets that are still pending go on, too."""
        ref, sheet = upload_ref(request), sheet_number(request)
        upload = await self._check_sheet(ref, sheet)
        if any(state.number == sheet and state.status is SheetStatus.READY for state in upload.snapshot.sheets):
            msg = f"sheet {sheet:,} is ready: there is nothing to try again"
            raise AlreadyFinished(msg)
        await self._runs.reopen(ref, "retry_sheets", SheetNumbers((sheet,)))
        return _accepted(ref)

    async def _check_sheet(self, ref: UploadRef, sheet: int) -> UploadState:
        upload = await self._status.read(ref)
        if upload.unreadable is not None:
            raise upload.unreadable
        total = upload.snapshot.total_pages
        counted = total or (upload.final is not None and upload.snapshot.status is not UploadStatus.CANCELLED)
        if upload.certain and counted and sheet > total:
            msg = f"there is no sheet {sheet:,}, the upload has {total:,}"
            raise SheetNotFound(msg)
        return upload

    async def sheet_object(self, request: Request) -> Response:
        """A thumbnail, a ``.dzi`` or a tile."""
        return await self._tiles.respond(upload_ref(request), request.path_params["path"], request)

    async def list_unreadable_events(self, _: Request) -> Response:
        """The messages that were kept aside because they are not R2 events; newest first."""
        events = await asyncio.to_thread(unreadable_events, self._bucket)
        return JSONResponse({"unreadable": events}, headers={"Cache-Control": "no-cache"})

    async def live(self, _: Request) -> Response:
        """Says that the process answers."""
        return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})

    async def ready(self, _: Request) -> Response:
        """Says whether the process can work."""
        await self._readiness.check()
        return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})

    async def page(self, _: Request) -> Response:
        """The web page."""
        return FileResponse(STATIC / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})


def create_app(bucket: Bucket, connect: Callable[[], Awaitable[Client]], settings: ApiSettings) -> Starlette:
    """The ASGI application.

    Args:
        bucket: Holds the uploads.
        connect: Gives the Temporal client when it is first needed; a lazy client, so that the API also runs without Temporal.
        settings: Limits of the API, the host name in its address, and the secrets of R2's push.
    """
    api = Api(bucket, connect, settings)
    return Starlette(
        routes=api.routes(),
        middleware=[
            Middleware(AboutRequests),
            Middleware(Guard, host=settings.host, unguarded=(LIVE, READY, *([R2_EVENTS] if settings.push.secrets else []))),
        ],
        exception_handlers=HANDLERS,
        lifespan=api.lifespan,
    )


def _accepted(ref: UploadRef) -> Response:
    return JSONResponse({"ref": str(ref)}, HTTPStatus.ACCEPTED, {"Cache-Control": "no-store"})
