"""What a soak strikes: a fleet, an S3 server behind a proxy that can fail, and a small disk under one scratch."""

import os
import secrets
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from activities.bucket.location import BucketSettings
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.render.compile import NoCompiler, find_compiler
from deploy.programs import CACHE
from deploy.temporal import temporal_binary
from tests.chaos.soak.plan import CLOCKS, DISK
from tests.servers.faults import Faults, faulty
from tests.servers.fleet import Fleet
from tests.servers.versitygw import S3Server, s3_server_binary

DISK_MIB = 96
EVENTS_SECRET = "0123456789abcdef of the soak"  # noqa: S105 - of a test
CLOCK = Path(__file__).parents[2] / "resources" / "clock.c"


@dataclass
class Site:
    """The running site.

    Args:
        fleet: Its processes.
        s3: The bucket's server.
        faults: The proxy between them.
        settings: The bucket, without the proxy.
        has_disk: Whether one scratch is on a disk of its own.
        clocks: By process whose clock can be set, the file that sets it.
    """

    fleet: Fleet
    s3: S3Server
    faults: Faults
    settings: BucketSettings
    has_disk: bool
    clocks: dict[str, Path]

    @cached_property
    def bucket(self) -> Bucket:
        """The bucket, without the proxy."""
        return Bucket(self.settings)


def say(text: str) -> None:
    """Tells what happens, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@contextmanager
def running_site(directory: Path) -> Iterator[Site]:
    """Runs a site of two API processes, two workflow workers and three tile workers.

    Args:
        directory: An empty one; everything is below it.
    """
    with ExitStack() as opened:
        key = secrets.token_urlsafe(24)
        s3 = S3Server(s3_server_binary(CACHE, say=say), directory / "buckets", access_key_id="soak", secret_access_key=key)
        opened.callback(s3.stop)
        s3.start()
        settings = BucketSettings("s3://plans", s3.endpoint, "soak", key, "us-east-1")
        BucketSetup(settings).create()
        faults = opened.enter_context(faulty(s3.endpoint))
        environment = {
            "SITELINK_BUCKET": settings.url,
            "SITELINK_S3_ENDPOINT": faults.url,
            "AWS_ACCESS_KEY_ID": settings.access_key_id,
            "AWS_SECRET_ACCESS_KEY": settings.secret_access_key,
            "AWS_REGION": settings.region,
            "SITELINK_CODEC_KEY": "50a4" * 16,
            "SITELINK_EVENTS_SECRET": EVENTS_SECRET,
            "SITELINK_RENDER_SLOTS": "1",
            "SITELINK_RENDER_CPU_S": "10",
            "SITELINK_LIMIT_ADDRESS": "off",
            "SITELINK_LIMIT_ORGANIZATION": "off",
        }
        binary = temporal_binary(CACHE, say=say)
        fleet = Fleet(directory / "fleet", binary, environment, apis=2, workflow_workers=2, tile_workers=3)
        has_disk = opened.enter_context(_small_disk(fleet.scratch(DISK[0])))
        clocks = _movable_clocks(fleet, directory)
        opened.callback(fleet.stop)
        fleet.start()
        yield Site(fleet, s3, faults, settings, has_disk, clocks)


@contextmanager
def _small_disk(path: Path) -> Iterator[bool]:
    """Mounts a small file system, if this user may; tells whether."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", path], check=True)


def _movable_clocks(fleet: Fleet, directory: Path) -> dict[str, Path]:
    """Gives some processes a clock that a file moves, where there is a C compiler."""
    library = directory / "clock.so"
    try:
        compile_clock(library)
    except NoCompiler:
        return {}
    clocks = {name: directory / f"clock-{name}" for name in CLOCKS}
    for name, clock in clocks.items():
        set_clock(clock, 0)
        fleet.add_settings(name, **clock_settings(library, clock))
    return clocks


def compile_clock(library: Path) -> None:
    """Compiles the library that moves a clock. Raises ``NoCompiler`` if there is no compiler."""
    subprocess.run([find_compiler(), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, CLOCK, "-ldl"], check=True)


def clock_settings(library: Path, clock: Path) -> dict[str, str]:
    """The environment of a process whose clock is moved by the file ``clock``."""
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(clock)}


def set_clock(file: Path, offset_s: int) -> None:
    """Moves a clock: so many seconds from the true time. The file is written in its place, because it is mapped."""
    with file.open("r+b" if file.exists() else "wb") as clock:
        clock.write(struct.pack("l", offset_s))
