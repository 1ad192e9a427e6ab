r"""Reads headers that carry parameters: ``Content-Disposition`` with a file name, ``Content-Type``.

Senders do not agree on how to write a file name. All of these forms are read, in this order:

1. ``filename*=UTF-8''Gr%C3%BCn.pdf``: RFC 8187, as RFC 6266 asks. RFC 7578 forbids it in a form, and clients send it there all the same.
   One that cannot be decoded is passed over.
2. ``filename="=?utf-8?B?R3LDvG4ucGRm?="``: RFC 2047, a form for mail that .NET sends.
3. ``filename="Grün.pdf"``: the bytes are UTF-8, or else ISO 8859-1. A backslash escapes a quote or a backslash and nothing else, for
   ``C:\plans\a.pdf`` comes unescaped.

Every header is read once from left to right; a header that is longer than ``LONGEST_BYTES`` is refused.
"""

import base64
import binascii
import quopri
import re
from urllib.parse import unquote_to_bytes

from activities.errors import InvalidRequest

LONGEST_BYTES = 1024

_PARAMETER = re.compile(r';[ \t]*([^;="\s]*)[ \t]*(?:=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*))?[^;]*', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_EXTENDED = re.compile(r"([A-Za-z0-9-]+)'[A-Za-z0-9-]*'((?:[^%]|%[0-9A-Fa-f]{2})*)")
_ENCODED_WORD = re.compile(r"=\?([A-Za-z0-9-]+)\?([BbQq])\?([!-~]*)\?=")
_CHARACTER_SETS = ("utf-8", "iso-8859-1", "us-ascii")


def parameters(name: str, header: bytes) -> tuple[str, dict[str, str]]:
    """The value of a header and its parameters. Names and value are in lower case; of parameters with the same name, the first counts.

    Args:
        name: The header's name, for the refusal.
        header: The header's value.

    Raises:
        InvalidRequest: The header is too long.
    """
    if len(header) > LONGEST_BYTES:
        msg = f"{name} has {len(header):,} bytes, limit {LONGEST_BYTES:,}"
        raise InvalidRequest(msg)
    return split_parameters(header)


def split_parameters(header: bytes) -> tuple[str, dict[str, str]]:
    """``parameters`` of a header of any length, in time proportional to its length."""
    try:
        text = header.decode()
    except UnicodeDecodeError:
        text = header.decode("latin-1")
    value, separator, rest = text.partition(";")
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(separator + rest):
        content = (match[2] or "").strip()
        if len(content) >= 2 and content[0] == content[-1] == '"':
            content = _ESCAPED.sub(r"\1", content[1:-1])
        if match[1] and match[2] is not None:
            found.setdefault(match[1].lower(), content)
    return value.strip().lower(), found


def file_name(disposition: bytes) -> str | None:
    """The file name in a ``Content-Disposition``, as it was sent: it may hold directories and control characters.

    Returns:
        None if the header names no file; empty if it names one in a form that cannot be read.

    Raises:
        InvalidRequest: It is too long.
    """
    found = parameters("Content-Disposition", disposition)[1]
    extended, plain = found.get("filename*"), found.get("filename")
    if extended is not None and (name := _extended(extended)) is not None:
        return name
    if plain is None:
        return None if extended is None else ""
    return _of_mail(plain) or plain


def _extended(value: str) -> str | None:
    """The text of a value of RFC 8187: ``UTF-8'language'percent-encoded``."""
    match = _EXTENDED.fullmatch(value)
    return _decoded(match[1], unquote_to_bytes(match[2])) if match else None


def _of_mail(value: str) -> str | None:
    """The text of a value that consists of encoded words (RFC 2047) only; None for any other value."""
    words = []
    for word in value.split():
        match = _ENCODED_WORD.fullmatch(word)
        if match is None:
            return None
        try:
            data = base64.b64decode(match[3], validate=True) if match[2] in "Bb" else quopri.decodestring(match[3], header=True)
        except binascii.Error:
            return None
        text = _decoded(match[1], data)
        if text is None:
            return None
        words.append(text)
    return "".join(words) or None


def _decoded(character_set: str, data: bytes) -> str | None:
    if character_set.lower() not in _CHARACTER_SETS:
        return None
    try:
        return data.decode(character_set)
    except UnicodeDecodeError:
        return None
