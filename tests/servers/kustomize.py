"""kustomize, which renders the manifests of Kubernetes. ``python -m tests.servers.kustomize`` gets the program."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deploy.programs import get, go_install, installed

MODULE = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"


class NoKustomize(Exception):
    """The program cannot be found or built; the message says what to do."""


def kustomize_binary(cache: Path, *, say: Callable[[str], None]) -> Path:
    """Finds the program ``kustomize``, else lets Go build it.

    Args:
        cache: A directory that may hold the program.
        say: Gets a sentence about each step that takes time.

    Raises:
        NoKustomize: The program is not found and cannot be built.
    """
    if binary := installed_kustomize(cache):
        return binary
    go = shutil.which("go")
    if go is None:
        msg = "No kustomize here: it is not on the PATH, and neither is `go` (https://go.dev/dl), which could build it."
        raise NoKustomize(msg)
    say(f"building kustomize: go install {MODULE} (about a minute the first time)")
    failure = go_install(go, MODULE, say=say)
    binary = installed_kustomize(cache)
    if failure is not None or binary is None:
        msg = f"Building kustomize failed:\n{failure or 'Go installed the program into a directory that is not searched'}"
        raise NoKustomize(msg)
    return binary


def installed_kustomize(cache: Path) -> Path | None:
    """Finds the program without building it; None when it is not installed."""
    for candidate in installed("kustomize", cache):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([candidate, "version"], capture_output=True, timeout=30, check=True)
            return candidate
    return None


if __name__ == "__main__":
    sys.exit(get("kustomize", kustomize_binary, NoKustomize))
