"""How much a progress weighs in Temporal, and texts cut to fit. Pure.

Temporal takes at most 2 MiB for the arguments or the result of one activity, signal, query or update, and for what a run hands to the next
run: https://docs.temporal.io/self-hosted-guide/defaults#blob-size-limit. A text travels as JSON with escapes, so that an emoji takes 12
bytes. The numbers of a progress come first. Its texts share the rest of the 2 MiB, so that every document of ``MOST_PAGES`` fits.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from activities.bucket.records import NOTES_BYTES, SheetState, SheetStatus, Snapshot, to_wire
from activities.errors import DamagedRecord
from activities.interface import BucketState

MOST_PAGES = 2000
"""No host may be set to take a document with more pages: its progress would not fit."""

MOST_BYTES = 2_040_000
"""Most bytes of JSON for a progress. The rest of Temporal's 2 MiB is for what goes with it, and for its encryption."""

SHEET_BYTES = 270
"""No sheet takes more JSON without its title, its detail and its notes."""

DETAIL_BYTES = 250
"""Most bytes of JSON for the detail of a sheet: less than the notes take that only a drawn sheet has."""

HEAD_BYTES = 20_000
"""More than the progress takes without its sheets."""

HEAD_TEXT_BYTES = 4_000
"""Most bytes of JSON for the detail or the warning of a progress."""

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def weight(value: Any) -> int:
    """Bytes of JSON, with escapes."""
    return len(json.dumps(to_wire(value), separators=(",", ":")))


def most_weight(sheets: Sequence[SheetState]) -> int:
    """Bytes of JSON that sheets take at most. Unlike ``weight``, this is fast enough for a workflow."""
    texts = [(sheet.title, sheet.detail, [(note.type, note.message) for note in sheet.notes]) for sheet in sheets]
    return len(json.dumps(texts)) + SHEET_BYTES * len(sheets)


def cut(text: str, most_bytes: int) -> str:
    """The text, shortened with an ellipsis if it takes more bytes of JSON. Half a surrogate pair, which is no text, becomes a ``?``."""
    text = text.encode("utf-8", "replace").decode()
    if weight(text) <= most_bytes:
        return text
    room, kept = most_bytes - weight(ELLIPSIS), 0
    for character in text:
        room -= weight(character) - 2
        if room < 0:
            break
        kept += 1
    return text[:kept].rstrip() + ELLIPSIS


def fair_titles(titles: Sequence[str | None]) -> list[str | None]:
    """The titles of all pages of a document, the longest of them cut to the same length, so that all together fit."""
    room = MOST_BYTES - HEAD_BYTES - len(titles) * (SHEET_BYTES + NOTES_BYTES)
    share = _fair_share([weight(title) for title in titles if title], room)
    return [title and cut(title, share) for title in titles]


def _fair_share(weights: Iterable[int], room: int) -> int:
    """The largest size so that all fit into the room when each of them takes no more. One that takes less leaves the others its rest."""
    in_order = sorted(weights)
    for at, size in enumerate(in_order):
        share = room // (len(in_order) - at)
        if size > share:
            return share
        room -= size
    return max(in_order, default=0)


def fit_state(state: BucketState) -> BucketState:
    """The state of an upload in the bucket, without what the workflow can do without if it would not fit otherwise.

    1. The titles and details of the manifest are cut, which an earlier release did not do.
    2. Of a committed sheet that is ready in the manifest, too, only the number is kept, in ``confirmed``.
    3. The other committed sheets lose their titles, which the count of the pages has again, and if need be their notes.

    Raises:
        DamagedRecord: The manifest is too large for a progress.
    """
    if weight(state) <= MOST_BYTES:
        return state
    ready = set[int]()
    if state.manifest is not None:
        ready = {sheet.number for sheet in state.manifest.sheets if sheet.status is SheetStatus.READY}
        state = replace(state, manifest=_cut_texts(state.manifest))
    committed = tuple(replace(record, title=None) for record in state.committed if record.number not in ready)
    confirmed = tuple(record.number for record in state.committed if record.number in ready)
    state = replace(state, committed=committed, confirmed=confirmed)
    if weight(state) > MOST_BYTES:
        state = replace(state, committed=tuple(replace(record, notes=()) for record in committed))
    if (size_bytes := weight(state)) > MOST_BYTES:
        msg = f"manifest.json cannot be read: its progress takes {size_bytes:,} bytes, limit {MOST_BYTES:,}"
        raise DamagedRecord(msg)
    return state


def _cut_texts(snapshot: Snapshot) -> Snapshot:
    titles = fair_titles([sheet.title for sheet in snapshot.sheets])
    sheets = (
        replace(sheet, title=title, detail=sheet.detail and cut(sheet.detail, DETAIL_BYTES))
        for sheet, title in zip(snapshot.sheets, titles, strict=True)
    )
    return replace(snapshot, sheets=tuple(sheets))
