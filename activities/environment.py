"""Reads settings from the environment, one variable at a time. A variable that is empty counts as one that is not set.

Every reader raises ``ValueError`` for a value that cannot be used; the message names the variable, its value and the wanted values.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

PREFIX = "SITELINK_"

SETTINGS = frozenset(
    PREFIX + name
    for name in (
        "ACCESS",
        "BUCKET",
        "BUCKET_THREADS",
        "CODEC_KEY",
        "CORS_ORIGINS",
        "CUTTER",
        "DATA_DIR",
        "EVENTS_ACCOUNT",
        "EVENTS_API",
        "EVENTS_ATTEMPTS",
        "EVENTS_QUEUE",
        "EVENTS_SECRET",
        "EVENTS_TOKEN",
        "HOST",
        "JWT_AUDIENCE",
        "JWT_ISSUER",
        "JWT_JWKS",
        "JWT_SECRET",
        "LIMITS_STORAGE",
        "LIMIT_ADDRESS",
        "LIMIT_ORGANIZATION",
        "LOG_FORMAT",
        "MAX_CONNECTIONS",
        "MAX_FILE_BYTES",
        "MAX_OPEN_UPLOADS",
        "MAX_PAGES",
        "MAX_SHEET_TILES",
        "MAX_SIDE_PX",
        "MAX_STREAMS",
        "MAX_UPLOAD_TILES",
        "METRICS_HOST",
        "METRICS_PORT",
        "PORT",
        "PRICE_CLASS_A",
        "PRICE_CLASS_B",
        "PROXIES",
        "PUBLIC_HOSTS",
        "RENDER_CPU_S",
        "RENDER_MEMORY_BYTES",
        "RENDER_SLOTS",
        "RENDER_USER",
        "RENDER_WALL_S",
        "S3_ENDPOINT",
        "SCRATCH_DIR",
        "SCRATCH_LIMIT_BYTES",
        "SECONDS_PER_MEGAPIXEL",
        "SOURCE_PREFIX",
        "TICKET_SECRET",
        "TOKEN",
        "UNCONFINED",
        "UPLOAD_MEMORY_BYTES",
        "UPLOAD_SLOTS",
        "URL",
        "WEBHOOK_NETWORKS",
        "WEBHOOK_SECRET",
    )
)
"""The settings of all processes, without those of Temporal and of an S3 server, which have names of their own."""

SECRETS = frozenset(
    (
        "AWS_SECRET_ACCESS_KEY",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "SITELINK_CODEC_KEY",
        "SITELINK_EVENTS_SECRET",
        "SITELINK_EVENTS_TOKEN",
        "SITELINK_JWT_SECRET",
        "SITELINK_LIMITS_STORAGE",
        "SITELINK_TICKET_SECRET",
        "SITELINK_TOKEN",
        "SITELINK_WEBHOOK_SECRET",
        "TEMPORAL_API_KEY",
    )
)
"""The settings that are secret: each may be in a file, see ``secret``."""


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """The variables that are named like settings of SiteLink, but that SiteLink does not know. No value is shown.

    If a setting has a name that is near, the name follows in brackets.
    """
    known = SETTINGS | {f"{name}_FILE" for name in SECRETS if name.startswith(PREFIX)}
    endings = [name.removeprefix(PREFIX) for name in sorted(known)]
    unknown = []
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name.upper().removeprefix(PREFIX), endings, 1)
            unknown.append(f"{name} (is {PREFIX}{nearest[0]} meant?)" if nearest else name)
    return unknown


def whole_number(
    environ: Mapping[str, str], name: str, default: int, *, low: int = 1, high: int | None = None, digits_only: bool = False
) -> int:
    """A whole number of at least ``low`` and, where there is an upper limit, at most ``high``.

    With ``digits_only`` it consists of ASCII digits. Without, it is read by ``int``, which also takes a sign, spaces around the number,
    underscores between its digits, and the digits of other scripts.
    """
    text = environ.get(name) or str(default)
    try:
        value = int(text) if not digits_only or (text.isascii() and text.isdigit()) else low - 1
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        allowed = f"of at least {low:,}" if high is None else f"from {low:,} to {high:,}"
        raise _refusal(name, text, f"a whole number {allowed}")
    return value


def amount(environ: Mapping[str, str], name: str, default: float) -> float:
    """A number of at least 0, with or without a fraction."""
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise _refusal(name, text, "a number of at least 0")
    return value


def choice(environ: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """One of ``choices``, of which the first is the default."""
    text = environ.get(name) or choices[0]
    if text not in choices:
        raise _refusal(name, text, " or ".join(filter(None, choices)))
    return text


def secret(environ: Mapping[str, str], name: str) -> str:
    """A secret: the value of ``name``, or the text of the file that ``{name}_FILE`` names, without the newline at its end.

    Args:
        environ: The variables.
        name: One of ``SECRETS``.

    Returns:
        The empty string when neither is set.

    Raises:
        ValueError: Both are set, or the file cannot be read, or has no text. The message shows no secret.
    """
    text, path = environ.get(name) or "", environ.get(f"{name}_FILE") or ""
    if not path:
        return text
    if text:
        msg = f"{name} and {name}_FILE are both set; only one of them is wanted"
        raise ValueError(msg)
    try:
        if text := Path(path).read_text().rstrip("\r\n"):
            return text
        msg = f"{name}_FILE is {path!r}: this file is empty"
    except OSError as error:
        msg = f"{name}_FILE is {path!r}: {error.strerror}"
    except UnicodeDecodeError:
        msg = f"{name}_FILE is {path!r}: this file is not text"
    raise ValueError(msg) from None


def _refusal(name: str, text: str, wanted: str) -> ValueError:
    return ValueError(f"{name} is {text!r}; {wanted} is wanted")
