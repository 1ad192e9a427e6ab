"""Reads what a render child answers, as the words of a stranger: a hostile PDF may take over a child. Loads no native library.

1. An answer is one line of JSON, no longer than the operation needs, without repeated keys, ``NaN`` or ``Infinity``. It repeats the
   number of its request, so that no answer to another request is taken for it.
2. A result has the types, the sizes and the lengths that the request allows. Otherwise the child has crashed.
3. A child may refuse a document or a page only by the errors in ``REFUSALS``. All of them are final.
4. No other error of a child is believed, so that a child cannot make its page be tried without end: it counts as a crash, which is final
   after a few fresh children. So is a child that says that it has no memory. That the disk is full is believed only if the worker finds
   the same: see ``raise_if_disk_is_full``.
5. The words of a child that a client gets are cut, and have no path and no control character. Other words go to the log, likewise.
"""

import errno
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from activities.bucket.dzi import BYTES_PER_PIXEL, MINIMUM_DPI
from activities.bucket.records import MOST_LAYERS_BYTES, Layer, Note, UploadOptions, bounded_notes, from_wire
from activities.errors import (
    NewerSchema,
    NoPages,
    NotAPdf,
    PageTooLarge,
    PageUnreadable,
    PasswordRequired,
    PdfPortfolio,
    SiteLinkError,
    TooManyPages,
    UnreadablePdf,
)
from activities.interface import Document, Page

MOST_TITLE_CHARACTERS = 120
MOST_MESSAGE_CHARACTERS = 500
MOST_NOTES = 1000
"""Notes of one page, before ``bounded_notes`` chooses among them."""
MOST_NOTES_BYTES = 16 << 10
"""Most bytes of JSON for the notes of a page that was drawn: they pass through Temporal twice before the sheet's record takes some."""
MOST_SECONDS = 1e6
"""No page is drawn or cut for longer."""
MOST_ENGINES = 32

TILE_ANSWER_BYTES = (1 << 20) + MOST_LAYERS_BYTES
PAGE_ANSWER_BYTES = 4 << 10
"""Bytes of JSON for one page of ``count``: its title, the longest part, takes 12 bytes a character."""

FULL_BYTES = 256 << 20
"""A disk with less free space is full: a large sheet does not fit."""

_OPENING = (NotAPdf, UnreadablePdf, PasswordRequired, NoPages)
REFUSALS: dict[str, dict[str, type[SiteLinkError]]] = {
    "count": {kind.__name__: kind for kind in (*_OPENING, PdfPortfolio, TooManyPages)},
    "tile": {kind.__name__: kind for kind in (*_OPENING, PageUnreadable, PageTooLarge)},
}
"""The errors that a child may name, by the operation."""

_MOST_ELEMENTS = {"notes": MOST_NOTES, "layers": 10_000, "transform": 6}
_PAGE_REASONS = (PageUnreadable.__name__, PageTooLarge.__name__)
_CHROMAS = ("4:4:4", "4:2:0")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~ -]{0,63}")
_NOTE_TYPE = re.compile(r"[A-Z][A-Za-z]{0,39}")
_PATH = re.compile(r"(?<![\w./])/(?:[^\s/]+/)+[^\s/]*")


@dataclass(frozen=True)
class Rendered:
    """A page whose tiles were written.

    Args:
        engines: Name to version of every library that decided the tiles' bytes.
        chroma: The chroma subsampling of tiles with colours.
        notes: What was found while the page was drawn.
        transform: From the page to its pixels, as ``SheetRecord`` explains.
        layers: The layers that the page uses.
        draw_s: Seconds in which the page was drawn, as the child says.
        tile_s: Seconds in which its tiles were cut, as the child says.
    """

    engines: dict[str, str]
    chroma: str
    notes: tuple[Note, ...]
    transform: tuple[float, ...]
    layers: tuple[Layer, ...] = ()
    draw_s: float = 0.0
    tile_s: float = 0.0


def count_answer_bytes(max_pages: int) -> int:
    """The most bytes of an answer to ``count``."""
    return (64 << 10) + PAGE_ANSWER_BYTES * max_pages


def read_answer(line: bytes, request_id: int) -> dict[str, Any]:
    """The answer to a request: it has either ``result``, or ``error`` and ``message``.

    Raises:
        ValueError: It is no such answer.
    """
    try:
        answer = json.loads(line, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error
    if not isinstance(answer, dict) or answer.pop("id", None) != request_id:
        msg = "it is not the answer to this request"
        raise ValueError(msg)
    if answer.keys() == {"result"}:
        return answer
    if answer.keys() - {"errno"} != {"error", "message"} or not all(isinstance(answer[key], str) for key in ("error", "message")):
        msg = "it is neither a result nor an error"
        raise ValueError(msg)
    return answer


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        msg = "it repeats a key"
        raise ValueError(msg)
    return document


def _refuse_constant(_name: str) -> None:
    msg = "it has NaN or Infinity, which JSON does not have"
    raise ValueError(msg)


def read_document(result: Any, options: UploadOptions, max_pages: int) -> Document:
    """The result of ``count``.

    Raises:
        ValueError: It is not the description of a document with such options and at most so many pages.
    """
    document = _read(Document, result)
    if document.forecast is not None or not 1 <= len(document.pages) <= max_pages:
        msg = "its number of pages is out of range"
        raise ValueError(msg)
    return Document(tuple(_checked(page, number, options) for number, page in enumerate(document.pages, 1)))


def _checked(page: Page, number: int, options: UploadOptions) -> Page:
    """The page, with words fit to show. Raises a ``ValueError`` if it cannot be that page."""
    title_is_wrong = page.title is not None and not (0 < len(page.title) <= MOST_TITLE_CHARACTERS and _is_visible(page.title))
    if page.number != number or title_is_wrong or len(page.notes) > MOST_NOTES:
        msg = "its number, title or notes are wrong"
        raise ValueError(msg)
    if page.reason is not None:
        if page.reason not in _PAGE_REASONS or page.detail is None or (page.width, page.height, page.dpi, page.scaled) != (0, 0, 0, False):
            msg = "its page that cannot be used is wrong"
            raise ValueError(msg)
        return replace(page, detail=short_message(page.detail), notes=_notes(page.notes))
    fits = min(page.width, page.height) >= 1 and page.width * page.height * BYTES_PER_PIXEL <= options.budget_bytes
    if not fits or not min(MINIMUM_DPI, options.dpi) <= page.dpi <= options.dpi or page.detail is not None:
        msg = "its size or resolution is out of range"
        raise ValueError(msg)
    if page.scaled != (page.dpi < options.dpi) or (page.scaled and not _must_be_scaled(page, options)):
        msg = "it is scaled for no reason"
        raise ValueError(msg)
    return replace(page, notes=_notes(page.notes))


def _is_visible(title: str) -> bool:
    """Whether it has no character that ``titles.clean_title`` removes."""
    return all(unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"} for character in title)


def _must_be_scaled(page: Page, options: UploadOptions) -> bool:
    """Whether the page may be over its budget at the resolution that the client chose; its size was rounded."""
    width, height = ((pixels + 0.5) * options.dpi / page.dpi + 0.5 for pixels in (page.width, page.height))
    return width * height * BYTES_PER_PIXEL > options.budget_bytes


def read_rendered(result: Any) -> Rendered:
    """The result of ``tile``.

    Raises:
        ValueError: It is not the description of a page.
    """
    if not isinstance(result, dict) or result.keys() != {"engines", "chroma", "notes", "transform", "layers", "drawS", "tileS"}:
        msg = "it has other fields"
        raise ValueError(msg)
    engines, transform = result["engines"], result["transform"]
    lists_are_wrong = any(not isinstance(result[name], list) or len(result[name]) > most for name, most in _MOST_ELEMENTS.items())
    if lists_are_wrong or not isinstance(engines, dict) or len(engines) > MOST_ENGINES or result["chroma"] not in _CHROMAS:
        msg = "a field of it is wrong"
        raise ValueError(msg)
    if not all(isinstance(version, str) and _NAME.fullmatch(name) and _VERSION.fullmatch(version) for name, version in engines.items()):
        msg = "its engines are wrong"
        raise ValueError(msg)
    if len(transform) != _MOST_ELEMENTS["transform"] or not all(
        type(number) in (int, float) and abs(number) < 1e15 for number in transform
    ):
        msg = "its transform is wrong"
        raise ValueError(msg)
    seconds = [result["drawS"], result["tileS"]]
    if not all(type(number) in (int, float) and 0 <= number < MOST_SECONDS for number in seconds):
        msg = "its seconds are wrong"
        raise ValueError(msg)
    layers = (_read(Layer, layer) for layer in result["layers"])
    return Rendered(
        engines,
        result["chroma"],
        bounded_notes(_notes(_read(Note, note) for note in result["notes"]), MOST_NOTES_BYTES),
        tuple(float(number) for number in transform),
        tuple(replace(layer, name=clean_text(layer.name)) for layer in layers),
        *map(float, seconds),
    )


def _read(kind: Any, document: Any) -> Any:
    try:
        return from_wire(kind, document)
    except NewerSchema as error:  # it is retried until a newer release reads it, and a child could ask for that
        raise ValueError(str(error)) from error


def _notes(notes: Iterable[Note]) -> tuple[Note, ...]:
    notes = tuple(notes)
    if not all(_NOTE_TYPE.fullmatch(note.type) for note in notes):
        msg = "a note has no type"
        raise ValueError(msg)
    return tuple(replace(note, message=short_message(note.message)) for note in notes)


def clean_text(text: str) -> str:
    """The text with a sign in the place of each control character, line end and lone surrogate."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} else each for each in text)


def short_message(text: str) -> str:
    """A child's words as they may be shown: one line without paths, at most ``MOST_MESSAGE_CHARACTERS`` characters."""
    shown = _PATH.sub("\N{HORIZONTAL ELLIPSIS}", clean_text(text[: 2 * MOST_MESSAGE_CHARACTERS]))
    return shown if len(shown) <= MOST_MESSAGE_CHARACTERS else shown[: MOST_MESSAGE_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def raise_if_disk_is_full(file: int) -> None:
    """Tries to write where a child could not.

    Args:
        file: Descriptor of a file that the child was to write.

    Raises:
        OSError: The disk is full, or the user's share of it.
    """
    disk = os.fstatvfs(file)
    if disk.f_bavail * disk.f_frsize < FULL_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate(file, os.fstat(file).st_size, 1 << 20)
