"""The documents that customers of a soak send: good ones in each layout, long and large ones, locked ones, and hostile ones."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.resources import make_pdfs
from tests.resources.mutate import mutate

PASSWORD = "under the mat"  # noqa: S105 - of documents of a test
LARGEST_BYTES = 3 << 20
"""Larger files of a corpus are left out."""
DAMAGED = 4
PADDING_BYTES = 20 << 20
"""Makes a document so large that the API sends it to an S3 server in parts."""


@dataclass(frozen=True)
class Document:
    """A document, and how it is sent.

    Args:
        name: For the report.
        kind: ``good``, ``huge``, ``locked``, ``hostile`` or ``corpus``.
        body: The PDF.
        options: Parameters of the upload.
        password: What opens it.
        plan: The plan to which it belongs.
    """

    name: str
    kind: str
    body: bytes = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict)
    password: str = ""

    @property
    def plan(self) -> str:
        """The plan to which it is sent."""
        return self.kind


def documents(seed: int, corpus: Path | None) -> list[Document]:
    """All documents.

    Args:
        seed: Decides what is damaged in the damaged ones, and what pads the large one.
        corpus: Its PDFs are sent, too.
    """
    return [*_good(seed), *_hostile(seed), *(_from_corpus(corpus) if corpus else ())]


def _good(seed: int) -> Iterator[Document]:
    plan = make_pdfs.plan_set
    yield Document("three sheets", "good", plan(3, 500, 400))
    yield Document("three sheets, packed", "good", plan(3, 500, 400), {"layout": "packed"})
    yield Document("two sheets, both layouts", "good", plan(2, 500, 400), {"layout": "both"})
    yield Document("eight sheets, 72 dpi", "good", plan(8, 900, 600), {"dpi": "72"})
    yield Document("titles", "good", make_pdfs.titles())
    yield Document("form", "good", make_pdfs.form())
    yield Document("60 sheets", "huge", plan(60, 200, 150), {"dpi": "150"})
    yield Document("42 x 30 inches, packed", "huge", plan(1, 3024, 2160), {"layout": "packed"})
    padding = random.Random(seed).randbytes(PADDING_BYTES)  # noqa: S311 - no secret
    yield Document("two sheets in 20 MiB", "huge", plan(2, 500, 400, padding))
    locked = make_pdfs.encrypted(PASSWORD, data=plan(2, 400, 300))
    yield Document("locked", "locked", locked, password=PASSWORD)


def _hostile(seed: int) -> Iterator[Document]:
    for make in (make_pdfs.bad_pages_among_good, make_pdfs.count_lies, make_pdfs.outline_loop, make_pdfs.cut_off, make_pdfs.no_pages):
        yield Document(make.__name__, "hostile", make())
    yield Document("html_error_page", "hostile", make_pdfs.html_error_page())
    yield Document("inflates to 16 MiB", "hostile", make_pdfs.inflates_to(1 << 24))
    good, other = make_pdfs.plan_set(3, 500, 400), make_pdfs.form()
    for number in range(DAMAGED):
        yield Document(f"damaged {number + 1}", "hostile", mutate(good, other, seed * DAMAGED + number), {"dpi": "72"})


def _from_corpus(corpus: Path) -> Iterator[Document]:
    for path in sorted(corpus.rglob("*.pdf")):
        if 0 < path.stat().st_size <= LARGEST_BYTES:
            yield Document(path.name, "corpus", path.read_bytes(), {"dpi": "72"})


def choose(rng: random.Random, sent: list[Document], kind: str) -> Document:
    """One of the documents of a kind."""
    return rng.choice([document for document in sent if document.kind == kind])
