"""What each route takes and answers: the one place to describe a new route for ``/openapi.json`` and ``/docs``.

``document.py`` adds what is the same everywhere: the ids in the path, ``X-Request-ID``, and the refusals that any route may give.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from activities import errors
from activities.bucket.pmtiles import MEDIA_TYPE
from activities.bucket.records import MOST_BUDGET_BYTES, MOST_PARTS, OPTION_RANGES, Layout, UploadOptions
from api.access.tickets import DEFAULT_TTL_S, MAX_TTL_S
from api.contract.schemas import ID, TEXT, VERSION, Schema, field_descriptions, ref
from api.http.parameters import DEFAULT_LIMIT, LONGEST_WAIT_S, MAX_LIMIT
from api.passwords import HEADER, MAX_CHARACTERS, PERCENT_ENCODED
from api.paths import (
    BEGIN,
    CODEC,
    DELIVERIES,
    DOCS,
    HOME,
    LIVE,
    METRICS,
    OPENAPI,
    PARTS,
    PLAN,
    R2_EVENTS,
    READY,
    REDELIVER,
    SESSION,
    UNREADABLE_EVENTS,
    UPLOAD,
    UPLOADS,
    WEBHOOKS,
)
from api.progress.plan import FOLLOWED
from api.source_prefix import MAX_KEY_BYTES
from api.uploads import LAYERS, LAYOUT, MARKUPS, MAX_KEY_CHARACTERS, OPTIONS

Problem = type[errors.SiteLinkError] | HTTPStatus
"""A refusal: a named error, with all errors below it, or only an HTTP status."""


@dataclass(frozen=True)
class Parameter:
    """A value in the query or in a header.

    Args:
        name: The name on the wire.
        place: ``query`` or ``header``.
        description: What the value does, in a sentence.
        schema: The values that are taken.
        required: Whether a request without the value is refused.
    """

    name: str
    place: str
    description: str
    schema: Schema
    required: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer that is no refusal.

    Args:
        description: When it is given.
        content: The schema of each media type that it may have; none for an answer without a body. That of a stream of Server-Sent Events
            is the schema of one event.
        headers: The headers that belong to it, with their descriptions.
    """

    description: str
    content: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A method of a route.

    Args:
        method: The HTTP method.
        path: The route's path, as in ``api/paths.py``.
        id: The name of the operation in generated clients.
        summary: A sentence for a list.
        answers: The answers, by HTTP status.
        problems: The refusals, beside those that any route may give.
        parameters: The values in the query and in headers.
        body: The schema of each media type of the request's body.
        description: More about it, in Markdown.
        creates: Whether a request that is sent twice would make two things. Then it takes an ``Idempotency-Key``.
    """

    method: str
    path: str
    id: str
    summary: str
    answers: Mapping[int, Answer]
    problems: tuple[Problem, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    description: str = ""
    creates: bool = False


JSON = "application/json"
BINARY: Schema = {"type": "string", "format": "binary"}
FLAG: Schema = {"anyOf": [{"type": "boolean"}, {"enum": ["1", "0", ""]}]}

_SHEET = "sheet-[1-9][0-9]{0,8}"
PATH_PARAMETERS: dict[str, Parameter] = {
    **{name: Parameter(name, "path", f"The id of the {name}.", ID, required=True) for name in ("organization", "project", "plan")},
    "upload": Parameter("upload", "path", "The id of the upload, which the server has made.", ID, required=True),
    "delivery": Parameter("delivery", "path", "The `webhook-id` of the webhook.", ID, required=True),
    "part": Parameter(
        "part", "path", "The number of the part, from 1.", {"type": "integer", "minimum": 1, "maximum": MOST_PARTS}, required=True
    ),
    "sheet": Parameter(
        "sheet", "path", "The number of the sheet, from 1.", {"type": "integer", "minimum": 1, "maximum": 999_999_999}, required=True
    ),
    "path": Parameter(
        "path",
        "path",
        "`sheet-{n}/thumbnail.jpeg`, `sheet-{n}/tiles/sheet-{n}.dzi`, `sheet-{n}/tiles/sheet-{n}_files/{level}/{column}_{row}.jpeg` or "
        "`sheet-{n}/tiles/sheet-{n}.pmtiles`.",
        {
            "type": "string",
            "pattern": rf"^{_SHEET}/(thumbnail\.jpeg|tiles/{_SHEET}(\.dzi|\.pmtiles|_files/[0-9]{{1,2}}/[0-9]+_[0-9]+\.jpeg))$",
        },
        required=True,
    ),
}
"""The parts of paths."""

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Makes the request safe to repeat: the same key with the same content gives the same answer, other content is refused.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS},
)
PASSWORD = Parameter(
    HEADER,
    "header",
    "The password that opens the PDF, percent-encoded UTF-8. The server forgets it when the upload ends.",
    {"type": "string", "pattern": f"^{PERCENT_ENCODED}$", "minLength": 0, "maxLength": MAX_CHARACTERS, "examples": ["T%C3%BCr 7"]},
)
IF_NONE_MATCH = Parameter("If-None-Match", "header", "The ETags that the client has: if one is current, the answer is 304.", TEXT)
DEEP = Parameter("deep", "query", "Also read and decode every tile.", FLAG)
DRY_RUN = Parameter("dryRun", "query", "Change nothing, and answer with what would be done.", FLAG)

EVENT: Schema = {"oneOf": [ref("SnapshotEvent"), ref("ChangeEvent"), ref("EndEvent"), ref("ExpiredEvent")]}
PLAN_EVENT: Schema = {
    "oneOf": [
        *(ref(f"Plan{name}Event") for name in ("Snapshot", "Change", "End", "Deleted")),
        ref("ExpiredEvent"),
    ]
}
ETAG = {"ETag": "The version of the body, for `If-None-Match`."}
NOT_MODIFIED = Answer("The client has the current version.", headers=ETAG)
ACCEPTED = Answer("The request is accepted.", {JSON: ref("Accepted")})
VERIFICATION = Answer("The report. It is sent sheet by sheet.", {JSON: ref("Verification")})

TICKET = Answer("A ticket.", {JSON: ref("Ticket")})
TTL = Parameter(
    "ttl",
    "query",
    "How long the ticket is taken, in seconds.",
    {"type": "integer", "minimum": 1, "maximum": MAX_TTL_S, "default": DEFAULT_TTL_S},
)

BUCKET = (errors.BucketError,)
EXISTING = (errors.UploadNotFound, errors.BucketError)
CHANGING = (*EXISTING, errors.UnreadableRecord, errors.TemporalUnavailable)
_OPTION_MEANINGS = field_descriptions(UploadOptions)
_OPTION_SCHEMAS: dict[str, Schema] = {
    wire: {
        "type": "integer",
        "minimum": low,
        "maximum": MOST_BUDGET_BYTES if name == "budget_bytes" else high,
        "default": getattr(UploadOptions(), name),
    }
    for wire, name in OPTIONS.items()
    for low, high in [OPTION_RANGES[name]]
} | {
    LAYOUT: {"type": "string", "enum": list(map(str, Layout)), "default": str(UploadOptions().layout)},
    LAYERS: {"type": "string", "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$", "examples": ["-Furniture,+Demolition"]},
    MARKUPS: {"type": "boolean", "default": UploadOptions().markups},
}
_LAYERS_IN_JSON: Schema = {
    "anyOf": [_OPTION_SCHEMAS[LAYERS], {"type": "object", "additionalProperties": {"type": "boolean"}, "examples": [{"Furniture": False}]}]
}
NAMED_SOURCE: Schema = {
    "type": "object",
    "description": "A PDF that is in the bucket, and the options of the upload that is made of it.",
    "properties": {
        "source": {
            "type": "string",
            "description": "The key of the PDF, below `SITELINK_SOURCE_PREFIX`.",
            "minLength": 1,
            "maxLength": MAX_KEY_BYTES,
            "examples": ["incoming/acme/plan.pdf"],
        },
        "filename": {"type": "string", "description": "The name of the file, for people."},
        **{
            name: {**schema, "description": _OPTION_MEANINGS[OPTIONS.get(name, name)]}
            for name, schema in (_OPTION_SCHEMAS | {LAYERS: _LAYERS_IN_JSON}).items()
        },
    },
    "required": ["source"],
    "additionalProperties": False,
}

UPLOAD_PARAMETERS: tuple[Parameter, ...] = (
    IDEMPOTENCY_KEY,
    PASSWORD,
    Parameter(
        "SiteLink-Webhook",
        "header",
        "The address of a receiver of webhooks about this upload alone.",
        {
            "type": "string",
            "pattern": "^https://[!-~]+$",
            "minLength": 9,
            "maxLength": 2000,
            "examples": ["https://hooks.example.com/sitelink"],
        },
    ),
    Parameter(
        "SiteLink-Webhook-Events",
        "header",
        "The events that it gets, separated by commas. Without, `upload.accepted,upload.ended`.",
        {"type": "string", "examples": ["upload.ended"]},
    ),
    Parameter("filename", "query", "The name of the file, for people. `Content-Disposition` and the form may have it, too.", TEXT),
    *(Parameter(name, "query", _OPTION_MEANINGS[OPTIONS.get(name, name)], schema) for name, schema in _OPTION_SCHEMAS.items()),
)
"""What a request for a new upload may say, beside the file."""

BEGUN = (*EXISTING, errors.AlreadyFinished, errors.UnreadableRecord)
ACCEPTED_UPLOAD = Answer(
    "The upload is accepted and will be processed.", {JSON: ref("AcceptedUpload")}, {"Location": "The path of the upload."}
)
BODY = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        UPLOADS,
        "createUpload",
        "Accept a PDF as a new upload.",
        {202: ACCEPTED_UPLOAD},
        (
            errors.InvalidRequest,
            errors.DigestMismatch,
            errors.EncodedContent,
            errors.SourceForbidden,
            errors.ObjectMissing,
            errors.NotAPdf,
            errors.FileTooLarge,
            errors.QuotaExceeded,
            errors.IdempotencyConflict,
            errors.PasswordRefused,
            errors.UnreadableRecord,
            errors.BucketError,
            errors.TemporalUnavailable,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.REQUEST_TIMEOUT,
        ),
        UPLOAD_PARAMETERS,
        {
            "application/pdf": BINARY,
            "multipart/form-data": {
                "type": "object",
                "properties": {"file": {**BINARY, "contentMediaType": "application/pdf"}},
                "required": ["file"],
            },
            JSON: NAMED_SOURCE,
        },
        "The body is the PDF, a form with one file, or JSON with the key of a PDF in the bucket.",
        creates=True,
    ),
    Operation(
        "POST",
        BEGIN,
        "beginUpload",
        "Begin an upload whose PDF the client sends into the bucket itself, in parts.",
        {
            201: Answer("The upload is begun.", {JSON: ref("BegunUpload")}, {"Location": "The path of its parts."}),
            202: Answer("The upload of the key is complete.", {JSON: ref("AcceptedUpload")}, {"Location": "The path of the upload."}),
        },
        (
            errors.InvalidRequest,
            errors.FileTooLarge,
            errors.QuotaExceeded,
            errors.IdempotencyConflict,
            errors.PasswordRefused,
            errors.UnreadableRecord,
            errors.BucketError,
            errors.TemporalUnavailable,
            *BODY,
        ),
        UPLOAD_PARAMETERS,
        {JSON: ref("FileToSend")},
        "Sign the parts, PUT each to its URL, and complete the upload within 7 days. The same request with the same `Idempotency-Key` "
        "resumes: it gives the same upload, and `stored` names the parts that need not be sent again.",
        creates=True,
    ),
    Operation(
        "GET",
        PARTS,
        "getParts",
        "Show an upload that was begun, and the parts that the bucket has.",
        {200: Answer("The upload.", {JSON: ref("BegunUpload")})},
        BEGUN,
    ),
    Operation(
        "DELETE",
        PARTS,
        "abortUpload",
        "Forget an upload that was begun, and its parts.",
        {204: Answer("Nothing is left of it.")},
        BEGUN,
    ),
    Operation(
        "POST",
        f"{PARTS}/sign",
        "signParts",
        "Get the URLs to which parts are sent.",
        {200: Answer("The URLs.", {JSON: ref("SignedParts")})},
        (errors.InvalidRequest, *BEGUN, *BODY),
        body={JSON: ref("PartNumbers")},
        description="A part is the body of a PUT to its URL, without further headers. The answer has its `ETag`. A part may be sent again.",
    ),
    Operation(
        "PUT",
        f"{PARTS}/{{part}}",
        "putPart",
        "Send a part to its URL.",
        {200: Answer("The part is stored.", headers={"ETag": "Names these bytes, for `complete`."})},
        (errors.InvalidRequest, errors.NotAllowed, *BEGUN, HTTPStatus.REQUEST_TIMEOUT, errors.TooManyRequests),
        (
            Parameter("expires", "query", "When the URL expires.", {"type": "integer", "minimum": 1, "maximum": 10**12 - 1}, required=True),
            Parameter("signature", "query", "Made by the server.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}, required=True),
        ),
        {"application/octet-stream": BINARY},
        "Only a server whose bucket is a directory has this route. Others sign URLs of their S3 server.",
    ),
    Operation(
        "POST",
        f"{UPLOAD}/complete",
        "completeUpload",
        "Accept an upload whose parts are all in the bucket.",
        {202: ACCEPTED_UPLOAD},
        (
            errors.InvalidRequest,
            errors.PartsIncomplete,
            errors.NotAPdf,
            errors.QuotaExceeded,
            errors.PasswordRefused,
            errors.UnreadableRecord,
            *EXISTING,
            errors.TemporalUnavailable,
            *BODY,
        ),
        (PASSWORD,),
        body={JSON: ref("SentParts")},
        description="The same request again has the same answer. A refusal leaves the parts in the bucket.",
    ),
    Operation(
        "GET",
        UPLOADS,
        "listUploads",
        "List the uploads of a plan, newest first.",
        {200: Answer("A page of the list.", {JSON: ref("UploadList")}, {"Link": 'The address of the next page: `rel="next"`.'})},
        (errors.InvalidRequest, *BUCKET),
        (
            Parameter(
                "limit",
                "query",
                f"How many uploads the page may have; more than {MAX_LIMIT} count as {MAX_LIMIT}.",
                {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": DEFAULT_LIMIT},
            ),
            Parameter("cursor", "query", "`nextCursor` of the page before.", ID),
        ),
    ),
    Operation(
        "POST",
        f"{PLAN}/reconcile",
        "reconcilePlan",
        "Reconcile every upload of a plan.",
        {202: Answer("The uploads are being reconciled.", {JSON: ref("AcceptedOfPlan")})},
        (errors.InvalidRequest, *BUCKET, errors.TemporalUnavailable),
        (DEEP,),
    ),
    Operation(
        "GET",
        f"{PLAN}/events",
        "watchPlan",
        "The progress of a plan's newest uploads as Server-Sent Events.",
        {200: Answer("The events. The stream does not end by itself.", {"text/event-stream": PLAN_EVENT})},
        parameters=(
            Parameter("Last-Event-ID", "header", "The id of the last event, as an EventSource sends it. Others count as none.", TEXT),
            Parameter("after", "query", "The same, for a client that cannot send the header.", TEXT),
        ),
        description=(
            f"The stream follows the newest {FOLLOWED} uploads of the plan, also when they have ended. A new upload begins with its "
            "`snapshot`. The id of an event says what the client has of every upload, so a returning client gets exactly what changed."
        ),
    ),
    Operation(
        "POST",
        f"{PLAN}/tickets",
        "createPlanTicket",
        "Make a ticket that reads all uploads of a plan.",
        {201: TICKET},
        parameters=(TTL,),
    ),
    Operation(
        "GET",
        UPLOAD,
        "getUpload",
        "The progress of an upload, now or at its next change.",
        {200: Answer("The progress.", {JSON: ref("Upload")}, ETAG), 304: NOT_MODIFIED},
        (errors.InvalidRequest, *EXISTING),
        (
            IF_NONE_MATCH,
            Parameter("after", "query", "The version that the client has. The answer comes when the version is another one.", VERSION),
            Parameter(
                "wait",
                "query",
                "Seconds to wait for that. When they are over, the answer is the progress as it is.",
                {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT_S, "default": 0},
            ),
            Parameter("changes", "query", "`sheets` has only the sheets that changed since `after`.", FLAG),
        ),
        description=(
            "For clients whose network buffers a stream of events. Ask with `wait=25` and the `version` of the last answer as `after`, "
            "again and again, until `status` is final. With `If-None-Match`, a wait without a change ends as a 304 without a body. With "
            "`changes`, keep the sheets by number and take in those of each answer. An answer whose `version` is less than `after` has all "
            "sheets: then forget those you have."
        ),
    ),
    Operation(
        "DELETE",
        UPLOAD,
        "deleteUpload",
        "Remove an upload and all its sheets for good.",
        {202: ACCEPTED},
        (*EXISTING, errors.UnreadableRecord),
    ),
    Operation(
        "GET",
        f"{UPLOAD}/events",
        "watchUpload",
        "The progress of an upload as Server-Sent Events.",
        {
            200: Answer("The events, until the upload has ended.", {"text/event-stream": EVENT}),
            204: Answer("The client has the final version. This ends an EventSource."),
        },
        (errors.UploadNotFound,),
        (
            Parameter(
                "Last-Event-ID", "header", "The version that the client has, as an EventSource sends it. Others count as none.", TEXT
            ),
            Parameter("after", "query", "The same, for a client that cannot send the header.", TEXT),
        ),
        description="A comment every 15 seconds keeps the connection open. A client that comes back gets exactly what changed since.",
    ),
    Operation(
        "GET",
        f"{UPLOAD}/verify",
        "verifyUpload",
        "Report whether the bucket holds every tile.",
        {200: VERIFICATION},
        (errors.InvalidRequest, *EXISTING),
        (DEEP,),
    ),
    Operation(
        "POST",
        f"{UPLOAD}/tickets",
        "createUploadTicket",
        "Make a ticket that reads one upload.",
        {201: TICKET},
        EXISTING,
        (TTL,),
    ),
    Operation(
        "POST",
        f"{UPLOAD}/cancel",
        "cancelUpload",
        "Stop an upload that still runs.",
        {202: ACCEPTED},
        (*CHANGING, errors.AlreadyFinished),
    ),
    Operation(
        "POST",
        f"{UPLOAD}/reconcile",
        "reconcileUpload",
        "Make the progress and the bucket agree.",
        {200: VERIFICATION, 202: ACCEPTED},
        (errors.InvalidRequest, errors.PasswordRefused, *CHANGING),
        (DEEP, DRY_RUN, PASSWORD),
    ),
    *(
        Operation(
            "POST",
            f"{UPLOAD}/{verb}",
            f"{verb}Upload",
            summary,
            {202: ACCEPTED},
            (*CHANGING, errors.UploadBusy),
            description="The upload must have ended. The options in `upload.json` stay; the `sheet.json` of each sheet tells its layout.",
        )
        for verb, summary in (
            ("pack", "Make each ready sheet of a stored upload one object."),
            ("unpack", "Make each tile of the ready sheets of a stored upload an object."),
        )
    ),
    Operation(
        "GET",
        f"{UPLOAD}/conversion",
        "getConversion",
        "How far the last `pack` or `unpack` is.",
        {200: Answer("The last conversion that Temporal still knows.", {JSON: ref("UploadConversion")})},
        (*EXISTING, errors.ObjectMissing, errors.TemporalUnavailable),
    ),
    Operation(
        "POST",
        f"{UPLOAD}/sheets/{{sheet}}/prioritize",
        "prioritizeSheet",
        "Tile a sheet next.",
        {202: ACCEPTED},
        (*CHANGING, errors.SheetNotFound, errors.AlreadyFinished),
    ),
    Operation(
        "POST",
        f"{UPLOAD}/sheets/{{sheet}}/retry",
        "retrySheet",
        "Try a failed sheet again, or resume a cancelled upload.",
        {202: ACCEPTED},
        (errors.InvalidRequest, errors.PasswordRefused, *CHANGING, errors.SheetNotFound, errors.AlreadyFinished),
        (PASSWORD,),
    ),
    Operation(
        "GET",
        f"{UPLOAD}/sheets/{{path}}",
        "getSheetObject",
        "A thumbnail, the descriptor or a tile of a sheet, or all its tiles.",
        {
            200: Answer("The object.", {"image/jpeg": BINARY, "application/xml": TEXT, MEDIA_TYPE: BINARY}, ETAG),
            206: Answer(
                "The range of a `.pmtiles`.", {MEDIA_TYPE: BINARY}, {**ETAG, "Content-Range": "The bytes, and how many there are."}
            ),
            304: NOT_MODIFIED,
        },
        (*EXISTING, errors.ObjectMissing, errors.UnreadableRecord, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
        (
            IF_NONE_MATCH,
            Parameter("Range", "header", "The bytes of a `.pmtiles` that the client wants: one range.", TEXT),
            Parameter("If-Range", "header", "The range is sent only if this is the current ETag; else the whole `.pmtiles`.", TEXT),
        ),
        description="Point a Deep Zoom viewer at the `.dzi`. It and the tiles are the same, whatever the layout of the upload. "
        "A `.pmtiles` is there if the layout is `packed` or `both`.",
    ),
    Operation(
        "GET",
        WEBHOOKS,
        "getWebhooks",
        "Show who gets the webhooks of an organization.",
        {200: Answer("The receiver, without its secret.", {JSON: ref("Webhooks")})},
        (errors.WebhookNotFound, errors.UnreadableRecord, *BUCKET),
    ),
    Operation(
        "PUT",
        WEBHOOKS,
        "setWebhooks",
        "Set who gets the webhooks about all uploads of an organization.",
        {200: Answer("The receiver, with its secret if that is new.", {JSON: ref("Webhooks")})},
        (
            errors.InvalidRequest,
            errors.UnreadableRecord,
            *BUCKET,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.REQUEST_TIMEOUT,
        ),
        (Parameter("newSecret", "query", "Make a new secret, from which on the earlier one verifies nothing.", FLAG),),
        {JSON: ref("WebhookReceiver")},
    ),
    Operation(
        "DELETE",
        WEBHOOKS,
        "removeWebhooks",
        "Send the organization no more webhooks.",
        {204: Answer("There is no receiver any more.")},
        BUCKET,
    ),
    Operation(
        "GET",
        DELIVERIES,
        "listDeliveries",
        "List the newest deliveries of an organization's webhooks.",
        {200: Answer("The deliveries that Temporal still knows.", {JSON: ref("Deliveries")})},
        (errors.InvalidRequest, errors.TemporalUnavailable),
        (
            Parameter(
                "limit",
                "query",
                f"How many deliveries; more than {MAX_LIMIT} count as {MAX_LIMIT}.",
                {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": DEFAULT_LIMIT},
            ),
            Parameter("status", "query", "Only deliveries with this status.", {"enum": ["delivering", "delivered", "failed"]}),
        ),
    ),
    Operation(
        "POST",
        REDELIVER,
        "redeliverWebhook",
        "Send a webhook again, with the same `webhook-id`.",
        {202: Answer("It is being sent.", {JSON: ref("Redelivered")})},
        (errors.WebhookNotFound, errors.TemporalUnavailable),
        description="A delivery that waits for its next attempt makes it now; one that has ended begins anew.",
    ),
    Operation(
        "POST",
        R2_EVENTS,
        "pushR2Events",
        "Take events of R2 that a Worker passes on.",
        {200: Answer("What is to be done with each message.", {JSON: ref("R2Verdicts")})},
        (
            errors.InvalidRequest,
            errors.BadSignature,
            errors.BucketError,
            errors.TemporalUnavailable,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.REQUEST_TIMEOUT,
        ),
        (
            Parameter("webhook-id", "header", "Names the request.", {"type": "string", "pattern": "^[!-~]{1,256}$"}, required=True),
            Parameter("webhook-timestamp", "header", "Seconds since 1970.", {"type": "string", "pattern": "^[0-9]{1,12}$"}, required=True),
            Parameter(
                "webhook-signature",
                "header",
                "The signature of Standard Webhooks. That of a Worker of an earlier release is taken, too.",
                {"type": "string", "pattern": "^v1,[A-Za-z0-9+/]{43}=$"},
                required=True,
            ),
        ),
        {JSON: ref("R2Batch")},
        "A 503 has the members of the 200, too.",
    ),
    Operation(
        "GET",
        UNREADABLE_EVENTS,
        "listUnreadableEvents",
        "List the messages that were kept aside because they are not R2 events.",
        {200: Answer("The newest messages.", {JSON: ref("UnreadableEvents")})},
        BUCKET,
    ),
    *(
        Operation(
            "POST",
            f"{CODEC}/{verb}",
            f"{verb}Payloads",
            f"{verb.title()} payloads of Temporal, for its UI and its command line.",
            {200: Answer("The payloads, in the same order.", {JSON: ref("Payloads")})},
            (
                errors.InvalidRequest,
                *((errors.PayloadUnreadable,) if verb == "decode" else ()),
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                HTTPStatus.REQUEST_TIMEOUT,
            ),
            body={JSON: ref("Payloads")},
            description="That of a [codec server](https://docs.temporal.io/codec-server). Decoding leaves payloads in clear as they are.",
        )
        for verb in ("decode", "encode")
    ),
    Operation(
        "POST",
        SESSION,
        "beginSession",
        "Exchange a token for the cookie of a session.",
        {204: Answer("The cookie is set, or not needed.", headers={"Set-Cookie": "The session."})},
    ),
    Operation(
        "GET",
        SESSION,
        "getSession",
        "Who the sender is, and what the credential allows.",
        {200: Answer("What it allows. Without access control, everything.", {JSON: ref("Session")})},
    ),
    Operation(
        "DELETE",
        SESSION,
        "endSession",
        "Remove the cookie of a session.",
        {204: Answer("The cookie is removed.", headers={"Set-Cookie": "An empty session, which has expired."})},
    ),
    Operation("GET", LIVE, "isLive", "Whether the process answers.", {200: Answer("It does.", {"text/plain": TEXT})}),
    Operation(
        "GET",
        READY,
        "isReady",
        "Whether Temporal and the bucket answer, and the bucket has room.",
        {200: Answer("They do.", {"text/plain": TEXT})},
        (*BUCKET, errors.TemporalUnavailable),
    ),
    Operation(
        "GET",
        METRICS,
        "getMetrics",
        "The metrics of this process, for Prometheus.",
        {200: Answer("Prometheus's text format, version 0.0.4.", {"text/plain": TEXT})},
    ),
    Operation(
        "GET",
        OPENAPI,
        "getContract",
        "This document.",
        {200: Answer("OpenAPI 3.1.", {JSON: {"type": "object"}}, ETAG), 304: NOT_MODIFIED},
        (),
        (IF_NONE_MATCH,),
    ),
    Operation(
        "GET",
        DOCS,
        "getDocumentation",
        "This document as a page for people.",
        {200: Answer("HTML.", {"text/html": TEXT}, ETAG), 304: NOT_MODIFIED},
        (),
        (IF_NONE_MATCH,),
    ),
    Operation(
        "GET",
        HOME,
        "getPage",
        "The web page.",
        {200: Answer("HTML.", {"text/html": TEXT}, ETAG), 304: NOT_MODIFIED},
        (),
        (IF_NONE_MATCH,),
    ),
)
"""Every operation."""

EXAMPLES = {
    "organization": "acme",
    "project": "tower",
    "plan": "architectural",
    "upload": "0198c0de-0000-7000-8000-000000000001",
    "delivery": "msg_0123456789abcdef0123456789abcdef",
    "part": 1,
    "sheet": 1,
    "path": "sheet-1/tiles/sheet-1.dzi",
}
"""An example of each part of a path."""
