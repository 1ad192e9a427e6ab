"""The JSON documents about an upload in the API's answers."""

from dataclasses import replace
from typing import Any

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadRecord, to_wire
from api.paths import page_path, upload_path
from api.progress.status import UploadState, created_at


def links(ref: UploadRef) -> dict[str, str]:
    """The paths of an upload's state, event stream and page."""
    address = upload_path(ref)
    return {"self": address, "events": f"{address}/events", "page": page_path(ref)}


def describe(ref: UploadRef, record: UploadRecord | None) -> dict[str, Any]:
    """The fields from ``upload.json``; file name and size are null when ``upload.json`` cannot be read."""
    return {
        "ref": str(ref),
        "upload": ref.upload,
        "fileName": record.file_name if record else None,
        "sizeBytes": record.size_bytes if record else None,
        "createdAt": created_at(ref, record),
        "links": links(ref),
    }


def full_document(ref: UploadRef, state: UploadState) -> dict[str, Any]:
    """The whole progress, with the fields from ``upload.json``."""
    return {**to_wire(state.snapshot), **describe(ref, state.record)}


def changes_since(state: UploadState, version: int) -> UploadState:
    """The state with only the sheets that changed since a version; with all sheets when the version is newer than the state."""
    if version > state.snapshot.version:
        return state
    sheets = tuple(sheet for sheet in state.snapshot.sheets if sheet.version > version)
    return replace(state, snapshot=replace(state.snapshot, sheets=sheets))


def list_entry(ref: UploadRef, state: UploadState) -> dict[str, Any]:
    """One entry of a plan's list."""
    snapshot = state.snapshot
    return {
        **describe(ref, state.record),
        "status": snapshot.status.value,
        "warning": snapshot.warning,
        "progress": snapshot.progress,
        "completedPages": snapshot.completed_pages,
        "totalPages": snapshot.total_pages,
    }
