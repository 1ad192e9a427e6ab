"""The public keys that sign tokens: fetched off the event loop, kept, rotated, and never the token's choice."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from activities.bucket.storage import Bucket
from activities.errors import CredentialRequired, KeysUnavailable
from api.access.public_keys import KEPT_S, MAX_BYTES, PAUSE_S, REFRESH_S, FetchedKeys, parse_keys, read_source
from api.access.settings import AccessSettings, Mode
from api.access.tokens import TokenReader
from tests.servers.recorder import Answer, recording
from tests.unit.api_fakes import FakeTemporal, client_of
from tests.unit.test_access import ACCESS, SECRET, make_api, path_of
from tests.unit.test_access import token as secret_token
from tests.waiting import until_async

RSA = rsa.generate_private_key(65_537, 2048)
OTHER_RSA = rsa.generate_private_key(65_537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(kind: Any, key: Any, key_id: str, **members: str) -> dict[str, Any]:
    """The public JWK of a key."""
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": key_id, **members}


def jwks(*keys: Mapping[str, Any]) -> bytes:
    """A JWKS."""
    return json.dumps({"keys": keys}).encode()


BODY = jwks(jwk(RSAAlgorithm, RSA, "rsa"), jwk(ECAlgorithm, EC, "ec", use="sig"), jwk(OKPAlgorithm, ED, "ed"))


def token(key: Any, algorithm: str, key_id: str | None, headers: Mapping[str, object] = {}) -> str:
    """A token that is signed with a private key."""
    claims = {"iss": "backend", "aud": "plans", "sub": "jo", "org": "acme", "scope": "read", "exp": int(time.time()) + 600}
    return jwt.encode(claims, key, algorithm, {**({"kid": key_id} if key_id else {}), **headers})


class Source:
    """A JWKS whose answers the test sets."""

    def __init__(self, body: bytes | Exception = BODY) -> None:
        self.body = body
        self.fetches = 0
        self.now = 1000.0
        self.threads: set[int] = set()
        self.keys = FetchedKeys("https://login.example.com/jwks.json", fetch=self.fetch, clock=lambda: self.now)

    def fetch(self, _: str) -> bytes:
        """Gives the answer."""
        self.fetches += 1
        self.threads.add(threading.get_ident())
        if isinstance(self.body, Exception):
            raise self.body
        return self.body

    def reader(self, *secrets: str) -> TokenReader:
        """Verifies tokens by these keys and secrets."""
        return TokenReader(secrets, self.keys, issuer="backend", audience="plans")


@pytest.mark.parametrize(("key", "algorithm", "key_id"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")])
async def test_token_of_each_kind_of_key_is_read(key: Any, algorithm: str, key_id: str) -> None:
    """The keys are fetched once, in a thread."""
    source = Source()
    for _ in range(3):
        assert (await source.reader().read(token(key, algorithm, key_id))).organization == "acme"
    assert source.fetches == 1
    assert threading.get_ident() not in source.threads


async def test_token_cannot_choose_its_key() -> None:
    """Neither by another algorithm, nor by an unknown id, nor by an address or a key of its own."""
    source = Source()
    own = jwk(RSAAlgorithm, OTHER_RSA, "rsa")
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = ".".join(secret_token(SECRET).split(".")[:2])
    for text in (
        token(OTHER_RSA, "RS256", "rsa"),
        token(OTHER_RSA, "RS256", "other"),
        token(RSA, "RS256", None),  # there are three keys
        token(RSA, "PS256", "rsa"),
        token(EC, "ES256", "rsa"),
        token(OTHER_RSA, "RS256", "rsa", {"jwk": own, "jku": "https://evil.example.com/jwks.json"}),
        secret_token(SECRET),
        secret_token("", algorithm=None),
        f"{confused}.{public.hex()}",
    ):
        with pytest.raises(CredentialRequired):
            await source.reader().read(text)
    assert (await source.reader(SECRET).read(secret_token(SECRET))).organization == "acme"


async def test_token_without_a_key_id_is_read_with_the_only_key() -> None:
    """Many small set-ups have one key without an id."""
    source = Source(jwks(jwk(RSAAlgorithm, RSA, "rsa")))
    assert (await source.reader().read(token(RSA, "RS256", None))).organization == "acme"


async def test_new_key_is_known_at_once_and_an_old_one_goes() -> None:
    """A token with an unknown id makes the keys come anew; but tokens of nobody do not make many requests."""
    source = Source(jwks(jwk(RSAAlgorithm, RSA, "old")))
    await source.reader().read(token(RSA, "RS256", "old"))
    source.body = jwks(jwk(RSAAlgorithm, OTHER_RSA, "new"))
    source.now += PAUSE_S
    assert (await source.reader().read(token(OTHER_RSA, "RS256", "new"))).organization == "acme"
    assert source.fetches == 2
    for number in range(20):
        with pytest.raises(CredentialRequired):
            await source.reader().read(token(OTHER_RSA, "RS256", f"nobody-{number}"))
    with pytest.raises(CredentialRequired):
        await source.reader().read(token(RSA, "RS256", "old"))
    assert source.fetches == 2


async def test_keys_outlast_an_outage_of_their_server_for_a_day() -> None:
    """They are fetched again in the background; after a day without an answer they do not count any more."""
    source = Source()
    text = token(RSA, "RS256", "rsa")
    await source.reader().read(text)
    source.body = OSError("no route to host")
    source.now += REFRESH_S + 1
    await source.reader().read(text)
    await until_async(lambda: source.fetches == 2)
    source.now += KEPT_S
    with pytest.raises(KeysUnavailable):
        await source.reader().read(text)
    source.body = BODY
    source.now += 1
    await source.reader().read(text)


async def test_requests_share_a_fetch() -> None:
    """Many requests that come before the keys are there wait for one fetch."""
    source = Source()
    reader, text = source.reader(), token(RSA, "RS256", "rsa")
    await asyncio.gather(*(reader.read(text) for _ in range(50)))
    assert source.fetches == 1


def test_secret_and_encryption_keys_are_no_public_keys() -> None:
    """A JWKS may hold them; they verify nothing."""
    secret = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I", "kid": "oct"}
    keys = parse_keys(jwks(secret, jwk(RSAAlgorithm, RSA, "enc", use="enc"), {"kty": "??"}, jwk(ECAlgorithm, EC, "ec")))
    assert set(keys) == {"ec"}
    for body in (jwks(secret), b"{}", b"[]", b"nonsense", b'{"keys": 1}', b"[" * 100_000):
        with pytest.raises(ValueError, match="JWKS"):
            parse_keys(body)


def test_key_with_an_id_of_a_wrong_type_is_left_out() -> None:
    """It must not take the other keys with it, nor keep the API from starting."""
    odd = [{**jwk(ECAlgorithm, EC, "odd"), "kid": key_id} for key_id in (["list"], {"a": 1}, 5)]
    assert set(parse_keys(jwks(*odd, jwk(ECAlgorithm, EC, "ec")))) == {"ec"}


def test_server_that_drips_is_given_up() -> None:
    """Each byte comes in time, and the whole never. Until then, neither the API would start, nor a new key be known."""

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not given_up.wait(0.01):
                connection.sendall(b" ")

    given_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        with pytest.raises(OSError, match="seconds"):
            read_source(f"http://127.0.0.1:{listener.getsockname()[1]}/jwks.json", longest_s=0.3)
        given_up.set()


def test_source_is_a_file_or_a_server(tmp_path: Path) -> None:
    """A server must answer itself, with a body of bounded size."""
    file = tmp_path / "jwks.json"
    file.write_bytes(BODY)
    assert read_source(str(file)) == BODY
    with pytest.raises(OSError, match="No such file"):
        read_source(str(tmp_path / "absent"))
    with recording() as server:
        server.answer = lambda _: Answer(200, BODY)
        assert read_source(f"{server.url}/jwks.json") == BODY
        for answer, why in ((Answer(200, b"x" * (MAX_BYTES + 1)), "bytes"), (Answer(302, b""), "302"), (Answer(500, b""), "500")):
            server.answer = lambda _, answer=answer: answer  # type: ignore[misc]
            with pytest.raises(ValueError, match=why):
                read_source(f"{server.url}/jwks.json")


async def test_api_waits_for_keys_that_cannot_be_fetched(bucket: Bucket, temporal: FakeTemporal, tmp_path: Path) -> None:
    """503 until they come, for a well-formed token; then the request goes on."""
    file = tmp_path / "jwks.json"
    file.write_bytes(b"half of a")
    settings = AccessSettings(Mode.JWT, public_keys=str(file), ticket_secrets=(SECRET,), issuer="backend", audience="plans")
    text = {"Authorization": f"Bearer {token(RSA, 'RS256', 'rsa')}"}
    path = path_of("/v1/organizations/{organization}/projects/{project}/plans/{plan}/uploads")
    async with client_of(make_api(bucket, temporal, settings)) as client:
        answer: httpx2.Response = await client.get(path, headers=text)
        assert (answer.status_code, answer.json()["type"], answer.headers["retry-after"]) == (503, "KeysUnavailable", "5")
    file.write_bytes(BODY)
    async with client_of(make_api(bucket, temporal, settings)) as client:
        assert (await client.get(path, headers=text)).status_code == 200
        assert (await client.get(path, headers={"Authorization": f"Bearer {secret_token()}"})).status_code == 401
    assert replace(ACCESS, public_keys=str(file)).secrets == ACCESS.secrets
