"""The API: routes, and what stands around them."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from temporalio.client import Client

from activities.bucket.keys import ID_PATTERN, PlanRef, UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.bucket.storage import Bucket
from activities.errors import (
    AlreadyFinished,
    BucketError,
    ForeignHost,
    ForeignOrigin,
    InvalidRequest,
    MalformedId,
    ObjectMissing,
    SheetNotFound,
    SiteLinkError,
    StorageUnavailable,
    TemporalUnavailable,
    UnreadableRecord,
    UploadNotFound,
)
from activities.logs import AboutRequests
from api.addresses import is_loopback
from api.documents import collection_path, full_document, list_entry
from api.problems import HANDLERS, named_problem
from api.r2.events import Notices, unreadable_events
from api.r2.push import PATH as PUSH_PATH
from api.r2.push import Push
from api.runs import QUERY_TIMEOUT_S, NoRun, Runs
from api.settings import ApiSettings
from api.sse import Hub
from api.status import Status, UploadState
from api.tiles import Tiles, is_unchanged
from api.uploads import Uploads
from api.verify import Verifier
from workflows.messages import Reconcile, SheetNumbers

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
DEFAULT_LIMIT, MAX_LIMIT = 50, 200
READS_AT_ONCE = 16

HEALTH_PATHS = ("/livez", "/readyz")
ROOM_S, NO_ROOM_S = 60.0, 5.0
"""How long it is taken as known that the bucket takes a small object, or takes none. The one on S3 costs a PUT: 0.2 dollars a month."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Api:
    """The handlers of the routes.

    Args:
        bucket: Where everything is.
        connect: Gives the Temporal client when it is first needed.
        settings: Limits.
    """

    def __init__(self, bucket: Bucket, connect: Callable[[], Awaitable[Client]], settings: ApiSettings) -> None:
        self._bucket = bucket
        self._runs = Runs(connect)
        self._status = Status(bucket, self._runs)
        self._hub = Hub(self._status, self._runs)
        self._uploads = Uploads(bucket, self._status, self._runs, settings.max_file_bytes)
        self._tiles = Tiles(bucket, self._status)
        self._verifier = Verifier(bucket, self._status)
        self._room: tuple[float, SiteLinkError | None] | None = None
        self._notices = Notices(bucket, self._status, self._runs, attempts=settings.events_attempts, gather_s=settings.events_gather_s)
        self._push = Push(self._notices, settings.events_secrets) if settings.events_secrets else None

    def routes(self) -> list[Route | Mount]:
        """Every address of the API and the page."""
        plan = "/v1/organizations/{organization}/projects/{project}/plans/{plan}"
        uploads = f"{plan}/uploads"
        upload = f"{uploads}/{{upload}}"
        return [
            Route(f"{plan}/reconcile", self.reconcile_plan, methods=["POST"]),
            Route(uploads, self.create, methods=["POST"]),
            Route(uploads, self.list_uploads, methods=["GET"]),
            Route(upload, self.show, methods=["GET"]),
            Route(upload, self.delete, methods=["DELETE"]),
            Route(f"{upload}/events", self.events, methods=["GET"]),
            Route(f"{upload}/verify", self.verify, methods=["GET"]),
            Route(f"{upload}/cancel", self.cancel, methods=["POST"]),
            Route(f"{upload}/reconcile", self.reconcile, methods=["POST"]),
            Route(f"{upload}/sheets/{{sheet}}/prioritize", self.prioritize, methods=["POST"]),
            Route(f"{upload}/sheets/{{sheet}}/retry", self.retry, methods=["POST"]),
            Route(f"{upload}/sheets/{{path:path}}", self.sheet_object, methods=["GET"]),
            *([Route(PUSH_PATH, self._push.respond, methods=["POST"])] if self._push else []),
            Route("/v1/events/unreadable", self.unreadable, methods=["GET"]),
            Route("/livez", self.live, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/", self.page, methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ends watchers and writes when the server stops."""
        yield
        await self._hub.close()
        await self._notices.close()
        await self._uploads.close()

    async def create(self, request: Request) -> Response:
        """Takes a PDF in."""
        return await self._uploads.create(_plan(request), request)

    async def list_uploads(self, request: Request) -> Response:
        """The plan's uploads, newest first."""
        plan, limit, cursor = _plan(request), _limit(request), _cursor(request)
        # The names of later uploads are greater: they begin the list, and what follows the cursor stays as it is.
        newest = [ref for ref in await self._newest(plan) if cursor is None or ref.upload < cursor]
        entries: list[dict[str, object]] = []
        reader = _ListReader(self._status)
        while newest and len(entries) < limit:
            batch, newest = newest[: limit - len(entries)], newest[limit - len(entries) :]
            entries += [entry for entry in await asyncio.gather(*map(reader.entry, batch)) if entry is not None]
            cursor = batch[-1].upload
        headers = {"Cache-Control": "no-cache"}
        if newest:
            headers["Link"] = f'<{collection_path(plan)}?cursor={cursor}&limit={limit}>; rel="next"'
        return JSONResponse({"uploads": entries, "nextCursor": cursor if newest else None}, headers=headers)

    async def _newest(self, plan: PlanRef) -> list[UploadRef]:
        """What may be an upload of the plan, newest first."""
        names = await asyncio.to_thread(self._bucket.directories, plan.uploads_prefix)
        newest = sorted(filter(ID_PATTERN.fullmatch, names), reverse=True)
        return [UploadRef(plan.organization, plan.project, plan.plan, name) for name in newest]

    async def show(self, request: Request) -> Response:
        """The whole progress of an upload."""
        ref = _upload(request)
        known = await self._status.explained(ref, await self._status.read(ref))
        body = json.dumps(full_document(ref, known), ensure_ascii=False, separators=(",", ":")).encode()
        etag = f'"{sha256(body).hexdigest()[:32]}"'
        headers = {"Cache-Control": "no-cache", "ETag": etag}
        if is_unchanged(request, etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    async def events(self, request: Request) -> Response:
        """The progress of an upload as it happens."""
        return await self._hub.respond(_upload(request), request)

    async def verify(self, request: Request) -> Response:
        """Whether the bucket holds every tile that it should; changes nothing."""
        return await self._verifier.respond(_upload(request), deep=_flag(request, "deep"))

    async def cancel(self, request: Request) -> Response:
        """Ends an upload that is not done; asking twice is no error."""
        ref = _upload(request)
        await self._status.check(ref)
        try:
            await self._runs.cancel(ref)
        except NoRun:
            known = await self._status.read(ref)  # an accepted upload that never ran is started by this
            if known.unreadable is not None:
                raise known.unreadable from None
            if not known.certain:
                raise TemporalUnavailable(known.snapshot.warning) from None
            if known.final is None:
                await self._cancel_started(ref)
            elif known.snapshot.status is not UploadStatus.CANCELLED:
                msg = f"the upload is {known.snapshot.status}: there is nothing to cancel"
                raise AlreadyFinished(msg) from None
        return _accepted(ref)

    async def _cancel_started(self, ref: UploadRef) -> None:
        try:
            await self._runs.cancel(ref)
        except NoRun as error:
            msg = "the upload has just ended: there is nothing to cancel"
            raise AlreadyFinished(msg) from error

    async def reconcile(self, request: Request) -> Response:
        """Makes the progress agree with what the bucket holds, also of an upload that has ended; a dry run only says what it would do."""
        ref, options = _upload(request), Reconcile(deep=_flag(request, "deep"))
        if _flag(request, "dryRun"):
            return await self._verifier.respond(ref, deep=options.deep)
        await self._status.check_readable(ref)
        await self._runs.reopen(ref, "force_reconcile", options)
        return _accepted(ref)

    async def reconcile_plan(self, request: Request) -> Response:
        """The same for every upload of a plan; one of which a record cannot be read is passed over, and named."""
        plan, options = _plan(request), Reconcile(deep=_flag(request, "deep"))
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

    async def delete(self, request: Request) -> Response:
        """Removes an upload and all its sheets for good; asking twice is no error."""
        ref = _upload(request)
        await self._status.mark_deleted(ref)
        self._hub.end(ref)
        try:
            await self._runs.delete(ref)
        except TemporalUnavailable as error:
            # It is gone for everybody, and the sweep finds its mark.
            logger.warning("the removal of a deleted upload is not started yet", extra={"ref": str(ref), "problem": str(error)})
        return _accepted(ref)

    async def prioritize(self, request: Request) -> Response:
        """Takes a sheet next."""
        ref, sheet = _upload(request), _sheet(request)
        await self._check_sheet(ref, sheet)
        try:
            await self._runs.prioritize(ref, sheet)
        except NoRun as error:
            msg = "the upload has ended: no sheet waits for its turn"
            raise AlreadyFinished(msg) from error
        return _accepted(ref)

    async def retry(self, request: Request) -> Response:
        """Tries a failed sheet again, also of an upload that has ended."""
        ref, sheet = _upload(request), _sheet(request)
        known = await self._check_sheet(ref, sheet)
        if any(state.number == sheet and state.status is SheetStatus.READY for state in known.snapshot.sheets):
            msg = f"sheet {sheet:,} is ready: there is nothing to try again"
            raise AlreadyFinished(msg)
        await self._runs.reopen(ref, "retry_sheets", SheetNumbers((sheet,)))
        return _accepted(ref)

    async def _check_sheet(self, ref: UploadRef, sheet: int) -> UploadState:
        known = await self._status.read(ref)
        if known.unreadable is not None:
            raise known.unreadable
        total = known.snapshot.total_pages
        counted = total or (known.final is not None and known.snapshot.status is not UploadStatus.CANCELLED)
        if known.certain and counted and sheet > total:
            msg = f"there is no sheet {sheet:,}, the upload has {total:,}"
            raise SheetNotFound(msg)
        return known

    async def sheet_object(self, request: Request) -> Response:
        """A thumbnail, descriptor or tile."""
        return await self._tiles.respond(_upload(request), request.path_params["path"], request)

    async def unreadable(self, _: Request) -> Response:
        """Messages that are not R2 events and were kept aside; newest first."""
        events = await asyncio.to_thread(unreadable_events, self._bucket)
        return JSONResponse({"unreadable": events}, headers={"Cache-Control": "no-cache"})

    async def live(self, _: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})

    async def ready(self, _: Request) -> Response:
        """Temporal and the bucket answer, too, and the bucket has room."""
        failures = [error for error in await asyncio.gather(self._temporal_failure(), self._bucket_failure()) if error]
        if failures:
            raise type(failures[0])("; ".join(str(error) for error in failures))
        return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})

    async def _temporal_failure(self) -> SiteLinkError | None:
        try:
            await self._runs.check_health()
        except TemporalUnavailable as error:
            return error
        except NoRun as error:
            logger.warning("Temporal's frontend does not answer: %s", error.__cause__)
            return TemporalUnavailable("Temporal's frontend does not answer")
        return None

    async def _bucket_failure(self) -> SiteLinkError | None:
        if failure := await self._failure_of(self._bucket.head_async("readyz")):
            return failure
        now = time.monotonic()
        if self._room is None or now - self._room[0] >= (NO_ROOM_S if self._room[1] else ROOM_S):
            # What comes meanwhile takes the earlier answer: there is one probe at a time.
            self._room = now, self._room[1] if self._room else None
            self._room = now, await self._failure_of(self._bucket.check_room())
        return self._room[1]

    async def _failure_of(self, asking: Awaitable[object]) -> SiteLinkError | None:
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                await asking
        except BucketError as error:
            return error
        except TimeoutError:
            return StorageUnavailable(f"the bucket did not answer within {QUERY_TIMEOUT_S:g} s")
        except ObjectMissing:
            pass
        return None

    async def page(self, _: Request) -> Response:
        """The web page."""
        return FileResponse(STATIC / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})


class _ListReader:
    """Reads the entries of one list, some at once; asks Temporal no more once it did not answer."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._slots = asyncio.Semaphore(READS_AT_ONCE)
        self._ask = True

    async def entry(self, ref: UploadRef) -> dict[str, object] | None:
        """One line; None for what is no upload, or none any more."""
        async with self._slots:
            try:
                known = await self._status.read(ref, ask=self._ask, patience_s=0)
            except UploadNotFound:
                return None
        self._ask = self._ask and (known.certain or known.unreadable is not None)
        return list_entry(ref, known)


class Guard:
    """Refuses what a browser sends here for another site, and tells browsers what the page may do.

    Without authentication, whoever reaches the server may use it. A page of another site in this machine's browser must not: neither by
    a name of its own that leads to this address (DNS rebinding), nor by posting to it. Programs that are no browser send neither header.

    Args:
        app: What is guarded.
        host: The name it is reached as.
        unguarded: Paths that answer under any name, or none, and to anybody: health checks, and what lets in nothing without a signature.
    """

    def __init__(self, app: ASGIApp, host: str, unguarded: Collection[str] = ()) -> None:
        self._app = app
        self._host = host
        self._unguarded = unguarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        error = None if scope["path"] in self._unguarded else self._refusal(scope["method"], Headers(scope=scope))
        app: ASGIApp = self._app if error is None else named_problem(error, scope["path"])
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> SiteLinkError | None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name != self._host and not is_loopback(name):
            return ForeignHost(f"this server is not {host[:200]!r}, it is reached as {self._host}")
        if method in ("GET", "HEAD"):
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site not in (None, "same-origin", "none") or (origin is not None and urlsplit(origin).netloc != host):
            return ForeignOrigin(f"a page of {(origin or 'another site')[:200]} may not change anything here")
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def create_app(bucket: Bucket, connect: Callable[[], Awaitable[Client]], settings: ApiSettings) -> Starlette:
    """The ASGI application.

    Args:
        bucket: Where everything is.
        connect: Gives the Temporal client when it is first needed; a lazy one, so that the API lives without Temporal.
        settings: Limits and the host it is reached as.
    """
    api = Api(bucket, connect, settings)
    return Starlette(
        routes=api.routes(),
        middleware=[
            Middleware(AboutRequests),
            Middleware(Guard, host=settings.host, unguarded=(*HEALTH_PATHS, *([PUSH_PATH] if settings.events_secrets else []))),
        ],
        exception_handlers=HANDLERS,
        lifespan=api.lifespan,
    )


def _accepted(ref: UploadRef) -> Response:
    return JSONResponse({"ref": str(ref)}, HTTPStatus.ACCEPTED, {"Cache-Control": "no-store"})


def _plan(request: Request) -> PlanRef:
    parts = request.path_params
    try:
        return PlanRef(parts["organization"], parts["project"], parts["plan"])
    except ValueError as error:
        raise MalformedId(str(error)) from error


def _upload(request: Request) -> UploadRef:
    parts = request.path_params
    try:
        return UploadRef(parts["organization"], parts["project"], parts["plan"], parts["upload"])
    except ValueError as error:
        raise MalformedId(str(error)) from error


def _sheet(request: Request) -> int:
    text = request.path_params["sheet"]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        msg = f"{text[:80]!r} is not the number of a sheet, they count from 1"
        raise SheetNotFound(msg)
    return int(text)


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        msg = f"limit is {text[:80]!r}, it must be a whole number from 1 to {MAX_LIMIT}"
        raise InvalidRequest(msg)
    return min(int(text), MAX_LIMIT)


def _cursor(request: Request) -> str | None:
    text = request.query_params.get("cursor")
    if text is not None and not ID_PATTERN.fullmatch(text):
        msg = f"cursor is {text[:80]!r}, it must be the nextCursor of an answer"
        raise InvalidRequest(msg)
    return text


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("", "1", "true", "0", "false"):
        msg = f"{name} is {text[:80]!r}, it must be true or false"
        raise InvalidRequest(msg)
    return text not in ("0", "false")
