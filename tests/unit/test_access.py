"""Who may send which request: the table of routes with two tenants, and every kind of bad credential."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from activities.webhooks.settings import WebhookSettings
from api.access.layer import Access
from api.access.policies import PUBLIC, Needs, Policy, scoped
from api.access.principal import Principal, Scope
from api.access.routes import GuardedRoute, PublicFiles
from api.access.settings import AccessSettings, Mode
from api.access.tokens import OwnTokens
from api.app import Api, create_app
from api.paths import BEGIN, DELIVERIES, PARTS, PLAN, REDELIVER, UPLOAD, UPLOADS, WEBHOOKS
from api.r2.settings import PushSettings
from api.settings import ApiSettings
from tests.unit.api_fakes import FakeTemporal, RawRequest, accept, client_of
from tests.waiting import until_async

SECRET = "a secret of one's own backend, long enough for every HS algorithm"  # noqa: S105 - for tests
ACCESS = AccessSettings(Mode.JWT, secrets=(SECRET,), ticket_secrets=(SECRET,), issuer="backend", audience="plans")
MINE = UploadRef("acme", "tower", "a1", "0198c0de-0000-7000-8000-000000000001")
THEIRS = UploadRef("rival", "tower", "a1", "0198c0de-0000-7000-8000-000000000002")
ABSENT = "0198c0de-0000-7000-8000-000000000009"

EXPECTED: dict[str, tuple[str, str]] = {
    f"POST {PLAN}/reconcile": ("operate", "operate"),
    f"POST {PLAN}/tickets": ("read", "read"),
    f"GET {PLAN}/events": ("read", "read"),
    f"POST {UPLOADS}": ("write", "write"),
    f"GET {UPLOADS}": ("read", "read"),
    f"POST {BEGIN}": ("write", "write"),
    f"GET {PARTS}": ("write", "write"),
    f"DELETE {PARTS}": ("write", "write"),
    f"POST {PARTS}/sign": ("write", "write"),
    f"PUT {PARTS}/{{part:int}}": ("signed", "signed"),
    f"POST {UPLOAD}/complete": ("write", "write"),
    f"GET {UPLOAD}": ("read", "read"),
    f"DELETE {UPLOAD}": ("operate", "operate"),
    f"GET {UPLOAD}/events": ("read", "read"),
    f"GET {UPLOAD}/verify": ("read", "operate"),
    f"POST {UPLOAD}/tickets": ("read", "read"),
    f"POST {UPLOAD}/cancel": ("write", "write"),
    f"POST {UPLOAD}/pack": ("operate", "operate"),
    f"POST {UPLOAD}/unpack": ("operate", "operate"),
    f"GET {UPLOAD}/conversion": ("read", "read"),
    f"POST {UPLOAD}/reconcile": ("write", "operate"),
    f"POST {UPLOAD}/sheets/{{sheet}}/prioritize": ("write", "write"),
    f"POST {UPLOAD}/sheets/{{sheet}}/retry": ("write", "write"),
    f"GET {UPLOAD}/sheets/{{path:path}}": ("read", "read"),
    f"GET {WEBHOOKS}": ("operate", "operate"),
    f"PUT {WEBHOOKS}": ("operate", "operate"),
    f"DELETE {WEBHOOKS}": ("operate", "operate"),
    f"GET {DELIVERIES}": ("operate", "operate"),
    f"POST {REDELIVER}": ("operate", "operate"),
    "POST /v1/events/r2": ("signed", "signed"),
    "GET /v1/events/unreadable": ("system", "system"),
    "POST /v1/codec/decode": ("system", "system"),
    "POST /v1/codec/encode": ("system", "system"),
    "POST /v1/session": ("token", "token"),
    "GET /v1/session": ("credential", "credential"),
    "DELETE /v1/session": ("public", "public"),
    "GET /livez": ("public", "public"),
    "GET /readyz": ("public", "public"),
    "GET /metrics": ("system", "system"),
    "GET /openapi.json": ("public", "public"),
    "GET /docs": ("public", "public"),
    "GET /": ("public", "public"),
}
"""What each request needs, also with ``?deep=true``: written down here a second time, so that no change of a policy goes unseen."""

SCOPED = {request: scopes for request, scopes in EXPECTED.items() if scopes[0] in list(Scope)}


def token(secret: str = SECRET, *, without: str = "", algorithm: str | None = "HS256", **claims: object) -> str:
    """A token for everything of ``acme``, except for the given claims."""
    usual = {
        "iss": "backend",
        "aud": "plans",
        "sub": "jo",
        "org": "acme",
        "scope": "read write operate",
        "exp": int(time.time()) + 600,
    }
    whole = {name: value for name, value in {**usual, **claims}.items() if name != without and value is not None}
    return jwt.encode(whole, secret, algorithm)


def bearer(text: str) -> dict[str, str]:
    """The header of a request."""
    return {"Authorization": f"Bearer {text}"}


class Untouchable(Bucket):
    """A bucket that counts what is asked of it."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "asked":
            type(self).asked += 1
        return super().__getattribute__(name)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """A bucket that counts what is asked of it."""
    return Untouchable(BucketSettings((tmp_path / "bucket").as_uri()))


def make_api(bucket: Bucket, temporal: FakeTemporal, access: AccessSettings = ACCESS) -> Starlette:
    """The API with every route that it can have."""
    push = PushSettings(secrets=("0123456789abcdef",))
    return create_app(
        bucket,
        temporal.connect,
        ApiSettings(
            BucketSettings("file:///unused"), push=push, access=access, codec_keys=(bytes(32),), webhooks=WebhookSettings((SECRET,))
        ),
    )


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API with access control."""
    return make_api(bucket, temporal)


@pytest.fixture
async def client(app: Starlette, bucket: Bucket) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API, with an upload of each tenant."""
    for ref in (MINE, THEIRS):
        await accept(bucket, ref)
    async with client_of(app) as client:
        yield client


def requests_of(app: Starlette) -> Iterator[tuple[str, str, Policy]]:
    """Every method and path of the API, with the policy of its route."""
    for route in app.routes:
        if isinstance(route, Route):
            assert isinstance(route, GuardedRoute)
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path, route.policy
        else:
            assert isinstance(route, PublicFiles)


def path_of(template: str, ref: UploadRef = MINE) -> str:
    """The path of a route for an upload."""
    return template.replace("{path:path}", "sheet-1/thumbnail.jpeg").format(
        organization=ref.organization, project=ref.project, plan=ref.plan, upload=ref.upload, sheet="1", delivery="msg_1"
    )


def own_headers(answer: httpx2.Response) -> dict[str, str]:
    """The headers, without those that differ between any two answers."""
    return {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}


def without_instance(answer: httpx2.Response) -> dict[str, object]:
    """The problem, without the ids that the request named itself."""
    document: dict[str, object] = answer.json()
    ids = document.pop("instance")
    assert ids == answer.request.url.path
    for ref in (MINE, THEIRS):
        for name in (ref.organization, ref.upload):
            document["detail"] = str(document["detail"]).replace(name, "…")
    document["detail"] = str(document["detail"]).replace(ABSENT, "…")
    return document


def test_every_route_has_the_expected_policy(app: Starlette) -> None:
    """No route is missing here, and none is open by mistake."""
    kinds = {Needs.TOKEN: "token", Needs.SYSTEM: "system", Needs.CREDENTIAL: "credential"}
    found = {}
    for method, path, policy in requests_of(app):
        kind = kinds.get(policy.needs) or ("signed" if path in ("/v1/events/r2", f"{PARTS}/{{part:int}}") else "public")
        found[f"{method} {path}"] = (policy.scope_for(b"") or kind, policy.scope_for(b"deep=true") or kind)
    assert found == EXPECTED


def test_route_without_policy_does_not_start(bucket: Bucket, temporal: FakeTemporal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route of Starlette's own would answer everybody."""
    routes = Api.routes
    monkeypatch.setattr(Api, "routes", lambda api: [*routes(api), Route("/v1/backdoor", api.live)])
    with pytest.raises(TypeError, match="/v1/backdoor"):
        make_api(bucket, temporal)


def test_route_without_policy_cannot_be_built() -> None:
    """The policy is no option of a route."""
    with pytest.raises(TypeError, match="policy"):
        GuardedRoute("/v1/new", lambda _: None, methods=["GET"], access=Access(ACCESS))  # type: ignore[call-arg, arg-type, return-value]
    with pytest.raises(ValueError, match="scope"):
        Policy(Needs.SCOPE)
    with pytest.raises(ValueError, match="scope"):
        Policy(Needs.NOTHING, Scope.READ)


FOREIGN = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "JWT"}).encode()).rstrip(b"=").decode()


def bad_tokens() -> dict[str, str]:
    """Credentials that no route may accept."""
    signed = token()
    head, body, signature = signed.split(".")
    return {
        "expired": token(exp=int(time.time()) - 60),
        "not valid yet": token(nbf=int(time.time()) + 600),
        "signed by somebody else": token("somebody else's secret of 32 bytes"),
        "alg none": token("", algorithm=None),
        "alg none with our signature": f"{FOREIGN}.{body}.{signature}",
        "signature cut off": f"{head}.{body}.",
        "another algorithm of the same secret": token(algorithm="HS512"),
        "other issuer": token(iss="somebody"),
        "other audience": token(aud="somebody"),
        **{f"without {name}": token(without=name) for name in ("exp", "iss", "aud", "sub", "org")},
        "organization is no id": token(org="../acme"),
        "organization is a list": token(org=["acme"]),
        "plan without its project": token(plan="a1"),
        "scope is a list": token(scope=["read"]),
        "system is a word": token(system="true"),
        "a ticket": OwnTokens("ticket", (SECRET,)).make(Principal("jo", "acme", 0, scopes=frozenset(Scope)), int(time.time()) + 60),
        "a session": OwnTokens("session", (SECRET,)).make(Principal("jo", "acme", 0, scopes=frozenset(Scope)), int(time.time()) + 60),
        "nonsense": "x.y.z",
        "empty": "",
        "too long": "x" * 9000,
    }


@pytest.mark.parametrize("request_line", [*SCOPED, "GET /v1/events/unreadable", "POST /v1/session", "GET /v1/session"])
async def test_bad_credential_is_refused(client: httpx2.AsyncClient, request_line: str) -> None:
    """401 with a challenge, for no credential and for each bad one, before the bucket is asked."""
    method, template = request_line.split(" ")
    path = path_of(template)
    Untouchable.asked = 0
    for name, headers in {"none": {}, "basic": {"Authorization": "Basic am86"}, **{n: bearer(t) for n, t in bad_tokens().items()}}.items():
        answer = await client.request(method, path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), name
        assert answer.json()["type"] == "CredentialRequired", name
        assert SECRET not in answer.text
    assert Untouchable.asked == 0


@pytest.mark.parametrize("request_line", SCOPED)
async def test_other_tenant_is_like_nothing(client: httpx2.AsyncClient, request_line: str) -> None:
    """The same 404 for what exists at another tenant, for what does not, and at one's own; before the bucket is asked."""
    method, template = request_line.split(" ")
    absent = replace(THEIRS, upload=ABSENT)
    senders = {
        "of the other organization": token(),
        "of another project": token(org="rival", project="bridge"),
        "of another plan": token(org="rival", project="tower", plan="b2"),
        "without an organization": token(without="org", system=True),
    }
    Untouchable.asked = 0
    for name, text in senders.items():
        answers = [await client.request(method, path_of(template, ref), headers=bearer(text)) for ref in (THEIRS, absent)]
        assert [answer.status_code for answer in answers] == [404, 404], name
        assert without_instance(answers[0]) == without_instance(answers[1]), name
        assert own_headers(answers[0]) == own_headers(answers[1])
    assert Untouchable.asked == 0
    if "{upload}" in template:
        own = await client.request(method, path_of(template, replace(MINE, upload=ABSENT)), headers=bearer(token()), content=b"")
        if own.status_code == 404:
            assert without_instance(own) == without_instance(answers[0])
            assert own_headers(own) == own_headers(answers[0]) | {"content-length": own.headers["content-length"]}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("request_line", SCOPED)
async def test_scope_decides_within_the_own_organization(app: Starlette, client: httpx2.AsyncClient, request_line: str, deep: bool) -> None:
    """403 without the scope, also with the two other scopes; with it, the handler answers."""
    method, template = request_line.split(" ")
    path = path_of(template, replace(MINE, upload=ABSENT)) + ("?deep=true" if deep else "")
    needed = SCOPED[request_line][deep]
    others = " ".join(scope for scope in Scope if scope != needed)
    Untouchable.asked = 0
    for scope in ("", others, "admin"):
        answer = await client.request(method, path, headers=bearer(token(scope=scope)))
        assert (answer.status_code, answer.json()["type"]) == (403, "NotAllowed")
    assert Untouchable.asked == 0
    own_plan: list[dict[str, str]] = [{"project": "tower"}, {"project": "tower", "plan": "a1"}] if "{plan}" in template else []
    for narrowed in ({}, *own_plan):
        request = RawRequest(app, method, path, bearer(token(scope=needed, **narrowed)))
        request.feed(b"", more=False)
        await until_async(partial(_has_begun, request))
        request.disconnect()  # a stream of a plan does not end by itself
        await request.task
        assert request.status not in (None, 401, 403)
        assert b"PlanNotFound" not in request.sent[1]["body"]


def _has_begun(request: RawRequest) -> bool:
    return len(request.sent) > 1


async def test_system_is_no_tenant(client: httpx2.AsyncClient) -> None:
    """What belongs to no organization needs ``system: true``, and every scope of an organization does not."""
    answer = await client.get("/v1/events/unreadable", headers=bearer(token()))
    assert answer.status_code == 403
    answer = await client.get("/v1/events/unreadable", headers=bearer(token(without="org", scope=None, system=True)))
    assert (answer.status_code, answer.json()) == (200, {"unreadable": []})


async def test_public_routes_need_nothing(client: httpx2.AsyncClient) -> None:
    """The page, its files, and the health checks; a bad credential does not matter there."""
    for path in ("/", "/static/app.js", "/livez", "/readyz"):
        assert (await client.get(path, headers=bearer("nonsense"))).status_code == 200, path


async def test_secret_is_rotated_without_a_gap(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Tokens of both secrets are accepted."""
    new = "the secret that follows the first one"
    async with client_of(make_api(bucket, temporal, replace(ACCESS, secrets=(new, SECRET)))) as client:
        for secret in (new, SECRET):
            assert (await client.get(path_of(UPLOADS), headers=bearer(token(secret)))).status_code == 200


async def test_skew_of_clocks_is_allowed(client: httpx2.AsyncClient) -> None:
    """A token that expired a moment ago, by this machine's clock, still counts."""
    answer = await client.get(path_of(UPLOADS), headers=bearer(token(exp=int(time.time()) - 1)))
    assert answer.status_code == 200


async def test_without_access_control_nothing_is_asked(bucket: Bucket, temporal: FakeTemporal) -> None:
    """On this machine, and where access is open, also a bad credential does not matter."""
    for mode in (Mode.LOOPBACK, Mode.OPEN):
        async with client_of(make_api(bucket, temporal, AccessSettings(mode))) as client:
            assert (await client.get(path_of(UPLOADS), headers=bearer("nonsense"))).status_code == 200
            assert (await client.get("/v1/events/unreadable")).status_code == 200


def test_deep_is_recognized_however_it_is_written() -> None:
    """No spelling of the flag passes as a shallow request."""
    policy = scoped(Scope.READ, deep=Scope.OPERATE)
    for query in (b"deep", b"deep=", b"deep=1", b"deep=true", b"deep=false&deep=1", b"deep=1&deep=false", b"d%65ep=true"):
        assert policy.scope_for(query) is Scope.OPERATE
    assert policy.scope_for(b"deep=false") is Scope.READ
    assert PUBLIC.scope_for(b"deep") is None


async def test_receiver_of_an_upload_needs_a_further_scope(client: httpx2.AsyncClient) -> None:
    """Who may only write cannot have the server send requests to an address of its choice."""
    headers = {"Content-Type": "application/pdf", "SiteLink-Webhook": "https://hooks.example.com/"}
    for scope, status in (("write", 403), ("operate", 403), ("write operate", 202)):
        answer = await client.post(path_of(UPLOADS), headers={**headers, **bearer(token(scope=scope))}, content=b"%PDF-1.7")
        assert answer.status_code == status, scope


async def test_expiry_beyond_every_clock_is_taken(client: httpx2.AsyncClient) -> None:
    """By every route: a number with 400 digits is no error of the server."""
    headers = bearer(token(exp=10**400))
    for method, path in (("GET", UPLOADS), ("GET", f"{UPLOAD}/events"), ("POST", f"{UPLOAD}/tickets"), ("POST", "/v1/session")):
        answer = await client.request(method, path_of(path).replace(MINE.upload, ABSENT), headers=headers)
        assert answer.status_code < 500, path
    assert "Max-Age=" in answer.headers["set-cookie"]
    assert len(answer.headers["set-cookie"]) < 1000
