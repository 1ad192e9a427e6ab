"""A Cloudflare Queue with its HTTP pull API on this machine, written to the documented contract, with faults where a test asks for them.

The queue itself, pull, ack and retry by lease, ``attempts``, visibility timeout, ``delay_seconds``, batches of at most 100, bodies in
base64, the envelope of answers and errors: https://developers.cloudflare.com/api/resources/queues/methods/get/,
https://developers.cloudflare.com/queues/configuration/pull-consumers/ and
https://developers.cloudflare.com/api/resources/queues/subresources/messages/
"""

import base64
import json
import random
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from api.paths import R2_EVENTS
from api.r2.push import signature

ACCOUNT, QUEUE, TOKEN = "a" * 32, "b" * 32, "token-of-the-tests"
DEFAULT_BATCH, MAX_BATCH = 5, 100
DEFAULT_VISIBILITY_MS, MAX_VISIBILITY_MS = 30_000, 12 * 3600 * 1000
MAX_DELAY_S = 24 * 3600


@dataclass
class Queued:
    """A message in the queue."""

    id: str
    body: str
    """The body in the form in which it is sent."""
    content_type: str
    attempts: int = 0
    visible_at: float = 0.0
    leases: set[str] = field(default_factory=set)


@dataclass
class Trouble:
    """The server's faults.

    Args:
        shuffle: Messages come in no order.
        duplicate: The chance that a pulled message stays in the queue, and comes twice.
        lose_answer: The chance that a pull's answer is lost after its messages were leased.
        end_lease: The chance that a lease ends at once.
        errors: The statuses of the next answers; a 429 has a ``Retry-After``.
    """

    shuffle: bool = False
    duplicate: float = 0.0
    lose_answer: float = 0.0
    end_lease: float = 0.0
    errors: list[int] = field(default_factory=list)


class FakeQueue:
    """The queue.

    Args:
        max_retries: A message that was delivered more often than this, plus once, goes to ``dead``.
        speed: The factor by which the queue's clock is faster.
        seed: The seed of all random faults.
    """

    def __init__(self, *, max_retries: int = 100, speed: float = 1.0, seed: int = 0) -> None:
        self.url = ""
        self.trouble = Trouble()
        self.messages: dict[str, Queued] = {}
        self.acknowledged: list[str] = []
        """The id of every message that was acknowledged, in order."""
        self.retried: list[tuple[str, int]] = []
        """The id and the delay of every message that was handed back."""
        self.dead: list[str] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.consumers: list[dict[str, Any]] = [{"type": "http_pull"}]
        self._max_retries = max_retries
        self._speed, self._offset_s = speed, 0.0
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a process that pulls from this queue."""
        return {
            "SITELINK_EVENTS_API": self.url,
            "SITELINK_EVENTS_ACCOUNT": ACCOUNT,
            "SITELINK_EVENTS_QUEUE": QUEUE,
            "SITELINK_EVENTS_TOKEN": TOKEN,
        }

    def send(self, body: object, content_type: str = "json") -> str:
        """Puts a message into the queue; returns its id. The content types are ``json``, ``bytes`` and ``text``."""
        if content_type == "json":
            wire = base64.b64encode(json.dumps(body).encode()).decode()
        elif isinstance(body, bytes):
            wire = base64.b64encode(body).decode()
        else:
            wire = str(body)
        name = secrets.token_hex(16)
        with self._lock:
            self.messages[name] = Queued(name, wire, content_type)
        return name

    def advance(self, seconds: float) -> None:
        """Moves the queue's clock forward: delays and leases end."""
        with self._lock:
            self._offset_s += seconds

    @property
    def is_empty(self) -> bool:
        """Whether every message was acknowledged or is dead."""
        return not self.messages

    def _now(self) -> float:
        return time.monotonic() * self._speed + self._offset_s

    def answer(self, action: str, token: str, request: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """The status and the answer to a request; no answer cuts the connection."""
        with self._lock:
            self.requests.append((action, request))
            if token != f"Bearer {TOKEN}":
                return 401, _errors(10000, "Authentication error")
            if self.trouble.errors:
                status = self.trouble.errors.pop(0)
                return status, _errors(971 if status == 429 else 10001, "said by the test")
            if action == "pull":
                result = self._pull(request.get("batch_size", DEFAULT_BATCH), request.get("visibility_timeout_ms", DEFAULT_VISIBILITY_MS))
                if self._chance(self.trouble.lose_answer):
                    return 0, None
            elif action == "ack":
                result = self._acknowledge(request.get("acks", []), request.get("retries", []))
            elif action == "show":
                result = {"queue_id": QUEUE, "consumers": self.consumers}
            else:
                return 404, _errors(7003, "No route for the URI")
        if isinstance(result, str):
            return 400, _errors(10026, result)
        return 200, {"success": True, "errors": [], "messages": [], "result": result}

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _pull(self, batch_size: int, visibility_ms: int) -> dict[str, Any] | str:
        if not (1 <= batch_size <= MAX_BATCH and 0 < visibility_ms <= MAX_VISIBILITY_MS):
            return "batch_size or visibility_timeout_ms is out of range"
        now = self._now()
        for message in list(self.messages.values()):
            if message.attempts > self._max_retries and message.visible_at <= now:
                del self.messages[message.id]
                self.dead.append(message.id)
        visible = [message for message in self.messages.values() if message.visible_at <= now]
        if self.trouble.shuffle:
            self._random.shuffle(visible)
        pulled = []
        for message in visible[:batch_size]:
            lease = secrets.token_urlsafe(24)
            message.leases.add(lease)
            message.attempts += 1
            stays = self._chance(self.trouble.duplicate) or self._chance(self.trouble.end_lease)
            message.visible_at = now if stays else now + visibility_ms / 1000
            pulled.append(
                {
                    "id": message.id,
                    "body": message.body,
                    "attempts": message.attempts,
                    "timestamp_ms": int(time.time() * 1000),
                    "lease_id": lease,
                    "metadata": {"CF-Content-Type": message.content_type, "CF-sourceMessageSource": "r2"},
                }
            )
        return {"messages": pulled, "message_backlog_count": len(self.messages)}

    def _acknowledge(self, acks: list[dict[str, Any]], retries: list[dict[str, Any]]) -> dict[str, Any] | str:
        """Accepts leases that have ended, too, as Cloudflare documents; a lease of a removed message only causes a warning."""
        if any(not 0 <= entry.get("delay_seconds", 0) <= MAX_DELAY_S for entry in retries):
            return "delay_seconds is out of range"
        by_lease = {lease: message for message in self.messages.values() for lease in message.leases}
        warnings = []
        for entry in acks:
            message = by_lease.get(entry["lease_id"])
            if message is None or message.id not in self.messages:
                warnings.append("no message has this lease")
                continue
            del self.messages[message.id]
            self.acknowledged.append(message.id)
        for entry in retries:
            message = by_lease.get(entry["lease_id"])
            if message is None or message.id not in self.messages:
                warnings.append("no message has this lease")
                continue
            message.leases.discard(entry["lease_id"])
            message.visible_at = self._now() + entry.get("delay_seconds", 0)
            self.retried.append((message.id, entry.get("delay_seconds", 0)))
        return {"ackCount": len(acks), "retryCount": len(retries), "warnings": warnings}


def _errors(code: int, message: str) -> dict[str, Any]:
    return {"success": False, "errors": [{"code": code, "message": message}], "messages": [], "result": None}


@contextmanager
def serving(queue: FakeQueue) -> Iterator[FakeQueue]:
    """Serves the queue on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            base, _, action = self.path.rpartition("/")
            if base != f"/accounts/{ACCOUNT}/queues/{QUEUE}/messages":
                action = ""
            self.respond(*queue.answer(action, self.headers.get("Authorization", ""), request))

        def do_GET(self) -> None:
            action = "show" if self.path == f"/accounts/{ACCOUNT}/queues/{QUEUE}" else ""
            self.respond(*queue.answer(action, self.headers.get("Authorization", ""), {}))

        def respond(self, status: int, answer: dict[str, Any] | None) -> None:
            if answer is None:
                self.close_connection = True
                return
            body = json.dumps(answer).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    queue.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield queue
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def event(bucket: str, key: str, action: str = "PutObject") -> dict[str, Any]:
    """An event in R2's format: https://developers.cloudflare.com/r2/buckets/event-notifications/#message-format."""
    words: dict[str, Any] = {
        "account": ACCOUNT,
        "action": action,
        "bucket": bucket,
        "object": {"key": key, "size": 188, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"},
        "eventTime": "2026-05-24T19:36:44.379Z",
    }
    if action in ("DeleteObject", "LifecycleDeletion"):
        words["object"] = {"key": key}
    if action == "CopyObject":
        words["copySource"] = {"bucket": bucket, "object": "elsewhere.dzi"}
    return words


def push_events(api_url: str, secret: str, keys: Sequence[str], timeout_s: float = 60) -> httpx2.Response:
    """Sends a signed batch of events to the API: objects of the bucket ``plans`` were written at these keys."""
    messages = [{"id": str(number), "attempts": 1, "body": json.dumps(event("plans", key))} for number, key in enumerate(keys)]
    body, now = json.dumps({"messages": messages}).encode(), str(int(time.time()))
    headers = {"SiteLink-Timestamp": now, "SiteLink-Signature": signature(secret, now, body), "Content-Type": "application/json"}
    return httpx2.post(api_url + R2_EVENTS, content=body, headers=headers, timeout=timeout_s, trust_env=False)
