"""Pages to pixels: against a bare call of PDFium."""

import ctypes
import io
from pathlib import Path

import pikepdf
import pypdfium2.raw as pdfium
import pytest

from activities.bucket.records import UploadOptions
from activities.errors import PageUnreadable
from activities.render.measure import measure
from activities.render.raster import PixelBuffer, draw
from tests.resources import make_pdfs
from tests.unit.documents import opened


def drawn(directory: Path, data: bytes, width: int, height: int) -> bytes:
    """The first page, as we draw it."""
    with opened(directory, data) as pdf:
        return bytes(draw(pdf, 1, width, height, PixelBuffer()).pixels)


def reference(path: Path, index: int, width: int, height: int) -> bytes:
    """A page and its form fields drawn by plain calls into PDFium's own BGRx bitmap, as rows of RGB."""
    document = pdfium.FPDF_LoadDocument(str(path).encode(), None)
    information = pdfium.FPDF_FORMFILLINFO(version=2)
    fields = pdfium.FPDFDOC_InitFormFillEnvironment(document, information)
    page = pdfium.FPDF_LoadPage(document, index)
    pdfium.FORM_OnAfterLoadPage(page, fields)
    bitmap = pdfium.FPDFBitmap_Create(width, height, 0)
    pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, width, height, 0xFFFFFFFF)
    pdfium.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, pdfium.FPDF_ANNOT)
    pdfium.FPDF_FFLDraw(fields, bitmap, page, 0, 0, width, height, 0, pdfium.FPDF_ANNOT)
    stride = pdfium.FPDFBitmap_GetStride(bitmap)
    data = ctypes.string_at(pdfium.FPDFBitmap_GetBuffer(bitmap), stride * height)
    pdfium.FPDFBitmap_Destroy(bitmap)
    pdfium.FORM_OnBeforeClosePage(page, fields)
    pdfium.FPDF_ClosePage(page)
    pdfium.FPDFDOC_ExitFormFillEnvironment(fields)
    pdfium.FPDF_CloseDocument(document)
    assert stride == 4 * width
    pixels = bytearray(3 * width * height)
    for channel in range(3):
        pixels[channel::3] = data[2 - channel :: 4]
    return bytes(pixels)


def pixel(pixels: bytes, width: int, x: int, y: int) -> tuple[int, ...]:
    """One pixel, from the upper left."""
    return tuple(pixels[3 * (y * width + x) :][:3])


@pytest.mark.parametrize(
    "name",
    ["rotated_90", "crop_box_smaller", "user_unit_10", "annotation_on_white", "empty_password", "plan_set_8", "form_filled_in_later"],
)
@pytest.mark.parametrize("width", [1, 211, 1200])
def test_draw_equals_a_bare_pdfium_call(tmp_path: Path, name: str, width: int) -> None:
    """Pixel for pixel, at exactly the given size, odd row lengths included."""
    data = make_pdfs.ALL[name]()
    height = max(1, width * 2 // 3)
    pixels = drawn(tmp_path, data, width, height)
    assert pixels == reference(tmp_path / "source.pdf", 0, width, height)


def test_draw_leaves_nothing_of_the_page_before(tmp_path: Path) -> None:
    """The buffer is reused: a smaller, emptier page after a full one shows only itself."""
    buffer = PixelBuffer()
    with opened(tmp_path, make_pdfs.one_page(b"0 0 1 rg 0 0 200 100 re f")) as full:
        assert pixel(bytes(draw(full, 1, 400, 200, buffer).pixels), 400, 5, 5) == (0, 0, 255)
    with opened(tmp_path, make_pdfs.blank()) as empty:
        assert bytes(draw(empty, 1, 100, 50, buffer).pixels) == b"\xff" * (3 * 100 * 50)


def test_draw_shows_annotations(tmp_path: Path) -> None:
    """A stamp is drawn, in its colour: the channels are not swapped."""
    pixels = drawn(tmp_path, make_pdfs.annotation_on_white(), 200, 100)
    assert pixel(pixels, 200, 30, 70) == (255, 0, 0)
    assert pixel(pixels, 200, 150, 20) == (255, 255, 255)


def test_draw_scales_a_page_with_user_unit(tmp_path: Path) -> None:
    """A page of 20 x 10 units of 10 pt fills 200 x 100 px at 72 dpi."""
    with opened(tmp_path, make_pdfs.user_unit_10()) as pdf:
        (page,) = measure(pdf, UploadOptions(dpi=72), 2000).pages
    assert (page.width, page.height) == (200, 100)
    pixels = drawn(tmp_path, make_pdfs.user_unit_10(), page.width, page.height)
    assert pixel(pixels, 200, 30, 70) == (255, 0, 0)
    assert pixel(pixels, 200, 60, 70) == (255, 255, 255)


def test_draw_refuses_a_page_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The error has a name and the number of the page."""
    with opened(tmp_path, make_pdfs.bad_pages_among_good()) as pdf, pytest.raises(PageUnreadable, match="page 3 cannot be loaded"):
        draw(pdf, 3, 100, 100, PixelBuffer())


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("box", [(0, 0, 300, 200), (-50.5, 30, 250, 180.25), (100, 50, 900, 900)])
def test_transform_leads_from_the_page_to_its_pixels(tmp_path: Path, rotation: int, box: tuple[float, ...]) -> None:
    """As the pixels show, and as PDFium says: whatever the rotation, and where the CropBox is cut off by the MediaBox."""
    left, bottom, right, top = max(box[0], -100), max(box[1], -100), min(box[2], 500), min(box[3], 400)
    x, y = left + 60, bottom + 100  # the middle of a black square
    with pikepdf.new() as pdf, io.BytesIO() as out:
        pdf.add_blank_page(page_size=(10, 10))
        page = pdf.pages[0]
        page.MediaBox, page.CropBox, page.Rotate = [-100, -100, 500, 400], list(box), rotation
        page.Contents = pdf.make_stream(f"{x - 5} {y - 5} 10 10 re f".encode())
        pdf.save(out)
        data = out.getvalue()
    width, height = (700, 1100) if rotation % 180 else (1100, 700)
    with opened(tmp_path, data) as document:
        result = draw(document, 1, width, height, PixelBuffer())
        a, b, c, d, e, f = result.transform
        page = pdfium.FPDF_LoadPage(document.document, 0)
        for point in ((left, bottom), (right, top), (left, top), (x, y)):
            x_px, y_px = ctypes.c_int(), ctypes.c_int()
            pdfium.FPDF_PageToDevice(page, 0, 0, width, height, 0, *point, x_px, y_px)
            ours = (a * point[0] + c * point[1] + e, b * point[0] + d * point[1] + f)
            assert ours == pytest.approx((x_px.value, y_px.value), abs=1)
        pdfium.FPDF_ClosePage(page)
    pixels = bytes(result.pixels)
    dark = [(n % width, n // width) for n in range(width * height) if pixels[3 * n] < 128]
    middle = [(min(values) + max(values) + 1) / 2 for values in zip(*dark, strict=True)]
    assert middle == pytest.approx((a * x + c * y + e, b * x + d * y + f), abs=1)
