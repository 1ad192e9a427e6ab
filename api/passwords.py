"""The header with the password of a PDF. A password is in no URL, because addresses are logged."""

import re
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers

from activities.errors import InvalidRequest

HEADER = "Document-Password"
MAX_PASSWORD_BYTES = 127
"""The longest password of a PDF: ISO 32000-2, 7.6.4.3.3."""

PERCENT_ENCODED = "([ -$&-~]|%[0-9A-Fa-f]{2})*"


def read_password(headers: Headers) -> str:
    """The password in a request's headers; empty without one. No error shows it.

    Raises:
        InvalidRequest: It is not percent-encoded UTF-8, is too long, or has control characters.
    """
    text = headers.get(HEADER, "")
    data = unquote_to_bytes(text) if re.fullmatch(PERCENT_ENCODED, text) else b"\xff"
    password = data.decode("utf-8", "ignore")
    if password.encode() != data:
        msg = f"{HEADER} is not percent-encoded UTF-8, as encodeURIComponent of JavaScript makes it"
        raise InvalidRequest(msg)
    if len(data) > MAX_PASSWORD_BYTES:
        msg = f"{HEADER} has {len(data):,} bytes, limit {MAX_PASSWORD_BYTES}"
        raise InvalidRequest(msg)
    if any(character < " " or character == "\x7f" for character in password):
        msg = f"{HEADER} has control characters"
        raise InvalidRequest(msg)
    return password
