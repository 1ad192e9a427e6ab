"""A proxy before an S3 server that refuses, delays, cuts and falsifies requests by rules."""

import hashlib
import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from tests.servers.recorder import Answer, Exchange, Request, passed_on, s3_error, serving

PassOn = Callable[[Request], Answer]
"""Sends a request to the server and returns its answer."""

Fault = Callable[[Exchange, PassOn], None]
"""Handles a request of which only the head has been read."""


def answers(status: int, code: str) -> Fault:
    """The proxy refuses with an S3 error; the server does not get the request."""

    def fault(exchange: Exchange, _: PassOn) -> None:
        exchange.read()
        answer = s3_error(status, code)
        exchange.say(replace(answer, headers=(("Content-Type", "application/xml"),)))

    return fault


def reset_before(exchange: Exchange, _: PassOn) -> None:
    """The connection breaks before the request's body is read."""
    _reset(exchange)


def reset_in_body(exchange: Exchange, _: PassOn) -> None:
    """The connection breaks after half of the request's body was read."""
    exchange.rfile.read(int(exchange.headers.get("Content-Length", 0)) // 2)
    _reset(exchange)


def reset_after(exchange: Exchange, pass_on: PassOn) -> None:
    """The server does the work, and the connection breaks before the answer."""
    pass_on(exchange.read())
    _reset(exchange)


def delays(seconds: float) -> Fault:
    """The request reaches the server late."""

    def fault(exchange: Exchange, pass_on: PassOn) -> None:
        request = exchange.read()
        time.sleep(seconds)
        exchange.say(pass_on(request))

    return fault


def held_until(event: threading.Event) -> Fault:
    """The request reaches the server when the event is set, even when the client has gone."""

    def fault(exchange: Exchange, pass_on: PassOn) -> None:
        request = exchange.read()
        event.wait(300)
        exchange.say(pass_on(request))

    return fault


def byte_by_byte(exchange: Exchange, pass_on: PassOn) -> None:
    """The first 2,000 bytes of the answer come one by one."""
    head, body = _said(exchange, pass_on(exchange.read()))
    said = head + body
    for position in range(min(len(said), 2000)):
        exchange.wfile.write(said[position : position + 1])
        exchange.wfile.flush()
    exchange.wfile.write(said[2000:])


def cut_short(exchange: Exchange, pass_on: PassOn) -> None:
    """The connection ends in the middle of the answer's body, or of its head when there is no body."""
    head, body = _said(exchange, pass_on(exchange.read()))
    exchange.wfile.write(head + body[: len(body) // 2] if body else head[: len(head) // 2])
    exchange.wfile.flush()
    exchange.close_connection = True


def lies_about_put(exchange: Exchange, _: PassOn) -> None:
    """The proxy throws an object away, and answers with its right ETag as if it was written."""
    body = exchange.read().body
    exchange.say(Answer(200, headers=(("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'),)))


def hides_every(nth: int) -> Fault:
    """A LIST that leaves out every ``nth`` object."""

    def fault(exchange: Exchange, pass_on: PassOn) -> None:
        answer = pass_on(exchange.read())
        seen = iter(range(1, 1 << 30))
        body = re.sub(rb"<Contents>.*?</Contents>", lambda entry: entry[0] if next(seen) % nth else b"", answer.body, flags=re.DOTALL)
        exchange.say(replace(answer, body=body, length=None))

    return fault


def _reset(exchange: Exchange) -> None:
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.close_connection = True
    os.close(exchange.connection.detach())


def _said(exchange: Exchange, answer: Answer) -> tuple[bytes, bytes]:
    """Head and body of an answer as bytes on the wire."""
    length = len(answer.body) if answer.length is None else answer.length
    headers = (*answer.headers, ("Content-Length", str(length))) if answer.status != 204 else answer.headers
    head = f"HTTP/1.1 {answer.status} {exchange.responses.get(answer.status, ('',))[0]}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    return head.encode(), b"" if exchange.command == "HEAD" else answer.body


@dataclass
class Rule:
    """Selects the requests that a fault strikes.

    Args:
        fault: The fault.
        method: Strike this method only; empty for all.
        target: A regular expression that is searched in path and query, both decoded.
        every: Strike only each nth of the matching requests.
        times: Strike at most so many requests.
        chance: The probability from 0 to 1 with which a request is struck.
        seconds: Strike only for so long after the first matching request.
        seed: The seed of ``chance``.
    """

    fault: Fault
    method: str = ""
    target: str = ""
    every: int = 1
    times: int | None = None
    chance: float = 1.0
    seconds: float | None = None
    seed: int = 0
    matched: int = 0
    """The number of matching requests so far."""
    struck: int = 0
    """The number of struck requests so far."""
    _random: random.Random = field(init=False)
    _until: float = float("inf")

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret

    def strikes(self, method: str, target: str) -> bool:
        """Whether the rule strikes this request."""
        if (self.method and method != self.method) or not re.search(self.target, target):
            return False
        if self.seconds is not None and not self.matched:
            self._until = time.monotonic() + self.seconds
        if time.monotonic() > self._until:
            return False
        self.matched += 1
        if self.matched % self.every or self.struck == self.times or self._random.random() >= self.chance:
            return False
        self.struck += 1
        return True


class Faults:
    """The proxy's rules, and the requests that it got; the first rule that strikes a request decides."""

    def __init__(self) -> None:
        self.url = ""
        """The proxy's address."""
        self.passed: list[tuple[str, str]] = []
        """Method and decoded target of every request, in order."""
        self._rules: tuple[Rule, ...] = ()
        self._lock = threading.Lock()

    def lay(self, *rules: Rule) -> None:
        """Replaces all rules."""
        with self._lock:
            self._rules = rules

    def judge(self, method: str, target: str) -> Fault | None:
        """The fault of a request; None when no rule strikes it."""
        with self._lock:
            self.passed.append((method, target))
            return next((rule.fault for rule in self._rules if rule.strikes(method, target)), None)

    def sent(self, method: str, target: str, since: int = 0) -> list[str]:
        """The targets of the requests of one method in which the regular expression is found.

        Args:
            method: The method.
            target: The regular expression.
            since: Leave out so many of the first requests, of all methods.
        """
        with self._lock:
            return [asked for name, asked in self.passed[since:] if name == method and re.search(target, asked)]


@contextmanager
def faulty(upstream: str) -> Iterator[Faults]:
    """Runs the proxy on a free port of this machine; without rules it passes everything on.

    Args:
        upstream: The address of the S3 server.
    """
    faults = Faults()

    def rule(exchange: Exchange) -> None:
        fault = faults.judge(exchange.command, unquote(exchange.path))
        if fault is None:
            exchange.say(passed_on(exchange.read(), upstream))
        else:
            fault(exchange, lambda request: passed_on(request, upstream))

    with serving(rule) as faults.url:
        yield faults
