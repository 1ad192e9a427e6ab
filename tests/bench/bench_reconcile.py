"""The cost of a reconcile: ``python -m tests.bench.bench_reconcile [FILE.pdf] [--removed 100]``.

A whole upload on an S3 server of this run; then it is reconciled as it is, and once more after some objects below ``sheets/``, chosen by
chance with a fixed seed, were deleted. Seconds are from the request to the end of the event stream; operations are counted in the server's
own access log. Everything is written below a temporary directory.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from activities.bucket.keys import UploadRef
from activities.bucket.storage import Bucket
from deploy.stack import Stack
from tests.bench.bench_bucket import UPLOADS, environment, logging_server, operations
from tests.resources.make_pdfs import plan_set


def wait_for_end(url: str) -> None:
    """Reads the event stream to its end."""
    with httpx2.stream("GET", f"{url}/events", timeout=600) as events:
        assert any(line == "event: end" for line in events.iter_lines())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pdf", type=Path, nargs="?", help="default: 37 sheets of 42 x 30 inches")
    parser.add_argument("--removed", type=int, default=100, help="objects to delete")
    arguments = parser.parse_args()
    pdf = arguments.pdf.read_bytes() if arguments.pdf else plan_set(37, 42 * 72, 30 * 72)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows: list[tuple[str, float, str]] = []
        with logging_server(directory) as (settings, log):
            stack = Stack(directory / "data", environ=environment(settings), port=0, temporal_ports=(0, 0))
            stack.start()

            def measure(what: str, ask: Callable[[], str]) -> str:
                before, begun = log.stat().st_size, time.perf_counter()
                url = ask()
                wait_for_end(url)
                seconds = time.perf_counter() - begun
                with log.open() as lines:
                    lines.seek(before)
                    counted = operations(lines.read())
                rows.append((what, seconds, ", ".join(f"{number:,} {operation}" for operation, number in counted.most_common())))
                return url

            def upload() -> str:
                sent = httpx2.post(stack.api_url + UPLOADS, content=pdf, headers={"Content-Type": "application/pdf"}, timeout=300)
                return stack.api_url + sent.raise_for_status().headers["Location"]

            def reconcile() -> str:
                httpx2.post(f"{url}/reconcile").raise_for_status()
                return url

            try:
                url = measure("the upload", upload)
                measure("reconciled, nothing wrong", reconcile)
                bucket, ref = Bucket(settings), UploadRef.parse(httpx2.get(url).json()["ref"])
                keys = sorted(info.key for info in bucket.objects(ref.sheets_prefix))
                bucket.delete(random.Random(1).sample(keys, arguments.removed))  # noqa: S311 - no secret
                measure(f"reconciled, {arguments.removed:,} objects removed", reconcile)
                status, report = httpx2.get(url).json(), httpx2.get(f"{url}/verify", timeout=600).json()
            finally:
                stack.stop()
    print(f"\n{status['status']}: {status['completedPages']} sheets, {len(keys):,} objects; verified afterwards: {report['verified']}\n")
    print("| | s | operations at the server |\n|---|---|---|")
    for what, seconds, said in rows:
        print(f"| {what} | {seconds:.1f} | {said} |")


if __name__ == "__main__":
    main()
