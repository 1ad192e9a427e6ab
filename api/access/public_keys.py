"""The public keys that sign the tokens of users: a JWKS in a file or at a URL.

https://www.rfc-editor.org/rfc/rfc7517

The keys are fetched in a thread, at most one fetch at a time. They are fetched again every ``REFRESH_S``, in the background, and when a
token names an unknown key, so that a new key is known at once. While a fetch fails, the keys that are known go on to count for
``KEPT_S``.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import jwt

from activities.errors import KeysUnavailable
from api.access.tokens import PUBLIC_KEY_ALGORITHMS
from api.addresses import is_loopback

logger = logging.getLogger(__name__)

REFRESH_S = 300.0
KEPT_S = 24 * 3600.0
PAUSE_S = 10.0
"""The shortest time between two fetches that unknown keys cause."""
FIRST_PAUSE_S = 1.0
"""The shortest time between two fetches while no key is known."""
TIMEOUT_S, LONGEST_S = 5.0, 15.0
"""How long the server of the keys may be silent, and how long its whole answer may take."""
MAX_BYTES = 1 << 20


class FetchedKeys:
    """The keys of one JWKS.

    Args:
        source: ``https://…``, ``http://…`` on this machine, or the path of a file.
        fetch: Reads the source; runs in a thread.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, source: str, *, fetch: Callable[[str], bytes] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._fetch = fetch or read_source
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of this id. Without an id, the one key, if there is exactly one.

        Raises:
            KeysUnavailable: No keys are known, because they could not be fetched.
        """
        age_s = None if self._fetched_at is None else self._clock() - self._fetched_at
        if age_s is None or age_s > KEPT_S:
            self._keys = {}
            await self._refresh(FIRST_PAUSE_S)
            if not self._keys:
                msg = "the public keys that sign tokens could not be fetched"
                raise KeysUnavailable(msg)
        elif age_s > REFRESH_S:
            self._start_refresh(PAUSE_S)
        key = self._known(key_id)
        if key is None:
            await self._refresh(PAUSE_S)
            key = self._known(key_id)
        return key

    async def refresh(self) -> None:
        """Fetches the keys; a failure is only logged."""
        await self._refresh(0)

    async def close(self) -> None:
        """Ends a running fetch."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})

    def _known(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _start_refresh(self, pause_s: float) -> asyncio.Task[None] | None:
        if self._refreshing is not None and not self._refreshing.done():
            return self._refreshing
        if self._tried_at is not None and self._clock() - self._tried_at < pause_s:
            return None
        self._tried_at = self._clock()
        self._refreshing = asyncio.create_task(self._load())
        return self._refreshing

    async def _refresh(self, pause_s: float) -> None:
        if task := self._start_refresh(pause_s):
            await asyncio.shield(task)  # a request that is cancelled does not end the fetch that others wait for

    async def _load(self) -> None:
        try:
            keys = parse_keys(await asyncio.to_thread(self._fetch, self._source))
        except (OSError, ValueError) as error:
            logger.warning("the public keys could not be fetched", extra={"source": self._source, "problem": str(error)})
            return
        if keys.keys() != self._keys.keys():
            logger.info("fetched the public keys", extra={"keys": len(keys)})
        self._keys, self._fetched_at = keys, self._clock()


def parse_keys(body: bytes) -> dict[str | None, jwt.PyJWK]:
    """The public signature keys of a JWKS, by id. Secret keys (``oct``) and keys for encryption are left out.

    Raises:
        ValueError: The body is not a JWKS, or has no key that can be used.
    """
    try:
        key_set = jwt.PyJWKSet.from_dict(json.loads(body))
    except (jwt.PyJWTError, ValueError, AttributeError, TypeError, RecursionError) as error:
        msg = "this is not a JWKS with a key that can be used"
        raise ValueError(msg) from error
    keys: dict[str | None, jwt.PyJWK] = {}
    for key in key_set.keys:
        is_usable = key.algorithm_name in PUBLIC_KEY_ALGORITHMS and key.public_key_use in (None, "sig")
        if is_usable and isinstance(key.key_id, str | None):
            keys.setdefault(key.key_id, key)
    if not keys:
        msg = "the JWKS has no public key for signatures"
        raise ValueError(msg)
    return keys


def read_source(source: str, *, longest_s: float = LONGEST_S) -> bytes:
    """The JWKS at a URL, or in a file.

    Raises:
        OSError: It cannot be read, or takes longer than ``longest_s`` seconds.
        ValueError: It is too large, or the server answers with an error or elsewhere.
    """
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        with Path(source).open("rb") as file:
            body = file.read(MAX_BYTES + 1)
    else:
        body = _download(source, longest_s, is_local=is_loopback(parts.hostname or ""))
    if len(body) > MAX_BYTES:
        msg = f"the JWKS has more than {MAX_BYTES:,} bytes"
        raise ValueError(msg)
    return body


def _download(url: str, longest_s: float, *, is_local: bool) -> bytes:
    import httpx2  # imported here, because servers without a URL of keys need no HTTP client

    body, deadline = bytearray(), time.monotonic() + longest_s
    try:
        with (
            httpx2.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=not is_local) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                msg = f"the server answers {response.status_code}"
                raise ValueError(msg)
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    break
                if time.monotonic() > deadline:
                    msg = f"the answer takes more than {longest_s:g} seconds"
                    raise TimeoutError(msg)
    except httpx2.HTTPError as error:
        raise OSError(type(error).__name__) from error
    return bytes(body)
