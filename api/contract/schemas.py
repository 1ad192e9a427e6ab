"""JSON Schemas of the documents that the API sends. Those of dataclasses are made from the dataclasses, as ``to_wire`` writes them.

https://json-schema.org/draft/2020-12, the dialect of OpenAPI 3.1
"""

import dataclasses
import inspect
import re
import types
import typing
from enum import StrEnum
from typing import Any

from activities.bucket.keys import ID_PATTERN
from activities.bucket.records import (
    DEFAULT_WEBHOOK_EVENTS,
    LEAST_PART_BYTES,
    MOST_PART_BYTES,
    MOST_PARTS,
    SCHEMA,
    Snapshot,
    WebhookEvent,
    camel_case,
)
from activities.bucket.report import Conversion, SheetReport, UploadReport
from api.access.principal import Scope
from api.direct import MOST_SIGNED
from api.progress.runs import Delivery
from api.r2.events import UnreadableEvent

Schema = dict[str, Any]

WIRE_CLASSES: tuple[type, ...] = (Snapshot, SheetReport, UploadReport, Conversion, UnreadableEvent, Delivery)
"""The dataclasses that answers consist of; those in their fields are found from them."""

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)

ID: Schema = {"type": "string", "pattern": f"^{ID_PATTERN.pattern}$"}
TIME: Schema = {"type": "string", "format": "date-time"}
VERSION: Schema = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def an_object(description: str, **properties: Schema) -> Schema:
    """The schema of an object that has all of these properties. A later release may add properties."""
    return {"type": "object", "description": description, "properties": properties, "required": list(properties)}


def a_list(items: Schema, **limits: int) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items, **limits}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def wire_schemas() -> dict[str, Schema]:
    """The components of all dataclasses and enumerations that answers consist of, by name."""
    found: dict[str, Schema] = {}
    for kind in WIRE_CLASSES:
        _add(kind, found)
    return found


def _add(kind: type, found: dict[str, Schema]) -> None:
    if kind.__name__ in found:
        return
    if issubclass(kind, StrEnum):
        found[kind.__name__] = {"type": "string", "description": _summary(kind), "enum": [str(member) for member in kind]}
        return
    schema = found[kind.__name__] = an_object(_summary(kind))
    hints, arguments = typing.get_type_hints(kind), field_descriptions(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type] # every other kind is a dataclass
        name = camel_case(field.name)
        value = {"const": SCHEMA} if field.name == "schema" else _schema_of(hints[field.name], found)
        if name.endswith("At"):
            value = {**value, "format": "date-time"}
        if description := arguments.get(field.name):
            value = {**value, "description": description}
        schema["properties"][name] = value
        schema["required"].append(name)


def _schema_of(hint: Any, found: dict[str, Schema]) -> Schema:
    """The schema of a field's type; adds the components that it needs."""
    if typing.get_origin(hint) is types.UnionType:
        return or_null(_schema_of(typing.get_args(hint)[0], found))
    if typing.get_origin(hint) is tuple:
        return a_list(_schema_of(typing.get_args(hint)[0], found))
    if hint in _PLAIN:
        return _PLAIN[hint]
    _add(hint, found)
    return ref(hint.__name__)


def _summary(kind: type) -> str:
    return _plain(inspect.cleandoc(kind.__doc__ or "").split("\n\n", 1)[0])


def field_descriptions(kind: type) -> dict[str, str]:
    """The description of each field in the docstring of a dataclass, by name."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    return {name: _plain(description) for name, description in _ARGUMENT.findall(text)}


def _plain(text: str) -> str:
    return re.sub(r"\bNone\b", "null", re.sub(r"\s+", " ", text).replace("``", "`").strip())


def _event(name: str, description: str) -> Schema:
    """An event of a stream, with the fields that https://html.spec.whatwg.org/multipage/server-sent-events.html gives it."""
    return an_object(
        description,
        event={"const": name},
        id={"type": "string", "pattern": "^[0-9]+$", "description": "The version."},
        data={"type": "string", "contentMediaType": "application/json", "contentSchema": ref("Snapshot")},
    )


def _plan_event(name: str, description: str, content: Schema | None = None) -> Schema:
    content = content or {"allOf": [ref("Snapshot"), an_object("The upload.", upload=ID)]}
    return an_object(
        description,
        event={"const": name},
        id={"type": "string", "description": "What the client has of every upload."},
        data={"type": "string", "contentMediaType": "application/json", "contentSchema": content},
    )


TEXT, COUNT = _PLAIN[str], {"type": "integer", "minimum": 0}
BASE64: Schema = {"type": "string", "contentEncoding": "base64", "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}

_LINKS = an_object("Paths on this server.", self=TEXT, events=TEXT, page=TEXT)
_ABOUT: dict[str, Schema] = {
    "ref": {"type": "string", "description": "`org/project/plan/upload`."},
    "upload": ID,
    "fileName": or_null(TEXT) | {"description": "Null if the record of the upload cannot be read, like the size."},
    "sizeBytes": or_null(COUNT),
    "createdAt": TIME,
    "links": ref("Links"),
}

_PART: Schema = {"type": "integer", "minimum": 1, "maximum": MOST_PARTS}
_SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}

_URL: Schema = {
    "type": "string",
    "pattern": "^https?://[!-~]+$",
    "minLength": 9,
    "maxLength": 2000,
    "description": "The address: https, and public, unless the server allows others. It may hold a credential of the receiver.",
    "examples": ["https://hooks.example.com/sitelink"],
}
_EVENTS: Schema = {
    "type": "array",
    "items": {"enum": list(map(str, WebhookEvent))},
    "minItems": 1,
    "default": list(map(str, DEFAULT_WEBHOOK_EVENTS)),
    "description": "The events that are sent.",
}
WEBHOOKS = {
    WebhookEvent.UPLOAD_ACCEPTED: ("UploadAcceptedWebhook", "An upload was accepted and has begun. `data` has no sheets."),
    WebhookEvent.SHEET_READY: (
        "SheetReadyWebhook",
        "Sheets have become ready: `sheets` has only these. Those of 10 seconds come together, at most 100 in one webhook.",
    ),
    WebhookEvent.UPLOAD_ENDED: (
        "UploadEndedWebhook",
        "An upload has ended: `status` is final until somebody asks for a retry or a reconcile. `data` has no sheets.",
    ),
}
"""The schema of each webhook, and when it is sent."""

API_SCHEMAS: dict[str, Schema] = {
    "Links": _LINKS,
    "Upload": {"allOf": [ref("Snapshot"), an_object("The progress of an upload, and facts about its file.", **_ABOUT)]},
    "UploadEntry": an_object(
        "An upload in a list.",
        **_ABOUT,
        status=ref("UploadStatus"),
        warning=or_null(TEXT),
        progress=COUNT,
        completedPages=COUNT,
        totalPages=COUNT,
    ),
    "UploadList": an_object(
        "Uploads of a plan, newest first.",
        uploads=a_list(ref("UploadEntry")),
        nextCursor=or_null(ID) | {"description": "The value for `cursor`, if more uploads follow."},
    ),
    "AcceptedUpload": an_object(
        "A new upload, or the earlier one of the key.", ref=TEXT, upload=ID, status=ref("UploadStatus"), links=ref("Links")
    )
    | {
        "properties": {
            "ref": TEXT,
            "upload": ID,
            "status": ref("UploadStatus"),
            "links": ref("Links"),
            "webhookSecret": {"type": "string", "description": "Verifies the webhooks to `SiteLink-Webhook`, if the request named one."},
        }
    },
    "FileToSend": {
        **an_object(
            "The file that the client sends in parts.",
            sizeBytes={"type": "integer", "minimum": 1, "maximum": 2**53 - 1},
            sha256={
                **_SHA256,
                "description": "SHA-256 of the file, if it is known. The file is checked against it before its pages are counted.",
            },
            partSizeBytes={
                "type": "integer",
                "minimum": LEAST_PART_BYTES,
                "maximum": MOST_PART_BYTES,
                "description": "Size of every part but the last. Without it the server chooses: 8 MiB for all but the largest files.",
            },
        ),
        "required": ["sizeBytes"],
        "additionalProperties": False,
    },
    "BegunUpload": an_object(
        "An upload whose parts the client sends.",
        ref=TEXT,
        upload=ID,
        fileName=TEXT,
        sizeBytes=COUNT,
        sha256=or_null(TEXT),
        partSizeBytes=COUNT | {"description": "Size of every part but the last."},
        partCount=COUNT,
        expiresAt=TIME | {"description": "An upload that is not completed by then is forgotten."},
        stored=a_list(an_object("A part that the bucket has.", number=COUNT, sizeBytes=COUNT, etag=TEXT)),
        links={
            "allOf": [ref("Links"), an_object("Paths of the parts.", parts=TEXT, sign=TEXT, complete=TEXT)],
        },
    ),
    "PartNumbers": an_object("The parts to sign.", numbers=a_list(_PART, minItems=1, maxItems=MOST_SIGNED))
    | {"additionalProperties": False},
    "SignedParts": an_object(
        "The URLs of parts.",
        parts=a_list(
            an_object("A part.", number=_PART, sizeBytes=COUNT, url={"type": "string", "description": "Takes a PUT of just so many bytes."})
        ),
        expiresAt=TIME | {"description": "When the URLs expire. New ones can be had."},
    ),
    "SentParts": an_object(
        "All parts.",
        parts=a_list(an_object("A part, with the ETag of the answer to its PUT.", number=_PART, etag=TEXT), maxItems=MOST_PARTS),
    )
    | {"additionalProperties": False},
    "WebhookReceiver": {
        **an_object("Who gets the webhooks about all uploads of an organization.", url=_URL, events=_EVENTS),
        "required": ["url"],
        "additionalProperties": False,
    },
    "Webhooks": an_object(
        "The receiver of an organization's webhooks.",
        url=TEXT,
        events=_EVENTS,
        createdAt=TIME,
        updatedAt=TIME,
        secret=or_null(TEXT) | {"description": "Verifies the webhooks. Only the answer to the request that makes it has it."},
    ),
    "Deliveries": an_object("Deliveries of webhooks, newest first.", deliveries=a_list(ref("Delivery"))),
    "Redelivered": an_object("The webhook is sent again.", id=ID),
    "AboutUpload": {
        "allOf": [
            ref("Snapshot"),
            an_object(
                "The progress of an upload, and facts about its file.",
                **{name: _ABOUT[name] for name in ("ref", "upload", "fileName", "sizeBytes", "createdAt")},
            ),
        ]
    },
    **{
        name: an_object(description, type={"const": str(event)}, timestamp=TIME, data=ref("AboutUpload"))
        for event, (name, description) in WEBHOOKS.items()
    },
    "Accepted": an_object("The request is accepted.", ref={"type": "string", "description": "`org/project/plan/upload`."}),
    "UploadConversion": {"allOf": [ref("Conversion"), an_object("The conversion of an upload.", ref=TEXT)]},
    "AcceptedOfPlan": an_object(
        "The uploads that are being reconciled.",
        plan=TEXT,
        refs=a_list(TEXT),
        passedOver=a_list(an_object("An upload that is not reconciled, and why.", ref=TEXT, type=TEXT, detail=TEXT)),
    ),
    "Verification": {
        "allOf": [an_object("The report on each sheet, then on the upload.", sheets=a_list(ref("SheetReport"))), ref("UploadReport")]
    },
    "Ticket": an_object(
        "Signed, and not stored.",
        ticket={"type": "string", "description": "The value for `?ticket=` or the header `SiteLink-Ticket`."},
        expiresAt=TIME,
    ),
    "Session": an_object(
        "What a credential allows.",
        checked={"type": "boolean", "description": "Whether the server checks credentials. If not, everybody may do everything."},
        subject=or_null(TEXT) | {"description": "The sender's name in the log."},
        **{
            name: or_null(ID) | {"description": f"The only {name} that the sender may see."}
            for name in ("organization", "project", "plan", "upload")
        },
        scopes=a_list({"enum": [str(scope) for scope in Scope]}),
        system={"type": "boolean", "description": "Whether the sender may see what belongs to no organization."},
        expiresAt=or_null(TIME),
    ),
    "UnreadableEvents": an_object(
        "Messages that are not R2 events, newest first.",
        unreadable=a_list({"allOf": [ref("UnreadableEvent"), an_object("Its place in the bucket.", key=TEXT)]}),
    ),
    "R2Batch": an_object(
        "Messages of a queue.",
        messages=a_list(
            an_object(
                "A message as the queue delivers it.",
                id=TEXT,
                attempts=_PLAIN[int] | {"description": "How often it was delivered, this time included."},
                body=TEXT | {"description": "The message as it was sent: R2's JSON."},
            ),
            maxItems=1000,
        ),
    ),
    "R2Verdicts": an_object(
        "What is to be done with each message.",
        acks=a_list(TEXT),
        retries=a_list(an_object("A message that should come again.", id=TEXT, delaySeconds=COUNT)),
    ),
    "Payloads": an_object(
        "Payloads of Temporal, in the JSON form of protobuf.",
        payloads=a_list(
            {
                "type": "object",
                "properties": {
                    "metadata": {"type": "object", "additionalProperties": BASE64},
                    "data": BASE64,
                },
            }
        ),
    ),
    "Problem": an_object(
        "A refusal: https://www.rfc-editor.org/rfc/rfc9457. The type is the name of an error, or of an HTTP status.",
        type=TEXT,
        title=TEXT,
        status={"type": "integer", "minimum": 400, "maximum": 599},
        detail={"type": "string", "description": "A sentence for people. It gives the value and the limit."},
        instance={"type": "string", "description": "The path of the request."},
    ),
    "SnapshotEvent": _event("snapshot", "The whole progress: the first event of a client without a version."),
    "ChangeEvent": _event("change", "The progress, with only the sheets that changed since the client's version."),
    "EndEvent": _event("end", "The whole final progress. Then the stream ends."),
    "PlanSnapshotEvent": _plan_event("snapshot", "The whole progress of an upload: its first event."),
    "PlanChangeEvent": _plan_event("change", "The progress of an upload, with only the sheets that changed since its last event."),
    "PlanEndEvent": _plan_event("end", "The whole final progress of an upload. It may be reopened; then a `change` follows."),
    "PlanDeletedEvent": _plan_event("deleted", "The upload was deleted.", an_object("The upload.", upload=ID)),
    "ExpiredEvent": an_object(
        "The client's credential has expired. Then the stream ends; open it again with a new credential.",
        event={"const": "expired"},
        data={
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": an_object("The reason.", type=TEXT, detail=TEXT),
        },
    ),
}
"""The documents that the API makes itself."""


def components() -> dict[str, Schema]:
    """Every schema of the document, by name."""
    return {**wire_schemas(), **API_SCHEMAS}
