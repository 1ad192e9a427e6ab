"""``POST …/tickets``: makes tickets, for programs that can send no header, such as EventSource, and for viewers in other places.

A ticket reads one plan or one upload. It is signed and not stored, so that every process with the same secret takes it.
"""

from datetime import UTC, datetime
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.bucket.keys import PlanRef
from activities.bucket.records import timestamp
from activities.errors import InvalidRequest
from api.access.layer import Access, principal_of
from api.access.principal import Principal, Scope
from api.http.parameters import plan_ref, upload_ref
from api.progress.status import Status

DEFAULT_TTL_S, MAX_TTL_S = 600, 24 * 3600


class Tickets:
    """The handlers.

    Args:
        access: Signs tickets.
        status: Checks that an upload exists.
    """

    def __init__(self, access: Access, status: Status) -> None:
        self._access = access
        self._status = status

    async def for_plan(self, request: Request) -> Response:
        """A ticket for all uploads of a plan."""
        return self._respond(request, plan_ref(request), None)

    async def for_upload(self, request: Request) -> Response:
        """A ticket for one upload.

        Raises:
            UploadNotFound: There is no such upload.
        """
        ref = upload_ref(request)
        await self._status.check(ref)
        return self._respond(request, ref.plan_ref, ref.upload)

    def _respond(self, request: Request, plan: PlanRef, upload: str | None) -> Response:
        expires_at = int(self._access.now()) + _ttl_s(request)
        sender = principal_of(request)
        subject = sender.subject if sender else ""
        reader = Principal(subject, plan.organization, 0, plan.project, plan.plan, upload, frozenset({Scope.READ}))
        body = {"ticket": self._access.tickets.make(reader, expires_at), "expiresAt": timestamp(datetime.fromtimestamp(expires_at, UTC))}
        return JSONResponse(body, HTTPStatus.CREATED, {"Cache-Control": "no-store"})


def _ttl_s(request: Request) -> int:
    text = request.query_params.get("ttl", str(DEFAULT_TTL_S))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_TTL_S):
        msg = f"ttl is {text[:80]!r}, it must be a whole number of seconds from 1 to {MAX_TTL_S:,}"
        raise InvalidRequest(msg)
    return int(text)
