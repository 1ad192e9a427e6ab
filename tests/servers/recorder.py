"""An HTTP server before a bucket that records every request, and passes it on or answers itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.message import Message
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """One request, as it was sent."""

    method: str
    target: str
    """Path and query."""
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Answer:
    """An answer in the bucket's place."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    """The ``Content-Length``, when it is to be wrong or the body is not sent; default: the body's length."""


def s3_error(status: int, code: str, message: str = "Said by the test.") -> Answer:
    """An error as S3 words it: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html."""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>'
    return Answer(status, xml.encode())


Judge = Callable[[Request], Answer | None]


class Recorder:
    """The recorded requests, and the rule that answers them.

    Args:
        url: The server's address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.answered: list[Request] = []
        """The requests that have an answer."""
        self.answer: Judge = lambda _: None
        """Answers in the bucket's place; None passes the request on. Called in the thread of each request."""

    def sent(self, method: str, path_end: str = "") -> list[Request]:
        """The requests of one method whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(path_end)]


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer; ``serving`` hands each to its rule."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    rule: Callable[[Self], None]

    def handle_one_request(self) -> None:
        """Called by the base class for every request of a connection."""
        self.raw_requestline = self.rfile.readline(65_537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        type(self).rule(self)
        if not self.wfile.closed:
            self.wfile.flush()

    def read(self) -> Request:
        """The whole request."""
        return Request(self.command, self.path, self.headers, self._body())

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def say(self, answer: Answer) -> None:
        """Answers."""
        self.send_response_only(answer.status)
        length = len(answer.body) if answer.length is None else answer.length
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Logs nothing."""


def passed_on(request: Request, upstream: str) -> Answer:
    """The answer of the bucket's server."""
    connection = HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() not in HOP_BY_HOP | {"expect"}:
                connection.putheader(name, value)
        if request.body or request.method in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders(request.body or None)
        response = connection.getresponse()
        body = response.read()
        headers = tuple((name, value) for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP)
        return Answer(response.status, body, headers, int(response.headers.get("Content-Length", len(body))))
    finally:
        connection.close()


@contextmanager
def serving(rule: Callable[[Exchange], None]) -> Iterator[str]:
    """Runs a server on a free port of this machine.

    Args:
        rule: Deals with each request, in the thread of its connection.

    Yields:
        Its address.
    """

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignores a client that hangs up."""

    handler = type("Handler", (Exchange,), {"rule": staticmethod(rule)})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def recording(upstream: str | None = None) -> Iterator[Recorder]:
    """Runs the server on a free port of this machine.

    Args:
        upstream: The address of the bucket's server; without one every request must have an answer.
    """
    recorder = Recorder("")

    def rule(exchange: Exchange) -> None:
        request = exchange.read()
        recorder.requests.append(request)
        answer = recorder.answer(request)
        if answer is None:
            assert upstream is not None, f"no answer for {request}"
            answer = passed_on(request, upstream)
            recorder.answered.append(request)
            exchange.say(answer)
        else:
            recorder.answered.append(request)
            exchange.say(replace(answer, headers=(("Content-Type", "application/xml"), *answer.headers)))

    with serving(rule) as recorder.url:
        yield recorder
