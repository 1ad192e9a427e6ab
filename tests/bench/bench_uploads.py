"""A large PDF through both ways of an upload: ``python -m tests.bench.bench_uploads [--bytes N] [--rounds N]``.

Prints a Markdown table: MB/s of the whole upload, from its first request to its acceptance; the most memory that the API process took, and
its CPU, for one request with the whole file and for parts, over a directory and over a real S3 server on this machine. Only the upload is
measured: no worker runs.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2

from deploy.programs import CACHE
from deploy.temporal import TemporalServer, installed_binary
from tests.integration.test_api import ApiProcess, running
from tests.servers import s3
from tests.servers.versitygw import installed_s3_server

UPLOADS = "/v1/organizations/local/projects/demo/plans/bench/uploads"
PIECE = b"%PDF-1.7\n" + os.urandom((8 << 20) - 9)
"""The file is this again and again. It is also the size of a part."""
AT_ONCE = 4


def in_one_request(http: httpx2.Client, base: str, size_bytes: int) -> None:
    """Sends the file as the body of one request."""

    def body() -> Iterator[bytes]:
        for start in range(0, size_bytes, len(PIECE)):
            yield PIECE[: size_bytes - start]

    headers = {"Content-Type": "application/pdf", "Content-Length": str(size_bytes)}
    answer = http.post(base, content=body(), headers=headers)
    assert answer.status_code == 202, answer.text


def in_parts(http: httpx2.Client, base: str, size_bytes: int) -> None:
    """Sends the file in parts, some at once."""
    begun = http.post(f"{base}:begin", json={"sizeBytes": size_bytes, "partSizeBytes": len(PIECE)}).json()
    origin = base.removesuffix(UPLOADS)

    def send(number: int) -> dict[str, object]:
        (part,) = http.post(origin + begun["links"]["sign"], json={"numbers": [number]}).json()["parts"]
        answer = http.put(part["url"], content=PIECE[: part["sizeBytes"]])
        assert answer.status_code == 200, answer.text
        return {"number": number, "etag": answer.headers["etag"]}

    with ThreadPoolExecutor(AT_ONCE) as threads:
        parts = list(threads.map(send, range(1, begun["partCount"] + 1)))
    answer = http.post(origin + begun["links"]["complete"], json={"parts": parts})
    assert answer.status_code == 202, answer.text


WAYS: dict[str, Callable[[httpx2.Client, str, int], None]] = {"one request": in_one_request, f"parts, {AT_ONCE} at once": in_parts}


def peak_mb(api: ApiProcess) -> float:
    """The most memory that the process has had, in MB."""
    status = Path(f"/proc/{api.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(directory: Path, temporal: str, environ: dict[str, str], way: str, size_bytes: int) -> tuple[float, float, float]:
    """MB/s, the most memory in MB and the CPU in seconds of a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    limits = {"SITELINK_MAX_FILE_BYTES": str(size_bytes), "SITELINK_LIMIT_ADDRESS": "off", "SITELINK_LIMIT_ORGANIZATION": "off"}
    with running(directory, temporal, **environ, **limits) as api, httpx2.Client(timeout=600, trust_env=False) as http:
        begun = time.monotonic()
        WAYS[way](http, api.url + UPLOADS, size_bytes)
        seconds, memory = time.monotonic() - begun, peak_mb(api)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return size_bytes / 1e6 / seconds, memory, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="A large PDF through both ways of an upload.")
    parser.add_argument("--bytes", type=int, default=2 << 30, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    temporal_binary, s3_binary = installed_binary(CACHE, say=print), installed_s3_server(CACHE)
    assert temporal_binary, "run python -m deploy.temporal first"
    assert s3_binary, "run python -m tests.servers.versitygw first"
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        temporal = TemporalServer(temporal_binary, root / "temporal.db")
        temporal.start()
        stack.callback(temporal.stop)
        server = stack.enter_context(s3.running(s3_binary, root / "s3"))
        for turn in range(arguments.rounds):
            for way in WAYS:
                for where in ("directory", "S3 server"):
                    with tempfile.TemporaryDirectory(dir=root) as place:
                        bucket = Path(place, "bucket").as_uri()
                        environ = {"SITELINK_BUCKET": bucket} if where == "directory" else server.environment(server.new_bucket())
                        figures = measure(Path(place, f"api-{turn}"), temporal.address, environ, way, arguments.bytes)
                    found.setdefault((where, way), []).append(figures)
                    sys.stderr.write(f"{where}, {way}: {figures}\n")
    sys.stdout.write("| bucket | way | MB/s | most memory of the API, MB | its CPU, s |\n|---|---|---|---|---|\n")
    for (where, way), rounds in found.items():
        speed, memory, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        sys.stdout.write(f"| {where} | {way} | {speed:,.0f} | {memory:,.0f} | {cpu:.1f} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
