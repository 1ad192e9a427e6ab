"""How uvicorn reads HTTP here: as always, but what it refuses before the application sees it is a problem document, too."""

import json
import uuid

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.http.problems import PROBLEM_TYPE


class ProblemProtocol(H11Protocol):
    """Answers bytes that are no HTTP request like any other refusal."""

    def send_400_response(self, msg: str) -> None:
        """Answers, and closes the connection. Bytes that follow a request which is being answered, or is answered, only close it.

        Args:
            msg: uvicorn's sentence about the error.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # so that the application's answer does not follow this one
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        request_id = uuid.uuid4().hex
        self.logger.warning("answered bytes that are no HTTP request", extra={"request_id": request_id})
        document = {"type": "BadRequest", "title": "Bad Request", "status": 400, "detail": msg, "instance": ""}
        headers = [("Content-Type", PROBLEM_TYPE), ("Connection", "close"), ("Cache-Control", "no-cache"), ("X-Request-ID", request_id)]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=json.dumps(document).encode()),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
