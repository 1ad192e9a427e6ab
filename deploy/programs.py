"""Server programs that the tests and the embedded stack run: where they are found, and how Go builds one."""

# ruff: noqa: S603 - the programs are found here, their arguments are ours

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

CACHE = Path(__file__).parents[1] / ".cache" / "bin"
"""Where a downloaded program is kept: in the checkout, out of the way of its files."""

BUILD_LIMIT_S = 1800


def installed(name: str, cache: Path) -> Iterator[Path]:
    """Every file of this name on the PATH, in the cache and where Go installs, in this order."""
    if on_path := shutil.which(name):
        yield Path(on_path)
    directories = [cache]
    if go := shutil.which("go"):
        named = subprocess.run([go, "env", "GOBIN", "GOPATH"], capture_output=True, text=True, check=False).stdout.splitlines()
        directories += [Path(named[0])] if named and named[0] else []
        directories += [Path(path) / "bin" for path in named[1].split(os.pathsep)] if len(named) > 1 else []
    directories.append(Path.home() / "go" / "bin")
    for directory in dict.fromkeys(directories):
        if (directory / name).is_file():
            yield directory / name


def go_install(go: str, module: str, *, say: Callable[[str], None], environ: Mapping[str, str] | None = None) -> str | None:
    """Builds a program.

    Args:
        go: The program ``go``.
        module: Path and version of the program's module.
        say: Gets a sentence now and then while it builds.
        environ: Variables for Go besides this process's.

    Returns:
        None when it worked, else the end of what Go said.
    """
    begun = time.monotonic()
    build = subprocess.Popen(
        [go, "install", module],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environ or {})},
    )
    try:
        while True:
            try:
                output, _ = build.communicate(timeout=10)
                break
            except subprocess.TimeoutExpired:
                elapsed_s = time.monotonic() - begun
                if elapsed_s > BUILD_LIMIT_S:
                    return f"it took more than {BUILD_LIMIT_S // 60} minutes"
                say(f"  still building, {elapsed_s:.0f} s")
    finally:
        if build.poll() is None:
            build.kill()
            build.communicate()
    return None if build.returncode == 0 else "\n".join(output.decode("utf-8", "replace").splitlines()[-5:])


class Finder(Protocol):
    """Finds a program, or gets it into the cache; ``say`` gets a sentence when that takes its time."""

    def __call__(self, cache: Path, *, say: Callable[[str], None]) -> Path:
        """The program's path."""


def get(what: str, find: Finder, failure: type[Exception]) -> int:
    """Gets a program for the tests, and says where it is.

    Args:
        what: The program, for people.
        find: Gets it.
        failure: What ``find`` raises when it cannot be had.

    Returns:
        The exit code.
    """

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        say(f"{what}: {find(CACHE, say=say)}")
    except failure as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
