"""The header with the password of a PDF. A password is in no URL, because addresses are logged."""

import re
from urllib.parse import unquote

from starlette.datastructures import Headers

from activities.errors import InvalidRequest

HEADER = "Document-Password"
MAX_CHARACTERS = 3 * 127
"""The longest value of the header. A PDF looks at the first 127 bytes of a password: ISO 32000-2, 7.6.4.3.3."""

_NEXT = "%[89ABab][0-9A-Fa-f]"
PERCENT_ENCODED = (
    "([ -$&-~]|%([2-6][0-9A-Fa-f]|7[0-9A-Ea-e])"
    f"|%([Cc][2-9A-Fa-f]|[Dd][0-9A-Fa-f]){_NEXT}"
    f"|(%[Ee]0%[ABab][0-9A-Fa-f]|%[Ee][1-9A-CEFa-cef]{_NEXT}|%[Ee][Dd]%[89][0-9A-Fa-f]){_NEXT}"
    f"|(%[Ff]0%[9ABab][0-9A-Fa-f]|%[Ff][1-3]{_NEXT}|%[Ff]4%8[0-9A-Fa-f]){_NEXT}{_NEXT})*"
)
"""Characters without control characters, in UTF-8 by table 3-7 of the Unicode Standard."""


def read_password(headers: Headers) -> str:
    """The password in a request's headers; empty without one. No error shows it.

    Raises:
        InvalidRequest: It is not percent-encoded UTF-8, is too long, or has control characters.
    """
    text = headers.get(HEADER, "")
    if len(text) > MAX_CHARACTERS:
        msg = f"{HEADER} has {len(text):,} characters, limit {MAX_CHARACTERS}"
        raise InvalidRequest(msg)
    if not re.fullmatch(PERCENT_ENCODED, text):
        msg = f"{HEADER} is not percent-encoded UTF-8 without control characters, as encodeURIComponent of JavaScript makes it"
        raise InvalidRequest(msg)
    return unquote(text, errors="strict")
