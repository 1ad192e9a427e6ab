"""kustomize, which renders the manifests of Kubernetes. ``python -m tests.servers.kustomize`` gets the program."""

import sys
from collections.abc import Callable
from pathlib import Path

from deploy.programs import build, find_working, get

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
    advice = "Install Go (https://go.dev/dl) or kustomize, and check that it is on the PATH."
    return installed_kustomize(cache) or build("kustomize", MODULE, lambda: installed_kustomize(cache), NoKustomize, advice=advice, say=say)


def installed_kustomize(cache: Path) -> Path | None:
    """Finds the program without building it; None when it is not installed."""
    return find_working("kustomize", cache, "version")


if __name__ == "__main__":
    sys.exit(get("kustomize", kustomize_binary, NoKustomize))
