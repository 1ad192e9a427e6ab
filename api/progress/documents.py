"""An upload as the API's answers describe it."""

from typing import Any

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadRecord, to_wire
from api.paths import page_path, upload_path
from api.progress.status import UploadState, created_at


def links(ref: UploadRef) -> dict[str, str]:
    """Where an upload's state, events and page are."""
    address = upload_path(ref)
    return {"self": address, "events": f"{address}/events", "page": page_path(ref)}


def describe(ref: UploadRef, record: UploadRecord | None) -> dict[str, Any]:
    """What ``upload.json`` tells about an upload, on the wire; name and size are null when it cannot be read."""
    return {
        "ref": str(ref),
        "upload": ref.upload,
        "fileName": record.file_name if record else None,
        "sizeBytes": record.size_bytes if record else None,
        "createdAt": created_at(ref, record),
        "links": links(ref),
    }


def full_document(ref: UploadRef, state: UploadState) -> dict[str, Any]:
    """The whole progress with what ``upload.json`` tells."""
    return {**to_wire(state.snapshot), **describe(ref, state.record)}


def list_entry(ref: UploadRef, state: UploadState) -> dict[str, Any]:
    """One line of a plan's list."""
    snapshot = state.snapshot
    return {
        **describe(ref, state.record),
        "status": snapshot.status.value,
        "warning": snapshot.warning,
        "progress": snapshot.progress,
        "completedPages": snapshot.completed_pages,
        "totalPages": snapshot.total_pages,
    }
