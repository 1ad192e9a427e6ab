"""Encrypts what Temporal stores about an upload: arguments, results, progress, summaries, details, and the words of failures.

The form is that of Temporal's own example: a payload is encrypted whole by AES-256-GCM, and its metadata names the key.
https://github.com/temporalio/samples-python/blob/main/encryption/codec.py

Oddities, all on purpose:

1. Numbers, truth values, null and the steps of activities stay in clear: they name nothing. Temporal's library ends an activity for good
   when it cannot decrypt a heartbeat of the attempt before; everything else that it cannot decrypt is tried again.
2. A process without a key has this codec, too. It stores in clear, and refuses an encrypted payload by name. Without the codec,
   Temporal's library would drop a signal that it cannot read.
3. A nonce is random. One key should encrypt less than 2^32 payloads, which is 100,000 uploads of 2,000 sheets:
   https://nvlpubs.nist.gov/nistpubs/Legacy/SP/nistspecialpublication800-38d.pdf, 8.3.
"""

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
    PayloadConverter,
)
from temporalio.exceptions import ApplicationError

from activities.environment import secret
from activities.errors import InvalidRequest, PayloadUnreadable, is_error_name
from activities.interface import IN_CLEAR

ENCODING = b"binary/encrypted"
NONCE_BYTES = 12

_KEY = re.compile(r"[0-9a-fA-F]{64}")
_NAMES_NOTHING = re.compile(rb"-?[0-9][0-9.eE+-]{0,30}|true|false|null")


def codec_keys(environ: Mapping[str, str]) -> tuple[bytes, ...]:
    """Reads ``SITELINK_CODEC_KEY``.

    Returns:
        The keys, of 32 bytes each; the first encrypts, each decrypts. None of them when payloads are stored in clear.

    Raises:
        ValueError: One is not a key. The message shows no key.
    """
    texts = list(filter(None, map(str.strip, secret(environ, "SITELINK_CODEC_KEY").split(","))))
    if not all(map(_KEY.fullmatch, texts)):
        msg = "a key in SITELINK_CODEC_KEY is not 64 hexadecimal digits; `openssl rand -hex 32` makes a good one"
        raise ValueError(msg)
    return tuple(map(bytes.fromhex, texts))


def data_converter(keys: Sequence[bytes]) -> DataConverter:
    """The converter of every client and worker, by the keys of ``codec_keys``."""
    return DataConverter(payload_codec=Codec(keys), failure_converter_class=SealedFailures if keys else NamedFailures)


class NamedFailures(DefaultFailureConverter):
    """Stores a failure with a name of ours as name and sentence, for people to read.

    Its traceback and its causes are in the worker's log. With them, many a failure is over the 4 KB that Temporal keeps of an activity that
    is tried again, and Temporal then shows "Failure exceeds size limit" in its place.
    """

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        """See ``FailureConverter``."""
        if isinstance(exception, ApplicationError) and is_error_name(exception.type or ""):
            exception = copy(exception)  # which has neither traceback nor causes
        super().to_failure(exception, payload_converter, failure)


class SealedFailures(NamedFailures, DefaultFailureConverterWithEncodedAttributes):
    """The same, where payloads are encrypted."""


class Codec(PayloadCodec):
    """Encrypts and decrypts payloads.

    Args:
        keys: The first encrypts, each decrypts; without a key, payloads stay in clear.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._first = next(iter(self._ciphers), None)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See ``PayloadCodec``."""
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """See ``PayloadCodec``. Payloads that are not encrypted stay as they are.

        Raises:
            PayloadUnreadable: A payload's key is missing, or the payload is not what was encrypted.
        """
        return [self._decrypted(payload) if payload.metadata.get("encoding") == ENCODING else payload for payload in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        if self._first is None or _names_nothing(payload) or payload.metadata.get("encoding") == ENCODING:
            return payload
        nonce = os.urandom(NONCE_BYTES)
        data = nonce + self._ciphers[self._first].encrypt(nonce, payload.SerializeToString(), None)
        return Payload(metadata={"encoding": ENCODING, "encryption-key-id": self._first.encode()}, data=data)

    def _decrypted(self, payload: Payload) -> Payload:
        key_id = payload.metadata.get("encryption-key-id", b"").decode("ascii", "replace")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            msg = f"a payload in Temporal is encrypted by the key {key_id[:20]!r}, which SITELINK_CODEC_KEY of this process does not have"
            raise PayloadUnreadable(msg)
        try:
            return Payload.FromString(cipher.decrypt(payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:], None))
        except (InvalidTag, ValueError) as error:
            msg = f"a payload in Temporal names the key {key_id!r}, but was not encrypted by it, or was altered"
            raise PayloadUnreadable(msg) from error


def _key_id(key: bytes) -> str:
    """Names a key without telling anything about it that helps to guess it."""
    return sha256(b"sitelink codec key\0" + key).hexdigest()[:12]


def _names_nothing(payload: Payload) -> bool:
    encoding = payload.metadata.get("encoding")
    return (
        encoding == b"binary/null"
        or IN_CLEAR in payload.metadata
        or (encoding == b"json/plain" and _NAMES_NOTHING.fullmatch(payload.data) is not None)
    )


def read_payloads(body: bytes | bytearray) -> Sequence[Payload]:
    """The payloads of a request to a codec server: https://docs.temporal.io/codec-server.

    Raises:
        InvalidRequest: The body is not the JSON of payloads.
    """
    try:
        document = json.loads(body)
        for payload in document["payloads"]:
            for text in (payload.get("data", ""), *payload.get("metadata", {}).values()):
                base64.b64decode(text, validate=True)  # protobuf would pass over whatever is no base64
        return ParseDict({"payloads": document["payloads"]}, Payloads(), ignore_unknown_fields=True).payloads
    except (ParseError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = 'the body is not {"payloads": [...]} in the JSON form of protobuf'
        raise InvalidRequest(msg) from error


def write_payloads(payloads: Sequence[Payload]) -> str:
    """The answer of a codec server."""
    return json.dumps({"payloads": [MessageToDict(payload) for payload in payloads]}, separators=(",", ":"))
