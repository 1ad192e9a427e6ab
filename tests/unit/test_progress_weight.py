"""Texts are cut so that the progress of 2,000 sheets fits into Temporal, and short texts stay whole."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.bucket.records import (
    Layout,
    Note,
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadOptions,
    UploadStatus,
    bounded_notes,
)
from activities.bucket.weight import DETAIL_BYTES, ELLIPSIS, MOST_BYTES, MOST_PAGES, SHEET_BYTES, cut, fair_titles, fit_state, weight
from activities.errors import DamagedRecord
from activities.interface import BucketState

EMOJI = "\N{GRINNING FACE}"
NOTES = bounded_notes(Note("FontSubstituted", f"{number}{'n' * 200}") for number in range(9))
SHEET = SheetState(
    *(2000, SheetStatus.FAILED, 10**13 - 1, None, 10_000_000, 10_000_000, 1200, True, 1_000_000, 10**11, "RenderOutOfMemory"),
    layout=Layout.EXPLODED,
)
RECORD = SheetRecord(2000, 10_000_000, 10_000_000, 1200, False, None, 2048, 8, 100, 1_000_000, 10**11, "", {})


@given(st.text(st.characters() | st.sampled_from(f'"\\{EMOJI}\uffff\x01\ud83d'), max_size=200), st.integers(20, 400))
def test_cut_text_fits_and_is_text(text: str, most_bytes: int) -> None:
    """It ends with an ellipsis, and a text that fits stays as it is."""
    short = cut(text, most_bytes)
    assert weight(short) <= most_bytes
    whole = text.encode("utf-8", "replace").decode()
    assert short == whole if weight(whole) <= most_bytes else short.endswith(ELLIPSIS)
    assert whole.startswith(short.removesuffix(ELLIPSIS))


def test_long_titles_leave_short_ones_whole() -> None:
    """The room is shared fairly: half of the pages have short titles, and what these leave goes to the others."""
    titles = [EMOJI * 120 if number % 2 else f"A-{number}" for number in range(MOST_PAGES)]
    short = fair_titles(titles)
    assert short[::2] == titles[::2]
    assert {title and title[-1] for title in short[1::2]} == {ELLIPSIS}
    assert weight(short[1]) > weight(fair_titles([EMOJI * 120] * MOST_PAGES)[1]) * 1.8
    assert fair_titles([EMOJI * 120] * 500) == [EMOJI * 120] * 500
    assert fair_titles(["A" * 120, None, ""] * 666) == ["A" * 120, None, ""] * 666


@pytest.mark.parametrize("detail", [None, cut(EMOJI * 500, DETAIL_BYTES)])
def test_heaviest_progress_fits(detail: str | None) -> None:
    """2,000 sheets with the largest numbers and the longest texts."""
    assert weight(SHEET) <= SHEET_BYTES
    sheet = replace(SHEET, detail=detail, notes=() if detail else NOTES)
    sheets = tuple(replace(sheet, title=title) for title in fair_titles([EMOJI * 120] * MOST_PAGES))
    assert MOST_BYTES * 0.6 < weight(Snapshot(UploadStatus.PROCESSING, 1, "", sheets=sheets)) <= MOST_BYTES


@pytest.mark.parametrize("status", [None, SheetStatus.READY, SheetStatus.PENDING])
def test_state_in_the_bucket_fits(status: SheetStatus | None) -> None:
    """With the titles of an earlier release, with and without a manifest. Which sheets are committed is never lost."""
    sheets = tuple(
        replace(
            SHEET, number=number, status=status or SheetStatus.READY, title=EMOJI * 120, notes=NOTES if status is SheetStatus.READY else ()
        )
        for number in range(1, MOST_PAGES + 1)
    )
    committed = tuple(replace(RECORD, number=sheet.number, title=sheet.title, notes=NOTES) for sheet in sheets)
    manifest = Snapshot(UploadStatus.PARTIAL, 1, "", 0, MOST_PAGES, sheets=sheets) if status else None
    state = fit_state(BucketState(UploadOptions(), committed, manifest))
    assert weight(state) <= MOST_BYTES
    assert {*state.confirmed, *(record.number for record in state.committed)} == {sheet.number for sheet in sheets}
    assert len(state.confirmed) == (MOST_PAGES if status is SheetStatus.READY else 0)
    small = BucketState(UploadOptions(), committed[:3], manifest and replace(manifest, sheets=sheets[:3]))
    assert fit_state(small) is small


def test_manifest_that_is_too_large_for_a_progress_is_damaged() -> None:
    """Somebody else wrote it."""
    manifest = Snapshot(UploadStatus.PARTIAL, 1, "", 0, 9000, sheets=tuple(replace(SHEET, number=number) for number in range(1, 9001)))
    with pytest.raises(DamagedRecord, match=r"^manifest.json cannot be read: its progress takes [0-9,]+ bytes, limit 2,040,000$"):
        fit_state(BucketState(UploadOptions(), manifest=manifest))
