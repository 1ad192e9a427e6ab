"""The cost of a sheet at an S3 server, and of a small PUT in this process: ``python -m tests.bench.bench_bucket [FILE.pdf]``.

The first table counts the operations of a whole upload in the server's own access log (default: one sheet of 42 x 30 inches).
The second is the cost of proving its first sheet: one LIST, whose names, sizes and ETags give the digest in ``sheet.json``.
The third is the CPU of this process for one small PUT by obstore, as ``Bucket`` does it, with 16 threads and with as many as the limiter
lets be in flight, and by boto3, in turns, to the same server: medians.
Everything is written below a temporary directory.
"""

import argparse
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import httpx2
from botocore.config import Config

from activities.bucket.keys import UploadRef
from activities.bucket.listing import Listing
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetRecord, from_json, tiles_digest
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.threads import FairThreads
from deploy.programs import CACHE
from deploy.stack import Stack
from tests.resources.make_pdfs import plan_set
from tests.servers.versitygw import S3Server, s3_server_binary

UPLOADS = "/v1/organizations/local/projects/demo/plans/bench/uploads"
THREADS = 16
MOST = 256
ROUNDS = 5


def operations(log: str) -> Counter[str]:
    """Requests of an access log by S3's name of the operation."""
    return Counter(re.findall(r" s3_(\w+) ", log))


@contextmanager
def logging_server(directory: Path) -> Iterator[tuple[BucketSettings, Path]]:
    """Runs an S3 server; its one bucket and its access log."""
    log = directory / "access.log"
    server = S3Server(
        s3_server_binary(CACHE, say=print),
        directory / "buckets",
        access_key_id="bench",
        secret_access_key="bench-secret",  # noqa: S106 - of a server of this run only
        access_log=log,
    )
    server.start()
    try:
        settings = BucketSettings("s3://plans", server.endpoint, "bench", "bench-secret", "us-east-1")
        BucketSetup(settings).create()
        yield settings, log
    finally:
        server.stop()


def environment(settings: BucketSettings) -> dict[str, str]:
    """The environment of a stack over this bucket, without the settings of the person who runs the benchmark."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_"))} | {
        "SITELINK_BUCKET": settings.url,
        "SITELINK_S3_ENDPOINT": settings.endpoint,
        "AWS_ACCESS_KEY_ID": settings.access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.secret_access_key,
    }


def whole_upload(directory: Path, log: Path, settings: BucketSettings, pdf: bytes) -> None:
    """Runs one upload through a new stack and prints its requests to the server."""
    stack = Stack(directory / "data", environ=environment(settings), port=0, temporal_ports=(0, 0))
    stack.start()
    try:
        before = log.stat().st_size
        begun = time.perf_counter()
        sent = httpx2.post(stack.api_url + UPLOADS, content=pdf, headers={"Content-Type": "application/pdf"}, timeout=300)
        path = sent.raise_for_status().headers["Location"]
        with httpx2.stream("GET", f"{stack.api_url}{path}/events", timeout=600) as events:
            assert any(line == "event: end" for line in events.iter_lines())
        seconds = time.perf_counter() - begun
        status = httpx2.get(stack.api_url + path).json()
    finally:
        stack.stop()
    with log.open() as lines:
        lines.seek(before)
        counted = operations(lines.read())
    tiles, size = (sum(sheet[name] or 0 for sheet in status["sheets"]) for name in ("tiles", "bytes"))
    print(f"\n{status['status']}: {status['completedPages']} sheets, {tiles:,} tiles, {size / 1e6:.1f} MB, {seconds:.1f} s\n")
    print("| operation | requests |\n|---|---|")
    for name, number in counted.most_common():
        print(f"| {name} | {number:,} |")
    print(f"| all | {counted.total():,} |")
    proof(Bucket(settings), UploadRef.parse(status["ref"]), log)


def proof(bucket: Bucket, ref: UploadRef, log: Path) -> None:
    """Prints the cost of proving one sheet, the best of some rounds."""
    record = from_json(SheetRecord, bucket.get(ref.sheet_record(1)).body)
    before = len(re.findall(" s3_List", log.read_text()))
    best = (1e9, 1e9)
    for _ in range(ROUNDS):
        cpu, wall = time.process_time(), time.perf_counter()
        tiles = Listing.fetch(bucket, ref, 1).tiles
        assert tiles_digest([(name, info.size, (info.etag or "").strip('"')) for name, info in tiles.items()]) == record.digest
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    requests = (len(re.findall(" s3_List", log.read_text())) - before) // ROUNDS
    print(f"\nThe proof of a sheet of {len(tiles):,} tiles: {requests} LISTs, {best[0] * 1000:.0f} ms of CPU, {best[1] * 1000:.0f} ms.")


def small_puts(settings: BucketSettings, requests: int, size_bytes: int) -> None:
    """Prints CPU and seconds of a PUT."""
    bucket, body = Bucket(settings), os.urandom(size_bytes)
    client = boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name="us-east-1",
        config=Config(max_pool_connections=THREADS),
    )
    name = settings.url.removeprefix("s3://")

    def by_obstore(number: int) -> None:
        bucket.put(f"o/{number}", body)

    def by_limiter(number: int) -> None:
        limited.put(f"l/{number}", body)

    def by_boto3(number: int) -> None:
        client.put_object(Bucket=name, Key=f"b/{number}", Body=body)

    found: dict[str, list[tuple[float, float]]] = {"obstore, 16 threads": [], "obstore, limiter": [], "boto3, 16 threads": []}
    limited = Bucket(settings, max_requests=MOST)
    with ThreadPoolExecutor(THREADS) as threads, FairThreads(MOST, "bench", lambda: limited.limiter.limit) as many:
        for _ in range(ROUNDS):
            found["obstore, 16 threads"].append(_measure(lambda: list(threads.map(by_obstore, range(requests))), requests))
            found["obstore, limiter"].append(_measure(lambda: list(many.map(("a",), by_limiter, range(requests))), requests))
            found["boto3, 16 threads"].append(_measure(lambda: list(threads.map(by_boto3, range(requests))), requests))
    cpu_s = {way: statistics.median(cpu for cpu, _ in rounds) for way, rounds in found.items()}
    print(
        f"\n{requests:,} PUTs of {size_bytes:,} bytes, medians of {ROUNDS} rounds; the limiter lets {limited.limiter.limit} be in flight\n"
    )
    print("| by | CPU ms a PUT | PUTs a second | of the first |\n|---|---|---|---|")
    for way, rounds in found.items():
        share = cpu_s[way] / cpu_s["obstore, 16 threads"]
        print(f"| {way} | {cpu_s[way] * 1000:.3f} | {1 / statistics.median(wall for _, wall in rounds):,.0f} | {share:.2f} |")


def _measure(put_all: Callable[[], object], requests: int) -> tuple[float, float]:
    """CPU seconds and seconds of one request."""
    cpu, wall = time.process_time(), time.perf_counter()
    put_all()
    return (time.process_time() - cpu) / requests, (time.perf_counter() - wall) / requests


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pdf", type=Path, nargs="?", help="default: one sheet of 42 x 30 inches")
    parser.add_argument("--puts", type=int, default=2000)
    parser.add_argument("--size", type=int, default=7000, help="bytes of a small object; a tile has about as many")
    arguments = parser.parse_args()
    pdf = arguments.pdf.read_bytes() if arguments.pdf else plan_set(1, 42 * 72, 30 * 72)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with logging_server(directory) as (settings, log):
            whole_upload(directory, log, settings, pdf)
            small_puts(settings, arguments.puts, arguments.size)


if __name__ == "__main__":
    main()
