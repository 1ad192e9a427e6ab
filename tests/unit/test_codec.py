"""The codec of what Temporal stores, and its server below the API."""

import base64
import logging
from collections.abc import Sequence

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError

from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from activities.errors import PayloadUnreadable
from api.access.settings import AccessSettings
from api.app import create_app
from api.settings import ApiSettings
from tests.unit.api_fakes import PATH, REF, FakeTemporal, accept, client_of
from workflows.codec import Codec, codec_keys, data_converter

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
TITLE = "A-101 - First Floor Plan"


async def encrypted(*keys: bytes, value: object = TITLE) -> list[Payload]:
    """The payload of a value, as a process with these keys sends it."""
    return await data_converter(keys).encode([value])


async def decrypted(payloads: Sequence[Payload], *keys: bytes) -> object:
    """What a process with these keys reads."""
    (value,) = await data_converter(keys).decode(payloads)
    return value


async def test_title_is_not_in_the_payload() -> None:
    """Neither is its encoding; two payloads of one title differ."""
    payloads = [*await encrypted(NEW), *await encrypted(NEW)]
    assert payloads[0].data != payloads[1].data
    for payload in payloads:
        assert payload.metadata["encoding"] == b"binary/encrypted"
        assert TITLE.encode() not in payload.SerializeToString()
        assert NEW not in payload.SerializeToString()
        assert await decrypted([payload], NEW) == TITLE


async def test_key_is_replaced_without_a_gap() -> None:
    """Each process reads what every other process writes, in both steps; what is in clear stays readable."""
    for writer in ((), (OLD,), (OLD, NEW), (NEW, OLD)):
        assert await decrypted(await encrypted(*writer), OLD, NEW) == TITLE
        assert await decrypted(await encrypted(*writer), NEW, OLD) == TITLE


@pytest.mark.parametrize("keys", [(), (OTHER,)])
async def test_missing_key_is_named(keys: tuple[bytes, ...]) -> None:
    """The message shows the id of the key, and no key."""
    with pytest.raises(PayloadUnreadable, match="SITELINK_CODEC_KEY") as refusal:
        await decrypted(await encrypted(NEW), *keys)
    assert NEW.hex() not in str(refusal.value)


@pytest.mark.parametrize("change", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:5], lambda _: b""])
async def test_altered_payload_is_refused(change: object) -> None:
    """Nothing of it is read."""
    (payload,) = await encrypted(NEW)
    payload.data = change(payload.data)  # type: ignore[operator]
    with pytest.raises(PayloadUnreadable, match="altered"):
        await decrypted([payload], NEW)


@pytest.mark.parametrize("value", [7, -1.5, True, None])
async def test_value_that_names_nothing_stays_in_clear(value: object) -> None:
    """A process without the key can count the failures of a render child."""
    assert await decrypted(await encrypted(NEW, value=value)) == value


async def test_words_of_a_failure_are_encrypted() -> None:
    """Its name stays, because retry policies go by it."""
    failure = Failure()
    converter = data_converter((NEW,))
    await converter.encode_failure(ApplicationError(f"cannot draw {TITLE}", TITLE, type="PageUnreadable"), failure)
    assert TITLE.encode() not in failure.SerializeToString()
    assert failure.application_failure_info.type == "PageUnreadable"
    error = await converter.decode_failure(failure)
    assert isinstance(error, ApplicationError)
    assert (error.message, error.details) == (f"cannot draw {TITLE}", (TITLE,))


@pytest.mark.parametrize("text", ["short", "g" * 64, "0" * 63, f"{'0' * 64},{'0' * 65}"])
def test_what_is_no_key_is_refused(text: str) -> None:
    """By the name of its setting, and not by its value."""
    with pytest.raises(ValueError, match="SITELINK_CODEC_KEY") as refusal:
        codec_keys({"SITELINK_CODEC_KEY": text})
    assert text not in str(refusal.value)


def test_keys_are_read_in_their_order() -> None:
    """Settings show none of them."""
    environ = {"SITELINK_CODEC_KEY": f" {NEW.hex()}, {OLD.hex().upper()},"}
    assert codec_keys(environ) == (NEW, OLD)
    assert repr(NEW) not in repr(ApiSettings.from_env(environ))


async def test_codec_server_answers_as_temporal_asks(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Payloads come back in their order, those in clear as they are. A damaged body and a missing key are problems."""
    app = create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), codec_keys=(NEW,)))
    clear = {"metadata": {"encoding": base64.b64encode(b"json/plain").decode()}, "data": base64.b64encode(b'"x"').decode()}
    async with client_of(app) as client:
        sealed = (await client.post("/v1/codec/encode", json={"payloads": [clear]})).json()["payloads"]
        assert base64.b64decode(sealed[0]["metadata"]["encoding"]) == b"binary/encrypted"
        answer = await client.post("/v1/codec/decode", json={"payloads": [*sealed, clear]}, headers={"X-Namespace": "default"})
        assert (answer.status_code, answer.json()) == (200, {"payloads": [clear, clear]})
        assert (await client.post("/v1/codec/decode", content=b"{}")).json() == {}
        for body in (b"", b"[1]", b'{"payloads": 3}', b"\xff"):
            refusal = await client.post("/v1/codec/decode", content=body)
            assert (refusal.status_code, refusal.json()["type"]) == (400, "InvalidRequest")
        (foreign,) = await Codec((OTHER,)).encode([Payload(metadata={"encoding": b"json/plain"}, data=b'"x"')])
        fields = {name: base64.b64encode(value).decode() for name, value in foreign.metadata.items()}
        refusal = await client.post(
            "/v1/codec/decode", json={"payloads": [{"metadata": fields, "data": base64.b64encode(foreign.data).decode()}]}
        )
        assert (refusal.status_code, refusal.json()["type"]) == (503, "PayloadUnreadable")


async def test_progress_without_the_key_is_a_warning(bucket: Bucket, temporal: FakeTemporal, caplog: pytest.LogCaptureFixture) -> None:
    """The API answers as if Temporal did not, and says in its log which key is missing."""
    await accept(bucket, REF)
    temporal.state = PayloadUnreadable("a payload in Temporal is encrypted by the key '0123'")
    app = create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused")))
    with caplog.at_level(logging.WARNING):
        async with client_of(app) as client:
            answer = await client.get(PATH)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert "PayloadUnreadable: " in answer.json()["warning"]
    assert "encrypted by the key '0123'" in caplog.text


async def test_ui_of_another_origin_may_use_the_codec_server(bucket: Bucket, temporal: FakeTemporal) -> None:
    """It sends the headers of a codec server's client from an allowed origin, and from no other."""
    access = AccessSettings(cors_origins=("https://temporal.example.com",))
    app = create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), codec_keys=(NEW,), access=access))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-namespace"}
    async with client_of(app) as client:
        for origin, allowed in (("https://temporal.example.com", True), ("https://evil.example", False)):
            answer = await client.options("/v1/codec/decode", headers={"Origin": origin, **asked})
            assert answer.is_success is allowed
            assert (await client.post("/v1/codec/decode", content=b"{}", headers={"Origin": origin})).is_success is allowed


async def test_default_converter_reads_what_names_nothing() -> None:
    """Schedules and other programs go on without the key."""
    assert await DataConverter.default.decode(await encrypted(NEW, value=3)) == [3]
