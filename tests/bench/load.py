"""Load on a stack: ``python -m tests.bench.load [--uploads N] [--clients N] [--seconds N]``.

So many uploads are under way at once: when one ends, the next one begins. So many clients hold event streams, a share of them on each
upload. Beside them, one client looks at uploads, lists and tiles. After the time, nothing new begins, and what is under way is waited for.

Without ``SITELINK_URL`` this starts a stack of its own on a temporary directory, and without limits on requests. With ``SITELINK_URL``
(and ``SITELINK_TOKEN``, if that server asks for one, with the scopes ``read write operate``) the load goes to a stack that runs. There
it takes a plan of its own (``--to``), and deletes its uploads afterwards. Limits of that server show as errors.

The tables: what went through, milliseconds by request, errors by name, CPU and memory by process. The latency of events is from the commit
of a sheet (its marker in the bucket's directory) to each client, for a stack of this program. For another stack it is from the step of the
workflow that counted the sheet, by that machine's clock. Processes are shown when they are on this machine. For a stack that this program
has not started, they are all of SiteLink's processes here. The load's own CPU is in the table, too: on one machine it takes from the stack.
"""

import argparse
import json
import os
import queue
import random
import resource
import select
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.records import Layout
from activities.bucket.uploads import marker
from activities.environment import secret
from api.addresses import is_loopback
from api.paths import upload_path, uploads_path
from deploy.stack import Stack
from tests.bench.stream_clients import Clients
from tests.bench.usage import KindOf, Usage, kind_in, kind_on_this_machine
from tests.resources.make_pdfs import plan_set

LIMIT_S = 600
"""The longest that one upload may take."""
OWN_SETTINGS = {"SITELINK_LIMIT_ADDRESS": "off", "SITELINK_LIMIT_ORGANIZATION": "off", "SITELINK_MAX_STREAMS": "10000"}
STREAM = "GET events, to the first event"


@dataclass
class Server:
    """The stack that gets the load.

    Args:
        url: Of its API.
        headers: What each request carries.
        bucket: The bucket's directory, if it is on this machine and known.
        kind_of: Tells its processes; None if they run elsewhere.
    """

    url: str
    headers: dict[str, str]
    bucket: Path | None
    kind_of: KindOf | None


@contextmanager
def own_server(directory: Path | None) -> Iterator[Server]:
    """A stack of this program's own, below a directory. It has the bucket of the environment, if that names one on an S3 server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SITELINK_") or name.startswith("SITELINK_RENDER_")}
    bucket = os.environ.get("SITELINK_BUCKET", "")
    if bucket.startswith("s3://"):
        kept |= {name: os.environ[name] for name in ("SITELINK_BUCKET", "SITELINK_S3_ENDPOINT") if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="load-", dir=directory) as name:
        stack = Stack(Path(name), environ={**kept, **OWN_SETTINGS}, port=0, temporal_ports=(0, 0))
        stack.start()
        try:
            yield Server(stack.api_url, {}, None if bucket.startswith("s3://") else Path(name, "bucket"), kind_in(stack))
        finally:
            stack.stop()


def running_server(environ: Mapping[str, str]) -> Server:
    """The stack that the environment names."""
    token = secret(environ, "SITELINK_TOKEN")
    url, headers = environ["SITELINK_URL"].rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}
    return Server(url, headers, None, kind_on_this_machine if is_loopback(urlsplit(url).hostname or "") else None)


@dataclass
class Watched:
    """One upload and the clients that watch it.

    Args:
        ref: The upload.
        clients: Its event streams.
        seen: By events, when each client has read them, in nanoseconds since 1970.
        ready: Its ready sheets: for each the seconds of ``time.monotonic`` when the first client knew, and its tiles.
        status: The final status, when it has ended.
        over: Set when all streams have ended, or the time for them is over.
        began: When it was accepted, in seconds of ``time.monotonic``.
    """

    ref: UploadRef
    clients: Clients
    seen: dict[bytes, "array[int]"] = field(default_factory=dict)
    ready: dict[int, tuple[float, int]] = field(default_factory=dict)
    status: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def take(self, body: bytes, now: int) -> None:
        """Notes when a client has read some events."""
        if body not in self.seen:
            self.seen[body] = array("q")
            for name, document in events_of(body):
                self.status = document["status"] if name == "end" else self.status
                for sheet in document.get("sheets", ()):
                    if sheet["status"] == "ready":
                        self.ready.setdefault(sheet["number"], (time.monotonic(), sheet["tiles"] or 0))
        self.seen[body].append(now)

    def latencies_ms(self, bucket: Path | None, layout: Layout) -> Iterator[float]:
        """Milliseconds from each sheet's commit, or from the step that counted it, to each client."""
        for body, times in self.seen.items():
            for name, document in events_of(body):
                for sheet in document.get("sheets", ()) if name == "change" else ():
                    if sheet["status"] != "ready":
                        continue
                    committed = int(sheet["version"]) * 1_000_000
                    if bucket is not None:
                        committed = (bucket / marker(self.ref, sheet["number"], layout)).stat().st_mtime_ns
                    yield from ((now - committed) / 1e6 for now in times)


def events_of(body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events in a piece of a stream: name and document."""
    for event in body.split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
        if b"data" in fields and b"event" in fields:
            yield fields[b"event"].decode(), json.loads(fields[b"data"])


class Load:
    """Uploads, watches and reads for some time.

    Args:
        server: Gets the load.
        plan: The plan of the uploads.
        pdf: The PDF of each upload.
        uploads: How many are under way at once.
        clients: How many streams are held at once, beside one for each upload.
        requests: Reads a second.
        layout: Of the sheets.
    """

    def __init__(self, server: Server, plan: PlanRef, pdf: bytes, uploads: int, clients: int, requests: float, layout: Layout) -> None:
        self._server, self._plan, self._pdf, self._layout = server, plan, pdf, layout
        self._uploads, self._share, self._more, self._requests = uploads, clients // uploads, clients % uploads, requests
        self.calls: defaultdict[str, list[float]] = defaultdict(list)
        """Milliseconds of each request, by its name."""
        self.errors: Counter[str] = Counter()
        self.watched: list[Watched] = []
        self.held: list[int] = []
        """Open streams, ten times a second."""
        self._accepted: queue.SimpleQueue[tuple[UploadRef, int, queue.SimpleQueue[Watched]]] = queue.SimpleQueue()
        self._stop = threading.Event()

    def _client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self._server.url, headers=self._server.headers, timeout=120)

    def _call(self, client: httpx2.Client, name: str, method: str, path: str, **options: Any) -> httpx2.Response | None:
        """One request; None if it failed, which is counted."""
        began = time.monotonic()
        try:
            response = client.request(method, path, **options)
        except httpx2.HTTPError as error:
            self.errors[f"{name}: {type(error).__name__}"] += 1
            return None
        if response.is_error:
            self.errors[f"{name}: {problem_name(response)}"] += 1
            if "retry-after" in response.headers:
                self._stop.wait(min(float(response.headers["retry-after"]), 60))
            return None
        self.calls[name].append((time.monotonic() - began) * 1000)
        return response

    def upload(self, share: int) -> Watched | None:
        """Sends the PDF and watches it to its end."""
        with self._client() as client:
            options = {"params": {"layout": self._layout, "filename": "load.pdf"}, "headers": {"Content-Type": "application/pdf"}}
            sent = self._call(client, "POST uploads", "POST", uploads_path(self._plan), content=self._pdf, **options)
        if sent is None:
            self._stop.wait(0.5)
            return None
        answer: queue.SimpleQueue[Watched] = queue.SimpleQueue()
        self._accepted.put((UploadRef.parse(sent.json()["ref"]), 1 + share, answer))
        watched = answer.get()
        watched.over.wait()
        if watched.status != "complete":
            self.errors[f"upload: {watched.status or 'its streams ended early'}"] += 1
        return watched

    def _upload_again_and_again(self, share: int) -> None:
        while not self._stop.is_set():
            self.upload(share)

    def _read_again_and_again(self) -> None:
        """Asks for what a viewer asks for, of uploads of this run."""
        chance = random.Random(1)  # noqa: S311 - no secret
        with self._client() as client:
            while not self._stop.wait(1 / self._requests):
                self._call(client, "GET uploads", "GET", uploads_path(self._plan))
                if not self.watched:
                    continue
                watched = chance.choice(self.watched[-2 * self._uploads :])
                self._call(client, "GET upload", "GET", upload_path(watched.ref))
                if not watched.ready:
                    continue
                sheet = chance.choice(list(watched.ready))
                base = f"{upload_path(watched.ref)}/sheets/sheet-{sheet}"
                self._call(client, "GET thumbnail", "GET", f"{base}/thumbnail.jpeg")
                self._call(client, "GET tile", "GET", f"{base}/tiles/sheet-{sheet}_files/0/0_0.jpeg")

    def _hold_streams(self, uploaders: Sequence[threading.Thread]) -> None:
        """Opens the streams of accepted uploads, and reads all streams, until these threads have ended."""
        poll = select.epoll()
        active: dict[int, Watched] = {}
        looked = 0.0
        while active or any(thread.is_alive() for thread in uploaders):
            while not self._accepted.empty():
                ref, count, answer = self._accepted.get()
                watched = self._watch(ref, count)
                self.watched.append(watched)
                active[watched.clients.poll.fileno()] = watched
                poll.register(watched.clients.poll.fileno(), select.EPOLLIN)
                answer.put(watched)
            for number, _ in poll.poll(0.05):
                active[number].clients.read(0)
            if time.monotonic() - looked >= 0.1:
                looked = time.monotonic()
                self.held.append(sum(not client.ended for watched in active.values() for client in watched.clients.clients.values()))
            for number, watched in list(active.items()):
                if watched.clients.all_ended or time.monotonic() - watched.began > LIMIT_S:
                    poll.unregister(number)
                    del active[number]
                    self._close(watched)
        poll.close()

    def _watch(self, ref: UploadRef, count: int) -> Watched:
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._server.headers.items())
        watched = Watched(ref, Clients(f"{self._server.url}{upload_path(ref)}/events", headers))
        watched.clients.on_events = watched.take
        for _ in range(count):
            try:
                watched.clients.open()
            except OSError as error:
                self.errors[f"{STREAM}: {type(error).__name__}"] += 1
        return watched

    def _close(self, watched: Watched) -> None:
        self.errors.update(f"{STREAM}: {error}" for error in watched.clients.errors)
        opened = (client.opened for client in watched.clients.clients.values())
        self.calls[STREAM] += [(first - began) * 1000 for began, first in opened if first is not None]
        watched.clients.close()
        watched.over.set()

    def run(self, seconds: float) -> float:
        """Puts the load on the server for so long; returns when the load began, in seconds of ``time.monotonic``."""
        began = time.monotonic()
        shares = (self._share + (number < self._more) for number in range(self._uploads))
        # They wait for this thread, which reads all streams: where it is interrupted, nobody else would end them.
        uploaders = [threading.Thread(target=self._upload_again_and_again, args=(share,), daemon=True) for share in shares]
        timer = threading.Timer(seconds, self._stop.set)
        others = [timer, *([threading.Thread(target=self._read_again_and_again)] if self._requests else [])]
        for thread in (*uploaders, *others):
            thread.start()
        try:
            self._hold_streams(uploaders)
        finally:
            self._stop.set()
            timer.cancel()
            for thread in others:
                thread.join()
        return began

    def warm_up(self) -> None:
        """Does one upload, which loads what a first upload loads, and forgets it."""
        thread = threading.Thread(target=self.upload, args=(0,), daemon=True)
        thread.start()
        self._hold_streams([thread])
        thread.join()
        self.calls.clear()
        self.held.clear()

    def delete_uploads(self) -> None:
        """Deletes what this run has uploaded."""
        with self._client() as client:
            for watched in self.watched:
                self._call(client, "DELETE upload", "DELETE", upload_path(watched.ref))


def problem_name(response: httpx2.Response) -> str:
    """The name of an error of the API, or its HTTP status."""
    try:
        return f"{response.status_code} {str(response.json()['type']).rsplit('/', 1)[-1]}"
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile of values in order; not a number if there are none."""
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else float("nan")


def print_tables(
    load: Load, server: Server, began: float, seconds: float, layout: Layout, usage: Usage | None, idle: Mapping[str, float]
) -> None:
    """Prints what the run has found."""
    done = [entry for watched in load.watched for entry in watched.ready.values() if began <= entry[0] < began + seconds]
    sheets = max((len(watched.ready) for watched in load.watched), default=0)
    ended = sum(bool(watched.status) for watched in load.watched)
    latencies = sorted(latency for watched in load.watched for latency in watched.latencies_ms(server.bucket, layout))
    what = "commit" if server.bucket else "step of the workflow"
    held = load.held[: int(seconds * 10)]
    print("\n| what | |\n|---|---|")
    print(f"| uploads an hour, of {sheets} sheets | {len(done) / max(1, sheets) / seconds * 3600:,.0f} |")
    print(f"| uploads that ended | {ended:,} of {len(load.watched):,} |")
    print(f"| sheets a second | {len(done) / seconds:.2f} |")
    print(f"| tiles a second | {sum(tiles for _, tiles in done) / seconds:,.0f} |")
    print(f"| clients held | {sum(held) / max(1, len(held)):,.0f}, at most {max(load.held, default=0):,} |")
    print(f"| events that clients read | {sum(watched.clients.events for watched in load.watched):,} |")
    print(
        f"| {what} to client, ms: p50, p99, longest | {percentile(latencies, 50):.0f}, {percentile(latencies, 99):.0f}, "
        f"{latencies[-1] if latencies else float('nan'):.0f} |"
    )
    print("\n| request | number | p50 ms | p99 ms |\n|---|---|---|---|")
    for name, values in sorted(load.calls.items()):
        values.sort()
        print(f"| {name} | {len(values):,} | {percentile(values, 50):.1f} | {percentile(values, 99):.1f} |")
    print("\n| error | number |\n|---|---|")
    for error, number in load.errors.most_common() or [("none", 0)]:
        print(f"| {error} | {number:,} |")
    if usage is not None:
        usage.look()
        print("\n| processes | number | CPU s | peak memory of one, MB |\n|---|---|---|---|")
        for kind, cpu_s in sorted(usage.by_kind().items()):
            number = sum(each == kind for each, _ in usage.cpu_s)
            print(f"| {kind} | {number} | {cpu_s - idle.get(kind, 0):.1f} | {usage.peak_bytes.get(kind, 0) / 1e6:.0f} |")
        print(f"| this load | 1 | {time.process_time():.1f} | |")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the load and prints the tables; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=4, help="uploads under way at once")
    parser.add_argument("--clients", type=int, default=100, help="event streams held at once, beside one for each upload")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=float, default=2, help="rounds of reads a second; 0 for none")
    parser.add_argument("--sheets", type=int, default=8, help="sheets of each upload")
    parser.add_argument("--inches", default="17x11", help="width and height of a sheet")
    parser.add_argument("--pdf", type=Path, help="upload this file instead")
    parser.add_argument("--layout", type=Layout, default=Layout.EXPLODED, help=f"of the sheets: {', '.join(Layout)}")
    parser.add_argument("--to", type=PlanRef.parse, default=PlanRef("local", "load", f"run-{int(time.time())}"), help="org/project/plan")
    parser.add_argument("--directory", type=Path, help="where a stack of this program's own writes; default: where temporary files go")
    parser.add_argument("--keep", action="store_true", help="do not delete the uploads of a stack that SITELINK_URL names")
    arguments = parser.parse_args(argv)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # each stream takes one
    width, height = (int(float(inches) * 72) for inches in arguments.inches.split("x"))
    pdf = arguments.pdf.read_bytes() if arguments.pdf else plan_set(arguments.sheets, width, height)
    is_own = not os.environ.get("SITELINK_URL")
    with ExitStack() as stack:
        server = stack.enter_context(own_server(arguments.directory)) if is_own else running_server(os.environ)
        load = Load(server, arguments.to, pdf, arguments.uploads, arguments.clients, arguments.requests, arguments.layout)
        load.warm_up()
        usage, idle = None, dict[str, float]()
        if server.kind_of is not None:
            usage = Usage(server.kind_of)
            usage.look()
            idle = usage.by_kind()
            stack.enter_context(usage.watching(0.5))
        began = load.run(arguments.seconds)
        if not is_own and not arguments.keep:
            load.delete_uploads()
        print_tables(load, server, began, arguments.seconds, arguments.layout, usage, idle)
    return bool(load.errors)


if __name__ == "__main__":
    sys.exit(main())
