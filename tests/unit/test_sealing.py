"""Sealed passwords: who lacks the key, or asks for another upload, learns nothing."""

import base64

import pytest

from activities.errors import PasswordRefused, PayloadUnreadable
from activities.sealing import PasswordSeal

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
REF, PASSWORD = "acme/tower/a1/u1", "Türschloß"


def test_seal_opens_with_any_key_of_a_process() -> None:
    """As while a key is replaced. Without a password there is nothing to seal, also without a key."""
    sealed = PasswordSeal([KEY]).seal(PASSWORD, REF)
    assert PASSWORD.encode() not in base64.b64decode(sealed)
    assert sealed != PasswordSeal([KEY]).seal(PASSWORD, REF)
    assert PasswordSeal([OTHER, KEY]).open(sealed, REF) == PASSWORD
    assert PasswordSeal().open(PasswordSeal().seal("", REF), REF) == ""


@pytest.mark.parametrize(("keys", "ref"), [([], REF), ([OTHER], REF), ([KEY], "acme/tower/a1/u2")])
def test_seal_does_not_open_without_its_key_or_for_another_upload(keys: list[bytes], ref: str) -> None:
    """The activity is tried again until a worker has the key."""
    sealed = PasswordSeal([KEY]).seal(PASSWORD, REF)
    with pytest.raises(PayloadUnreadable) as refusal:
        PasswordSeal(keys).open(sealed, ref)
    assert not refusal.value.final


def test_password_without_a_key_is_refused() -> None:
    """By name, and without a word of it."""
    with pytest.raises(PasswordRefused, match="SITELINK_CODEC_KEY") as refusal:
        PasswordSeal().seal(PASSWORD, REF)
    assert PASSWORD not in str(refusal.value)
