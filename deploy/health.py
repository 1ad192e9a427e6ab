"""``python -m deploy.health``: whether the process with these settings lives. For the health check of a container.

It finds what a restart can heal. So it does not look at Temporal and the bucket, as ``/readyz`` of the API and ``deploy.check`` do.
"""

import os
import sys
from collections.abc import Mapping
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

from activities.environment import whole_number

ANSWER_LIMIT_S = 5


def health(environ: Mapping[str, str]) -> str | None:
    """None if the process lives, else what is wrong.

    The process says at its metrics port which it is. The API is then asked for ``/livez`` at its own port, each other at that port.

    Args:
        environ: The environment of the process.
    """
    try:
        metrics_port = whole_number(environ, "SITELINK_METRICS_PORT", 0, low=0, high=65_535, digits_only=True)
        if not metrics_port:
            return "SITELINK_METRICS_PORT is not set, or 0: nobody knows where to ask"
        host, port = environ.get("SITELINK_METRICS_HOST"), metrics_port
        metrics = _get(host, port, "/metrics")
        if 'sitelink_process{role="' not in metrics:
            return f"what listens at port {port} is another program"
        if 'sitelink_process{role="api"}' in metrics:
            host, port = environ.get("SITELINK_HOST"), whole_number(environ, "SITELINK_PORT", 8000, low=0, high=65_535)
        _get(host, port, "/livez")
    except (OSError, HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _get(host: str | None, port: int, path: str) -> str:
    """The answer of this machine's server. A server that listens on all addresses is asked at the loopback."""
    if not host or host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"
    with build_opener(ProxyHandler({})).open(url, timeout=ANSWER_LIMIT_S) as response:
        return str(response.read().decode())


def main() -> int:
    """Says what is wrong. Returns 0 if nothing is, else 1."""
    if wrong := health(os.environ):
        sys.stderr.write(f"{wrong}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
