"""A proxy between a client and its S3 server that fails, dawdles and lies by rules."""

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
"""Asks the server."""

Fault = Callable[[Exchange, PassOn], None]
"""Deals with a request of which only the head was read."""


def answers(status: int, code: str) -> Fault:
    """The server refuses, and has done nothing."""

    def fault(exchange: Exchange, _: PassOn) -> None:
        exchange.read()
        answer = s3_error(status, code)
        exchange.say(replace(answer, headers=(("Content-Type", "application/xml"),)))

    return fault


def reset_before(exchange: Exchange, _: PassOn) -> None:
    """The connection breaks before the request was read."""
    _reset(exchange)


def reset_in_body(exchange: Exchange, _: PassOn) -> None:
    """The connection breaks when half of the request's body was read."""
    exchange.rfile.read(int(exchange.headers.get("Content-Length", 0)) // 2)
    _reset(exchange)


def reset_after(exchange: Exchange, pass_on: PassOn) -> None:
    """The server has done what was asked, and the connection breaks before it can say so."""
    pass_on(exchange.read())
    _reset(exchange)


def delays(seconds: float) -> Fault:
    """The answer takes its time."""

    def fault(exchange: Exchange, pass_on: PassOn) -> None:
        request = exchange.read()
        time.sleep(seconds)
        exchange.say(pass_on(request))

    return fault


def held_until(event: threading.Event) -> Fault:
    """The server gets the request only once the event is set, whatever has become of the client."""

    def fault(exchange: Exchange, pass_on: PassOn) -> None:
        request = exchange.read()
        event.wait(300)
        exchange.say(pass_on(request))

    return fault


def byte_by_byte(exchange: Exchange, pass_on: PassOn) -> None:
    """The answer comes in packets of one byte, as far as its first 2,000 go."""
    head, body = _said(exchange, pass_on(exchange.read()))
    said = head + body
    for position in range(min(len(said), 2000)):
        exchange.wfile.write(said[position : position + 1])
        exchange.wfile.flush()
    exchange.wfile.write(said[2000:])


def cut_short(exchange: Exchange, pass_on: PassOn) -> None:
    """The connection ends in the middle of the answer's body, or of its head when it has none."""
    head, body = _said(exchange, pass_on(exchange.read()))
    exchange.wfile.write(head + body[: len(body) // 2] if body else head[: len(head) // 2])
    exchange.wfile.flush()
    exchange.close_connection = True


def lies_about_put(exchange: Exchange, _: PassOn) -> None:
    """The proxy says that an object was written, with its right ETag, and has thrown it away."""
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
    """Head and body as they would go over the wire."""
    length = len(answer.body) if answer.length is None else answer.length
    headers = (*answer.headers, ("Content-Length", str(length))) if answer.status != 204 else answer.headers
    head = f"HTTP/1.1 {answer.status} {exchange.responses.get(answer.status, ('',))[0]}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    return head.encode(), b"" if exchange.command == "HEAD" else answer.body


@dataclass
class Rule:
    """Which requests a fault strikes.

    Args:
        fault: What happens to them.
        method: Of these only; empty for all.
        target: A regular expression that is found in path and query, both decoded.
        every: Of those that match, only each nth.
        times: At most so many.
        chance: Of those, by a seeded random number, only so many of 1.
        seconds: Only for so long after the first that matches.
        seed: For ``chance``.
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
    """How many matched so far."""
    struck: int = 0
    """How many were struck so far."""
    _random: random.Random = field(init=False)
    _until: float = float("inf")

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret

    def strikes(self, method: str, target: str) -> bool:
        """Whether it strikes this request."""
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
    """The proxy's rules and memory; the first rule that strikes a request decides."""

    def __init__(self) -> None:
        self.url = ""
        """Its own address."""
        self.passed: list[tuple[str, str]] = []
        """Method and decoded target of every request that came, in order."""
        self._rules: tuple[Rule, ...] = ()
        self._lock = threading.Lock()

    def lay(self, *rules: Rule) -> None:
        """From now on these rules hold, and no other."""
        with self._lock:
            self._rules = rules

    def judge(self, method: str, target: str) -> Fault | None:
        """What happens to a request; None when nothing does."""
        with self._lock:
            self.passed.append((method, target))
            return next((rule.fault for rule in self._rules if rule.strikes(method, target)), None)

    def sent(self, method: str, target: str) -> list[str]:
        """The targets of all requests of one method in which the regular expression is found."""
        with self._lock:
            return [asked for name, asked in self.passed if name == method and re.search(target, asked)]


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
