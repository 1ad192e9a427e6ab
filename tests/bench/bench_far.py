"""Whole jobs with an S3 server that is far away: ``python -m tests.bench.bench_far [--pdf FILE.pdf] [--rounds 3] [OPTIONS ...]``.

Each OPTIONS is options of ``tests/resources/far.go``, joined by commas, such as ``delay=50ms`` or ``delay=20ms,error-each=100``. All have
their turn in each round. Prints medians: seconds, and how many times those of the first options they are; CPU seconds of all processes but
the bucket's; requests, those refused, the most in flight; megabytes sent, and by the second. Everything is written below ``/dev/shm``.
"""

import argparse
import statistics
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from deploy.stack import Stack
from tests.bench.bench_bucket import environment, logging_server
from tests.bench.bench_jobs import Usage, run_job
from tests.resources.make_pdfs import plan_set
from tests.servers.far import far_away

Row = tuple[float, float, int, int, int, float]
"""Seconds, CPU seconds, requests, refused ones, most in flight, bytes sent."""


def job(pdf: Path, options: str) -> Row:
    """Runs one job in a stack and a bucket of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        with logging_server(directory) as (settings, _), far_away(settings.endpoint, *(f"-{each}" for each in options.split(","))) as far:
            stack = Stack(directory / "data", environ=environment(replace(settings, endpoint=far.endpoint)), port=0, temporal_ports=(0, 0))
            stack.start()
            usage = Usage(stack)
            usage.wait_until_idle()
            idle, before = sum(usage.cpu_s.values()), far.counts()
            watcher = threading.Thread(target=usage.watch)
            watcher.start()
            try:
                status, seconds = run_job(stack, pdf, is_watched=True)
            finally:
                usage.look()
                usage.stop.set()
                watcher.join()
                after = far.counts()
                stack.stop()
            assert status["status"] == "complete", status
            return (
                seconds,
                sum(usage.cpu_s.values()) - idle,
                after["requests"] - before["requests"],
                after["refused"] - before["refused"],
                after["mostInFlight"],
                float(after["bytesIn"] - before["bytesIn"]),
            )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("options", nargs="*", default=["delay=0ms", "delay=20ms", "delay=50ms", "delay=100ms"])
    parser.add_argument("--pdf", type=Path, help="default: 15 sheets of 42 x 30 inches")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pdf = arguments.pdf or Path(name) / "plan.pdf"
        if arguments.pdf is None:
            pdf.write_bytes(plan_set(15, 42 * 72, 30 * 72))
        rows: dict[str, list[Row]] = {options: [] for options in arguments.options}
        for _ in range(arguments.rounds):
            for options, found in rows.items():
                found.append(job(pdf, options))
    print("| bucket | s | ratio | CPU s | requests | refused | most in flight | MB sent | MB/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    first_s = 0.0
    for options, found in rows.items():
        seconds, cpu_s, requests, refused, in_flight, sent = (statistics.median(column) for column in zip(*found, strict=True))
        first_s = first_s or seconds
        print(
            f"| {options} | {seconds:.1f} | {seconds / first_s:.2f} | {cpu_s:.1f} | {requests:,.0f} | {refused:,.0f} | {in_flight:.0f} "
            f"| {sent / 1e6:.1f} | {sent / seconds / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
