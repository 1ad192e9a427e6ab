"""Tickets and sessions: what they open, how they are carried, and what happens when they expire."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime

import httpx2
import jwt
import pytest
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from activities.bucket.records import SheetStatus
from activities.bucket.storage import Bucket
from api.access.credentials import SESSION_COOKIE
from api.access.expiry import serve_for
from api.access.principal import Principal
from api.access.principal import Scope as TokenScope
from api.access.tokens import SKEW_S, OwnTokens
from api.paths import SESSION, plan_path, upload_path, uploads_path
from tests.unit.api_fakes import FakeTemporal, RawRequest, Upstream, accept, client_of, snapshot
from tests.unit.test_access import ABSENT, ACCESS, MINE, SECRET, THEIRS, bearer, make_api, token
from tests.waiting import until_async

PATH = upload_path(MINE)
SHEET = f"{PATH}/sheets/sheet-1/thumbnail.jpeg"
HTTPS = "https://127.0.0.1:8000"


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API with access control."""
    return make_api(bucket, temporal, replace(ACCESS, cors_origins=("https://app.example.com",)))


@pytest.fixture
async def client(app: Starlette, bucket: Bucket) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API, with an upload."""
    await accept(bucket, MINE)
    async with client_of(app) as client:
        yield client


async def ticket(client: httpx2.AsyncClient, path: str, query: str = "") -> str:
    """A ticket for a plan or an upload."""
    answer = await client.post(f"{path}/tickets{query}", headers=bearer(token(scope="read")))
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    text: str = answer.json()["ticket"]
    return text


@pytest.mark.parametrize("path", [PATH, plan_path(MINE.plan_ref)])
async def test_ticket_reads_what_it_is_for(client: httpx2.AsyncClient, path: str) -> None:
    """In the query and in the header: progress and tiles of the upload; of a plan, the list, too."""
    text = await ticket(client, path)
    for carried in ({"params": {"ticket": text}}, {"headers": {"SiteLink-Ticket": text}}):
        assert (await client.get(PATH, **carried)).status_code == 200  # type: ignore[arg-type]
        assert (await client.get(SHEET, **carried)).json()["type"] == "ObjectMissing"  # type: ignore[arg-type]
        listed = await client.get(uploads_path(MINE.plan_ref), **carried)  # type: ignore[arg-type]
        assert listed.status_code == (404 if path == PATH else 200)
        for other in (replace(MINE, upload=ABSENT), replace(MINE, plan="b2"), THEIRS):
            answer = await client.get(upload_path(other), **carried)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")
        deep = await client.get(f"{PATH}/verify", params={"deep": "true", **carried.get("params", {})}, headers=carried.get("headers"))
        assert (deep.status_code, deep.json()["type"]) == (403, "NotAllowed")


async def test_ticket_changes_nothing_and_makes_no_ticket(client: httpx2.AsyncClient) -> None:
    """It is only for GET; and it is neither a token nor a session."""
    text = await ticket(client, PATH)
    for method, path in (("POST", f"{PATH}/cancel"), ("DELETE", PATH), ("POST", f"{PATH}/tickets"), ("POST", SESSION)):
        answer = await client.request(method, path, headers={"SiteLink-Ticket": text})
        assert (answer.status_code, answer.json()["type"]) == (401, "CredentialRequired")
    assert (await client.get(PATH, headers=bearer(text))).status_code == 401
    assert (await client.get(PATH, headers={"Cookie": f"{SESSION_COOKIE}={text}"})).status_code == 401
    assert (await client.get(PATH, headers={"SiteLink-Ticket": token()})).status_code == 401


async def test_ticket_lasts_as_long_as_asked(client: httpx2.AsyncClient) -> None:
    """10 minutes, or up to a day; the answer says until when."""
    for query, seconds in (("", 600), ("?ttl=1", 1), ("?ttl=86400", 86_400)):
        before = int(time.time())
        answer = await client.post(f"{PATH}/tickets{query}", headers=bearer(token()))
        claims = jwt.decode(answer.json()["ticket"], options={"verify_signature": False})
        assert before + seconds <= claims["exp"] <= time.time() + seconds
        assert datetime.fromisoformat(answer.json()["expiresAt"]).timestamp() == claims["exp"]
        assert claims["sub"] == "jo"
    for query in ("?ttl=0", "?ttl=86401", "?ttl=-1", "?ttl=1e3", "?ttl="):
        answer = await client.post(f"{PATH}/tickets{query}", headers=bearer(token()))
        assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest"), query


async def test_ticket_of_an_absent_upload_is_refused(client: httpx2.AsyncClient) -> None:
    """There is nothing that it could read."""
    answer = await client.post(f"{upload_path(replace(MINE, upload=ABSENT))}/tickets", headers=bearer(token()))
    assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")


async def test_any_process_takes_a_ticket(client: httpx2.AsyncClient, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Also one that got the secret as its second; but not one with another secret."""
    text = await ticket(client, PATH)
    new = "a new secret that signs the next tickets"
    for secrets, status in (((new, SECRET), 200), ((new,), 401)):
        async with client_of(make_api(bucket, temporal, replace(ACCESS, ticket_secrets=secrets))) as other:
            assert (await other.get(PATH, params={"ticket": text})).status_code == status


@pytest.mark.parametrize("wrong", ["", "nonsense", token(exp=1), "expired"])
async def test_bad_credential_never_falls_back(client: httpx2.AsyncClient, wrong: str) -> None:
    """Only the first of Authorization, ticket and cookie counts."""
    reader = Principal("jo", "acme", 0, scopes=frozenset(TokenScope))
    if wrong == "expired":
        wrong = OwnTokens("ticket", (SECRET,)).make(reader, int(time.time()) - SKEW_S - 1)
    good = await ticket(client, PATH)
    cookie = f"{SESSION_COOKIE}={OwnTokens('session', (SECRET,)).make(reader, int(time.time()) + 60)}"
    for headers, query in (
        ({"Authorization": f"Bearer {wrong}", "SiteLink-Ticket": good, "Cookie": cookie}, f"?ticket={good}"),
        ({"SiteLink-Ticket": wrong, "Cookie": cookie}, f"?ticket={good}"),
        ({"Cookie": cookie}, f"?ticket={wrong}"),
    ):
        answer = await client.get(PATH + query, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (401, "CredentialRequired")
    assert (await client.get(PATH, headers={"Cookie": cookie})).status_code == 200


async def test_session_is_a_cookie_of_our_own_pages(client: httpx2.AsyncClient) -> None:
    """It does what the token may, and is no token; requests that change something need our Origin."""
    begun = await client.post(SESSION, headers=bearer(token(scope="read write", project="tower")))
    assert (begun.status_code, begun.headers["cache-control"]) == (204, "no-store")
    cookie, *attributes = begun.headers["set-cookie"].split("; ")
    assert cookie.startswith(f"{SESSION_COOKIE}=")
    assert {attribute.split("=")[0].lower() for attribute in attributes} == {"httponly", "secure", "samesite", "path", "max-age"}
    assert {"SameSite=strict", "Path=/"} <= set(attributes)
    lifetime = next(attribute for attribute in attributes if attribute.startswith("Max-Age="))
    assert 500 < int(lifetime.partition("=")[2]) <= 600
    mine = {"Cookie": f"other=1; {cookie}"}
    assert (await client.get(PATH, headers=mine)).status_code == 200
    assert (await client.get(upload_path(replace(MINE, project="bridge")), headers=mine)).status_code == 404
    assert (await client.get(PATH, headers=bearer(cookie.partition("=")[2]))).status_code == 401
    assert (await client.post(SESSION, headers=mine | {"Origin": HTTPS})).status_code == 401
    assert (await client.delete(PATH, headers=mine | {"Origin": HTTPS})).status_code == 403
    for origin, status in (
        (HTTPS, 202),
        ("http://127.0.0.1:8000", 202),
        (None, 403),
        ("null", 403),
        ("https://app.example.com", 403),
        ("https://127.0.0.1:8001", 403),
        ("https://[", 403),
    ):
        answer = await client.post(f"{PATH}/cancel", headers=mine | ({"Origin": origin} if origin else {}))
        assert (answer.status_code, answer.json().get("type", "")) == (status, "" if status == 202 else "ForeignOrigin"), origin
    for site, status in (("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)):
        assert (await client.get(PATH, headers=mine | {"Sec-Fetch-Site": site})).status_code == status


async def test_session_ends(client: httpx2.AsyncClient) -> None:
    """On request, and with the token that began it."""
    ended = await client.delete(SESSION)
    assert ended.status_code == 204
    assert f'{SESSION_COOKIE}=""; HttpOnly; Max-Age=0' in ended.headers["set-cookie"]
    begun = await client.post(SESSION, headers=bearer(token(exp=int(time.time()) - 5)))
    cookie = begun.headers["set-cookie"].split(";")[0].partition("=")[2]
    assert jwt.decode(cookie, options={"verify_signature": False})["exp"] <= time.time()
    assert "Max-Age=0" in begun.headers["set-cookie"]


async def test_pages_of_listed_origins_may_use_the_api(client: httpx2.AsyncClient) -> None:
    """CORS by the allow list, for tokens and tickets, never with a cookie."""
    listed, other = {"Origin": "https://app.example.com"}, {"Origin": "https://evil.example.com"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, idempotency-key, sitelink-ticket"}
    answer = await client.options(f"{PATH}/cancel", headers=listed | asks)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example.com")
    assert "access-control-allow-credentials" not in answer.headers
    assert (await client.options(f"{PATH}/cancel", headers=other | asks)).status_code == 400
    answer = await client.post(f"{PATH}/cancel", headers=listed | {"Sec-Fetch-Site": "cross-site"} | bearer(token()))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "https://app.example.com")
    answer = await client.get(PATH, headers=listed)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://app.example.com")
    assert (await client.post(f"{PATH}/cancel", headers=other | bearer(token()))).json()["type"] == "ForeignOrigin"
    answer = await client.get(PATH, headers=other | bearer(token()))
    assert "access-control-allow-origin" not in answer.headers


async def test_stream_ends_when_its_ticket_expires(bucket: Bucket) -> None:
    """The last event says so and has no id, the watcher ends, and the old ticket opens no new stream."""
    upstream = Upstream(snapshot(SheetStatus.TILING))
    await accept(bucket, MINE)
    app = make_api(bucket, upstream)
    reader = Principal("jo", "acme", 0, scopes=frozenset({TokenScope.READ}))
    # This ticket is accepted for 2 more seconds or longer. A machine that is slower gets a longer one.
    for left_s in (2, 10, 60):
        text = OwnTokens("ticket", (SECRET,)).make(reader, int(time.time()) - SKEW_S + 1 + left_s)
        request = RawRequest(app, "GET", f"{PATH}/events?ticket={text}", {})
        await request.task
        if request.status == 200:
            break
    body = b"".join(message.get("body", b"") for message in request.sent)
    assert b"event: snapshot" in body
    last = body.split(b"\n\n")[-2]
    assert last.startswith(b"event: expired\ndata: {")
    assert b"id:" not in last
    assert request.sent[-1]["more_body"] is False
    again = RawRequest(app, "GET", f"{PATH}/events?ticket={text}", {})
    await again.task
    assert again.status == 401


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Streams one event, then waits for ever."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await asyncio.Event().wait()


async def no_message() -> Message:
    """A client that sends nothing."""
    await asyncio.Event().wait()
    raise AssertionError


async def test_expiry_never_holds_a_request() -> None:
    """Neither before the answer has begun, nor with a client that takes nothing any more; an answer in time is left alone."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    scope: Scope = {"type": "http", "path": PATH, "method": "GET"}
    await serve_for(0, never, scope, no_message, send)
    assert [message.get("status") for message in sent] == [401, None]
    sent.clear()
    await serve_for(0.01, application, scope, no_message, send)
    assert [message["body"][:15] for message in sent[1:]] == [b"data: 1\n\n", b"event: expired\n"]

    async def fails(*_: object) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await serve_for(60, fails, scope, no_message, send)


async def test_stream_is_cancelled_from_outside() -> None:
    """A server that stops ends the stream without the event."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    task = asyncio.create_task(serve_for(60, application, {"type": "http", "path": PATH, "method": "GET"}, no_message, send))
    await until_async(lambda: len(sent) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(sent) == 2


async def test_wait_for_a_change_ends_when_its_ticket_expires(bucket: Bucket) -> None:
    """As a stream does: nobody learns what changes after that. The client asks again with a new ticket."""
    await accept(bucket, MINE)
    app = make_api(bucket, Upstream(snapshot(SheetStatus.TILING)))
    reader = Principal("jo", "acme", 0, scopes=frozenset({TokenScope.READ}))
    text = OwnTokens("ticket", (SECRET,)).make(reader, int(time.time()) - SKEW_S + 2)
    request = RawRequest(app, "GET", f"{PATH}?after=100&wait=50&ticket={text}", {})
    async with asyncio.timeout(30):
        await request.task
    assert request.status == 401
    assert b"CredentialRequired" in request.sent[1]["body"]
