"""Checks the body of a request against its ``Content-Digest`` and ``Repr-Digest``.

https://www.rfc-editor.org/rfc/rfc9530

Both digests are of the same bytes here, because a body with a ``Content-Encoding`` or a ``Content-Range`` is refused.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import cast

import http_sf
from starlette.datastructures import Headers

from activities.errors import DigestMismatch, EncodedContent, InvalidRequest

FIELDS = ("Content-Digest", "Repr-Digest")
ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
"""The active algorithms of https://www.iana.org/assignments/http-digest-hash-alg. Digests by other algorithms are passed over."""
LONGEST_CHARACTERS = 4096


@dataclass(frozen=True)
class _Promise:
    """A digest that the sender has announced."""

    field: str
    algorithm: str
    digest: bytes


class BodyDigests:
    """The digests that a request announces for its body.

    Args:
        headers: The headers of the request.

    Raises:
        InvalidRequest: A field is malformed.
    """

    def __init__(self, headers: Headers) -> None:
        self._promises = [promise for field in FIELDS for promise in _read(field, ", ".join(headers.getlist(field)))]
        self._hashes = {promise.algorithm: ALGORITHMS[promise.algorithm]() for promise in self._promises}

    def update(self, piece: bytes) -> None:
        """Takes the next piece of the body."""
        for digest in self._hashes.values():
            digest.update(piece)

    def announces_other(self, sha256: str) -> bool:
        """Whether a body with this SHA-256, hexadecimal, is not the one that is announced."""
        return any(promise.algorithm == "sha-256" and promise.digest.hex() != sha256 for promise in self._promises)

    def check(self) -> None:
        """Checks the whole body.

        Raises:
            DigestMismatch: The body has another digest than an announced one.
        """
        for promise in self._promises:
            digest = self._hashes[promise.algorithm].digest()
            if digest != promise.digest:
                msg = f"{promise.field}: the body has the {promise.algorithm} {_base64(digest)}, announced was {_base64(promise.digest)}"
                raise DigestMismatch(msg)


def refuse_encoded(headers: Headers) -> None:
    """Returns if the body comes as it is.

    Raises:
        EncodedContent: The body has a ``Content-Encoding``.
    """
    if (encoding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
        msg = f"Content-Encoding is {encoding[:80]!r}: send the body as it is"
        raise EncodedContent(msg)


def _read(field: str, text: str) -> list[_Promise]:
    """The digests in the value of a field, which is a dictionary of byte sequences.

    https://www.rfc-editor.org/rfc/rfc9530#section-2
    """
    if not text:
        return []
    if len(text) > LONGEST_CHARACTERS:
        msg = f"{field} has {len(text):,} characters, limit {LONGEST_CHARACTERS:,}"
        raise InvalidRequest(msg)
    try:
        members = cast("dict[str, tuple[object, object]]", http_sf.parse(text.encode("latin-1"), tltype="dictionary"))
    except http_sf.StructuredFieldError as error:
        msg = f"{field} is malformed, an example is sha-256=:{_base64(bytes(32))}:"
        raise InvalidRequest(msg) from error
    promises = []
    for algorithm, (digest, _) in members.items():
        if algorithm not in ALGORITHMS:
            continue
        length = ALGORITHMS[algorithm]().digest_size
        if not isinstance(digest, bytes) or len(digest) != length:
            msg = f"{field}: {algorithm} is not a byte sequence of {length} bytes"
            raise InvalidRequest(msg)
        promises.append(_Promise(field, algorithm, digest))
    return promises


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
