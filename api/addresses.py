"""Addresses: where the stack of a data directory answers, whether a host is loopback, and whether another site has sent a request.

A stack holds the lock ``stack.lock`` while it runs, and writes its addresses to ``stack.json`` beside it. A killed stack leaves
``stack.json`` behind and frees the lock. So ``stack.json`` counts only while the lock is held.
"""

import fcntl
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

LOCK = "stack.lock"
FILE = "stack.json"


@dataclass(frozen=True)
class StackAddresses:
    """Where a stack answers.

    Args:
        api: URL of the API, and of the page.
        temporal: Host and port of the Temporal server.
        temporal_ui: URL of Temporal's UI.
    """

    api: str
    temporal: str
    temporal_ui: str

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """The addresses of the stack that runs on a data directory; None when no stack runs there, or before the stack answers."""
        if not is_locked(data_dir):
            return None
        try:
            addresses = json.loads((data_dir / FILE).read_bytes())
            return cls(*(str(addresses[name]) for name in ("api", "temporal", "temporalUi")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, data_dir: Path) -> None:
        """Writes the addresses to the data directory; raises OSError."""
        draft = data_dir / f"{FILE}.new"
        draft.write_text(json.dumps({"api": self.api, "temporal": self.temporal, "temporalUi": self.temporal_ui}) + "\n")
        draft.replace(data_dir / FILE)


def is_locked(data_dir: Path) -> bool:
    """Whether a stack runs, starts or stops on a data directory."""
    try:
        with (data_dir / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no stack has ever run there
        return False
    return False


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address without port, is a loopback address of this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_from_another_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site, or a link on it, has sent the request. Old browsers and programs say nothing.

    https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site
    """
    return headers.get("sec-fetch-site") not in (None, "same-origin", "none")
