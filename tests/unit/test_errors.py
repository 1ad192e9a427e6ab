"""The named errors: the tree is flat, drawn at the top, and crosses the wire under its names."""

import re

import pytest

from activities import errors
from activities.attempt import to_application_error
from activities.errors import (
    BucketError,
    RenderCrashed,
    RenderFault,
    RenderOutOfMemory,
    RenderTimeout,
    SiteLinkError,
    StorageUnavailable,
)

DESIGN = {
    "NotAPdf",
    "UnreadablePdf",
    "PasswordRequired",
    "NoPages",
    "PdfPortfolio",
    "TooManyPages",
    "TooManyTiles",
    "FileTooLarge",
    "PageUnreadable",
    "PageTooLarge",
    "RenderTimeout",
    "RenderCrashed",
    "RenderOutOfMemory",
    "WorkerLost",
    "SourceMissing",
    "SourceAltered",
    "StorageUnavailable",
    "StorageDenied",
    "NoSuchBucket",
}

LEAVES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SiteLinkError) and not kind.__subclasses__()
]


def test_every_refusal_of_the_design_exists() -> None:
    """Under the name that the design gives it."""
    assert {kind.__name__ for kind in LEAVES} >= DESIGN


def test_the_tree_at_the_top_shows_every_error() -> None:
    """And every name in the tree is an error of the module."""
    drawing = (errors.__doc__ or "").split("SiteLinkError\n")[1].split("\n\n")[0]
    drawn = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-zA-Z]*)+\b", drawing)) | set(re.findall(r"^      (\w+)", drawing, re.MULTILINE))
    assert {kind.__name__ for kind in LEAVES} <= drawn
    assert all(hasattr(errors, name) for name in drawn)


def test_the_tree_is_flat() -> None:
    """It has three levels: base, group, error."""
    assert all(len(kind.__mro__) - len(Exception.__mro__) <= 3 for kind in LEAVES)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_an_error_crosses_the_wire_under_its_name(kind: type[SiteLinkError]) -> None:
    """Temporal gets its type, its sentence, and whether a retry can help."""
    error = kind("2,431 pages, limit 2,000")
    application_error = to_application_error(error)
    assert (application_error.type, application_error.message) == (kind.__name__, "2,431 pages, limit 2,000")
    assert application_error.non_retryable is kind.final
    assert error.type == kind.__name__


def test_the_bucket_never_ends_an_upload() -> None:
    """Storage errors and first render faults are retried; a fault can be made final."""
    assert not any(kind.final for kind in LEAVES if issubclass(kind, BucketError | RenderFault))
    assert to_application_error(StorageUnavailable("503")).non_retryable is False
    assert to_application_error(RenderCrashed("signal 11"), final=True).non_retryable is True


def test_render_faults_have_their_number_of_fresh_tries() -> None:
    """Three children may crash on a page, two may hang or need too much memory; a used child does not count against the page."""
    assert (RenderCrashed.tries, RenderTimeout.tries, RenderOutOfMemory.tries) == (3, 2, 2)
    assert RenderCrashed("signal 11").fresh_child
    assert not RenderCrashed("signal 11", fresh_child=False).fresh_child
