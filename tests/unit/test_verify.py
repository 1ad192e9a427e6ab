"""Verification on a real directory: exactly what is wrong is reported, and nothing is changed."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.bucket.dzi import parse_tile_name
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout, SheetRecord, SheetStatus, Snapshot, UploadStatus, from_json, from_wire, to_json, to_wire
from activities.bucket.report import MOST_NAMES, Proof, Repair, SheetReport, UploadReport
from activities.bucket.storage import Bucket, ObjectInfo
from activities.bucket.verify import THREADS, bounded_map, verify_upload
from activities.errors import UploadNotFound
from tests.unit.sheets import NAMES, PYRAMID, REF, Md5Bucket, accept, jpeg, progress, put_sheet, put_upload


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """An empty bucket."""
    return Bucket(BucketSettings(tmp_path.as_uri()))


@pytest.fixture
def md5_bucket(tmp_path: Path) -> Bucket:
    """An empty bucket whose LIST tells MD5s."""
    return Md5Bucket(BucketSettings(tmp_path.as_uri()))


def check(bucket: Bucket, state: Snapshot | None = None, *, deep: bool = False) -> tuple[list[SheetReport], UploadReport]:
    """The reports of the sheets and of the upload."""
    *sheets, total = verify_upload(bucket, REF, state, deep=deep)
    assert isinstance(total, UploadReport)
    return [sheet for sheet in sheets if isinstance(sheet, SheetReport)], total


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("deep", [False, True])
def test_untouched_upload_verifies_and_nothing_is_changed(bucket: Bucket, tmp_path: Path, deep: bool) -> None:
    """Every tile is there; on a directory only reading them back proves their bytes."""
    put_upload(bucket)
    before = files(tmp_path)
    sheets, total = check(bucket, deep=deep)
    proof = Proof.DIGEST if deep else Proof.NAMES
    count = len(NAMES)
    ready = SheetStatus.READY
    assert sheets == [SheetReport(number, ready, count, count, verified=True, proof=proof, layout=Layout.EXPLODED) for number in (1, 2)]
    assert total == UploadReport(str(REF), UploadStatus.COMPLETE, True, deep, 2, 2, 0, 2 * count, 2 * count, 0, (), 0, 0, (), proof)
    assert files(tmp_path) == before


def test_etags_that_are_md5s_prove_the_digest(md5_bucket: Bucket) -> None:
    """On S3 and R2 the LIST alone proves every byte."""
    put_upload(md5_bucket)
    sheets, total = check(md5_bucket)
    assert [sheet.proof for sheet in sheets] == [Proof.DIGEST] * 2
    assert (total.verified, total.proof) == (True, Proof.DIGEST)


JUNK = st.sampled_from(
    [
        "sheet-1/junk.txt",
        "sheet-1/tiles/sheet-1_files/99/0_0.jpeg",
        "sheet-1/tiles/sheet-1_files/9/7_0.jpeg",
        "sheet-1/tiles/sheet-1_files/9/00_0.jpeg",
        "sheet-1/tiles/sheet-1_files/9/0_0.png",
        "sheet-1/tiles/sheet-2.dzi",
        "sheet-1/tiles/sheet-1_files/vips-properties.xml",
        "sheet-2/tiles/sheet-1_files/0/0_0.jpeg",
        "sheet-3/sheet.json",
        "sheet-03/thumbnail.jpeg",
        "junk/a/b",
    ]
)


@contextmanager
def whole_upload() -> Iterator[Bucket]:
    """A complete upload of two sheets, in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        bucket = Md5Bucket(BucketSettings(Path(directory).as_uri()))
        put_upload(bucket)
        yield bucket


@settings(max_examples=40, deadline=None)
@given(
    deleted=st.sets(st.sampled_from(NAMES)),
    emptied=st.sets(st.sampled_from(NAMES)),
    altered=st.sets(st.sampled_from(NAMES)),
    junk=st.sets(JUNK),
    gone=st.sets(st.sampled_from(["sheet.json", "thumbnail", "dzi"])),
)
def test_exactly_the_damage_is_reported(deleted: set[str], emptied: set[str], altered: set[str], junk: set[str], gone: set[str]) -> None:
    """Any tiles of a sheet deleted, emptied or altered, any junk added, any of its other objects lost; its neighbour stays verified."""
    emptied -= deleted
    altered -= deleted | emptied
    with whole_upload() as bucket:
        prefix = REF.tiles_prefix(1)
        bucket.delete(prefix + name for name in deleted)
        for name in emptied:
            bucket.put(prefix + name, b"")
        for name in altered:
            body = bytearray(bucket.get(prefix + name).body)
            body[len(body) // 2] ^= 1
            bucket.put(prefix + name, bytes(body))
        for path in junk:
            bucket.put(REF.sheets_prefix + path, b"junk")
        lost = {"sheet.json": REF.sheet_record(1), "thumbnail": REF.thumbnail(1), "dzi": REF.descriptor(1)}
        bucket.delete(lost[name] for name in gone)

        (first, second), total = check(bucket)

    assert (first.expected, first.found) == (len(NAMES), len(NAMES) - len(deleted) - len(emptied))
    assert first.missing == tuple(name for name in NAMES if name in deleted)[:MOST_NAMES]
    assert (first.missing_count, total.missing_count) == (len(deleted), len(deleted))
    assert (first.empty, first.empty_count) == (tuple(sorted(emptied))[:MOST_NAMES], len(emptied))
    of_sheet = {number: tuple(sorted(path for path in junk if path.startswith(f"sheet-{number}/"))) for number in (1, 2)}
    assert (first.foreign, second.foreign) == (of_sheet[1], of_sheet[2])
    assert set(total.foreign) == junk - {*of_sheet[1], *of_sheet[2]}
    assert total.foreign_count == len(junk)
    expected = {"sheet.json": "sheet.json is missing", "thumbnail": "thumbnail.jpeg is missing", "dzi": "the .dzi is missing"}
    problems = {expected[name] for name in gone}
    if altered and not (deleted or emptied or "sheet.json" in gone):
        problems.add("the digest over all tiles is not the one in sheet.json: some tile has other bytes than were written")
    assert set(first.problems) == problems
    assert first.verified == (not (deleted or emptied or of_sheet[1] or problems))
    assert second.verified == (not of_sheet[2])
    assert total.verified == (first.verified and second.verified and not junk)
    assert total.wrong_sheets == (not first.verified) + (not second.verified)


@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_altered_bytes_of_the_same_size_are_caught(bucket: Bucket, md5_bucket: Bucket, name: str) -> None:
    """ETags find them, and so does reading back. Names and sizes do not, and the report says that only those were proved."""
    put_upload(bucket)
    key = REF.tiles_prefix(2) + name
    body = bucket.get(key).body
    bucket.put(key, body[:-3] + bytes([body[-3] ^ 1]) + body[-2:])
    (_, shallow), total = check(bucket)
    assert (shallow.verified, total.verified, total.proof) == (True, True, Proof.NAMES)
    for reports in (check(md5_bucket), check(bucket, deep=True)):
        (first, second), total = reports
        assert (first.verified, second.verified, total.verified) == (True, False, False)
        assert "digest" in second.problems[-1]


def test_etags_that_only_look_like_md5s_prove_names(tmp_path: Path) -> None:
    """An encrypted object's ETag has 32 digits, too. A digest that differs for this reason is no fault."""

    class Encrypted(Bucket):
        def objects(self, prefix: str, after: str = "", last: str = "") -> Iterator[ObjectInfo]:
            return (replace(info, etag=f'"{info.size:032x}"') for info in super().objects(prefix, after, last))

    bucket = Encrypted(BucketSettings(tmp_path.as_uri()))
    put_upload(bucket)
    sheets, total = check(bucket)
    assert [(sheet.verified, sheet.proof) for sheet in sheets] == [(True, Proof.NAMES)] * 2
    assert (total.verified, total.proof) == (True, Proof.NAMES)


def test_one_list_per_sheet_and_no_request_per_tile(tmp_path: Path) -> None:
    """A sheet costs its LIST and two GETs, however many tiles it has."""
    lists, gets = [], []

    class Counted(Bucket):
        def objects(self, prefix: str, after: str = "", last: str = "") -> Iterator[ObjectInfo]:
            lists.append(prefix)
            return super().objects(prefix, after, last)

        def get(self, key: str):  # type: ignore[no-untyped-def]
            gets.append(key)
            return super().get(key)

        def head(self, key: str) -> ObjectInfo:
            raise AssertionError(key)

    bucket = Counted(BucketSettings(tmp_path.as_uri()))
    put_upload(bucket, 3)
    gets.clear()
    check(bucket)
    assert sorted(lists) == [REF.sheet_prefix(number) for number in (1, 2, 3)]
    each = [key for number in (1, 2, 3) for key in (REF.sheet_record(number), REF.descriptor(number))]
    assert sorted(gets) == sorted([REF.record, REF.manifest, *each])


def test_deep_names_the_tile_that_cannot_be_decoded(bucket: Bucket) -> None:
    """A tile or thumbnail that is cut off, has another size or is no JPEG is reported by its name."""
    put_upload(bucket, 1)
    names = NAMES[-3:]
    for name, body in zip(names, (bucket.get(REF.tiles_prefix(1) + NAMES[-1]).body[:300], jpeg(7, 7), b"no JPEG"), strict=True):
        bucket.put(REF.tiles_prefix(1) + name, body)
    bucket.put(REF.thumbnail(1), jpeg(600, 300))
    (sheet,), total = check(bucket, deep=True)
    assert not total.verified
    thumbnail, cut, small, none, *_ = sheet.problems
    assert thumbnail == "thumbnail.jpeg has 600 x 300 px, not at most 512 x 512"
    told = {problem.split()[1]: problem for problem in (cut, small, none)}
    assert told.keys() == set(names)
    width, height = PYRAMID.tile_rectangle(*(parse_tile_name(names[1]) or (0, 0, 0)))[2:]
    assert f"has 7 x 7 px, not {width} x {height}" in told[names[1]]
    assert "cannot be decoded" in told[names[2]]


def test_deep_sees_what_lies_right_below_sheets(bucket: Bucket) -> None:
    """The LIST of directories does not show such a fault."""
    put_upload(bucket, 1)
    bucket.put(REF.sheets_prefix + "stray.txt", b"x")
    _, total = check(bucket, deep=True)
    assert (total.verified, total.foreign, total.foreign_count) == (False, ("stray.txt",), 1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("number", 7, "sheet.json says number 7, its key says 1"),
        ("width", 301, "sheet.json says width 301, the progress says 300"),
        ("width", "wide", "sheet.json cannot be read: its width is not a whole number"),
        ("width", 10**30, "the progress says 300"),
        ("width", 0, "no pyramid of 0 x 200 px"),
        ("tileSize", 256, "sheet.json says tile_size 256, upload.json says 128"),
        ("tiles", 5, "sheet.json says 5 tiles"),
        ("bytes", 5, "sheet.json says the tiles have 5 bytes"),
        ("schema", 2, "sheet.json cannot be read: it has schema 2"),
    ],
)
def test_a_sheet_record_that_disagrees_is_told(bucket: Bucket, field: str, value: object, words: str) -> None:
    """``sheet.json`` may disagree with its key, the options, the progress, the tiles or itself."""
    put_upload(bucket, 1)
    document = json.loads(bucket.get(REF.sheet_record(1)).body)
    bucket.put(REF.sheet_record(1), json.dumps({**document, field: value}).encode())
    (sheet,), total = check(bucket)
    assert (sheet.verified, total.verified) == (False, False)
    assert any(words in problem for problem in sheet.problems), sheet.problems


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_records_that_cannot_be_read_are_told(bucket: Bucket, body: bytes) -> None:
    """Rubbish in sheet.json and manifest.json is a problem, not a crash; the tiles are still counted."""
    put_upload(bucket, 1)
    bucket.put(REF.sheet_record(1), body)
    (sheet,), _ = check(bucket)
    assert sheet.found == sheet.expected == len(NAMES)
    assert sheet.problems[0].startswith("sheet.json cannot be read")
    bucket.put(REF.manifest, body)
    (sheet,), total = check(bucket)
    assert (sheet.found, sheet.expected) == (len(NAMES), 0)
    assert total.problems[0].startswith("manifest.json cannot be read")


@pytest.mark.parametrize("field", ["totalPages", "completedPages"])
@pytest.mark.parametrize("value", ["two", None, -1, 1.5])
def test_a_manifest_of_rubbish_counts_is_told(bucket: Bucket, field: str, value: object) -> None:
    """Then a sheet counts as ready if it has a ``.dzi``."""
    put_upload(bucket, 1)
    document = json.loads(bucket.get(REF.manifest).body)
    bucket.put(REF.manifest, json.dumps({**document, field: value}).encode())
    (sheet,), total = check(bucket)
    assert sheet.verified
    assert len(total.problems) == 1
    assert total.problems[0].startswith("manifest.json cannot be read: its ")
    assert not total.verified


def test_a_manifest_of_too_many_pages_is_told(bucket: Bucket) -> None:
    """They are reported without counting up to them."""
    put_upload(bucket, 1)
    document = json.loads(bucket.get(REF.manifest).body)
    bucket.put(REF.manifest, json.dumps({**document, "totalPages": 10**15}).encode())
    (sheet,), total = check(bucket)
    assert sheet.verified
    assert total.problems[0] == "the progress says 1,000,000,000,000,000 pages and names 1 sheets"


def test_a_wrong_descriptor_is_told(bucket: Bucket) -> None:
    """The ``.dzi`` must describe the sheet as a viewer needs it."""
    put_upload(bucket, 1)
    bucket.put(REF.descriptor(1), PYRAMID.descriptor().replace("300", "299").encode())
    (sheet,), _ = check(bucket)
    assert sheet.problems == ("the .dzi does not describe 300 x 200 px as it should",)


def test_an_empty_thumbnail_is_told(bucket: Bucket) -> None:
    """A thumbnail of 0 bytes exists, but shows nothing."""
    put_upload(bucket, 1)
    bucket.put(REF.thumbnail(1), b"")
    (sheet,), _ = check(bucket)
    assert sheet.problems == ("thumbnail.jpeg is empty",)


def test_a_sheet_that_failed_by_name_is_listed_and_not_wrong(bucket: Bucket) -> None:
    """The objects that it left are counted. If its ``.dzi`` is there, the progress is wrong."""
    accept(bucket)
    ready, left = put_sheet(bucket, 1), put_sheet(bucket, 2)
    failed = replace(left, status=SheetStatus.FAILED, reason="WorkerLost")
    state = progress(ready, failed, status=UploadStatus.PARTIAL)
    bucket.delete([REF.descriptor(2), REF.tiles_prefix(2) + NAMES[3]])
    (_, sheet), total = check(bucket, state)
    assert sheet == SheetReport(2, SheetStatus.FAILED, 0, len(NAMES) - 1, reason="WorkerLost", repair=Repair.PRUNE)
    assert (total.verified, total.verified_sheets, total.wrong_sheets, total.total_sheets) == (True, 1, 0, 2)
    bucket.put(REF.descriptor(2), PYRAMID.descriptor().encode())
    (_, sheet), total = check(bucket, state)
    assert sheet.problems == ("its .dzi says that it is committed, the progress says failed",)
    assert not total.verified


def test_a_ready_sheet_that_is_gone_is_wrong(bucket: Bucket) -> None:
    """Every tile is missing, though its directory does not even exist."""
    put_upload(bucket)
    bucket.delete([info.key for info in bucket.objects(REF.sheet_prefix(2))])
    (_, sheet), total = check(bucket)
    assert (sheet.found, sheet.expected, sheet.missing_count, sheet.missing) == (0, len(NAMES), len(NAMES), tuple(NAMES[:MOST_NAMES]))
    assert not total.verified


def test_a_running_upload_is_verified_as_far_as_it_is(bucket: Bucket) -> None:
    """Sheets that are being made are neither verified nor wrong, whichever of their objects are there."""
    accept(bucket)
    ready, coming = put_sheet(bucket, 1), put_sheet(bucket, 2)
    uploading = replace(coming, status=SheetStatus.UPLOADING)
    pending = replace(coming, number=3, status=SheetStatus.PENDING)
    sheets, total = check(bucket, progress(ready, uploading, pending, status=UploadStatus.PROCESSING))
    assert [sheet.status for sheet in sheets] == ["ready", "uploading", "pending"]
    assert [sheet.verified for sheet in sheets] == [True, False, False]
    assert (total.verified, total.status) == (True, UploadStatus.PROCESSING)


def test_without_a_progress_the_descriptors_say_what_is_ready(bucket: Bucket) -> None:
    """Without a progress, and while the progress has no pages counted, the bucket decides. An empty directory is no sheet."""
    accept(bucket)
    put_sheet(bucket, 1)
    put_sheet(bucket, 4)
    put_sheet(bucket, 5)
    bucket.delete([REF.descriptor(4), *(info.key for info in bucket.objects(REF.sheet_prefix(5)))])
    for state in (None, progress(status=UploadStatus.QUEUED), progress(status=UploadStatus.FAILED)):
        sheets, total = check(bucket, state)
        assert [(sheet.number, sheet.verified, sheet.is_wrong) for sheet in sheets] == [(1, True, False), (4, False, False)]
        assert (total.verified, total.status, total.total_sheets) == (True, state and state.status, 2)


def test_a_progress_that_contradicts_itself_is_told(bucket: Bucket) -> None:
    """Counters, the list of sheets and the status must agree."""
    state = put_upload(bucket)
    sheets = (state.sheets[0], replace(state.sheets[1], status=SheetStatus.FAILED))
    bucket.delete([info.key for info in bucket.objects(REF.sheet_prefix(2))])
    _, total = check(bucket, replace(state, sheets=sheets))
    assert total.problems == (
        "the progress says 2 sheets are ready and names 1",
        "the progress says complete, but 1 of 2 sheets are ready",
    )
    for named in (sheets[:1], sheets[1:], ()):
        _, total = check(bucket, replace(state, sheets=named, status=UploadStatus.PARTIAL, completed_pages=len(named[:1])))
        assert total.problems[0] == f"the progress says 2 pages and names {len(named)} sheets"
    assert not total.verified


def test_an_upload_that_does_not_exist_is_not_found(bucket: Bucket) -> None:
    """Without upload.json, and when it is marked deleted."""
    put_sheet(bucket, 1)
    with pytest.raises(UploadNotFound):
        check(bucket)
    accept(bucket, deleted_at="2026-01-31T09:30:00.000Z")
    with pytest.raises(UploadNotFound, match="deleted"):
        check(bucket)


def test_many_sheets_are_never_far_ahead_of_the_reader(bucket: Bucket) -> None:
    """When the first report is taken, only a few sheets were looked at. Closing the generator drops the others."""
    looked: list[int] = []
    reports = bounded_map(lambda number: looked.append(number) or number, range(1, 2001))  # type: ignore[func-returns-value]
    assert next(reports) == 1
    assert len(looked) <= THREADS + 1
    reports.close()
    assert len(looked) <= THREADS + 1


def test_reports_cross_the_wire(bucket: Bucket) -> None:
    """The names are camelCase, and a report is read as it was written."""
    put_upload(bucket, 1)
    bucket.delete([REF.tiles_prefix(1) + NAMES[0]])
    (sheet,), total = check(bucket)
    assert to_wire(sheet)["missingCount"] == 1
    assert to_wire(sheet)["missing"] == [NAMES[0]]
    assert from_wire(SheetReport, to_wire(sheet)) == sheet
    assert from_json(UploadReport, to_json(total)) == total
    assert from_json(SheetRecord, bucket.get(REF.sheet_record(1)).body).tiles == len(NAMES)
