"""``python -m deploy.health``: whether the process with these settings works. For the health check of a container.

It finds what a restart can heal. So it does not look at Temporal and the bucket, as ``/readyz`` of the API and ``deploy.check`` do.
"""

import os
import sys
from collections.abc import Mapping
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

from activities.environment import whole_number

ANSWER_LIMIT_S = 5
STANDSTILL_LIMIT_S = 60
"""An event loop that stands still so long does nothing else again."""


def health(environ: Mapping[str, str]) -> str | None:
    """None if the process works, else what is wrong.

    The process is asked at its metrics port, where it says what it is; the API is also asked at its own port.

    Args:
        environ: The environment of the process.
    """
    port = whole_number(environ, "SITELINK_METRICS_PORT", 0, low=0, high=65_535, digits_only=True)
    if not port:
        return "SITELINK_METRICS_PORT is not set, or 0: nobody knows where to ask"
    try:
        families = {
            family.name: family for family in text_string_to_metric_families(_get(environ.get("SITELINK_METRICS_HOST"), port, "/metrics"))
        }
        if families["sitelink_process"].samples[0].labels == {"role": "api"}:
            _get(environ.get("SITELINK_HOST"), whole_number(environ, "SITELINK_PORT", 8000, low=0, high=65_535), "/livez")
            return None
        standstill_s = families["sitelink_event_loop_standstill_seconds"].samples[0].value
    except (OSError, HTTPException, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None if standstill_s < STANDSTILL_LIMIT_S else f"the event loop stands still since {standstill_s:.0f} s"


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
