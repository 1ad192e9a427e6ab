"""One log line for each request that changes something or is refused: who, what, with which outcome."""

import logging
import re

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from activities.bucket.keys import ID_PATTERN
from activities.errors import SiteLinkError
from api.access.policies import Policy
from api.access.principal import Principal
from api.paths import UPLOAD

logger = logging.getLogger(__name__)

LONGEST_NAME = 200

_ID = f"({ID_PATTERN.pattern})"
_UPLOAD = re.compile(UPLOAD.format(organization=_ID, project=_ID, plan=_ID, upload=_ID) + "(?:/parts)?")


class Audited:
    """Sends an answer, and keeps what the audit log says about it.

    Args:
        send: Sends the answer.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status: int | None = None
        self._location: str | None = None

    async def __call__(self, message: Message) -> None:
        """Sends a message."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._location = Headers(raw=message["headers"]).get("location")
        await self._send(message)

    def log(self, policy: Policy, principal: Principal | None) -> None:
        """Writes the line. Its ref is the upload that the request has made; else the log's context adds the upload that the path names."""
        extra: dict[str, object] = {"action": policy.action, "status": self._status or "no answer", **_sender(principal)}
        if created := _UPLOAD.fullmatch(self._location or ""):
            extra["ref"] = "/".join(created.groups())
        logger.info("request", extra=extra)


def log_refusal(scope: Scope, policy: Policy, principal: Principal | None, error: SiteLinkError) -> None:
    """Writes the line of a request that was refused."""
    extra = {
        "action": policy.action or "read",
        "method": scope["method"],
        "path": scope["path"][:LONGEST_NAME],
        "problem": f"{error.type}: {error}",
        **_sender(principal),
    }
    logger.warning("refused access", extra=extra)


def _sender(principal: Principal | None) -> dict[str, object]:
    return {} if principal is None else {"sub": principal.subject[:LONGEST_NAME]}
