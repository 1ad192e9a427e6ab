r"""Reads headers that carry parameters: ``Content-Disposition`` with a file name, ``Content-Type``.

Senders write a file name in different ways. These three are read, in this order:

1. ``filename*=UTF-8''Gr%C3%BCn.pdf``: RFC 8187, as RFC 6266 asks. RFC 7578 forbids it in a form, but some clients send it there, too.
   A value that cannot be decoded is passed over.
2. ``filename="=?utf-8?B?R3LDvG4ucGRm?="``: RFC 2047, made for mail. .NET sends it.
3. ``filename="Grün.pdf"``: the bytes are UTF-8, or else ISO 8859-1. A backslash escapes only a quote or a backslash, because some
   clients send ``C:\plans\a.pdf`` unescaped.

Every header is read once from left to right. A header that is longer than ``LONGEST_BYTES`` is refused.
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
        name: The header's name, for the error message.
        header: The header's value.

    Raises:
        InvalidRequest: The header is too long.
    """
    if len(header) > LONGEST_BYTES:
        msg = f"{name} has {len(header):,} bytes, limit {LONGEST_BYTES:,}"
        raise InvalidRequest(msg)
    return split_parameters(header)


def split_parameters(header: bytes) -> tuple[str, dict[str, str]]:
    """Like ``parameters``, for a header of any length; takes time in proportion to the length."""
    try:
        text = header.decode()
    except UnicodeDecodeError:
        text = header.decode("latin-1")
    value, separator, rest = text.partition(";")
    values: dict[str, str] = {}
    for match in _PARAMETER.finditer(separator + rest):
        content = (match[2] or "").strip()
        if len(content) >= 2 and content[0] == content[-1] == '"':
            content = _ESCAPED.sub(r"\1", content[1:-1])
        if match[1] and match[2] is not None:
            values.setdefault(match[1].lower(), content)
    return value.strip().lower(), values


def file_name(disposition: bytes) -> str | None:
    """The file name in a ``Content-Disposition``, as it was sent: it may hold directories and control characters.

    Returns:
        None if the header names no file; empty if it names a file in a form that cannot be read.

    Raises:
        InvalidRequest: The header is too long.
    """
    values = parameters("Content-Disposition", disposition)[1]
    extended, plain = values.get("filename*"), values.get("filename")
    if extended is not None and (name := _decode_extended(extended)) is not None:
        return name
    if plain is None:
        return None if extended is None else ""
    return _decode_encoded_words(plain) or plain


def _decode_extended(value: str) -> str | None:
    """The text of a value of RFC 8187: ``UTF-8'language'percent-encoded``."""
    match = _EXTENDED.fullmatch(value)
    return _decode(match[1], unquote_to_bytes(match[2])) if match else None


def _decode_encoded_words(value: str) -> str | None:
    """The text of a value that consists only of encoded words (RFC 2047); None for any other value."""
    words = []
    for word in value.split():
        match = _ENCODED_WORD.fullmatch(word)
        if match is None:
            return None
        try:
            data = base64.b64decode(match[3], validate=True) if match[2] in "Bb" else quopri.decodestring(match[3], header=True)
        except binascii.Error:
            return None
        text = _decode(match[1], data)
        if text is None:
            return None
        words.append(text)
    return "".join(words) or None


def _decode(character_set: str, data: bytes) -> str | None:
    if character_set.lower() not in _CHARACTER_SETS:
        return None
    try:
        return data.decode(character_set)
    except UnicodeDecodeError:
        return None
