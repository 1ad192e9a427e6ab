"""What PDFium does not draw right is noted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ImageCms

from activities.bucket.records import UploadOptions
from activities.render.raster import PixelBuffer, draw
from tests.resources import make_pdfs
from tests.unit.documents import opened

GROUP = "/Type /XObject /Subtype /Form /BBox [0 0 100 100] /Group << /S /Transparency /K %s >>"
BOX = "/MediaBox [0 0 200 100]"


def types(directory: Path, data: bytes, options: UploadOptions | None = None) -> list[str]:
    """The types of the notes on the first page, which are the same each time."""
    with opened(directory, data, options=options or UploadOptions()) as pdf:
        first, second = (draw(pdf, 1, 20, 10, PixelBuffer()).notes for _ in range(2))
    assert first == second
    return [note.type for note in first]


def form(knockout: str, depth: int = 1) -> bytes:
    """A group, within forms."""
    writer = make_pdfs.Writer()
    inner = writer.stream(make_pdfs.MARKS, GROUP % knockout)
    for _ in range(depth):
        inner = writer.stream(b"/X Do", f"/Type /XObject /Subtype /Form /BBox [0 0 200 100] /Resources << /XObject << /X {inner} 0 R >> >>")
    return writer.finish([writer.page(b"/X Do", f"{BOX} /Resources << /XObject << /X {inner} 0 R >> >>")])


def mask() -> bytes:
    """A knockout group as a soft mask."""
    writer = make_pdfs.Writer()
    state = f"/ExtGState << /S << /SMask << /S /Luminosity /G {writer.stream(make_pdfs.MARKS, GROUP % 'true')} 0 R >> >> >>"
    return writer.finish([writer.page(b"/S gs", f"{BOX} /Resources << {state} >>")])


def stamp() -> bytes:
    """A knockout group in the appearance of an annotation."""
    writer = make_pdfs.Writer()
    group = writer.stream(make_pdfs.MARKS, GROUP % "true")
    shape = writer.stream(b"/X Do", f"/Type /XObject /Subtype /Form /BBox [0 0 50 50] /Resources << /XObject << /X {group} 0 R >> >>")
    return writer.finish([writer.page(b"", f"{BOX} /Annots [<< /Subtype /Stamp /Rect [0 0 50 50] /AP << /N {shape} 0 R >> >>]")])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: form("true"), ["KnockoutNotDrawn"]),
        (lambda: form("true", 9), ["KnockoutNotDrawn"]),
        (lambda: form("false"), []),
        (lambda: make_pdfs.one_page(entries=f"{BOX} /Group << /S /Transparency /K true >>"), ["KnockoutNotDrawn"]),
        (mask, ["KnockoutNotDrawn"]),
        (stamp, ["KnockoutNotDrawn"]),
    ],
)
def test_knockout_group_is_noted(tmp_path: Path, make: Callable[[], bytes], expected: list[str]) -> None:
    """Wherever the page has it."""
    assert types(tmp_path, make()) == expected


def coloured(name: str, space: str, profile: bytes = b"", components: int = 3) -> bytes:
    """A page with a default colour space; ``PROFILE`` is an ICC profile."""
    writer = make_pdfs.Writer()
    space = space.replace("PROFILE", f"{writer.stream(profile, f'/N {components}')} 0 R")
    return writer.finish([writer.page(make_pdfs.MARKS, f"{BOX} /Resources << /ColorSpace << /{name} {space} >> >>")])


WHITE = "/WhitePoint [0.95 1 1.09]"


@pytest.mark.parametrize(
    ("name", "space", "is_noted"),
    [
        ("DefaultRGB", f"[/CalRGB << {WHITE} /Gamma [1 1 1] >>]", True),
        ("DefaultRGB", f"[/CalRGB << {WHITE} /Gamma [2.2 2.2 2.2] >>]", False),
        ("DefaultGray", f"[/CalGray << {WHITE} >>]", True),
        ("DefaultGray", f"[/CalGray << {WHITE} /Gamma 2.2 >>]", False),
        ("DefaultRGB", "[/ICCBased PROFILE]", False),
        ("DefaultRGB", "/DeviceRGB", False),
        ("CS0", f"[/CalRGB << {WHITE} /Gamma [1 1 1] >>]", False),
    ],
)
def test_default_colour_space_is_noted(tmp_path: Path, name: str, space: str, is_noted: bool) -> None:
    """Unless it is the space that PDFium takes the colours for anyhow."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert types(tmp_path, coloured(name, space, profile)) == ["ColoursUncertain"] * is_noted


@pytest.mark.parametrize(("name", "components"), [("DefaultRGB", 3), ("DefaultCMYK", 4)])
def test_default_colour_profile_is_noted(tmp_path: Path, name: str, components: int) -> None:
    """One that is not for sRGB."""
    assert types(tmp_path, coloured(name, "[/ICCBased PROFILE]", b"another profile", components)) == ["ColoursUncertain"]


def pattern(config: str) -> bytes:
    """A tiling pattern whose content belongs to a layer."""
    writer = make_pdfs.Writer()
    layer = writer.add("<< /Type /OCG /Name (A) >>")
    cell = writer.stream(
        b"/OC /L BDC 1 0 0 rg 0 0 9 9 re f EMC",
        f"/PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 9 9] /XStep 9 /YStep 9 /Resources << /Properties << /L {layer} 0 R >> >>",
    )
    page = writer.page(b"/Pattern cs /P scn 0 0 99 99 re f", f"{BOX} /Resources << /Pattern << /P {cell} 0 R >> >>")
    return writer.finish([page], f"/OCProperties << /OCGs [{layer} 0 R] /D << {config.replace('@A', f'{layer} 0 R')} >> >>")


def test_layer_of_a_pattern_that_is_off_is_noted(tmp_path: Path) -> None:
    """PDFium draws it."""
    assert types(tmp_path, pattern("")) == []
    assert types(tmp_path, pattern("/OFF [@A]")) == ["LayerUncertain"]
    assert types(tmp_path, pattern(""), UploadOptions(layers={"A": False})) == ["LayerUncertain"]


def test_resources_that_refer_to_themselves_are_looked_at_once(tmp_path: Path) -> None:
    """And a page of very many objects is not looked at to its end."""
    writer = make_pdfs.Writer()
    number = writer.reserve()
    resources = f"/Resources << /XObject << /X {number} 0 R >> >>"
    body = make_pdfs.MARKS
    head = f"<< /Length {len(body)} /Type /XObject /Subtype /Form /BBox [0 0 9 9] {resources} >>"
    writer.set(number, head.encode() + b"\nstream\n" + body + b"\nendstream")
    assert types(tmp_path, writer.finish([writer.page(b"", f"{BOX} {resources}")])) == []


@pytest.mark.parametrize("damage", ["/Resources 7", "/Resources << /XObject 7 /ColorSpace 7 /ExtGState [7] >>", "/Annots 7"])
def test_nonsense_is_no_error(tmp_path: Path, damage: str) -> None:
    """The page is drawn."""
    assert types(tmp_path, make_pdfs.one_page(entries=f"{BOX} {damage}")) == []
