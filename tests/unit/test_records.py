"""Records: what is written is what is read, and what a newer release wrote is refused by name."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.bucket.records import (
    NOTES_BYTES,
    SCHEMA,
    Forecast,
    Layout,
    Note,
    Receipt,
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadRecord,
    UploadStatus,
    bounded_notes,
    camel_case,
    from_json,
    from_wire,
    timestamp,
    to_json,
    to_wire,
)
from activities.errors import NewerSchema

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""Any text that UTF-8 can carry."""

TIMES = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC)).map(timestamp)  # noqa: DTZ001 - it is given
NUMBERS = st.integers(0, 2**53)
OPTIONS = st.builds(
    UploadOptions,
    dpi=st.integers(30, 1200),
    tile_size=st.integers(128, 2048),
    overlap=st.integers(0, 8),
    quality=st.integers(1, 100),
    budget_bytes=st.integers(1 << 20, 4 << 30),
    window=st.integers(1, 256),
    layout=st.sampled_from(Layout),
)
UPLOADS = st.builds(
    UploadRecord,
    file_name=TEXT,
    size_bytes=NUMBERS,
    sha256=st.none() | TEXT,
    options=OPTIONS,
    created_at=TIMES,
    deleted_at=st.none() | TIMES,
    schema=st.just(SCHEMA),
)
NOTES = st.lists(st.builds(Note, type=TEXT, message=TEXT), max_size=3).map(tuple)
SHEET_RECORDS = st.builds(
    SheetRecord,
    number=NUMBERS,
    width=NUMBERS,
    height=NUMBERS,
    dpi=NUMBERS,
    scaled=st.booleans(),
    title=st.none() | TEXT,
    tile_size=NUMBERS,
    overlap=NUMBERS,
    quality=NUMBERS,
    tiles=NUMBERS,
    bytes=NUMBERS,
    digest=TEXT,
    engines=st.dictionaries(TEXT, TEXT, max_size=3),
    notes=NOTES,
    layout=st.sampled_from(Layout),
    etag=st.none() | TEXT,
    transform=st.none() | st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 6),
    schema=st.just(SCHEMA),
)
SHEET_STATES = st.builds(
    SheetState,
    number=NUMBERS,
    status=st.sampled_from(SheetStatus),
    version=NUMBERS,
    title=st.none() | TEXT,
    width=st.none() | NUMBERS,
    height=st.none() | NUMBERS,
    dpi=st.none() | NUMBERS,
    scaled=st.booleans(),
    tiles=st.none() | NUMBERS,
    bytes=st.none() | NUMBERS,
    reason=st.none() | TEXT,
    detail=st.none() | TEXT,
    notes=NOTES,
)
AMOUNTS = st.floats(0, 1e9)
FORECASTS = st.builds(
    Forecast,
    tiles=NUMBERS,
    puts=NUMBERS,
    bytes_low=NUMBERS,
    seconds_low=st.none() | AMOUNTS,
    seconds_high=st.none() | AMOUNTS,
    bytes_high=NUMBERS,
    seconds=AMOUNTS,
    class_a=NUMBERS,
    class_b=NUMBERS,
    dollars=AMOUNTS,
    price_class_a=AMOUNTS,
    price_class_b=AMOUNTS,
)
RECEIPTS = st.builds(
    Receipt,
    tiles=NUMBERS,
    puts=NUMBERS,
    bytes=NUMBERS,
    seconds=AMOUNTS,
    class_a=NUMBERS,
    class_b=NUMBERS,
    dollars=AMOUNTS,
)
SNAPSHOTS = st.builds(
    Snapshot,
    status=st.sampled_from(UploadStatus),
    version=NUMBERS,
    updated_at=TIMES,
    completed_pages=NUMBERS,
    total_pages=NUMBERS,
    progress=st.integers(0, 100),
    started_at=st.none() | TIMES,
    completed_at=st.none() | TIMES,
    reconciled=st.booleans(),
    reconciled_at=st.none() | TIMES,
    warning=st.none() | TEXT,
    reason=st.none() | TEXT,
    detail=st.none() | TEXT,
    forecast=st.none() | FORECASTS,
    receipt=st.none() | RECEIPTS,
    sheet_puts=NUMBERS,
    processing_seconds=AMOUNTS,
    sheets=st.lists(SHEET_STATES, max_size=3).map(tuple),
    schema=st.just(SCHEMA),
)
OPTIONAL = {
    "deletedAt",
    "title",
    "width",
    "height",
    "dpi",
    "tiles",
    "bytes",
    "reason",
    "detail",
    "notes",
    "startedAt",
    "completedAt",
    "reconciledAt",
    "warning",
    "forecast",
    "receipt",
    "sheetPuts",
    "processingSeconds",
}

SNAPSHOT = Snapshot(UploadStatus.PROCESSING, 7, "2026-01-31T09:30:00.000Z", sheets=(SheetState(1, SheetStatus.READY, 7, title="Grundriß"),))


@given(st.one_of(UPLOADS, SHEET_RECORDS, SNAPSHOTS))
def test_a_record_is_read_as_it_was_written(record: Any) -> None:
    """A record that was written and read is equal in each field, with the same types. Written again, it has the same bytes."""
    data = to_json(record)
    again = from_json(type(record), data)
    assert again == record
    assert to_json(again) == data
    assert b"\n" not in data


@given(SNAPSHOTS)
def test_a_snapshot_keeps_its_types(snapshot: Snapshot) -> None:
    """States are read as states, and sheets as a tuple, not as JSON's types."""
    again = from_json(Snapshot, to_json(snapshot))
    assert isinstance(again.status, UploadStatus)
    assert isinstance(again.sheets, tuple)
    assert all(isinstance(sheet, SheetState) and isinstance(sheet.status, SheetStatus) for sheet in again.sheets)


def test_wire_names_are_those_of_the_design() -> None:
    """The names are camelCase. All fields are always there, and absent values are null."""
    names = "status completedPages totalPages progress startedAt updatedAt completedAt reconciled reconciledAt warning version sheets"
    sheet_names = "number title status width height dpi scaled tiles bytes reason version"
    wire = to_wire(SNAPSHOT)
    assert set(names.split()) <= set(wire)
    assert set(sheet_names.split()) <= set(wire["sheets"][0])
    assert wire["schema"] == 1
    assert wire["completedAt"] is None
    assert wire["sheets"][0]["title"] == "Grundriß"
    assert set(to_wire(UploadRecord("a.pdf", 1, "00", UploadOptions(), "x"))) == {
        "fileName",
        "sizeBytes",
        "sha256",
        "options",
        "createdAt",
        "deletedAt",
        "webhook",
        "idempotencyKey",
        "schema",
    }


@pytest.mark.parametrize("kind", [UploadRecord, SheetRecord, Snapshot])
def test_a_newer_schema_is_refused_by_name(kind: type) -> None:
    """It is refused before any other field is read."""
    with pytest.raises(NewerSchema, match=r"^it has schema 2, this release reads up to 1$"):
        from_json(kind, '{"schema": 2, "surprise": {}}')


def test_unknown_fields_and_missing_optional_ones_are_no_error() -> None:
    """A field added within a schema is ignored by an older reader, and has its default for a newer one."""
    document = to_wire(SNAPSHOT)
    for name in OPTIONAL & set(document):
        del document[name]
    assert from_wire(Snapshot, {**document, "later": [1]}) == SNAPSHOT


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[]",
        "null",
        "7",
        '"x"',
        "{}",
        '{"status": "queued"}',
        "[" * 100_000,
        b"\xff",
        *(
            json.dumps({**to_wire(SNAPSHOT), **damage})
            for damage in cast(
                "list[dict[str, object]]",
                [
                    {"status": "ready"},
                    {"status": []},
                    {"version": "7"},
                    {"updatedAt": "x"},
                    {"updatedAt": "2026-01-31T09:30:00"},
                    {"completedAt": 7},
                    {"sheets": 7},
                    {"sheets": [7]},
                    {"sheets": [{"number": "one"}]},
                    {"forecast": {"tiles": []}},
                    {"schema": "2"},
                ],
            )
        ),
    ],
)
def test_data_that_is_no_record_is_a_value_error(data: str | bytes) -> None:
    """Broken or other JSON, an unknown state, a missing field, a wrong type: each raises ValueError, whose message names no class."""
    with pytest.raises(ValueError, match=r"^it(s \w+)? (is|lacks)\b") as failure:
        from_json(Snapshot, data)
    assert not re.search("Snapshot|SheetState|Forecast|Error|__init__", str(failure.value))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("dpi", 30, 1200),
        ("tile_size", 128, 2048),
        ("overlap", 0, 8),
        ("quality", 1, 100),
        ("budget_bytes", 1 << 20, 4 << 30),
        ("window", 1, 256),
    ],
)
def test_options_have_ranges(name: str, low: int, high: int) -> None:
    """Both ends are allowed, the next numbers are refused with value and range under the wire's name."""
    for value in (low, high):
        assert getattr(from_wire(UploadOptions, {camel_case(name): value}), name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"^{camel_case(name)} is {value:,}, allowed are {low:,} to {high:,}$"):
            from_wire(UploadOptions, {camel_case(name): value})


def test_options_default_to_the_design() -> None:
    """300 dpi, tiles of 256 px that overlap by 1, quality 85, 1 GiB of pixels, 16 sheets in flight, an object for each tile."""
    assert UploadOptions() == UploadOptions(300, 256, 1, 85, 1 << 30, 16, Layout.EXPLODED)


@pytest.mark.parametrize("data", ['{"dpi": 5}', '{"tileSize": 100000}'])
def test_options_out_of_range_are_not_read_either(data: str) -> None:
    """A record cannot carry what a request could not."""
    with pytest.raises(ValueError, match="allowed are"):
        from_json(UploadOptions, data)


def test_only_the_last_four_states_are_final() -> None:
    """Queued and processing are not."""
    assert [status.value for status in UploadStatus if status.is_final] == ["complete", "partial", "failed", "cancelled"]


def test_a_time_is_utc_with_milliseconds() -> None:
    """Whatever the time zone was. All times have the same length, so that they sort as text."""
    moment = datetime(2026, 1, 31, 10, 30, 0, 250_999, tzinfo=timezone(timedelta(hours=1)))
    assert timestamp(moment) == "2026-01-31T09:30:00.250Z"
    assert timestamp(datetime(2026, 1, 31, tzinfo=UTC)) == "2026-01-31T00:00:00.000Z"


def test_json_is_compact_utf8() -> None:
    """It is one line without escapes, so that a person can read titles in the file."""
    data = to_json(SNAPSHOT)
    assert "Grundriß".encode() in data
    assert json.loads(data)["sheets"][0]["number"] == 1
    assert b": " not in data


@given(st.lists(st.builds(Note, type=st.sampled_from(["FontMissing", "Scaled"]), message=st.text(max_size=600)), max_size=12))
def test_notes_of_a_sheet_are_bounded_and_none_is_lost_silently(notes: list[Note]) -> None:
    """Equal notes are kept once, the size is bounded, and a last note counts the notes that did not fit."""
    kept = bounded_notes(notes)
    assert len(json.dumps(to_wire(kept))) <= NOTES_BYTES + 2 * len(kept) + 2
    assert bounded_notes((Note("MoreNotes", "2 more notes are not shown"), *notes)) == kept
    left_out = len(set(notes)) - len(kept)
    if kept and kept[-1].type == "MoreNotes":
        assert kept[-1].message.startswith(f"{left_out + 1:,} ")
    else:
        assert left_out == 0
