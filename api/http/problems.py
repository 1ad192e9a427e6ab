"""Error answers, all of one shape: ``application/problem+json``.

https://www.rfc-editor.org/rfc/rfc9457
"""

import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ExceptionHandler, Scope

from activities import errors

logger = logging.getLogger(__name__)

STATUS: dict[type[errors.SiteLinkError], int] = {
    errors.DocumentError: 422,
    errors.FileTooLarge: 413,
    errors.InvalidRequest: 400,
    errors.DigestMismatch: 400,
    errors.EncodedContent: 415,
    errors.SourceForbidden: 403,
    errors.MalformedId: 422,
    errors.UploadNotFound: 404,
    errors.SheetNotFound: 404,
    errors.ObjectMissing: 404,
    errors.IdempotencyConflict: 422,
    errors.AlreadyFinished: 409,
    errors.PartsIncomplete: 409,
    errors.UploadBusy: 409,
    errors.PasswordRefused: 409,
    errors.ForeignHost: 421,
    errors.ForeignOrigin: 403,
    errors.BadSignature: 401,
    errors.CredentialRequired: 401,
    errors.NotAllowed: 403,
    errors.PlanNotFound: 404,
    errors.WebhookNotFound: 404,
    errors.KeysUnavailable: 503,
    errors.TooManyRequests: 429,
    errors.QuotaExceeded: 429,
    errors.UnreadableRecord: 409,
    errors.BucketError: 503,
    errors.TemporalUnavailable: 503,
    errors.PayloadUnreadable: 503,
    errors.ServerBusy: 503,
    errors.SiteLinkError: 500,
}
"""The HTTP status of each error. An error that is not in this table has the status of its nearest base class."""

CHALLENGES: dict[type[errors.SiteLinkError], str] = {errors.BadSignature: "Webhook-Signature", errors.CredentialRequired: "Bearer"}
"""The ``WWW-Authenticate`` of each error with the status 401."""

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
KEPT_HEADERS = ("allow", "content-range", "retry-after", "www-authenticate")
"""The headers of a plain refusal that belong to its status."""


def problem(
    error_type: str,
    title: str,
    status: int,
    detail: str,
    instance: str,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> Response:
    """An answer with a problem document, to which ``members`` are added."""
    body = {"type": error_type, "title": title, "status": status, "detail": detail, "instance": instance, **(members or {})}
    return Response(
        json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),
        status,
        {"Cache-Control": "no-cache", **(headers or {})},
        media_type=PROBLEM_TYPE,
    )


def named_problem(
    error: errors.SiteLinkError, instance: str, *, status: int | None = None, members: Mapping[str, object] | None = None
) -> Response:
    """The answer for a named error.

    Args:
        error: The error.
        instance: The path of the request.
        status: The HTTP status; by default the error's own, from ``STATUS``.
        members: Further members of the document.
    """
    status = status or status_of(type(error))
    title = (type(error).__doc__ or error.type).split("\n", 1)[0].rstrip(".")
    headers = {}
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = str(math.ceil(error.retry_delay.total_seconds()) if error.retry_delay else RETRY_AFTER_S)
    if isinstance(error, errors.EncodedContent):
        headers["Accept-Encoding"] = "identity"  # https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3
    if challenge := CHALLENGES.get(type(error)):
        headers["WWW-Authenticate"] = challenge
    return problem(error.type, title, status, str(error), instance, headers, members)


def refusal(error: errors.SiteLinkError, scope: Scope) -> Response:
    """The answer to a request that should come again later."""
    return for_event_source(named_problem(error, scope["path"]), error.type, scope)


def for_event_source(response: Response, word: str, scope: Scope) -> Response:
    """The problem ``response``, or, if an EventSource has asked, an event stream with this word that ends at once.

    Any error answer ends an EventSource for good. After an end it connects again, when the time of ``retry`` is over.
    https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
    """
    if "text/event-stream" not in Headers(scope=scope).get("accept", ""):
        return response
    retry_after_s = response.headers.get("Retry-After", str(RETRY_AFTER_S))
    return Response(
        f"retry: {retry_after_s}000\n: {word}\n\n",
        headers={"Cache-Control": "no-store, no-transform", "Retry-After": retry_after_s},
        media_type="text/event-stream",
    )


async def _answer_named_error(request: Request, error: errors.SiteLinkError) -> Response:
    response = named_problem(error, request.url.path)
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("request failed", extra={"path": request.url.path, "problem": str(error)})
    return response


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
    return status_problem(error.status_code, request.url.path, headers, error.detail)


def _methods(request: Request) -> list[str]:
    """The methods of all routes at the request's path. Starlette names only those of the first route.

    A route that takes any path counts only where no other route is.
    """
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL]
    exact = [route for route in routes if ":path}" not in route.path]
    return sorted({method for route in exact or routes for method in route.methods or ()})


def status_problem(status: int, instance: str, headers: Mapping[str, str], detail: str = "") -> Response:
    """The answer for an error that has only an HTTP status; its type is the status's name.

    Args:
        status: The HTTP status.
        instance: The path of the request.
        headers: The headers of the refusal; those of ``KEPT_HEADERS`` are kept.
        detail: A sentence about the error, if there is one.
    """
    phrase = _phrase(status)
    if detail in ("", HTTPStatus(status).phrase):
        detail = {
            HTTPStatus.NOT_FOUND: f"nothing is at {instance}",
            HTTPStatus.METHOD_NOT_ALLOWED: "this method is not possible here, Allow names those that are",
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "the file has no such range, Content-Range gives its size",
        }.get(HTTPStatus(status), phrase)
    kept = {name.title(): value for name, value in headers.items() if name.lower() in KEPT_HEADERS}
    return problem(status_name(status), phrase, status, detail, instance, kept)


def status_of(kind: type[errors.SiteLinkError]) -> int:
    """The HTTP status of a named error."""
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def status_name(status: int) -> str:
    """The type of the problem that has only an HTTP status, such as ``MethodNotAllowed``."""
    return _phrase(status).title().replace(" ", "").replace("-", "")


def _phrase(status: int) -> str:
    """The name of a status in RFC 9110. Python's own names differ between its versions."""
    return {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}.get(status, HTTPStatus(status).phrase)


def unexpected_problem(instance: str) -> Response:
    """The answer for a bug. It shows nothing of the error."""
    return problem("InternalError", "Something is wrong on the server", 500, "the server's log says what", instance)


async def _answer_unexpected_error(request: Request, _: Exception) -> Response:
    return unexpected_problem(request.url.path)


async def _answer_disconnect(request: Request, _: ClientDisconnect) -> Response:
    logger.info("the client went away", extra={"path": request.url.path})
    return Response(status_code=400)  # the client has gone, so nobody reads this answer


HANDLERS = cast(
    "dict[type[Exception], ExceptionHandler]",
    {
        errors.SiteLinkError: _answer_named_error,
        HTTPException: _answer_http_exception,
        ClientDisconnect: _answer_disconnect,
    },
)
