"""Event streams under load: ``python -m tests.bench.bench_watchers [--before CHECKOUT]``.

Prints a Markdown table: milliseconds from the commit of a sheet (its ``.dzi`` in the bucket's directory) to the event of each client, while
all cores tile a set of small sheets; the CPU of the API process for one delivery, without that of the clients; its memory for one client.
``--before`` measures another checkout in the same run, turn by turn. Two minimal applications (``minimal_streams.py``) stand beside it.

The tile worker is stopped until all clients are connected, so that every client sees every sheet. The clock of files has a resolution of
some milliseconds, which the numbers contain.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from deploy.process import free_port
from tests.bench.stream_clients import Clients
from tests.resources.make_pdfs import plan_set

# ruff: noqa: S310 - the programs and the addresses are our own

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LIMIT_S = 300
PUBLISHED = 40
"""How many events the minimal applications send to each client."""
UPLOADS = "/v1/organizations/local/projects/demo/plans/bench/uploads"
SETTINGS = {
    "SITELINK_LIMIT_ADDRESS": "off",
    "SITELINK_LIMIT_ORGANIZATION": "off",
    "SITELINK_MAX_STREAMS": "8000",
    "SITELINK_MAX_CONNECTIONS": "7000",
}
STACK = """
import json, sys
from pathlib import Path
from deploy.stack import Stack
stack = Stack(Path(sys.argv[1]), port=0, temporal_ports=(0, 0))
stack.start()
print(json.dumps({"url": stack.api_url, **{name: process.pid for name, process in stack.processes.items()}}), flush=True)
sys.stdin.read()
stack.stop()
"""


@dataclass
class Figures:
    """What one round has measured; times in milliseconds."""

    p50: float
    p99: float
    longest: float
    events: int
    cpu_us: float
    client_cpu_us: float
    client_bytes: float
    errors: int


def cpu_s(pid: int) -> float:
    """The CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


@contextmanager
def running_stack(checkout: Path, directory: Path) -> Iterator[dict[str, str]]:
    """The whole stack of a checkout; gives its address and its process ids."""
    python = checkout / ".venv" / "bin" / "python"
    command = [str(python if python.exists() else sys.executable), "-c", STACK, str(directory)]
    with subprocess.Popen(
        command, cwd=checkout, env={**os.environ, **SETTINGS}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate()


def measure_job(stack: dict[str, str], bucket: Path, pdf: bytes, count: int) -> Figures:
    """Processes a PDF while so many clients watch it."""
    api, tile = int(stack["api"]), int(stack["worker-tile"])
    os.kill(tile, signal.SIGSTOP)
    try:
        request = Request(stack["url"] + UPLOADS, data=pdf, headers={"Content-Type": "application/pdf"}, method="POST")
        with urlopen(request, timeout=LIMIT_S) as answer:
            upload = json.load(answer)["upload"]
        seen: list[tuple[bytes, int]] = []
        clients = Clients(f"{stack['url']}{UPLOADS}/{upload}/events", on_events=lambda body, now: seen.append((body, now)))
        clients.connect(1)
        before_bytes = memory_bytes(api)
        clients.connect(count - 1)
        client_bytes = (memory_bytes(api) - before_bytes) / max(1, count - 1)
        seen.clear()
        events, cpu, client_cpu = clients.events, cpu_s(api), time.process_time()
    finally:
        os.kill(tile, signal.SIGCONT)
    clients.read_until(lambda: clients.all_ended, LIMIT_S)
    events, cpu, client_cpu = clients.events - events, cpu_s(api) - cpu, time.process_time() - client_cpu
    clients.close()
    latencies = sorted(_latencies(seen, bucket / "organizations/local/projects/demo/plans/bench/uploads" / upload / "sheets"))
    lacking = count * len(list((bucket / "organizations/local/projects/demo/plans/bench/uploads" / upload / "sheets").iterdir())) - len(
        latencies
    )
    return Figures(
        _percentile(latencies, 50),
        _percentile(latencies, 99),
        latencies[-1],
        events,
        cpu / events * 1e6,
        client_cpu / events * 1e6,
        client_bytes,
        len(clients.errors) + lacking,
    )


def _latencies(seen: Sequence[tuple[bytes, int]], sheets: Path) -> Iterator[float]:
    """Milliseconds from each commit to the event of each client."""
    ready: dict[bytes, list[int]] = {}
    committed: dict[int, int] = {}
    for body, now in seen:
        if body not in ready:
            ready[body] = _ready_sheets(body)
        for number in ready[body]:
            if number not in committed:
                committed[number] = (sheets / f"sheet-{number}" / "tiles" / f"sheet-{number}.dzi").stat().st_mtime_ns
            yield (now - committed[number]) / 1e6


def _ready_sheets(body: bytes) -> list[int]:
    """The sheets that become ready in these events."""
    numbers = []
    for event in body.split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
        if fields.get(b"event") == b"change":
            numbers += [sheet["number"] for sheet in json.loads(fields[b"data"])["sheets"] if sheet["status"] == "ready"]
    return numbers


def _percentile(values: Sequence[float], percent: int) -> float:
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else float("nan")


def measure_minimal(path: str, count: int) -> Figures:
    """Sends events to the clients of a minimal application."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.bench.minimal_streams:app", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url)
            clients = Clients(url + path)
            clients.connect(1)
            before_bytes = memory_bytes(process.pid)
            clients.connect(count - 1)
            client_bytes = (memory_bytes(process.pid) - before_bytes) / max(1, count - 1)
            cpu, client_cpu, times = cpu_s(process.pid), time.process_time(), []
            for number in range(1, PUBLISHED + 1):
                begun = time.monotonic()
                with urlopen(Request(f"{url}/publish", method="POST"), timeout=LIMIT_S):
                    pass
                clients.read_until(lambda number=number: clients.events >= count * (number + 1), LIMIT_S)  # type: ignore[misc]
                times.append((time.monotonic() - begun) * 1e3)
            cpu, client_cpu, events = cpu_s(process.pid) - cpu, time.process_time() - client_cpu, PUBLISHED * count
            clients.close()
            times.sort()
            return Figures(
                _percentile(times, 50),
                _percentile(times, 99),
                times[-1],
                events,
                cpu / events * 1e6,
                client_cpu / events * 1e6,
                client_bytes,
                len(clients.errors),
            )
        finally:
            process.kill()


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            with urlopen(Request(f"{url}/publish", method="POST"), timeout=5):
                return
        except OSError:
            time.sleep(0.05)


def print_row(what: str, count: int, rounds: Sequence[Figures]) -> None:
    """Prints the medians of the rounds."""

    def median(name: str) -> float:
        return statistics.median(float(getattr(figures, name)) for figures in rounds)

    print(
        f"| {what} | {count:,} | {median('p50'):.0f} | {median('p99'):.0f} | {median('longest'):.0f} | {median('events'):,.0f} "
        f"| {median('cpu_us'):.1f} | {median('client_cpu_us'):.1f} | {median('client_bytes') / 1e3:.1f} "
        f"| {sum(figures.errors for figures in rounds)} |",
        flush=True,
    )


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, set up, to compare with")
    parser.add_argument("--clients", default="1,100,1000,5000", help="numbers of clients")
    parser.add_argument("--rounds", type=int, default=3, help="the table has the medians of so many rounds")
    parser.add_argument("--sheets", type=int, default=32, help="sheets of the plan")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where everything is written")  # noqa: S108
    parser.add_argument("--no-minimal", action="store_true", help="leave the minimal applications out")
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.clients.split(",")]
    checkouts = {"after": ROOT, **({"before": arguments.before.absolute()} if arguments.before else {})}
    pdf = plan_set(arguments.sheets)
    print("| what | clients | p50 ms | p99 ms | longest ms | events | CPU us an event | of the clients | kB a client | errors |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for count in counts:
        rounds: dict[str, list[Figures]] = {name: [] for name in checkouts}
        for _ in range(arguments.rounds):
            for name, checkout in checkouts.items():
                with tempfile.TemporaryDirectory(dir=arguments.directory) as directory, running_stack(checkout, Path(directory)) as stack:
                    measure_job(stack, Path(directory) / "bucket", plan_set(2), 1)  # loads what a first upload loads
                    rounds[name].append(measure_job(stack, Path(directory) / "bucket", pdf, count))
        for name in reversed(checkouts):
            print_row(name, count, rounds[name])
    if not arguments.no_minimal:
        for path in ("/sse-starlette", "/asgi"):
            print_row(f"minimal {path[1:]}", 1000, [measure_minimal(path, 1000) for _ in range(arguments.rounds)])


if __name__ == "__main__":
    main()
