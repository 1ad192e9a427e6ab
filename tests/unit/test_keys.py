"""Object keys: each is the design's, and no id can leave its directory."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.bucket.dzi import tile_name
from activities.bucket.keys import (
    PlanRef,
    SheetObject,
    SheetPart,
    UploadRef,
    check_id,
    parse_sheet_path,
    sheet_of_directory,
    sheet_of_marker,
    walk_uploads,
)
from api.uploads import new_upload_id

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
UPLOAD = UploadRef("acme", "tower", "plan-A", "0198c0de-0000-7000-8000-000000000001")


def test_keys_are_those_of_the_design() -> None:
    """The keys are spelled out, so that a changed key changes this test."""
    base = "organizations/acme/projects/tower/plans/plan-A/uploads/0198c0de-0000-7000-8000-000000000001/"
    assert UPLOAD.prefix == base
    assert UPLOAD.source == f"{base}source.pdf"
    assert UPLOAD.record == f"{base}upload.json"
    assert UPLOAD.manifest == f"{base}manifest.json"
    assert UPLOAD.sheets_prefix == f"{base}sheets/"
    assert UPLOAD.sheet_prefix(7) == f"{base}sheets/sheet-7/"
    assert UPLOAD.thumbnail(7) == f"{base}sheets/sheet-7/thumbnail.jpeg"
    assert UPLOAD.sheet_record(7) == f"{base}sheets/sheet-7/sheet.json"
    assert UPLOAD.descriptor(7) == f"{base}sheets/sheet-7/tiles/sheet-7.dzi"
    assert UPLOAD.tiles_prefix(7) == f"{base}sheets/sheet-7/tiles/sheet-7_files/"
    assert UPLOAD.plan_ref.uploads_prefix == "organizations/acme/projects/tower/plans/plan-A/uploads/"
    assert UPLOAD.workflow_id == "upload/acme/tower/plan-A/0198c0de-0000-7000-8000-000000000001"


def test_an_idempotency_key_is_hashed() -> None:
    """Whatever the header holds, the key has 64 hexadecimal digits. Equal headers have the same key, other headers do not."""
    key = UPLOAD.plan_ref.idempotency_key("../../x y\u2028")
    assert re.fullmatch(r"organizations/acme/projects/tower/plans/plan-A/keys/[0-9a-f]{64}\.json", key)
    assert key == UPLOAD.plan_ref.idempotency_key("../../x y\u2028") != UPLOAD.plan_ref.idempotency_key("other")


@given(IDS, IDS, IDS, IDS)
def test_a_ref_reads_what_it_writes(organization: str, project: str, plan: str, upload: str) -> None:
    """Parsing a REF's text gives the REF, and of its first three parts the plan."""
    ref = UploadRef(organization, project, plan, upload)
    assert UploadRef.parse(str(ref)) == ref
    assert PlanRef.parse(str(ref.plan_ref)) == ref.plan_ref == PlanRef(organization, project, plan)


@pytest.mark.parametrize("value", ["", ".", "..", "-a", "_a", "a/b", "a b", "a.b", "a\n", "ä", "a" * 65, "a%2Fb", "a\\b", "\u0661"])
def test_an_id_that_could_leave_its_directory_is_refused(value: str) -> None:
    """Only 1 to 64 ASCII letters, digits, - and _, beginning with a letter or digit; the message names what it was for."""
    with pytest.raises(ValueError, match=r"^project "):
        check_id("project", value)
    for position in range(4):
        parts = ["a", "b", "c", "d"]
        parts[position] = value
        with pytest.raises(ValueError, match="is not"):
            UploadRef(*parts)


@given(st.text())
def test_no_text_makes_a_ref_with_another_number_of_parts(text: str) -> None:
    """Any text from outside is refused by ValueError, or is read as exactly itself."""
    for kind, parts in ((PlanRef, 3), (UploadRef, 4)):
        try:
            ref = kind.parse(text)
        except ValueError:
            continue
        assert str(ref) == text
        assert text.count("/") == parts - 1


@given(st.integers(1, 999_999_999))
def test_a_sheets_directory_gives_its_number(number: int) -> None:
    """The directory of each key of a sheet has the sheet's number."""
    for key in (UPLOAD.thumbnail(number), UPLOAD.sheet_record(number), UPLOAD.descriptor(number), UPLOAD.tiles_prefix(number)):
        assert sheet_of_directory(key.removeprefix(UPLOAD.sheets_prefix).split("/")[0]) == number


@pytest.mark.parametrize(
    "name", ["sheet-0", "sheet-01", "sheet-", "sheet--1", "sheet-1x", "Sheet-1", "sheet-1\n", "sheet-\u0661", "sheet-1234567890"]
)
def test_a_foreign_directory_is_no_sheet(name: str) -> None:
    """A name that SiteLink would not write is not read as a sheet's."""
    assert sheet_of_directory(name) is None


NUMBERS = st.integers(0, 999_999_999)


@given(st.integers(1, 999_999_999), NUMBERS, NUMBERS, NUMBERS)
def test_a_sheets_paths_are_read_as_they_are_written(number: int, level: int, column: int, row: int) -> None:
    """Each key of a sheet gives the sheet and the object. Only a ``.dzi`` and a ``.pmtiles`` are commit markers."""
    tile = tile_name(level, column, row)
    objects = {
        UPLOAD.thumbnail(number): SheetObject(number, SheetPart.THUMBNAIL),
        UPLOAD.sheet_record(number): SheetObject(number, SheetPart.RECORD),
        UPLOAD.descriptor(number): SheetObject(number, SheetPart.DESCRIPTOR),
        UPLOAD.archive(number): SheetObject(number, SheetPart.ARCHIVE),
        UPLOAD.tiles_prefix(number) + tile: SheetObject(number, SheetPart.TILE, tile),
    }
    for key, found in objects.items():
        assert parse_sheet_path(key.removeprefix(UPLOAD.sheets_prefix)) == found
        assert sheet_of_marker(key) == ((UPLOAD, number) if found.part in (SheetPart.DESCRIPTOR, SheetPart.ARCHIVE) else None)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "sheet-1",
        "sheet-1/",
        "sheet-01/thumbnail.jpeg",
        "sheet-0/thumbnail.jpeg",
        "sheet-1234567890/thumbnail.jpeg",
        "sheet-1/thumbnail.jpeg\n",
        "sheet-1//thumbnail.jpeg",
        "/sheet-1/thumbnail.jpeg",
        "sheet-1/thumbnail.jpeg/",
        "sheet-1/tiles/thumbnail.jpeg",
        "sheet-1/sheet-1.dzi",
        "sheet-1/tiles/sheet-2.dzi",
        "sheet-1/tiles/sheet-01.dzi",
        "sheet-1/tiles/sheet-1_files/",
        "sheet-1/tiles/sheet-1_files/0_0.jpeg",
        "sheet-1/tiles/sheet-2_files/0/0_0.jpeg",
        "sheet-1/tiles/sheet-1_files/00/0_0.jpeg",
        "sheet-1/tiles/sheet-1_files/0/0_00.jpeg",
        "sheet-1/tiles/sheet-1_files/0/-1_0.jpeg",
        "sheet-1/tiles/sheet-1_files/0/0_0.png",
        "sheet-1/tiles/sheet-1_files/0/0_0.jpeg\n",
        "sheet-1/tiles/sheet-1_files/1234567890/0_0.jpeg",
        "sheet-1/tiles/sheet-1_files/0/../../sheet.json",
        "sheets/sheet-1/thumbnail.jpeg",
    ],
)
def test_a_path_that_no_sheet_has_is_none(path: str) -> None:
    """A path that SiteLink would not write is not read."""
    assert parse_sheet_path(path) is None


@pytest.mark.parametrize(
    "key",
    [
        f"{UPLOAD.prefix}sheet-1/tiles/sheet-1.dzi",
        f"/{UPLOAD.descriptor(1)}",
        f"{UPLOAD.descriptor(1)}/",
        UPLOAD.descriptor(1).replace("/uploads/", "/uploads/a/"),
        UPLOAD.descriptor(1).replace("acme", "a.b"),
        UPLOAD.source,
    ],
)
def test_another_key_is_no_descriptor(key: str) -> None:
    """An object elsewhere in the bucket is not taken for a sheet's ``.dzi``."""
    assert sheet_of_marker(key) is None


def test_id_tells_when_it_was_made() -> None:
    """A UUIDv7 gives its time, to the millisecond. Any other id gives none."""
    now = datetime.now(UTC)
    made_at = UploadRef("acme", "tower", "a1", new_upload_id()).made_at
    assert made_at is not None
    assert timedelta(milliseconds=-1) <= made_at - now < timedelta(seconds=5)
    for name in ("u1", "0198c0de-0000-4000-8000-000000000001", "0198C0DE-0000-7000-8000-000000000001"):
        assert UploadRef("acme", "tower", "a1", name).made_at is None


REFS = st.builds(UploadRef, *[st.sampled_from(["a", "a-b", "a0", "B"])] * 4)


@given(st.sets(REFS), st.one_of(st.none(), REFS))
def test_walk_finds_every_upload_behind_a_place(refs: set[UploadRef], after: UploadRef | None) -> None:
    """Each upload is found once, in the order of names. A walk that begins after one finds exactly the rest. Foreign names are ignored."""

    def path(ref: UploadRef) -> tuple[str, ...]:
        return (ref.organization, ref.project, ref.plan, ref.upload)

    def directories(prefix: str) -> set[str]:
        below = {ref.prefix.removeprefix(prefix).split("/")[0] for ref in refs if ref.prefix.startswith(prefix)}
        return below | {".foreign", "not an id"}

    expected = sorted((ref for ref in refs if after is None or path(ref) > path(after)), key=path)
    assert list(walk_uploads(directories, after)) == expected
