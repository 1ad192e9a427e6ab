"""Seals the passwords of documents, so that what travels through Temporal shows them to nobody, not even to who can decrypt its payloads.

A password travels sealed from the API to the worker that opens the document, and is in no record of the bucket. It is sealed by AES-256-GCM
with the first key of ``SITELINK_CODEC_KEY``, for one upload: the seal of another upload does not open.
"""

import base64
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from activities.errors import PasswordRefused, PayloadUnreadable

_NONCE_BYTES = 12


class PasswordSeal:
    """Seals and opens passwords. An empty password is no password, and its seal is empty.

    Args:
        keys: As from ``workflows.codec.codec_keys``: the first seals, each opens.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers = tuple(map(AESGCM, keys))

    def check(self) -> None:
        """Returns if passwords can be sealed.

        Raises:
            PasswordRefused: There is no key.
        """
        if not self._ciphers:
            msg = "this server takes no password, because SITELINK_CODEC_KEY is not set; upload a copy that opens without one"
            raise PasswordRefused(msg)

    def seal(self, password: str, ref: str) -> str:
        """The sealed password of an upload, org/project/plan/upload. Raises like ``check``."""
        if not password:
            return ""
        self.check()
        nonce = os.urandom(_NONCE_BYTES)
        return base64.b64encode(nonce + self._ciphers[0].encrypt(nonce, password.encode(), _purpose(ref))).decode()

    def open(self, sealed: str, ref: str) -> str:
        """The password that was sealed for an upload.

        Raises:
            PayloadUnreadable: Its key is missing.
        """
        if not sealed:
            return ""
        data = base64.b64decode(sealed)
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _purpose(ref)).decode()
            except InvalidTag:
                continue
        msg = "the password of the upload is sealed by a key that SITELINK_CODEC_KEY of this process does not have"
        raise PayloadUnreadable(msg)


def _purpose(ref: str) -> bytes:
    return b"sitelink document password\0" + ref.encode()
