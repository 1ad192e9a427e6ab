"""Webhooks go to public addresses only, whatever a name leads to, and no redirect is followed."""

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from activities.errors import WebhookForbidden, WebhookUnreachable
from activities.webhooks.network import check_url, is_allowed, post
from tests.servers.recorder import Answer, Recorder, recording

LOOPBACK = (ip_network("127.0.0.0/8"),)

PRIVATE = [
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"]


@pytest.fixture
def receiver() -> Iterator[Recorder]:
    """A receiver on this machine that takes everything."""
    with recording() as recorder:
        recorder.answer = lambda _: Answer(200, b"x" * 100_000)
        yield recorder


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_address_is_refused(address: str, receiver: Recorder) -> None:
    """Written in the URL, or as the answer to a name; also where one of several answers is private."""
    assert not is_allowed(ip_address(address), ())
    port = receiver.url.rpartition(":")[2]
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ValueError, match="not a public address"):
        check_url(f"https://{host}:{port}/", ())

    async def resolver(host: str, port: int) -> list[str]:
        return ["1.1.1.1", address]

    with pytest.raises(WebhookForbidden) as refused:
        await post(f"https://hooks.example.com:{port}/?token=secret", {}, b"{}", (), resolver=resolver)
    assert "secret" not in str(refused.value)
    assert receiver.requests == []


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_allowed(address: str) -> None:
    """But not by http."""
    assert is_allowed(ip_address(address), ())
    assert not is_allowed(ip_address(address), LOOPBACK, plain=True)


def test_setting_allows_networks() -> None:
    """Those, and no others; an address that stands for another counts as that."""
    assert is_allowed(ip_address("127.0.0.1"), LOOPBACK, plain=True)
    assert is_allowed(ip_address("::ffff:127.0.0.1"), LOOPBACK, plain=True)
    assert not is_allowed(ip_address("10.0.0.1"), LOOPBACK)
    assert is_allowed(ip_address("fd00::1"), (ip_network("fd00::/8"),))


async def test_answer_that_changes_after_the_check_changes_nothing(receiver: Recorder) -> None:
    """A name is resolved once for a connection, and the connection goes to the address that was checked."""
    port = receiver.url.rpartition(":")[2]
    answers = iter([["127.0.0.2"], ["10.0.0.1"]])
    asked = []

    async def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    with recording() as other:
        other.answer = lambda _: Answer(204)
        with pytest.raises(WebhookUnreachable):  # nobody listens at the checked address
            await post(f"http://localhost:{port}/", {}, b"{}", LOOPBACK, resolver=resolver)
        with pytest.raises(WebhookForbidden):
            await post(f"http://localhost:{port}/", {}, b"{}", LOOPBACK, resolver=resolver)
    assert asked == ["localhost", "localhost"]
    assert receiver.requests == []


async def test_name_is_sent_to_the_checked_address(receiver: Recorder) -> None:
    """The receiver sees the name as ``Host``, and nothing of its long answer is read."""
    port = receiver.url.rpartition(":")[2]

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    assert await post(f"http://hooks.example.com:{port}/a?b=c", {"X-A": "1"}, b"{}", LOOPBACK, resolver=resolver) == (200, "")
    (request,) = receiver.requests
    assert (request.target, request.headers["host"], request.headers["x-a"]) == ("/a?b=c", f"hooks.example.com:{port}", "1")


async def test_redirect_is_not_followed(receiver: Recorder) -> None:
    """Its status is the answer."""
    receiver.answer = lambda _: Answer(307, headers=(("Location", f"{receiver.url}/inside"),))
    assert (await post(receiver.url, {}, b"{}", LOOPBACK))[0] == 307
    assert len(receiver.requests) == 1


async def test_environment_proxy_is_not_used(receiver: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name again."""
    with recording() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert (await post(receiver.url, {}, b"{}", LOOPBACK))[0] == 200
        assert proxy.requests == []


def certificate(directory: Path, name: str) -> Path:
    """A file with a key, and a certificate for a host name that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / f"{name}.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


async def test_certificate_is_checked_against_the_name(tmp_path: Path) -> None:
    """Not against the address to which the connection goes."""
    file = certificate(tmp_path, "hooks.example.com")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(file)
    trusting = ssl.create_default_context(cafile=str(file))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"https://hooks.example.com:{port}/"
        assert (await post(url, {}, b"{}", LOOPBACK, resolver=resolver, tls=trusting))[0] == 204
        for other, tls in ((f"https://other.example.com:{port}/", trusting), (f"https://127.0.0.1:{port}/", trusting), (url, None)):
            with pytest.raises(WebhookUnreachable, match="ConnectError"):
                await post(other, {}, b"{}", LOOPBACK, resolver=resolver, tls=tls)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "ftp://hooks.example.com/",
        "https://",
        "https:///path",
        "https://jo:secret@hooks.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://[::1/",
        "https://hooks.example.com\\@10.0.0.1/",
        "https://hooks.example.com/ a",
        "https://hooks.example.com/\r\nX: 1",
        "https://bücher.example/",
        f"https://hooks.example.com/{'x' * 2000}",
        "file:///etc/passwd",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    """And the message shows neither the address nor what is secret in it."""
    with pytest.raises(ValueError, match="webhook") as refused:
        check_url(url, ())
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://2130706433/", "https://0x7f.1/", "https://127.1/", "https://localhost/"])
async def test_other_spellings_of_private_addresses_are_refused(url: str) -> None:
    """The system resolves them, and the result is checked."""
    with pytest.raises(WebhookForbidden):
        await post(url, {}, b"{}", ())


async def test_failures_show_no_address() -> None:
    """A name that is not known, and a port where nobody listens."""
    for url in ("https://name.invalid/?token=secret", "http://127.0.0.1:9/?token=secret"):
        with pytest.raises(WebhookUnreachable) as failed:
            await post(url, {}, b"{}", LOOPBACK)
        assert "secret" not in repr(failed.value)
        assert failed.value.__cause__ is None or "secret" not in repr(failed.value.__cause__)
