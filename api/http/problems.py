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
from starlette.types import ExceptionHandler, Scope

from activities import errors

logger = logging.getLogger(__name__)

STATUS: dict[type[errors.SiteLinkError], int] = {
    errors.DocumentError: 422,
    errors.FileTooLarge: 413,
    errors.InvalidRequest: 400,
    errors.MalformedId: 422,
    errors.UploadNotFound: 404,
    errors.SheetNotFound: 404,
    errors.ObjectMissing: 404,
    errors.IdempotencyConflict: 422,
    errors.AlreadyFinished: 409,
    errors.ForeignHost: 421,
    errors.ForeignOrigin: 403,
    errors.BadSignature: 401,
    errors.CredentialRequired: 401,
    errors.NotAllowed: 403,
    errors.PlanNotFound: 404,
    errors.KeysUnavailable: 503,
    errors.TooManyRequests: 429,
    errors.QuotaExceeded: 429,
    errors.UnreadableRecord: 409,
    errors.BucketError: 503,
    errors.TemporalUnavailable: 503,
    errors.ServerBusy: 503,
    errors.SiteLinkError: 500,
}
"""The HTTP status of each error. An error that is not in this table has the status of its nearest base class."""

CHALLENGES: dict[type[errors.SiteLinkError], str] = {errors.BadSignature: "SiteLink-Signature", errors.CredentialRequired: "Bearer"}
"""The ``WWW-Authenticate`` of each error with the status 401."""

RETRY_AFTER_S = 5


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
        media_type="application/problem+json",
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
    status = status or next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    title = (type(error).__doc__ or error.type).split("\n", 1)[0].rstrip(".")
    headers = {}
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = str(math.ceil(error.retry_delay.total_seconds()) if error.retry_delay else RETRY_AFTER_S)
    if challenge := CHALLENGES.get(type(error)):
        headers["WWW-Authenticate"] = challenge
    return problem(error.type, title, status, str(error), instance, headers, members)


def refusal(error: errors.SiteLinkError, scope: Scope) -> Response:
    """The answer to a request that should come again later: a problem, or for an EventSource an event stream that ends at once.

    Any error answer ends an EventSource for good. After an end it connects again, when the time of ``retry`` is over.
    https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
    """
    response = named_problem(error, scope["path"])
    if "text/event-stream" not in Headers(scope=scope).get("accept", ""):
        return response
    retry_after_s = response.headers.get("Retry-After", str(RETRY_AFTER_S))
    return Response(
        f"retry: {retry_after_s}000\n: {error.type}\n\n",
        headers={"Cache-Control": "no-store, no-transform", "Retry-After": retry_after_s},
        media_type="text/event-stream",
    )


async def _answer_named_error(request: Request, error: errors.SiteLinkError) -> Response:
    response = named_problem(error, request.url.path)
    if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("request failed", extra={"path": request.url.path, "problem": str(error)})
    return response


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    detail = error.detail
    if detail == phrase:
        detail = {
            HTTPStatus.NOT_FOUND: f"nothing is at {request.url.path}",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not possible here",
        }.get(HTTPStatus(error.status_code), detail)
    return problem(phrase.title().replace(" ", "").replace("-", ""), phrase, error.status_code, detail, request.url.path, error.headers)


async def answer_unexpected_error(request: Request, _: Exception) -> Response:
    """The answer for a bug, which shows nothing of it."""
    # uvicorn writes the traceback to the log.
    return problem("InternalError", "Something is wrong on the server", 500, "the server's log says what", request.url.path)


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
