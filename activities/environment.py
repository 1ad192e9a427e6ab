"""Reads settings from the environment, one variable at a time. A variable that is empty counts as one that is not set.

Every reader raises ``ValueError`` for a value that cannot be used; the message names the variable, its value and the wanted values.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path


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

    Returns:
        The empty string when neither is set.
    """
    text, path = environ.get(name) or "", environ.get(f"{name}_FILE") or ""
    if not path:
        return text
    if text:
        msg = f"{name} and {name}_FILE are both set; only one of them is wanted"
        raise ValueError(msg)
    try:
        return Path(path).read_text().rstrip("\r\n")
    except OSError as error:
        msg = f"{name}_FILE is {path!r}: {error.strerror}"
    except UnicodeDecodeError:
        msg = f"{name}_FILE is {path!r}: this file is not text"
    raise ValueError(msg)


def _refusal(name: str, text: str, wanted: str) -> ValueError:
    return ValueError(f"{name} is {text!r}; {wanted} is wanted")
