"""The API: its routes, and the short handlers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, UploadStatus
from activities.bucket.storage import Bucket
from activities.errors import AlreadyFinished, SheetNotFound, SiteLinkError, TemporalUnavailable
from api.access.cors import cors
from api.access.credentials import WEBHOOK_HEADER, is_sent_on_purpose
from api.access.layer import Access
from api.access.policies import PUBLIC, SYSTEM, Needs, Policy, scoped
from api.access.principal import Scope
from api.access.routes import GuardedRoute, PublicFiles, check_policies
from api.access.session import Sessions
from api.access.settings import Mode
from api.access.tickets import Tickets
from api.codec import CodecEndpoint
from api.contract.routes import Contract
from api.direct import DirectUploads
from api.http.caching import body_etag, cacheable
from api.http.client_files import ClientFiles
from api.http.limits import LimitAddresses, LimitOrganizations, RateLimits
from api.http.middleware import AboutRequests, Guard, ProblemAnswers
from api.http.parameters import flag, known_version, page_cursor, page_limit, plan_ref, sheet_number, upload_ref, wait_s
from api.http.presence import while_connected
from api.http.problems import HANDLERS, status_problem
from api.layouts import Layouts
from api.metrics import ApiMetrics, r2_event_counter
from api.paths import (
    BEGIN,
    CODEC,
    DELIVERIES,
    DOCS,
    HOME,
    LIVE,
    METRICS,
    OPENAPI,
    PARTS,
    PLAN,
    R2_EVENTS,
    READY,
    REDELIVER,
    SESSION,
    UNGUARDED,
    UNREADABLE_EVENTS,
    UPLOAD,
    UPLOADS,
    WEBHOOKS,
)
from api.plans import Plans
from api.progress.documents import changes_since, full_document
from api.progress.runs import NoRun, Runs
from api.progress.sse import Hub
from api.progress.status import Status, UploadState
from api.r2.events import R2Events, unreadable_events
from api.r2.push import PushEndpoint
from api.readiness import Readiness
from api.settings import ApiSettings
from api.sources import Sources, names_source
from api.tiles import Tiles
from api.uploads import Uploads
from api.verify import Verifier
from api.webhooks import Webhooks
from workflows.messages import Reconcile, SheetNumbers

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
CLIENT = Path(__file__).parent / "client"

READ, WRITE, OPERATE = Scope

OPEN_WARNING = "SITELINK_ACCESS is open: everybody who reaches this server may read, change and delete everything"


class Api:
    """The handlers of the routes.

    Args:
        bucket: Holds the uploads.
        connect: Gives the Temporal client when it is first needed.
        settings: Limits of the API, the secrets of R2's push, and who may send requests.
        registry: Has the metrics that ``GET /metrics`` shows.
    """

    def __init__(
        self, bucket: Bucket, connect: Callable[[], Awaitable[Client]], settings: ApiSettings, registry: CollectorRegistry
    ) -> None:
        self.metrics = ApiMetrics(registry)
        self._bucket = bucket
        self._runs = Runs(connect)
        self._status = Status(bucket, self._runs)
        self._hub = Hub(bucket, self._status, self._runs, settings.max_streams, self.metrics.observe_delivery)
        self.metrics.watch(lambda: self._hub.connected, lambda: self._hub.watched)
        self._uploads = Uploads(bucket, self._status, self._runs, settings)
        self._sources = Sources(bucket, self._uploads, settings)
        self._direct = DirectUploads(bucket, self._uploads, settings)
        self._tiles = Tiles(bucket, self._status)
        self._verifier = Verifier(bucket, self._status)
        self._layouts = Layouts(self._status, self._runs)
        self._plans = Plans(bucket, self._status, self._runs)
        self._readiness = Readiness(bucket, self._runs)
        self._r2_events = R2Events(
            bucket,
            self._status,
            self._runs,
            attempts=settings.push.attempts,
            gather_s=settings.push.gather_s,
            on_decided=r2_event_counter(registry),
        )
        self._contract = Contract(self.routes, checks_access=settings.access.mode is Mode.JWT)
        self._push = PushEndpoint(self._r2_events, settings.push.secrets) if settings.push.secrets else None
        self._codec = CodecEndpoint(settings.codec_keys) if settings.codec_keys else None
        self._webhooks = Webhooks(bucket, self._runs, settings.webhooks) if settings.webhooks.secrets else None
        self.limits = RateLimits(settings.limit_address, settings.limit_organization, settings.limits_storage)
        self._access = Access(settings.access)
        self._mode = settings.access.mode
        self._tickets = Tickets(self._access, self._status)
        self._sessions = Sessions(self._access)

    def routes(self) -> list[GuardedRoute | PublicFiles]:
        """Every route of the API and of the page."""

        def route(method: str, path: str, endpoint: Callable[[Request], Awaitable[Response]], policy: Policy) -> GuardedRoute:
            after_access = [Middleware(LimitOrganizations, limits=self.limits)]
            return GuardedRoute(path, endpoint, methods=[method], policy=policy, access=self._access, then=after_access)

        return [
            route("POST", f"{PLAN}/reconcile", self.reconcile_plan, scoped(OPERATE, action="reconcile plan")),
            route("POST", f"{PLAN}/tickets", self._tickets.for_plan, scoped(READ, action="ticket")),
            route("GET", f"{PLAN}/events", self.stream_events_of_plan, scoped(READ, waits=True)),
            route("POST", UPLOADS, self.create, scoped(WRITE, action="upload", with_header=(WEBHOOK_HEADER, OPERATE))),
            route("GET", UPLOADS, self.list_uploads, scoped(READ)),
            route("POST", BEGIN, self._direct.begin, scoped(WRITE, action="begin upload", with_header=(WEBHOOK_HEADER, OPERATE))),
            route("GET", PARTS, self._direct.show, scoped(WRITE)),
            route("DELETE", PARTS, self._direct.abort, scoped(WRITE, action="abort upload")),
            route("POST", f"{PARTS}/sign", self._direct.sign, scoped(WRITE, action="sign parts")),
            *([] if self._direct.origin else [route("PUT", f"{PARTS}/{{part:int}}", self._direct.put_part, PUBLIC)]),
            route("POST", f"{UPLOAD}/complete", self.complete, scoped(WRITE, action="complete upload")),
            route("GET", UPLOAD, self.show, scoped(READ, waits=True)),
            route("DELETE", UPLOAD, self.delete, scoped(OPERATE, action="delete")),
            route("GET", f"{UPLOAD}/events", self.stream_events, scoped(READ, waits=True)),
            route("GET", f"{UPLOAD}/verify", self.verify, scoped(READ, deep=OPERATE)),
            route("POST", f"{UPLOAD}/tickets", self._tickets.for_upload, scoped(READ, action="ticket")),
            route("POST", f"{UPLOAD}/cancel", self.cancel, scoped(WRITE, action="cancel")),
            route("POST", f"{UPLOAD}/reconcile", self.reconcile, scoped(WRITE, deep=OPERATE, action="reconcile")),
            route("POST", f"{UPLOAD}/pack", self._layouts.pack, scoped(OPERATE, action="pack")),
            route("POST", f"{UPLOAD}/unpack", self._layouts.unpack, scoped(OPERATE, action="unpack")),
            route("GET", f"{UPLOAD}/conversion", self._layouts.show, scoped(READ)),
            route("POST", f"{UPLOAD}/sheets/{{sheet}}/prioritize", self.prioritize, scoped(WRITE, action="prioritize")),
            route("POST", f"{UPLOAD}/sheets/{{sheet}}/retry", self.retry, scoped(WRITE, action="retry")),
            route("GET", f"{UPLOAD}/sheets/{{path:path}}", self.sheet_object, scoped(READ)),
            *self._webhook_routes(route),
            *([route("POST", R2_EVENTS, self._push.respond, PUBLIC)] if self._push else []),
            route("GET", UNREADABLE_EVENTS, self.list_unreadable_events, SYSTEM),
            *([route("POST", f"{CODEC}/decode", self._codec.decode, SYSTEM)] if self._codec else []),
            *([route("POST", f"{CODEC}/encode", self._codec.encode, SYSTEM)] if self._codec else []),
            route("POST", SESSION, self._sessions.begin, Policy(Needs.TOKEN, action="begin session")),
            route("GET", SESSION, self._sessions.show, Policy(Needs.CREDENTIAL)),
            route("DELETE", SESSION, self._sessions.end, PUBLIC),
            route("GET", LIVE, self.live, PUBLIC),
            route("GET", READY, self.ready, PUBLIC),
            route("GET", METRICS, self.metrics.respond, SYSTEM),
            route("GET", OPENAPI, self._contract.document, PUBLIC),
            route("GET", DOCS, self._contract.page, PUBLIC),
            route("GET", HOME, self.page, PUBLIC),
            PublicFiles("/static", StaticFiles(directory=STATIC, check_dir=False)),
            PublicFiles("/client", ClientFiles(directory=CLIENT, check_dir=False)),
        ]

    def _webhook_routes(self, route: Callable[..., GuardedRoute]) -> list[GuardedRoute]:
        if (webhooks := self._webhooks) is None:
            return []
        return [
            route("GET", WEBHOOKS, webhooks.show, scoped(OPERATE)),
            route("PUT", WEBHOOKS, webhooks.put, scoped(OPERATE, action="set webhooks")),
            route("DELETE", WEBHOOKS, webhooks.delete, scoped(OPERATE, action="remove webhooks")),
            route("GET", DELIVERIES, webhooks.list_deliveries, scoped(OPERATE)),
            route("POST", REDELIVER, webhooks.redeliver, scoped(OPERATE, action="redeliver webhook")),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ends the watchers, the handling of R2 events and the writes of uploads when the server stops."""
        if self._mode is Mode.OPEN:
            logger.warning(OPEN_WARNING)
        await self._access.start()
        yield
        await self._access.close()
        await self._hub.close()
        await self._r2_events.close()
        await self._uploads.close()
        self._direct.close()

    @property
    def parts_origin(self) -> str | None:
        """See ``DirectUploads.origin``."""
        return self._direct.origin

    def stop(self) -> None:
        """Ends all event streams. The server calls it when it was asked to stop: it would wait for them without end."""
        self._hub.stop()

    async def create(self, request: Request) -> Response:
        """Accepts a PDF as a new upload."""
        plan = plan_ref(request)
        answer = await (self._sources if names_source(request) else self._uploads).create(plan, request)
        self._hub.show_new(plan)
        return answer

    async def complete(self, request: Request) -> Response:
        """Accepts an upload whose parts are in the bucket."""
        answer = await self._direct.complete(request)
        self._hub.show_new(plan_ref(request))
        return answer

    async def list_uploads(self, request: Request) -> Response:
        """The plan's uploads, newest first, page by page."""
        return await self._plans.list_uploads(plan_ref(request), limit=page_limit(request), cursor=page_cursor(request))

    async def show(self, request: Request) -> Response:
        """The progress of an upload, now or at its next change."""
        ref, after, patience_s, only_changes = upload_ref(request), known_version(request), wait_s(request), flag(request, "changes")
        if after is not None and patience_s:
            upload = await while_connected(request, self._hub.next_state(ref, after, patience_s))
        else:
            upload = await self._status.with_standstill_warning(ref, await self._status.read(ref))
        if after is not None and only_changes:
            upload = changes_since(upload, after)
        body = json.dumps(full_document(ref, upload), ensure_ascii=False, separators=(",", ":")).encode()
        return cacheable(request, body, etag=body_etag(body), media_type="application/json", cache_control="no-cache")

    async def stream_events(self, request: Request) -> Response:
        """The progress of an upload as Server-Sent Events."""
        return await self._hub.respond(upload_ref(request), request)

    async def stream_events_of_plan(self, request: Request) -> Response:
        """The progress of a plan's newest uploads as Server-Sent Events."""
        return await self._hub.respond_of_plan(plan_ref(request), request)

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
            if not (upload.certain or upload.is_loading):
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
        ref = upload_ref(request)
        options = Reconcile(deep=flag(request, "deep"), sealed_password=self._uploads.sealed_password(ref, request))
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
        sealed_password = self._uploads.sealed_password(ref, request)
        upload = await self._check_sheet(ref, sheet)
        if any(state.number == sheet and state.status is SheetStatus.READY for state in upload.snapshot.sheets):
            msg = f"sheet {sheet:,} is ready: there is nothing to try again"
            raise AlreadyFinished(msg)
        await self._status.check_readable(ref)
        await self._runs.reopen(ref, "retry_sheets", SheetNumbers((sheet,), sealed_password=sealed_password))
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
        """A thumbnail, a ``.dzi``, a tile or a ``.pmtiles``."""
        return await self._tiles.respond(upload_ref(request), request.path_params["path"], request)

    async def list_unreadable_events(self, _: Request) -> Response:
        """The messages that were kept aside because they are not R2 events; newest first."""
        events = await asyncio.to_thread(unreadable_events, self._bucket)
        return JSONResponse({"unreadable": events}, headers={"Cache-Control": "no-cache"})

    async def live(self, _: Request) -> Response:
        """Says that the process answers."""
        return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})

    async def ready(self, _: Request) -> Response:
        """Says whether the process can work; what is wrong, only where no stranger can ask."""
        try:
            await self._readiness.check()
        except SiteLinkError as error:
            if self._mode is not Mode.JWT:
                raise
            logger.warning("not ready", extra={"problem": f"{error.type}: {error}"})
            return status_problem(HTTPStatus.SERVICE_UNAVAILABLE, READY, {}, "the server's log says what is wrong")
        text = "ok\n"
        if self._mode is Mode.OPEN:
            text += f"warning: {OPEN_WARNING}\n"
        if self._mode is not Mode.JWT:
            text += f"images are decoded behind: {await self._readiness.confinement()}\n"
        return PlainTextResponse(text, headers={"Cache-Control": "no-store"})

    async def page(self, request: Request) -> Response:
        """The web page."""
        body = await asyncio.to_thread((STATIC / "index.html").read_bytes)
        return cacheable(request, body, etag=body_etag(body), media_type="text/html", cache_control="no-cache")


def create_app(
    bucket: Bucket,
    connect: Callable[[], Awaitable[Client]],
    settings: ApiSettings,
    registry: CollectorRegistry | None = None,
    tracer: "Tracer | None" = None,
) -> Starlette:
    """The ASGI application.

    Args:
        bucket: Holds the uploads.
        connect: Gives the Temporal client when it is first needed; a lazy client, so that the API also runs without Temporal.
        settings: Limits of the API, the host names in its address, the secrets of R2's push, and who may send requests.
        registry: Metrics of the process, to which those of the application are added; default: there are no others.
        tracer: Makes spans of requests; default: there are no traces.

    Raises:
        ValueError: A limit cannot be used; the message names its variable.
        TypeError: A route has no policy.
    """
    access = settings.access
    api = Api(bucket, connect, settings, registry or CollectorRegistry())
    routes = api.routes()
    check_policies(routes)
    unguarded = [path for path in UNGUARDED if path != R2_EVENTS or settings.push.secrets]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(AboutRequests, on_answer=api.metrics.count_answer),
            *([] if tracer is None else [_traced(tracer)]),
            *cors(access.cors_origins),
            Middleware(
                Guard,
                hosts=(settings.host, *access.public_hosts),
                origins=access.cors_origins,
                unguarded=unguarded,
                is_no_forgery=is_sent_on_purpose if access.mode is Mode.JWT else None,
                parts_origin=api.parts_origin,
            ),
            Middleware(ProblemAnswers),
            Middleware(LimitAddresses, limits=api.limits, unlimited=unguarded),
        ],
        exception_handlers=HANDLERS,
        lifespan=api.lifespan,
    )
    # Behind a proxy that ends TLS, a redirect would lead to an address without TLS, and take the credentials along.
    app.router.redirect_slashes = False
    app.state.stop = api.stop
    return app


def _traced(tracer: "Tracer") -> Middleware:
    from api.http.tracing import TraceRequests  # imported here, because it loads OpenTelemetry's library

    return Middleware(TraceRequests, tracer=tracer)


def _accepted(ref: UploadRef) -> Response:
    return JSONResponse({"ref": str(ref)}, HTTPStatus.ACCEPTED, {"Cache-Control": "no-store"})
