"""How long an upload will still take, estimated from its progress alone: plain Python, no clock."""

import math
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from activities.bucket.forecast import SECONDS_PER_MEGAPIXEL, SHEET_SECONDS, START_SECONDS
from activities.bucket.records import SecondsLeft, SheetState, SheetStatus, Snapshot, UploadStatus, milliseconds

SHARE_LEFT = {SheetStatus.READY: 0.0, SheetStatus.FAILED: 0.0, SheetStatus.UPLOADING: 0.3}
"""The share of a sheet's work that is left in these states; in all others it is 1."""
RECENT_SHARE, LEAST_RECENT = 0.3, 3
"""The recent pace is that of the last finished sheets: of this share of them, and of at least so many. With fewer, they tell no pace."""
FORECAST_SHEETS = 2.0
"""The forecast counts as much as so many finished sheets."""
FASTER, SLOWER, LEAST_DOUBT = 0.4, 1.5, 0.2
"""With no finished sheet, it may go faster than estimated by the first share, and slower by the second one; with more of them by less, but
always by the third one."""


def with_estimate(snapshot: Snapshot) -> Snapshot:
    """The whole progress, with the estimate of the seconds that are left."""
    return replace(snapshot, seconds_left=seconds_left(snapshot, snapshot.sheets))


def seconds_left(head: Snapshot, sheets: Collection[SheetState]) -> SecondsLeft | None:
    """Estimates how long an upload will still take, counted from its last change.

    The work of a sheet is taken to be a constant and its pixels, as in the forecast. Three paces count: the one since the upload began; the
    same together with the forecast, which counts the less the more sheets are finished; and the one of the sheets that were finished last.
    So other uploads on the same workers, a slow bucket and hard sheets count as soon as they are felt. The low estimate is by the best of
    these paces, the high one by the worst.

    Args:
        head: The progress, whose ``sheets`` are not used.
        sheets: All sheets.

    Returns:
        None when the upload is not being processed, or nothing tells its pace.
    """
    if head.status is not UploadStatus.PROCESSING or head.started_at is None or not sheets:
        return None
    all_work = sum(map(_work, sheets))
    left = [_work(sheet) * SHARE_LEFT.get(sheet.status, 1.0) for sheet in sheets]
    finished = _finished(sheets, head.started_at)
    done = sum(map(_work, finished)) + sum(_work(sheet) - rest for sheet, rest in zip(sheets, left, strict=True) if _is_uploading(sheet))
    expected_s = max(head.forecast.seconds - START_SECONDS, 0.0) if head.forecast else 0.0
    slots = max(1.0, all_work / expected_s) if expected_s else 1.0
    stretches = [(done, head.processing_seconds)] if len(finished) >= LEAST_RECENT or not expected_s else []
    if expected_s:
        # The sheets that are being drawn are half done; and it is as if some sheets had been finished before, at the pace of the forecast.
        done += min(slots * all_work / len(sheets) / 2, head.processing_seconds * all_work / expected_s)
        before = FORECAST_SHEETS / len(sheets)
        stretches.append((done + before * all_work, head.processing_seconds + before * expected_s))
    last = max(LEAST_RECENT, round(RECENT_SHARE * len(finished)))
    if len(finished) > last:
        seconds = (finished[-1].version - finished[-1 - last].version) / 1000
        stretches.append((sum(map(_work, finished[-last:])), seconds))
    paces = [work / seconds for work, seconds in stretches if work > 0 and seconds > 0]
    if not paces:
        return None
    low_s = sum(left) / max(paces) * (1 - LEAST_DOUBT - FASTER / math.sqrt(1 + len(finished)))
    longest = max(sum(left), slots * max(left))  # slots share the sheets, but each sheet takes one slot
    high_s = longest / min(paces) * (1 + LEAST_DOUBT + SLOWER / (1 + len(finished))) + START_SECONDS
    return SecondsLeft(round(low_s, 1), round(high_s, 1))


def _finished(sheets: Collection[SheetState], started_at: str) -> list[SheetState]:
    """The sheets that became ready since the run began, in this order.

    The sheets that an earlier run has committed are as old as the count of the pages, and say nothing about the pace of this run.
    """
    began = milliseconds(datetime.fromisoformat(started_at)) + 1
    finished = [sheet for sheet in sheets if sheet.status is SheetStatus.READY and sheet.version > began]
    return sorted(finished, key=lambda sheet: sheet.version)


def _is_uploading(sheet: SheetState) -> bool:
    return sheet.status is SheetStatus.UPLOADING


def _work(sheet: SheetState) -> float:
    """The work of a sheet, in seconds of a render slot on the machine that the forecast was measured on."""
    return SHEET_SECONDS + SECONDS_PER_MEGAPIXEL * (sheet.width or 0) * (sheet.height or 0) / 1e6
