"""Sends a large file into the bucket itself, in parts at the same time; a command that is repeated goes on where the last one was.

The server says which parts the bucket has. So nothing but the key of the upload is remembered here.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from activities.bucket.keys import PlanRef
from api.cli.client import LocalFile, Server
from api.cli.errors import CommandError, NotReached, Refused, Unavailable
from api.cli.transfer import Patience, send
from api.cli.unfinished import UnfinishedUpload
from api.cli.views import View
from api.cli.words import file_size
from api.paths import plan_path

T = TypeVar("T")

LARGE_BYTES = 64 << 20
"""A file of at least so many bytes is sent in parts."""
PARTS_AT_ONCE = 4
TRIES = 5
"""A part that the bucket refuses so many times ends the command."""
ROUNDS = 3
"""So many times the parts that the bucket lacks are sent."""


def send_file(
    server: Server, plan: PlanRef, file: LocalFile, options: Mapping[str, int | str], view: View, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Sends a file, a large one in parts if that is possible; returns the server's answer.

    Raises:
        CommandError: The server was not reached or refused.
        KeyboardInterrupt: With a sentence, if the same command goes on where this one was.
    """
    if file.size_bytes >= LARGE_BYTES:
        unfinished = UnfinishedUpload.of(environ, server.url, plan, file.path, options)
        transfer = PartsTransfer(server, plan, file, options, unfinished, view)
        try:
            return transfer.send()
        except NotInParts as error:
            view.show_trouble(f"sending through the server: {error}")
        except KeyboardInterrupt:
            if not transfer.is_begun:
                raise
            msg = "Interrupted. What is sent stays in the bucket for 7 days: the same command goes on."
            raise KeyboardInterrupt(msg) from None
        except NotReached as error:
            if not transfer.is_begun:
                raise
            msg = f"{error}. What is sent stays in the bucket for 7 days: the same command goes on"
            raise NotReached(msg, connected=error.connected) from error
    return send(server, plan, file, options, view)


class NotInParts(CommandError):
    """The file cannot be sent in parts from here: the server is of an earlier release, or the bucket is not reached."""


class _Stopped(Exception):
    """Ends a thread that sends a part."""


class PartsTransfer:
    """Sends one file in parts.

    Args:
        server: The API.
        plan: The plan of the upload.
        file: The file.
        options: The options of the upload.
        unfinished: Remembers the key of the upload.
        view: Shows how many bytes are sent.
    """

    def __init__(
        self, server: Server, plan: PlanRef, file: LocalFile, options: Mapping[str, int | str], unfinished: UnfinishedUpload, view: View
    ) -> None:
        self._server = server
        self._plan = plan
        self._file = file
        self._options = options
        self._unfinished = unfinished
        self._view = view
        self._stop = threading.Event()
        self._reached = False
        self.is_begun = False
        """Whether the server knows the upload."""
        self._stored_any = False
        """Whether the bucket has taken any part."""

    def send(self) -> dict[str, Any]:
        """Sends the parts that the bucket does not have, and completes the upload; returns the server's answer.

        Raises:
            NotInParts: The file cannot be sent in this way. Nothing is left of it.
            NotReached: The server or the bucket does not answer any more. The same command goes on.
            CommandError: The server refused.
        """
        begun = self._begin()
        links, self.is_begun = begun["links"], True
        if "parts" not in links:  # an earlier command completed it, and was killed before it could say so
            self._unfinished.forget()
            return begun
        if self._unfinished.was_begun and begun["stored"]:
            stored_bytes = sum(part["sizeBytes"] for part in begun["stored"])
            self._view.show_trouble(f"going on: {file_size(stored_bytes)} of {file_size(self._file.size_bytes)} are in the bucket already")
        for left in reversed(range(ROUNDS)):
            if missing := self._missing(begun):
                try:
                    self._send_parts(begun, missing)
                except NotInParts:
                    self._give_up(begun)
                    raise
                begun = self._patiently(lambda: self._server.request("GET", links["parts"]))
                if self._missing(begun) and left:
                    continue
            break
        parts = [{"number": part["number"], "etag": part["etag"]} for part in begun["stored"]]
        try:
            answer = self._patiently(lambda: self._server.send_json(links["complete"], {"parts": parts}))
        except Refused as error:
            if str(error).startswith("NotAPdf"):
                self._give_up(begun)
            raise
        self._unfinished.forget()
        return answer

    def _give_up(self, begun: Mapping[str, Any]) -> None:
        with suppress(CommandError):
            self._server.abort(begun["ref"])
        self._unfinished.forget()

    def _begin(self) -> dict[str, Any]:
        path, body = f"{plan_path(self._plan)}/uploads:begin", {"sizeBytes": self._file.size_bytes}
        params: dict[str, int | str] = {"filename": self._file.name, **self._options}

        def begin() -> dict[str, Any]:
            return self._server.send_json(path, body, params=params, key=self._unfinished.key)

        try:
            return self._patiently(begin, (NotReached,))
        except Refused as error:
            if str(error).startswith(("NotFound", "MethodNotAllowed")):
                self._unfinished.forget()
                msg = "the server is of an earlier release"
                raise NotInParts(msg) from error
            if self._unfinished.was_begun and str(error).startswith("IdempotencyConflict"):
                self._unfinished.renew()  # the server has forgotten the upload meanwhile
                return self._patiently(begin, (NotReached,))
            self._unfinished.forget()
            raise

    def _missing(self, begun: Mapping[str, Any]) -> list[int]:
        stored = {part["number"] for part in begun["stored"] if part["sizeBytes"] == self._part_bytes(begun, part["number"])}
        return [number for number in range(1, begun["partCount"] + 1) if number not in stored]

    def _part_bytes(self, begun: Mapping[str, Any], number: int) -> int:
        size: int = begun["partSizeBytes"]
        return min(size, self._file.size_bytes - (number - 1) * size)

    def _send_parts(self, begun: Mapping[str, Any], missing: list[int]) -> None:
        self._stored_any = len(missing) < begun["partCount"]
        numbers, lock = iter(missing), threading.Lock()
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        with self._view.sending(self._file.size_bytes) as sent, self._server.part_sender() as put:
            sent(self._file.size_bytes - sum(self._part_bytes(begun, number) for number in missing))

            def work() -> None:
                try:
                    while not self._stop.is_set():
                        with lock:
                            number = next(numbers, None)
                        if number is None:
                            break
                        self._send_part(begun, number, put, sent)
                    ended.put(None)
                except BaseException as error:  # noqa: BLE001 - the main thread raises it
                    ended.put(error)

            try:
                for _ in range(PARTS_AT_ONCE):
                    # After Ctrl-C nobody waits for a thread that waits for the network: the process ends without it.
                    threading.Thread(target=work, daemon=True).start()
                for _ in range(PARTS_AT_ONCE):
                    if (error := ended.get()) is not None:
                        raise error
            except BaseException:
                self._stop.set()
                raise

    def _send_part(
        self, begun: Mapping[str, Any], number: int, put: Callable[[str, int, Iterator[bytes]], None], sent: Callable[[int], None]
    ) -> None:
        size_bytes = self._part_bytes(begun, number)
        patience, tries = Patience(), 0
        while True:
            counted = 0

            def count(chunk_bytes: int) -> None:
                nonlocal counted
                if self._stop.is_set():
                    raise _Stopped
                counted += chunk_bytes
                sent(chunk_bytes)

            signed = self._patiently(lambda: self._server.send_json(begun["links"]["sign"], {"numbers": [number]}))["parts"][0]
            try:
                put(signed["url"], size_bytes, self._file.chunks(count, (number - 1) * begun["partSizeBytes"], size_bytes))
            except (NotReached, Unavailable) as error:
                sent(-counted)
                if isinstance(error, NotReached) and not error.connected and not self._stored_any:
                    raise NotInParts(str(error)) from error
                tries += isinstance(error, Unavailable) or error.connected
                self._wait(patience, error, last=tries == TRIES)
            else:
                self._stored_any = True
                return

    def _patiently(self, ask: Callable[[], T], errors: tuple[type[CommandError], ...] = (NotReached, Unavailable)) -> T:
        """Asks the server, again if it does not answer, for a minute. When it was never reached, once."""
        patience = Patience()
        while True:
            try:
                answer = ask()
            except errors as error:
                self._wait(patience, error, last=isinstance(error, NotReached) and not error.connected and not self._reached)
            else:
                self._reached = True
                return answer

    def _wait(self, patience: Patience, error: CommandError, *, last: bool) -> None:
        delay_s = None if last else patience.delay_s()
        if delay_s is None or self._stop.is_set():
            raise error
        self._view.show_trouble(f"trying again in {delay_s:.0f} s: {error}")
        self._stop.wait(delay_s)
