"""Sends a file and follows an upload, even when connections are lost."""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from activities.bucket.keys import PlanRef, UploadRef
from api.cli.client import LocalFile, Server
from api.cli.errors import NotReached, Unavailable
from api.cli.event_stream import EventParser
from api.cli.views import RUNNING, View
from api.paths import upload_path

UPLOAD_TRIES = 5


class Patience:
    """How long to wait before the next try, and when to stop trying.

    Args:
        limit_s: After so many seconds without a sign of life, there is no further try.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, limit_s: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self.reset()

    def reset(self) -> None:
        """Begins again, because the server gave a sign of life."""
        self._failures = 0
        self._alive_at = self._clock()

    def delay_s(self, first_s: float = 1) -> float | None:
        """Seconds to wait after a further failure: 1 to 10, doubled each time. None when it is time to give up."""
        if self._clock() - self._alive_at >= self._limit_s:
            return None
        delay_s = min(10.0, max(1.0, first_s) * 2.0**self._failures)
        self._failures += 1
        return delay_s


def send(server: Server, plan: PlanRef, file: LocalFile, options: Mapping[str, int | str], view: View) -> dict[str, Any]:
    """Sends a file, and sends it again if the connection breaks. The ``Idempotency-Key`` makes one upload of all tries.

    Raises:
        CommandError: The server was not reached or refused.
    """
    key = str(uuid.uuid4())
    patience = Patience()
    broken = 0
    while True:
        try:
            with view.sending(file.size_bytes) as sent:
                return server.upload(plan, file, options, key, sent)
        except NotReached as error:
            if error.connected:
                broken += 1
                patience.reset()
            delay_s = patience.delay_s()
            if broken in (0, UPLOAD_TRIES) or delay_s is None:
                raise
            view.show_trouble(f"sending again in {delay_s:.0f} s: {error}")
            time.sleep(delay_s)


def follow(server: Server, ref: UploadRef, view: View, patience: Patience, *, reached: bool = False) -> None:
    """Shows an upload's events until its end, even when the connection is lost.

    Args:
        server: The API.
        ref: The upload.
        view: Shows the events.
        patience: Decides when to give up.
        reached: Whether the server has answered already; if not, the first connection must succeed.

    Raises:
        NotReached: The first connection failed, or the server gave no sign of life for a minute.
        CommandError: The server refused.
    """
    parser = EventParser()
    trouble = ""
    while True:
        try:
            with server.event_stream(ref, parser.last_event_id) as chunks:
                reached = True
                if chunks is None:
                    document = server.request("GET", upload_path(ref))
                    if document["status"] not in RUNNING:
                        view.show_event("end", document)
                        return
                if trouble:
                    view.show_trouble("")
                parser.restart()
                for chunk in chunks or ():
                    patience.reset()
                    for name, data in parser.feed(chunk):
                        if name in ("snapshot", "change", "end"):
                            view.show_event(name, server.progress(data))
                        if name == "end":
                            return
            trouble = "the server ended the stream"
        except NotReached as error:
            if not reached and not error.connected:
                raise
            trouble = str(error)
        except Unavailable as error:
            trouble = f"the server answers {error}"
        delay_s = patience.delay_s(parser.retry_s or 1)
        if delay_s is None:
            msg = f"server not reached any more: {trouble}"
            raise NotReached(msg, connected=reached)
        view.show_trouble(f"trying again in {delay_s:.0f} s: {trouble}")
        time.sleep(delay_s)
