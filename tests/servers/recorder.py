"""An HTTP server in front of a bucket that remembers every request as it came, and passes it on or answers itself."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """One request as it came over the wire."""

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
    """What the recorder says in the bucket's place."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def s3_error(status: int, code: str, message: str = "Said by the test.") -> Answer:
    """An error as S3 words it: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html."""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>'
    return Answer(status, xml.encode())


Judge = Callable[[Request], Answer | None]


class Recorder:
    """The server's memory, and its rule.

    Args:
        url: Its own address.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.answer: Judge = lambda _: None
        """Answers in the bucket's place; None passes the request on. Called in the thread of each request."""

    def sent(self, method: str, path_end: str = "") -> list[Request]:
        """The requests of one method whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(path_end)]


@contextmanager
def recording(upstream: str | None = None) -> Iterator[Recorder]:
    """Runs the server on a free port of this machine.

    Args:
        upstream: The address of the bucket's server; without one every request must have an answer.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65_537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            request = Request(self.command, self.path, self.headers, self._body())
            with lock:
                recorder.requests.append(request)
            answer = recorder.answer(request)
            if answer is None:
                self._pass_on(request)
            else:
                self._say(answer.status, [("Content-Type", "application/xml"), *answer.headers], answer.body, len(answer.body))
            self.wfile.flush()

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _pass_on(self, request: Request) -> None:
            assert upstream is not None, f"no answer for {request}"
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
                length = int(response.headers.get("Content-Length", len(body)))
                headers = [(name, value) for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP]
                self._say(response.status, headers, body, length)
            finally:
                connection.close()

        def _say(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        recorder = Recorder(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join()
