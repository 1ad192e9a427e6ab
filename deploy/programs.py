"""Finds the server programs that the embedded stack and the tests run, and lets Go build one that is missing."""

# ruff: noqa: S603 - the programs are found here, with arguments from this file

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

CACHE = Path(__file__).parents[1] / ".cache" / "bin"
"""The directory for downloaded programs, inside the checkout and not under version control."""

BUILD_LIMIT_S = 1800


def installed(name: str, cache: Path) -> Iterator[Path]:
    """Every file of this name on the PATH, in the cache and in Go's directories, in this order."""
    if on_path := shutil.which(name):
        yield Path(on_path)
    directories = [cache]
    if go := shutil.which("go"):
        go_env = subprocess.run([go, "env", "GOBIN", "GOPATH"], capture_output=True, text=True, check=False).stdout.splitlines()
        directories += [Path(go_env[0])] if go_env and go_env[0] else []
        directories += [Path(path) / "bin" for path in go_env[1].split(os.pathsep)] if len(go_env) > 1 else []
    directories.append(Path.home() / "go" / "bin")
    for directory in dict.fromkeys(directories):
        if (directory / name).is_file():
            yield directory / name


def go_install(go: str, module: str, *, say: Callable[[str], None], environ: Mapping[str, str] | None = None) -> str | None:
    """Builds and installs a program with Go.

    Args:
        go: The path of ``go``.
        module: Path and version of the program's module.
        say: Gets a sentence every ten seconds of the build.
        environ: Variables for Go, added to this process's environment.

    Returns:
        None after a successful build, else the end of Go's output.
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
                    return f"the build took more than {BUILD_LIMIT_S // 60} minutes"
                say(f"  still building, {elapsed_s:.0f} s")
    finally:
        if build.poll() is None:
            build.kill()
            build.communicate()
    return None if build.returncode == 0 else "\n".join(output.decode("utf-8", "replace").splitlines()[-5:])


def find_working(name: str, cache: Path, *arguments: str) -> Path | None:
    """Finds the first installed program of this name that works: run with these arguments, it exits with 0.

    Returns:
        None if no installed program of this name works.
    """
    for candidate in installed(name, cache):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([candidate, *arguments], capture_output=True, timeout=30, check=True)
            return candidate
    return None


def build(
    title: str,
    module: str,
    find: Callable[[], Path | None],
    failure: type[Exception],
    *,
    advice: str,
    say: Callable[[str], None],
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Lets Go build a program that is not installed; returns its path.

    Args:
        title: The program's name for people, such as ``S3 server``.
        module: Path and version of its module.
        find: Finds it once it is installed.
        failure: The exception to raise when it cannot be built.
        advice: A sentence for people who then have no program.
        say: Gets a sentence about each step that takes time.
        environ: Variables for Go, added to this process's environment.
    """
    go = shutil.which("go")
    if not go:
        msg = f"No {title} here, and no Go to build it. {advice}"
        raise failure(msg)
    say(f"building the {title}: go install {module} (some minutes the first time)")
    trouble = go_install(go, module, say=say, environ=environ)
    binary = find()
    if binary and not trouble:
        return binary
    msg = f"Building the {title} failed:\n{trouble or 'Go installed the program into a directory that is not searched'}\n{advice}"
    raise failure(msg)


class Finder(Protocol):
    """Finds a program, or gets it; ``say`` gets a sentence about each step that takes time."""

    def __call__(self, cache: Path, *, say: Callable[[str], None]) -> Path:
        """The program's path."""


def get(name: str, find: Finder, failure: type[Exception]) -> int:
    """Gets a program and says where it is: the whole of a command such as ``python -m deploy.temporal``.

    Args:
        name: The program's name for people.
        find: Finds or gets the program.
        failure: The exception that ``find`` raises when the program cannot be had.

    Returns:
        The exit code.
    """

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        say(f"{name}: {find(CACHE, say=say)}")
    except failure as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
