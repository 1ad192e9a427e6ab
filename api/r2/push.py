"""``POST /v1/events/r2``: batches of R2's event messages, sent by the Worker of ``deploy/r2-events``.

The request is signed by Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks. A secret that begins with ``whsec_`` is
base64, any other is the key as it stands. A Worker of an earlier release signs otherwise, and is accepted, too:
``SiteLink-Signature`` is the hexadecimal HMAC-SHA256 of ``SiteLink-Timestamp`` (seconds since 1970), a dot and the request's body.

The body is ``{"messages": [{"id", "attempts", "body"}]}``, where each ``body`` is a string: the message as it was sent.

The answer tells the Worker which messages are done and which should come again: ``{"acks": [id], "retries": [{"id", "delaySeconds"}]}``.
When Temporal or the bucket did not answer, the answer is a 503 with the same members. So a sender that reads only the status tries again,
too.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.errors import BadSignature, InvalidRequest
from api.http.bodies import READ_LIMIT_S, announced_bytes, read_body
from api.http.problems import named_problem
from api.http.turns import Turns
from api.paths import R2_EVENTS
from api.r2.events import Message, R2Events

MAX_BODY_BYTES = 16 << 20
"""Enough for the largest batch of the Worker: 100 messages of 16,384 characters, each of up to 6 bytes."""
BODIES_BYTES = 4 * MAX_BODY_BYTES
"""The bodies that are being read take at most so much together, because nobody knows before their end who sent them. Others wait."""
BODIES_WAITING = 64
SIGNATURE = re.compile(r"[0-9a-f]{64}")
STANDARD_SIGNATURES = re.compile(r"[!-~]{1,200}( [!-~]{1,200}){0,9}")
STANDARD_ID = re.compile(r"[!-~]{1,256}")
WHSEC = "whsec_"
TOLERANCE_S = 300
MAX_MESSAGES = 1000


def standard_signature(secret: str, message: str, timestamp: str, body: bytes | bytearray) -> str:
    """The signature of a ``webhook-id``, a timestamp and a body. The library would copy the body, which may be large, several times.

    Raises:
        ValueError: The secret begins with ``whsec_``, and the rest is not base64.
    """
    key = base64.b64decode(secret.removeprefix(WHSEC), validate=True) if secret.startswith(WHSEC) else secret.encode()
    digest = hmac.new(key, f"{message}.{timestamp}.".encode(), hashlib.sha256)
    digest.update(body)
    return f"v1,{base64.b64encode(digest.digest()).decode()}"


def signature(secret: str, timestamp: str, body: bytes | bytearray) -> str:
    """The signature of an earlier release, of a timestamp and a body."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b".", hashlib.sha256)
    digest.update(body)
    return digest.hexdigest()


class PushEndpoint:
    """Answers the route.

    Args:
        r2_events: Decides about each message.
        secrets: The accepted secrets. There may be several, so that a secret can be replaced without a gap.
        now: Tells the time in seconds since 1970.
    """

    def __init__(self, r2_events: R2Events, secrets: Sequence[str], *, now: Callable[[], float] = time.time) -> None:
        self._r2_events = r2_events
        self._secrets = secrets
        self._now = now
        self._turns = Turns(BODIES_BYTES, share=BODIES_BYTES, line=BODIES_WAITING, patience_s=READ_LIMIT_S, what="R2 messages")

    async def respond(self, request: Request) -> Response:
        """Decides about every message of the batch.

        Raises:
            BadSignature: The signature is missing, wrong, or more than 5 minutes old or early.
            InvalidRequest: The body is not a batch of messages.
            ServerBusy: Other bodies are being read.
            HTTPException: The body is too large (413), or did not come in time (408).
        """
        fits = self._read_signature(request.headers)
        async with self._turns.turn("", announced_bytes(request, MAX_BODY_BYTES)):
            body = await read_body(request, MAX_BODY_BYTES)
            if not any(fits(secret, body) for secret in self._secrets):
                msg = "the signature fits the body and the timestamp with none of the secrets"
                raise BadSignature(msg)
            messages = _read_messages(body)
            del body  # the decisions take some seconds
        verdicts = await asyncio.gather(*map(self._r2_events.decide, messages))
        decided = list(zip(messages, verdicts, strict=True))
        answer = {
            "acks": [message.id for message, verdict in decided if verdict.retry_in_s is None],
            "retries": [
                {"id": message.id, "delaySeconds": verdict.retry_in_s} for message, verdict in decided if verdict.retry_in_s is not None
            ],
        }
        if failure := next((verdict.failure for verdict in verdicts if verdict.failure), None):
            return named_problem(failure, R2_EVENTS, status=HTTPStatus.SERVICE_UNAVAILABLE, members=answer)
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    def _read_signature(self, headers: Headers) -> Callable[[str, bytearray], bool]:
        """Checks the headers of the signature, and returns the function that says whether a secret signs a body so."""
        is_standard = "webhook-signature" in headers
        prefix = "webhook" if is_standard else "sitelink"
        timestamp, given, message = (headers.get(name, "") for name in (f"{prefix}-timestamp", f"{prefix}-signature", "webhook-id"))
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12) or abs(self._now() - int(timestamp)) > TOLERANCE_S:
            msg = f"{prefix}-timestamp is {timestamp[:40]!r}; it must be the current time, in seconds since 1970"
            raise BadSignature(msg)
        if is_standard:
            if not STANDARD_SIGNATURES.fullmatch(given) or not STANDARD_ID.fullmatch(message):
                msg = "webhook-id and webhook-signature are not those of Standard Webhooks"
                raise BadSignature(msg)
            return lambda secret, body: _is_one_of(standard_signature(secret, message, timestamp, body), given.split(" "))
        if not SIGNATURE.fullmatch(given):
            msg = "the request needs webhook-signature, or SiteLink-Signature with 64 hexadecimal digits"
            raise BadSignature(msg)
        return lambda secret, body: hmac.compare_digest(signature(secret, timestamp, body), given)


def _is_one_of(expected: str, signatures: Iterable[str]) -> bool:
    return any(hmac.compare_digest(expected, given) for given in signatures)


def _read_messages(body: bytearray) -> list[Message]:
    try:
        document = json.loads(body)
        messages = [_read_message(entry) for entry in document["messages"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = 'the body is not {"messages": [{"id", "attempts", "body"}]}'
        raise InvalidRequest(msg) from error
    if len(messages) > MAX_MESSAGES:
        msg = f"{len(messages):,} messages, at most {MAX_MESSAGES:,} may come at once"
        raise InvalidRequest(msg)
    return messages


def _read_message(entry: object) -> Message:
    match entry:
        case {"id": str(name), "attempts": int(attempts), "body": str(body)}:
            name.encode()  # the answer could not carry an id with a lone surrogate
            return Message(name, body.encode("utf-8", "surrogatepass"), attempts)
    msg = "not a message"
    raise ValueError(msg)
