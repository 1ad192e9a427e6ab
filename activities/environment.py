"""Reads settings from the environment, one variable at a time. A variable that is empty counts as one that is not set.

Every reader raises ``ValueError`` for a value that cannot be used; the message names the variable, its value and the wanted values.
"""

import math
from collections.abc import Mapping, Sequence


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
        raise _refusal(name, text, " or ".join(choices))
    return text


def _refusal(name: str, text: str, wanted: str) -> ValueError:
    return ValueError(f"{name} is {text!r}; {wanted} is wanted")
