"""The OpenAPI document and its page: they have every route, parameter, problem and document of the API."""

import json
import re
from dataclasses import replace
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from starlette.applications import Starlette

from activities import errors
from activities.bucket.records import Forecast, Note, Receipt, SheetStatus, Snapshot, to_wire
from activities.bucket.report import SheetReport, UploadReport
from activities.bucket.storage import Bucket
from activities.errors import SiteLinkError
from api.app import create_app
from api.contract.document import build_document, problem_types
from api.contract.operations import IDEMPOTENCY_KEY, OPERATIONS
from api.contract.routes import described_routes
from api.http.problems import STATUS
from api.paths import DOCS, HOME, LIVE, OPENAPI, SESSION, UPLOAD, UPLOADS
from api.settings import ApiSettings
from api.uploads import LAYERS, LAYOUT, MARKUPS, OPTIONS
from tests.unit.api_fakes import FakeTemporal, client_of, snapshot

REASONS = {
    *("UnreadablePdf", "PasswordRequired", "NoPages", "PdfPortfolio", "TooManyPages", "TooManyTiles"),  # found when the PDF is opened
    *("PageUnreadable", "PageTooLarge", "RenderTimeout", "RenderCrashed", "RenderOutOfMemory", "WorkerLost"),  # of a sheet
    *("WebhookUnreachable", "WebhookRefused", "WebhookForbidden", "WebhookGone"),  # of a delivery
    *("SourceMissing", "SourceAltered", "SheetAltered", "ShareFull", "TilesMissing", "Terminated"),
}
"""The errors that are only the reason of an upload or a sheet, or a warning: no request is answered with them."""


@pytest.fixture
def document(app: Starlette) -> dict[str, Any]:
    """The document of all routes."""
    return build_document(described_routes(app.routes), checks_access=True)


def test_every_route_is_described(app: Starlette) -> None:
    """Each route has an operation, each operation has a route, and each id is given once."""
    described = [(route.method, route.path) for route in described_routes(app.routes)]
    assert sorted(described) == sorted((operation.method, operation.path) for operation in OPERATIONS)
    assert len({operation.id for operation in OPERATIONS}) == len(OPERATIONS)


async def test_document_has_only_the_routes_of_the_server(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Without a secret for R2's push or a key for Temporal's payloads, neither their routes nor the descriptions are there."""
    app = create_app(bucket, temporal.connect, ApiSettings.from_env({}))
    async with client_of(app) as client:
        answer = await client.get("/openapi.json")
        assert not {"/v1/events/r2", "/v1/codec/decode", "/v1/codec/encode"} & answer.json()["paths"].keys()
        assert (await client.get("/openapi.json", headers={"If-None-Match": answer.headers["etag"]})).status_code == 304


def test_every_part_of_a_path_is_a_parameter(document: dict[str, Any]) -> None:
    """With its example, which fits its schema."""
    for path, methods in document["paths"].items():
        for operation in methods.values():
            parts = [parameter for parameter in operation["parameters"] if parameter.get("in") == "path"]
            assert [parameter["name"] for parameter in parts] == re.findall(r"{(\w+)}", path)
            assert all(jsonschema_rs.is_valid(parameter["schema"], parameter["example"]) for parameter in parts)


def test_every_option_of_an_upload_is_a_parameter() -> None:
    """The options are those that the route reads."""
    (create,) = [operation for operation in OPERATIONS if operation.id == "createUpload"]
    assert {parameter.name for parameter in create.parameters if parameter.place == "query"} == {
        *OPTIONS,
        LAYOUT,
        LAYERS,
        MARKUPS,
        "filename",
    }


def test_what_creates_takes_an_idempotency_key() -> None:
    """And no other request does. Each POST that does not create has the same effect when it is sent twice."""
    for operation in OPERATIONS:
        assert (IDEMPOTENCY_KEY in operation.parameters) is operation.creates, operation.id
        assert not operation.creates or operation.method == "POST"


def problems(app: Starlette) -> dict[str, int]:
    """The HTTP status of each problem that some operation may answer with."""
    policies = {(route.method, route.path): route.policy for route in described_routes(app.routes)}
    return {
        name: status
        for operation in OPERATIONS
        for status, names in problem_types(operation, policies[operation.method, operation.path]).items()
        for name in names
    }


def test_every_operation_names_its_credentials(document: dict[str, Any]) -> None:
    """They are those of the route's policy, with the scope; only what reads takes a ticket."""
    upload = document["paths"][UPLOAD]
    assert upload["get"]["security"] == [{name: ["read"]} for name in ("token", "ticket", "ticketHeader", "session")]
    assert upload["delete"]["security"] == [{"token": ["operate"]}, {"session": ["operate"]}]
    assert document["paths"][SESSION]["post"]["security"] == [{"token": []}]
    assert document["paths"][LIVE]["get"]["security"] == []
    used = {
        name for methods in document["paths"].values() for operation in methods.values() for way in operation["security"] for name in way
    }
    assert used == document["components"]["securitySchemes"].keys()


async def test_server_that_asks_nobody_names_no_credentials(app: Starlette) -> None:
    """A generated client must not ask its user for a token that nobody checks."""
    async with client_of(app) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert all(operation["security"] == [] for methods in paths.values() for operation in methods.values())
    assert "Needs the scope" not in json.dumps(paths)


def test_every_problem_is_documented(app: Starlette) -> None:
    """Each named error of a request is a problem of some operation, with its status."""
    kinds = {
        kind.__name__: next(STATUS[base] for base in kind.__mro__ if base in STATUS)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SiteLinkError) and not kind.__subclasses__()
    }
    assert {name: status for name, status in problems(app).items() if name in kinds} == {
        name: status for name, status in kinds.items() if name not in REASONS
    }


def progress() -> Snapshot:
    """A progress in which each field has a value."""
    state = snapshot(SheetStatus.READY)
    moment, sheet = state.updated_at, state.sheets[0]
    return replace(
        state,
        started_at=moment,
        completed_at=moment,
        reconciled_at=moment,
        forecast=Forecast(1, 2, 3, 4, 5.5, 6, 7, 0.1, 4.5, 0.36),
        receipt=Receipt(1, 2, 3, 4.5, 5, 6, 0.1),
        sheets=(replace(sheet, notes=(Note("Scaled", "x"),), tiles=5, bytes=10, reason="WorkerLost", detail="x"),),
    )


@pytest.mark.parametrize(
    "record",
    [progress(), snapshot(SheetStatus.PENDING), SheetReport(1, SheetStatus.READY), UploadReport("a/b/c/d", None)],
    ids=lambda record: type(record).__name__,
)
def test_schema_is_that_of_the_wire(document: dict[str, Any], record: Snapshot | SheetReport | UploadReport) -> None:
    """What ``to_wire`` makes of a dataclass fits the dataclass's schema, with every name; another type of a value does not."""
    name, wire = type(record).__name__, to_wire(record)
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema_rs.validate(schema, wire)
    assert document["components"]["schemas"][name]["properties"].keys() == wire.keys()
    for key in wire:
        assert not jsonschema_rs.is_valid(schema, {**wire, key: {"no": "such value"}}), key


async def test_page_shows_the_whole_document(app: Starlette, document: dict[str, Any]) -> None:
    """Each operation, schema and problem; every link on the page leads somewhere; nothing comes from elsewhere, and nothing is a script."""
    async with client_of(app) as client:
        answer = await client.get("/docs")
    page = answer.text
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    webhooks = {methods["post"]["operationId"] for methods in document["webhooks"].values()}
    assert anchors == {
        *(operation.id for operation in OPERATIONS),
        *webhooks,
        *(f"schema-{name}" for name in document["components"]["schemas"]),
    }
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors
    assert problems(app).keys() <= set(re.findall(r"\w+", page))
    assert set(re.findall(r'<link[^>]+href="([^"]+)"', page)) == {"/static/icon.svg", "/static/style.css", "/static/docs.css"}
    assert not re.search(r"<script|style=|<img|@import", page)


async def test_page_and_document_are_found_in_the_static_files(app: Starlette) -> None:
    """What the page links to is served."""
    async with client_of(app) as client:
        page = (await client.get("/docs")).text
        for path in re.findall(r'href="(/[^"#]*)"', page):
            answer: httpx2.Response = await client.get(path)
            assert answer.status_code == 200, path


async def test_no_header_leads_to_an_answer_that_is_not_documented(app: Starlette, document: dict[str, Any]) -> None:
    """A library's answers to conditions and ranges: each public page gives only the statuses that the document has."""
    headers = {"Range": "bytes=0-3", "If-None-Match": "*", "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT", "If-Match": '"x"'}
    wrong = {"Range": "bytes=99999999-"}, {"Range": "bytes=x"}
    async with client_of(app) as client:
        for path in (HOME, DOCS, OPENAPI, LIVE):
            for sent in (*({name: value} for name, value in headers.items()), *wrong):
                status = (await client.get(path, headers=sent)).status_code
                assert status < 400, (path, sent)
                assert str(status) in document["paths"][path]["get"]["responses"], (path, sent)


@pytest.mark.parametrize("path", [f"{UPLOADS}/?ticket=secret", "/static", "/docs/"])
async def test_no_path_is_redirected(app: Starlette, path: str) -> None:
    """Behind a proxy that ends TLS, the address would be one without TLS, and the credential of the request would go there."""
    path = path.format(organization="acme", project="tower", plan="a1")
    async with client_of(app) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")
    assert "location" not in answer.headers
