"""The JSON documents of the bucket and of the API: dataclasses, and their camelCase JSON. Pure.

Both use the same JSON: ``manifest.json`` is the last event of the upload's stream, letter for letter. Each document has ``"schema": 1``.
"""

import functools
import hashlib
import json
import types
import typing
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, TypeVar, cast

from activities.errors import NewerSchema

SCHEMA = 1
"""The schema of every document that this release writes, and the newest that it reads."""

T = TypeVar("T")


class UploadStatus(StrEnum):
    """States of an upload. The last four are final until somebody reopens the upload."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETE = "complete"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the run is over."""
        return self not in (UploadStatus.QUEUED, UploadStatus.PROCESSING)


class SheetStatus(StrEnum):
    """States of a sheet."""

    PENDING = "pending"
    TILING = "tiling"
    UPLOADING = "uploading"
    READY = "ready"
    FAILED = "failed"


class Layout(StrEnum):
    """How a sheet lies in the bucket."""

    EXPLODED = "exploded"
    """One object a tile, and a ``.dzi``."""
    PACKED = "packed"
    """One ``.pmtiles`` with all tiles."""
    BOTH = "both"

    @property
    def has_tiles(self) -> bool:
        """Whether each tile is an object, and the ``.dzi`` is the commit marker."""
        return self is not Layout.PACKED

    @property
    def has_archive(self) -> bool:
        """Whether there is a ``.pmtiles``."""
        return self is not Layout.EXPLODED


OPTION_RANGES = {
    "dpi": (30, 1200),
    "tile_size": (128, 2048),
    "overlap": (0, 8),
    "quality": (1, 100),
    "budget_bytes": (1 << 20, 4 << 30),
    "window": (1, 256),
}
"""The least and the greatest value of each option of an upload that is a number."""

LAYER_CHARACTERS = 255
"""Length of the longest name of a layer."""

MOST_LAYER_CHOICES_BYTES = 4 << 10
"""Most bytes of JSON for the option ``layers``: a workflow names the options in every sheet's activities."""

MOST_BUDGET_BYTES = 2 << 30
"""The limit of ``budget_bytes`` where a process that draws a sheet may take 3 GiB of memory, as by default."""


@dataclass(frozen=True)
class UploadOptions:
    """The options of an upload. All options that decide a tile's bytes are here, so that no host has its own.

    Args:
        dpi: Resolution, 30 to 1,200.
        tile_size: Pixels, 128 to 2,048.
        overlap: Pixels, 0 to 8.
        quality: JPEG quality, 1 to 100.
        budget_bytes: A page whose pixels take more is rendered at a lower dpi (3 bytes a pixel).
        window: Sheets in flight at once, 1 to 256.
        layout: How the sheets lie in the bucket.
        layers: The layers that are switched, by name: true for on, false for off. All other layers are as the author left them.
        markups: Whether review markups, such as clouds, notes and stamps, are drawn. Form fields, links and print marks always are.

    Raises:
        ValueError: A number is out of its range, and the message gives the value and the range; or ``layers`` is malformed or too long.
    """

    dpi: int = 300
    tile_size: int = 256
    overlap: int = 1
    quality: int = 85
    budget_bytes: int = 1 << 30
    window: int = 16
    layout: Layout = Layout.EXPLODED
    layers: dict[str, bool] = field(default_factory=dict)
    markups: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in OPTION_RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                msg = f"{camel_case(name)} is {value:,}, allowed are {low:,} to {high:,}"
                raise ValueError(msg)
        for name, is_on in self.layers.items():
            if not 0 < len(name) <= LAYER_CHARACTERS:
                msg = f"a name in layers has {len(name):,} characters, allowed are 1 to {LAYER_CHARACTERS}"
                raise ValueError(msg)
            if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
                msg = f"the name {name[:80]!r} in layers has control characters"
                raise ValueError(msg)
            if not isinstance(is_on, bool):
                msg = f"layers has neither true nor false for {name[:80]!r}"
                raise ValueError(msg)
        if (size_bytes := len(json.dumps(self.layers))) > MOST_LAYER_CHOICES_BYTES:
            msg = f"layers has {size_bytes:,} bytes of JSON, limit {MOST_LAYER_CHOICES_BYTES:,}"
            raise ValueError(msg)


class WebhookEvent(StrEnum):
    """The types of webhooks."""

    UPLOAD_ACCEPTED = "upload.accepted"
    SHEET_READY = "sheet.ready"
    UPLOAD_ENDED = "upload.ended"


DEFAULT_WEBHOOK_EVENTS = (WebhookEvent.UPLOAD_ACCEPTED, WebhookEvent.UPLOAD_ENDED)


@dataclass(frozen=True)
class UploadWebhook:
    """The receiver of the webhooks about one upload.

    Args:
        url: The address, which may hold a credential of the receiver.
        events: The events that are sent.
    """

    url: str = field(repr=False)
    events: tuple[WebhookEvent, ...] = DEFAULT_WEBHOOK_EVENTS


@dataclass(frozen=True)
class WebhooksRecord:
    """``webhooks.json``: the receiver of the webhooks about all uploads of an organization.

    Args:
        url: The address, which may hold a credential of the receiver.
        events: The events that are sent.
        secret_id: The signing secret is derived from it and from a master secret.
        created_at: When the receiver was set first. RFC 3339, UTC.
        updated_at: When it was set last.
    """

    url: str = field(repr=False)
    events: tuple[WebhookEvent, ...]
    secret_id: str
    created_at: str
    updated_at: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class UploadRecord:
    """``upload.json``: the upload was accepted.

    Args:
        file_name: The name that the client sent; never part of a key.
        size_bytes: Size of ``source.pdf``.
        sha256: SHA-256 of ``source.pdf``, hexadecimal; None if nobody had read the whole PDF when the upload was accepted. An earlier
            release cannot read such a record.
        options: The options that the client chose.
        created_at: RFC 3339, UTC.
        deleted_at: When the upload was marked deleted; None before.
        webhook: The receiver that the client named for this upload alone. An earlier release does not know this field, and sends nothing.
        idempotency_key: The key of the record of the ``Idempotency-Key``; empty without one. None if an earlier release wrote the record,
            which did not name it.
    """

    file_name: str
    size_bytes: int
    sha256: str | None
    options: UploadOptions
    created_at: str
    deleted_at: str | None = None
    webhook: UploadWebhook | None = None
    idempotency_key: str | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class SourceRecord:
    """``source.json``: what ``source.pdf`` was when it was first read whole. It is there only if ``upload.json`` has no SHA-256.

    It is an object of its own, because it is written while the upload may be marked deleted in ``upload.json``.

    Args:
        sha256: SHA-256 of ``source.pdf``, hexadecimal.
    """

    sha256: str
    schema: int = SCHEMA


LEAST_PART_BYTES, MOST_PART_BYTES, MOST_PARTS = 5 << 20, 5 << 30, 10_000
"""The sizes that a part may have; the last part may be smaller. https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

BEGUN_LIFE = timedelta(days=7)
"""An upload that was begun is forgotten if it is not completed within this time."""


@dataclass(frozen=True)
class BegunRecord:
    """``begun.json``: an upload whose client sends ``source.pdf`` in parts. It stays when the upload is accepted.

    Args:
        file_name: The name that the client sent; never part of a key.
        size_bytes: The size of ``source.pdf``.
        sha256: SHA-256 of ``source.pdf``, hexadecimal; None if the client does not know it.
        part_bytes: Size of every part but the last.
        options: The options that the client chose.
        begun_at: RFC 3339, UTC.
        multipart_id: The id of the multipart upload on an S3 server; None if the bucket is a directory.
        part_secret: Signs the addresses of the parts, if the bucket is a directory.
        idempotency_key: The key of the record of the ``Idempotency-Key``; None without.
        webhook: The receiver that the client named for this upload alone.
    """

    file_name: str
    size_bytes: int
    sha256: str | None
    part_bytes: int
    options: UploadOptions
    begun_at: str
    multipart_id: str | None = None
    part_secret: str | None = field(default=None, repr=False)
    idempotency_key: str | None = None
    webhook: UploadWebhook | None = None
    schema: int = SCHEMA

    @property
    def expires_at(self) -> datetime:
        """Until then the upload may be completed."""
        return datetime.fromisoformat(self.begun_at) + BEGUN_LIFE

    @property
    def part_count(self) -> int:
        """How many parts there are."""
        return -(-self.size_bytes // self.part_bytes)

    def part_size(self, number: int) -> int:
        """The size of one part in bytes; numbers count from 1."""
        return min(self.part_bytes, self.size_bytes - (number - 1) * self.part_bytes)


@dataclass(frozen=True)
class ReopenedRecord:
    """``reopened.json``: a run goes on with an upload that had ended. It is removed when that run ends.

    Without it, the manifest would be the state of the upload again if Temporal lost that run.

    Args:
        manifest_version: The version of the manifest with which the run goes on. A record beside a newer manifest has no meaning.
        reconcile: Whether the run was to compare every sheet with the bucket.
        deep: Whether that comparison was to read every tile.
        stored: The sheets that it was to judge, ascending.
        retries: The sheets of each request to try failed sheets again; no number means every failed sheet.
    """

    manifest_version: int
    reconcile: bool = False
    deep: bool = False
    stored: tuple[int, ...] = ()
    retries: tuple[tuple[int, ...], ...] = ()
    schema: int = SCHEMA


@dataclass(frozen=True)
class KeyRecord:
    """``keys/{sha256 of Idempotency-Key}.json``: the first request with the key.

    Args:
        upload: The id of the upload that the request made.
        sha256: Hexadecimal SHA-256 of the request's PDF, or of the announcement where the request only began an upload.
        options: ``options_digest`` of the request's options; None in a record of an earlier release.
    """

    upload: str
    sha256: str
    options: str | None = None
    schema: int = SCHEMA


NOTE_CHARACTERS = 240
"""Length of the longest message of a note."""

NOTES_BYTES = 600
"""Most bytes of JSON for the notes of one sheet: a snapshot of 2,000 sheets must stay below 2 MB, the most that Temporal takes."""


@dataclass(frozen=True)
class Note:
    """Why a sheet may differ from the author's drawing.

    Args:
        type: A name for programs, such as ``FontSubstituted``.
        message: A sentence for people, at most ``NOTE_CHARACTERS`` characters.
    """

    type: str
    message: str


MORE_NOTES = "MoreNotes"

COUNTED_NOTES = frozenset({"AttachmentsNotDrawn", "LayerUnknown", "Scaled", "UserUnitUncertain"})
"""The types of the notes that are known before a sheet is drawn. All other notes are found again each time it is drawn."""


def bounded_notes(notes: Iterable[Note], most_bytes: int = NOTES_BYTES) -> tuple[Note, ...]:
    """The notes of one sheet as they are recorded: without repetitions, with shortened messages, at most ``most_bytes`` as JSON.

    If some notes do not fit, a last note, ``MoreNotes``, counts them. A ``MoreNotes`` among ``notes`` is dropped: it counted the notes that
    did not fit in an earlier call.
    """
    kept: list[Note] = []
    room, left_out = most_bytes - 80, 0
    for note in dict.fromkeys(note for note in notes if note.type != MORE_NOTES):
        short = (
            note
            if len(note.message) <= NOTE_CHARACTERS
            else Note(note.type, note.message[: NOTE_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}")
        )
        size_bytes = len(json.dumps(to_wire(short)))
        if left_out or size_bytes > room:
            left_out += 1
        else:
            kept.append(short)
            room -= size_bytes
    if left_out:
        kept.append(Note(MORE_NOTES, f"{left_out:,} more notes are not shown"))
    return tuple(kept)


def scaled_note(dpi: int, asked_dpi: int, reason: str) -> Note:
    """The note of a sheet that has a lower resolution than the client chose."""
    return Note("Scaled", f"The sheet is drawn at {dpi} dpi instead of {asked_dpi}: {reason}.")


@dataclass(frozen=True)
class Layer:
    """A layer of a sheet.

    Args:
        name: As the PDF has it, at most ``LAYER_CHARACTERS`` characters.
        on: Whether the layer is drawn.
    """

    name: str
    on: bool


MOST_LAYERS_BYTES = 64 << 10
"""Most bytes of JSON for the layers of one sheet."""


def bounded_layers(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers of one sheet as they are recorded: with shortened names, and at most ``MOST_LAYERS_BYTES`` as JSON."""
    kept: list[Layer] = []
    room = MOST_LAYERS_BYTES
    for layer in layers:
        short = Layer(layer.name[:LAYER_CHARACTERS], layer.on)
        room -= len(json.dumps(to_wire(short))) + 2
        if room < 0:
            break
        kept.append(short)
    return tuple(kept)


@dataclass(frozen=True)
class SheetRecord:
    """``sheet.json``: the contents of a committed sheet.

    Args:
        number: 1-based.
        width: Pixels.
        height: Pixels.
        dpi: The resolution of these pixels.
        scaled: Whether this resolution is lower than the upload's option.
        title: From the bookmarks or page labels.
        tile_size: Pixels.
        overlap: Pixels.
        quality: JPEG quality.
        tiles: How many tiles the sheet has.
        bytes: The sum of the tiles' sizes.
        digest: See ``tiles_digest``.
        engines: Name to version of every library that decides a tile's bytes.
        notes: Why the sheet may differ from the author's drawing.
        chroma: The chroma subsampling of tiles with colours, ``4:4:4`` or ``4:2:0`` (halved); None in a record of an earlier release.
        layout: How the sheet lies in the bucket, whatever the upload's option says.
        etag: The ETag that an S3 server gives the ``.pmtiles``, without quotes; None if the sheet has none.
        transform: Six numbers a, b, c, d, e, f: the point (x, y) of the page's user space is at the pixel (ax + cy + e, bx + dy + f). None
            in a record of an earlier release.
        layers: The layers that the page uses, in the order of the PDF's list; empty if it has no layers.
    """

    number: int
    width: int
    height: int
    dpi: int
    scaled: bool
    title: str | None
    tile_size: int
    overlap: int
    quality: int
    tiles: int
    bytes: int
    digest: str
    engines: dict[str, str]
    notes: tuple[Note, ...] = ()
    chroma: str | None = None
    layout: Layout = Layout.EXPLODED
    etag: str | None = None
    transform: tuple[float, ...] | None = None
    layers: tuple[Layer, ...] = ()
    schema: int = SCHEMA


@dataclass(frozen=True)
class SheetState:
    """One sheet of a snapshot.

    Args:
        number: 1-based.
        status: See SheetStatus.
        version: The snapshot's version at this sheet's last change.
        title: From the bookmarks or page labels, if any.
        width: Pixels; None for a page that could not be measured.
        height: Pixels, or None likewise.
        dpi: The resolution of these pixels.
        scaled: Whether this resolution is lower than the upload's option.
        tiles: How many tiles the sheet has, once it is ready.
        bytes: The sum of the tiles' sizes, once the sheet is ready.
        reason: The name of the error with which the sheet failed.
        detail: The sentence of that error.
        notes: Why the sheet may differ from the author's drawing.
        thumbnail: Whether the bucket has the thumbnail, which comes before the tiles. A sheet that failed or waits counts as without one.
        layout: How the sheet lies in the bucket, once it is ready; None if an earlier release made it.
    """

    number: int
    status: SheetStatus
    version: int
    title: str | None = None
    width: int | None = None
    height: int | None = None
    dpi: int | None = None
    scaled: bool = False
    tiles: int | None = None
    bytes: int | None = None
    reason: str | None = None
    detail: str | None = None
    notes: tuple[Note, ...] = ()
    layout: Layout | None = None
    thumbnail: bool = False

    def __post_init__(self) -> None:
        # The flag follows the status: the objects of a sheet that failed or was stopped are removed, and the manifest of an earlier release
        # has no flag.
        has_thumbnail = self.status is SheetStatus.READY or (self.thumbnail and self.status in (SheetStatus.TILING, SheetStatus.UPLOADING))
        object.__setattr__(self, "thumbnail", has_thumbnail)


@dataclass(frozen=True)
class Forecast:
    """An estimate of the tiles, requests, seconds and dollars of an upload. ``activities.bucket.forecast`` says what it rests on.

    Args:
        tiles: The exact number of tiles of all sheets.
        puts: How many objects will be written: the tiles, and all others except ``source.pdf``.
        bytes_low: The low estimate of the sum of the tiles' sizes.
        bytes_high: The high estimate of the same.
        seconds: About how long it will take from the count of the pages to the end.
        class_a: Operations that write or list, including the PUTs.
        class_b: Operations that read.
        dollars: The price of these operations, without storage.
        price_class_a: Dollars for a million operations of this class.
        price_class_b: Dollars for a million operations of this class.
        seconds_low: The low estimate of the seconds; None in a forecast of an earlier release.
        seconds_high: The high estimate of the same.
    """

    tiles: int
    puts: int
    bytes_low: int
    bytes_high: int
    seconds: float
    class_a: int
    class_b: int
    dollars: float
    price_class_a: float
    price_class_b: float
    seconds_low: float | None = None
    seconds_high: float | None = None


@dataclass(frozen=True)
class Receipt:
    """The tiles, requests, seconds and dollars that an upload took. ``receipt`` in ``activities.bucket.forecast`` says what is counted.

    ``Forecast`` explains the fields.
    """

    tiles: int
    puts: int
    bytes: int
    seconds: float
    class_a: int
    class_b: int
    dollars: float


@dataclass(frozen=True)
class SecondsLeft:
    """How long an upload will probably still take, counted from the `updatedAt` of its progress.

    Args:
        low: The low estimate, in seconds.
        high: The high estimate.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Snapshot:
    """The progress of an upload; with only the changed sheets, a change of the progress. ``manifest.json`` is a snapshot, too.

    Args:
        status: See UploadStatus.
        version: Grows with every change, also across runs and servers. It is at least the time of the change in milliseconds since 1970.
        updated_at: RFC 3339, UTC, as all times.
        completed_pages: Sheets that are ready.
        total_pages: Pages of the document; 0 until they are counted.
        progress: Percent, a whole number; 100 only when every sheet is ready.
        started_at: When the pages had been counted.
        completed_at: When the run ended.
        reconciled: Whether a reconciliation has corrected or confirmed this progress.
        reconciled_at: When a reconciliation last did so.
        warning: What an operator should know now.
        reason: The name of the error with which the upload failed.
        detail: The sentence of that error.
        forecast: What the upload will probably take; None until the pages are counted.
        receipt: What the upload had taken when it last ended.
        sheet_puts: How many objects were written for the sheets so far. A sheet that was made again counts again.
        processing_seconds: How long the upload has been ``processing`` so far, in all runs together.
        sheets: The sheets, by number.
        seconds_left: How long the upload will probably still take. Only the API's answers and streams say so; None while nothing is known,
            and at the end.
    """

    status: UploadStatus
    version: int
    updated_at: str
    completed_pages: int = 0
    total_pages: int = 0
    progress: int = 0
    started_at: str | None = None
    completed_at: str | None = None
    reconciled: bool = False
    reconciled_at: str | None = None
    warning: str | None = None
    reason: str | None = None
    detail: str | None = None
    forecast: Forecast | None = None
    receipt: Receipt | None = None
    sheet_puts: int = 0
    processing_seconds: float = 0.0
    sheets: tuple[SheetState, ...] = ()
    seconds_left: SecondsLeft | None = None
    schema: int = SCHEMA


TileLine = tuple[str, int, str]
"""Name, size and MD5 of a tile."""


def tiles_digest(tiles: Iterable[TileLine]) -> str:
    """SHA-256, hexadecimal, over the lines ``name size md5`` of all tiles of a sheet, sorted by name."""
    return hashlib.sha256("".join(f"{name} {size} {md5}\n" for name, size, md5 in sorted(tiles)).encode()).hexdigest()


def options_digest(options: UploadOptions, webhook: UploadWebhook | None = None) -> str:
    """SHA-256, hexadecimal, over the options that differ from the defaults. So a release with a further option computes the same digest."""
    chosen = {name: value for name, value in to_wire(options).items() if value != to_wire(UploadOptions())[name]}
    if webhook is not None:
        chosen["webhook"] = to_wire(webhook)
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as in ``2026-01-31T09:30:00.250Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970. A snapshot that changes at this moment has at least this version."""
    return int(moment.timestamp() * 1000)


def camel_case(name: str) -> str:
    """``total_pages`` becomes ``totalPages``."""
    head, *tail = name.split("_")
    return head + "".join(word.title() for word in tail)


def to_wire(value: Any) -> Any:
    """A record as JSON values: objects with camelCase names, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {wire: to_wire(getattr(value, name)) for name, wire in _fields(type(value))[1]}
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value


def to_json(record: Any) -> bytes:
    """A record as one line of UTF-8 JSON."""
    return json.dumps(to_wire(record), ensure_ascii=False, separators=(",", ":")).encode()


def from_json(kind: type[T], data: bytes | str) -> T:
    """Reads a document that ``to_json`` wrote. Unknown fields are ignored.

    Raises:
        NewerSchema: The document's schema is newer than this release's.
        ValueError: The data is not such a document. The message says why, and names no class.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = "it is not JSON"
        raise ValueError(msg) from error
    return from_wire(kind, document)


def from_wire(kind: type[T], document: Any) -> T:
    """Reads a document that ``to_wire`` made. Raises like ``from_json``."""
    if not isinstance(document, Mapping):
        msg = "it is not a JSON object"
        raise ValueError(msg)
    schema = document.get("schema", SCHEMA)
    if not isinstance(schema, int):
        msg = "its schema is not a whole number"
        raise ValueError(msg)
    if schema > SCHEMA:
        msg = f"it has schema {schema}, this release reads up to {SCHEMA}"
        raise NewerSchema(msg)
    hints, names = _fields(cast("type", kind))
    values = {name: _read(wire, hints[name], document[wire]) for name, wire in names if wire in document}
    try:
        return kind(**values)
    except TypeError as error:
        msg = f"it lacks one of the fields {', '.join(wire for name, wire in names if name not in values)}"
        raise ValueError(msg) from error


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """The types of a dataclass's fields by name, and each field's name with its name on the wire."""
    return typing.get_type_hints(kind), tuple((field.name, camel_case(field.name)) for field in fields(kind))


_JSON_TYPES: dict[Any, tuple[type | tuple[type, ...], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
    dict: (dict, "an object"),
    tuple: (list, "a list"),
}
"""A field's type, and its type after ``json.loads`` with the words for it."""


def _read(name: str, hint: Any, value: Any) -> Any:
    """The value of the field whose name on the wire is ``name``. Raises like ``from_json``."""
    if typing.get_origin(hint) is types.UnionType:
        return None if value is None else _read(name, typing.get_args(hint)[0], value)
    kind = typing.get_origin(hint) or hint
    if kind in _JSON_TYPES and (not isinstance(value, _JSON_TYPES[kind][0]) or (isinstance(value, bool) and kind is not bool)):
        msg = f"its {name} is not {_JSON_TYPES[kind][1]}"
        raise ValueError(msg)
    if kind is tuple:
        return tuple(_read(name, typing.get_args(hint)[0], element) for element in value)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_wire(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if value not in list(hint):
            msg = f"its {name} is {str(value)[:80]!r}"
            raise ValueError(msg)
        return hint(value)
    if name.endswith("At") and not _is_time(value):
        msg = f"its {name} is not a time"
        raise ValueError(msg)
    return value


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
