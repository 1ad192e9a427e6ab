"""Whole jobs on an S3 server beside the original pipeline: ``python -m tests.bench.bench_original FILE.pdf [OPTIONS ...]``.

The original pipeline does a sheet after the other: ``vips dzsave plan.pdf[page=N,dpi=300]`` with poppler onto the disk, then boto3 uploads
the tiles with 16 threads. Beside it stand a job of the same sheets alone, and these sheets' share of a job of the whole plan set, in one
run, to the same server. OPTIONS are those of ``bench_far``; default: a near server, and 50 ms away. Prints a Markdown table of seconds.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pikepdf
from botocore.config import Config

from activities.bucket.location import BucketSettings, S3Location
from activities.bucket.records import Layout
from tests.bench.bench_bucket import logging_server
from tests.bench.bench_far import NEAR, behind_proxy, job

THREADS = 16


def original(pdf: Path, sheets: Sequence[int], settings: BucketSettings, directory: Path) -> tuple[float, float]:
    """Seconds that the original pipeline takes to cut the sheets, and to upload the tiles.

    Args:
        pdf: The plan set.
        sheets: 1-based.
        settings: The bucket.
        directory: Empty; the tiles stay there.
    """
    bucket = S3Location.from_settings(settings).bucket
    client: Any = boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name=settings.region,
        config=Config(max_pool_connections=THREADS),
    )

    def upload(path: Path) -> None:
        client.put_object(Bucket=bucket, Key=f"original/{path.relative_to(directory)}", Body=path.read_bytes())

    cutting = uploading = 0.0
    with ThreadPoolExecutor(THREADS) as threads:
        for sheet in sheets:
            begun = time.monotonic()
            target = directory / f"sheet-{sheet}"
            source = f"{pdf}[page={sheet - 1},dpi=300]"
            subprocess.run(["vips", "dzsave", source, str(target), "--tile-size", "256", "--overlap", "1"], check=True)
            cut = time.monotonic()
            list(threads.map(upload, [path for path in directory.glob(f"sheet-{sheet}[._]*/**/*") if path.is_file()]))
            upload(Path(f"{target}.dzi"))
            cutting, uploading = cutting + cut - begun, uploading + time.monotonic() - cut
    return cutting, uploading


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pdf", type=Path)
    parser.add_argument("options", nargs="*", default=[NEAR, "delay=50ms"])
    parser.add_argument("--sheets", default="1,9,17,25,33", help="1-based, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="of our jobs, of which the median counts; the original runs once")
    arguments = parser.parse_args()
    sheets = [int(each) for each in arguments.sheets.split(",")]
    print("| bucket | original: cut s | upload s | together s | layout | job s | times faster | share of the whole set s | times faster |")
    print("|---" * 9 + "|")
    for options in arguments.options:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            directory, part = Path(name), Path(name) / "part.pdf"
            with pikepdf.open(arguments.pdf) as whole, pikepdf.new() as chosen:
                share = len(sheets) / len(whole.pages)
                chosen.pages.extend(whole.pages[sheet - 1] for sheet in sheets)
                chosen.save(part)
            tiles = directory / "tiles"
            tiles.mkdir()
            with logging_server(directory) as (near, _), behind_proxy(near, options) as (settings, _):
                cutting, uploading = original(arguments.pdf, sheets, settings, tiles)
            before = cutting + uploading
            for layout in (Layout.EXPLODED, Layout.PACKED):
                alone = statistics.median(job(part, options, layout)[0] for _ in range(arguments.rounds))
                shared = share * statistics.median(job(arguments.pdf, options, layout)[0] for _ in range(arguments.rounds))
                print(
                    f"| {options} | {cutting:.1f} | {uploading:.1f} | {before:.1f} | {layout} | {alone:.2f} | {before / alone:.1f} "
                    f"| {shared:.2f} | {before / shared:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
