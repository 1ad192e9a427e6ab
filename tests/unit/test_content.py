"""A page whose content is damaged in the file gets a note, and a sound one does not."""

import zlib
from pathlib import Path

import pytest

from activities.bucket.records import UploadOptions
from activities.interface import TilePage
from tests.resources import make_pdfs
from tests.unit.documents import opened
from tests.unit.test_child import children, silent

DRAWING = b"".join(b"%d %d m %d %d l S " % (x % 97, x % 89, x % 83, x % 79) for x in range(3000))
GOOD = zlib.compress(DRAWING)


def with_content(*streams: bytes, entries: str = "/Filter /FlateDecode") -> bytes:
    """One page with these content streams."""
    writer = make_pdfs.Writer()
    contents = " ".join(f"{writer.stream(data, entries)} 0 R" for data in streams)
    return writer.finish([writer.add(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents [{contents}] >>")])


def flipped(data: bytes, at: int) -> bytes:
    """The same bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def types(directory: Path, data: bytes) -> list[str]:
    """The types of the notes on the first page's content."""
    with opened(directory, data) as pdf:
        return [note.type for note in pdf.contents.notes(0)]


@pytest.mark.parametrize(
    "streams",
    [(flipped(GOOD, 400),), (flipped(GOOD, len(GOOD) - 1),), (GOOD[: len(GOOD) // 2],), (GOOD[:-6],), (GOOD, GOOD[:-30])],
    ids=["bit", "checksum", "half", "six bytes less", "second stream"],
)
def test_damaged_content_is_told(tmp_path: Path, streams: tuple[bytes, ...]) -> None:
    """One wrong bit suffices, wherever it is, and so does a missing end."""
    assert types(tmp_path, with_content(*streams)) == ["ContentDamaged"]


@pytest.mark.parametrize("contents", ["99 0 R", "[99 0 R]", "[{} 0 R 99 0 R]", "(text)"])
def test_content_that_is_not_there_is_told(tmp_path: Path, contents: str) -> None:
    """PDFium draws a blank page, or the other parts of the content."""
    writer = make_pdfs.Writer()
    contents = contents.format(writer.stream(DRAWING))
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents {contents} >>"
    assert types(tmp_path, writer.finish([writer.add(page)])) == ["ContentDamaged"]


@pytest.mark.parametrize(
    "data",
    [
        with_content(GOOD),
        with_content(GOOD, GOOD),
        with_content(GOOD + b"\r\n"),
        with_content(GOOD[:-4]),
        with_content(GOOD[:-1]),
        with_content(b""),
        with_content(),
        make_pdfs.blank(),
        with_content(b"%x>" % 5, entries="/Filter /ASCIIHexDecode"),
        make_pdfs.one_page(),
        make_pdfs.empty_password(),
        make_pdfs.junk_behind_the_end(with_content(GOOD)),
    ],
    ids=[
        "one",
        "two",
        "more bytes",
        "no checksum",
        "half a checksum",
        "empty",
        "empty array",
        "blank",
        "hex",
        "plain",
        "encrypted",
        "junk behind the end",
    ],
)
def test_sound_content_gets_no_note(tmp_path: Path, data: bytes) -> None:
    """Some programs give a stream a length that leaves out a part of the checksum: nothing of the drawing is missing."""
    assert types(tmp_path, data) == []


@pytest.mark.parametrize(
    ("width", "entries", "expected"),
    [
        (20_000, "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode", ["ImageNotDrawn"]),
        (20_000, "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter [/ASCII85Decode /LZWDecode]", ["ImageNotDrawn"]),
        (20_000, "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /DCTDecode", []),
        (20_000, "/ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /FlateDecode", []),
        (17_000, "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode", []),
        (90_000, "/ImageMask true /BitsPerComponent 1 /Filter /FlateDecode", []),
        (100_000, "/ImageMask true /Filter /FlateDecode", ["ImageNotDrawn"]),
    ],
)
def test_image_that_is_cut_off_is_told(tmp_path: Path, width: int, entries: str, expected: list[str]) -> None:
    """PDFium inflates an image to 1 GiB, and leaves the rest out."""
    writer = make_pdfs.Writer()
    image = writer.stream(b"", f"/Type /XObject /Subtype /Image /Width {width} /Height {width} {entries}")
    page = writer.page(b"/I Do", f"/MediaBox [0 0 200 100] /Resources << /XObject << /I {image} 0 R >> >>")
    assert types(tmp_path, writer.finish([page])) == expected


def test_content_of_two_pages_is_inflated_once(tmp_path: Path) -> None:
    """What was found is kept for each object."""
    writer = make_pdfs.Writer()
    content = writer.stream(GOOD[:-30], "/Filter /FlateDecode")
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents {content} 0 R >>"
    with opened(tmp_path, writer.finish([writer.add(page), writer.add(page)])) as pdf:
        (first,) = pdf.contents.notes(0)
        document = pdf.objects.pdf()
        assert document is not None
        document.get_object(content, 0).write(DRAWING)
        assert pdf.contents.notes(1) == (first,)


async def test_note_is_on_the_sheet(tmp_path: Path) -> None:
    """Whoever draws the page gets the note."""
    (tmp_path / "source.pdf").write_bytes(with_content(flipped(GOOD, 400)))
    (tmp_path / "page").mkdir()
    async with children() as pool:
        page = TilePage("o/p/q/u", 1, 200, 100, UploadOptions())
        rendered = await pool.tile_page("a", tmp_path / "source.pdf", page, tmp_path / "page", silent)
    assert [note.type for note in rendered.notes] == ["ContentDamaged"]
