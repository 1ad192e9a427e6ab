"""A proxy that makes an S3 server on this machine as slow and as moody as one far away: ``tests/resources/far.go``."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from deploy.programs import CACHE
from tests.servers.versitygw import NoS3Server

SOURCE = Path(__file__).parents[1] / "resources" / "far.go"


class Far:
    """The running proxy.

    Args:
        address: Host and port.
        control: Host and port that answer how much has passed.
    """

    def __init__(self, address: str, control: str) -> None:
        self.endpoint = f"http://{address}"
        self._control = f"http://{control}"

    def counts(self) -> dict[str, int]:
        """The proxy's counters since its start.

        They count the requests, the refused ones and the most in flight; the connections that were opened and those that are open; the
        bytes each way. From the first PUT of a sheet to the last, they also count the milliseconds and the bytes that came in.
        """
        counts: dict[str, int] = httpx2.get(self._control, trust_env=False).json()
        return counts


def far_binary(directory: Path = CACHE) -> Path:
    """Lets Go build the proxy, unless this version of it is built.

    Raises:
        NoS3Server: There is no Go.
    """
    binary = directory / f"far-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not binary.exists():
        go = shutil.which("go")
        if not go:
            msg = "Go is needed for the proxy that makes a bucket slow: https://go.dev/dl"
            raise NoS3Server(msg)
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as building:  # another process may do the same
            subprocess.run([go, "build", "-o", f"{building}/far", SOURCE], check=True)
            Path(building, "far").rename(binary)
    return binary


@contextmanager
def far_away(upstream: str, *options: str) -> Iterator[Far]:
    """Runs the proxy on a free port of this machine.

    Args:
        upstream: The endpoint of the S3 server.
        options: Such as ``-delay=50ms``; ``far.go`` has them all.
    """
    command = [str(far_binary()), *options, "127.0.0.1:0", upstream.removeprefix("http://")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Far(*process.stdout.readline().split())
        finally:
            process.kill()
