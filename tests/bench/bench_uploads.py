"""A large PDF through both ways of an upload: ``python -m tests.bench.bench_uploads [--bytes N] [--rounds N]``.

Prints a Markdown table: MB/s of ``sitelink upload``, from the start of the command to the acceptance; the most memory and the CPU of the
API process and of the command. The ways are one request with the whole file, and parts; the buckets a directory, and a real S3 server on
this machine. Only the upload is measured: no worker runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from deploy.programs import CACHE
from deploy.temporal import TemporalServer, installed_binary
from tests.integration.test_api import running
from tests.servers import s3
from tests.servers.versitygw import installed_s3_server

PIECE = b"%PDF-1.7\n" + os.urandom((8 << 20) - 9)
"""The file is this again and again."""
WAYS = {"one request": 1 << 62, "parts": 0}
"""The least size of a file that the command sends in parts."""
CLIENT = (
    "import sys; from api.cli import parts; parts.LARGE_BYTES = int(sys.argv.pop(1)); from api.cli.__main__ import main; sys.exit(main())"
)
TICKS_S = os.sysconf("SC_CLK_TCK")


def used(pid: int) -> tuple[float, float]:
    """The most memory that a process has had, in MB, and its CPU so far, in seconds. A process that has ended has used nothing."""
    try:
        status, stat = Path(f"/proc/{pid}/status").read_text(), Path(f"/proc/{pid}/stat").read_text()
        user, system = map(int, stat.rpartition(")")[2].split()[11:13])
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6, (user + system) / TICKS_S
    except (OSError, IndexError):
        return 0.0, 0.0


def measure(directory: Path, temporal: str, environ: dict[str, str], way: str, file: Path) -> tuple[float, ...]:
    """MB/s; the most memory in MB and the CPU in seconds of an API process of its own, and of the command."""
    size_bytes = file.stat().st_size
    limits = {"SITELINK_MAX_FILE_BYTES": str(size_bytes), "SITELINK_LIMIT_ADDRESS": "off", "SITELINK_LIMIT_ORGANIZATION": "off"}
    with running(directory, temporal, **environ, **limits) as api:
        command = [sys.executable, "-c", CLIENT, str(WAYS[way]), "upload", "--no-watch", str(file)]
        begun, client = time.monotonic(), (0.0, 0.0)
        with subprocess.Popen(
            command,
            env={**os.environ, "SITELINK_URL": api.url, "XDG_STATE_HOME": str(directory)},
            stdout=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None:
                client = max(client, used(process.pid))
                time.sleep(0.02)
        seconds = time.monotonic() - begun
        assert process.returncode == 0
        return size_bytes / 1e6 / seconds, *used(api.pid), *client


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="A large PDF through both ways of an upload.")
    parser.add_argument("--bytes", type=int, default=2 << 30, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    temporal_binary, s3_binary = installed_binary(CACHE, say=print), installed_s3_server(CACHE)
    assert temporal_binary, "run python -m deploy.temporal first"
    assert s3_binary, "run python -m tests.servers.versitygw first"
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pdf = root / "plan.pdf"
        with pdf.open("wb") as file:
            for start in range(0, arguments.bytes, len(PIECE)):
                file.write(PIECE[: arguments.bytes - start])
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
                        figures = measure(Path(place, f"api-{turn}"), temporal.address, environ, way, pdf)
                    found.setdefault((where, way), []).append(figures)
                    sys.stderr.write(f"{where}, {way}: {figures}\n")
    sys.stdout.write("| bucket | way | MB/s | API: most memory, MB | API: CPU, s | client: most memory, MB | client: CPU, s |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for (where, way), rounds in found.items():
        speed, memory, cpu, client_memory, client_cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        sys.stdout.write(f"| {where} | {way} | {speed:,.0f} | {memory:,.0f} | {cpu:.1f} | {client_memory:,.0f} | {client_cpu:.1f} |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
