"""What worker processes are told by their environment."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from activities.forecast import PRICE_CLASS_A, PRICE_CLASS_B, SECONDS_PER_MEGAPIXEL, Forecaster
from activities.storage import BucketSettings
from api.addresses import is_loopback
from api.settings import events_attempts

CLOUDFLARE = "https://api.cloudflare.com/client/v4"


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of one worker process.

    Args:
        bucket: Where objects go.
        scratch_directory: This host's scratch; one worker process uses it.
        scratch_limit_bytes: Pages wait to be tiled while tiles on the scratch take more.
        render_slots: Render children at once.
        render_memory_bytes: Memory limit of a render child.
        render_cpu_s: CPU seconds that one page may take.
        render_wall_s: Seconds that one page may take.
        upload_slots: Sheets that may be uploaded at once.
        bucket_threads: Requests to the bucket at once.
        max_pages: Most pages that a document may have.
        forecaster: What forecasts rest on: render slots, speed and prices.
    """

    bucket: BucketSettings
    scratch_directory: Path
    scratch_limit_bytes: int
    render_slots: int
    render_memory_bytes: int
    render_cpu_s: int
    render_wall_s: int
    upload_slots: int
    bucket_threads: int
    max_pages: int
    forecaster: Forecaster

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the environment.

        Raises:
            ValueError: A number is none or out of its range; the message names the variable.
        """
        data_directory = Path(environ.get("SITELINK_DATA_DIR") or "var")
        bucket = BucketSettings.from_env(environ)
        render_slots = _number(environ, "SITELINK_RENDER_SLOTS", os.cpu_count() or 1)
        return cls(
            bucket=bucket,
            scratch_directory=Path(environ.get("SITELINK_SCRATCH_DIR") or data_directory / "scratch").absolute(),
            scratch_limit_bytes=_number(environ, "SITELINK_SCRATCH_LIMIT_BYTES", 8 << 30),
            render_slots=render_slots,
            render_memory_bytes=_number(environ, "SITELINK_RENDER_MEMORY_BYTES", 3 << 30),
            render_cpu_s=_number(environ, "SITELINK_RENDER_CPU_S", 120),
            render_wall_s=_number(environ, "SITELINK_RENDER_WALL_S", 180),
            upload_slots=_number(environ, "SITELINK_UPLOAD_SLOTS", 64),
            bucket_threads=_number(environ, "SITELINK_BUCKET_THREADS", 16 if bucket.is_s3 else 2),
            max_pages=_number(environ, "SITELINK_MAX_PAGES", 2000),
            forecaster=Forecaster(
                render_slots,
                seconds_per_megapixel=_amount(environ, "SITELINK_SECONDS_PER_MEGAPIXEL", SECONDS_PER_MEGAPIXEL),
                price_class_a=_amount(environ, "SITELINK_PRICE_CLASS_A", PRICE_CLASS_A),
                price_class_b=_amount(environ, "SITELINK_PRICE_CLASS_B", PRICE_CLASS_B),
            ),
        )


@dataclass(frozen=True)
class EventsSettings:
    """Where the queue is.

    Args:
        account: Cloudflare's id of the account.
        queue: Cloudflare's id of the queue, not its name.
        token: Of the API, with the permission Queues Edit.
        attempts: How often a message that is no event is delivered before it is kept aside.
        url: The API's address.

    Raises:
        ValueError: A value cannot be used; the message names its variable and shows no secret.
    """

    account: str
    queue: str
    token: str = field(repr=False)
    attempts: int
    url: str = CLOUDFLARE

    def __post_init__(self) -> None:
        for name, value in (("SITELINK_EVENTS_ACCOUNT", self.account), ("SITELINK_EVENTS_QUEUE", self.queue)):
            if not (value.isascii() and value.isalnum()):
                msg = f"{name} is {value[:80]!r}; the 32 letters and digits are wanted that Cloudflare shows as its id"
                raise ValueError(msg)
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            msg = "SITELINK_EVENTS_TOKEN has characters that no token has"
            raise ValueError(msg)
        parts = urlsplit(self.url)
        is_good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        if not is_good or not parts.hostname or "@" in parts.netloc:
            msg = f"SITELINK_EVENTS_API is not an address of the kind {CLOUDFLARE}"
            raise ValueError(msg)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self | None:
        """Reads the environment.

        Returns:
            None when nothing of it is set: there is no such role then.

        Raises:
            ValueError: Only a part is set, or a value cannot be used.
        """
        names = ("SITELINK_EVENTS_ACCOUNT", "SITELINK_EVENTS_QUEUE", "SITELINK_EVENTS_TOKEN")
        account, queue, token = values = [environ.get(name) or "" for name in names]
        if not any(values):
            return None
        if missing := [name for name, value in zip(names, values, strict=True) if not value]:
            msg = f"{' and '.join(missing)} must be set, too, to take events from a queue"
            raise ValueError(msg)
        url = (environ.get("SITELINK_EVENTS_API") or CLOUDFLARE).rstrip("/")
        return cls(account, queue, token, events_attempts(environ), url)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        msg = f"{name} is {text!r}; a whole number above 0 is wanted"
        raise ValueError(msg)
    return value


def _amount(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        msg = f"{name} is {text!r}; a number of at least 0 is wanted"
        raise ValueError(msg)
    return value
