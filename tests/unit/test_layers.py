"""Layers (optional content): a sheet shows what a viewer shows, or what the upload switches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from activities.bucket.records import MOST_LAYERS_BYTES, Layer, Note, UploadOptions, bounded_layers
from activities.errors import TilesMissing
from activities.interface import TilePage
from activities.render.child import ChildPool
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.raster import Drawn, PixelBuffer, draw
from activities.render.renderer import Renderer
from activities.render.tilefile import LAYERS, read_layers, write_layers
from tests.resources import make_pdfs
from tests.unit.documents import opened

OFF_IN_VIEW, ON_IN_VIEW = "/Usage << /View << /ViewState /OFF >> >>", "/Usage << /View << /ViewState /ON >> >>"
POLICIES: dict[str, Callable[[list[bool]], bool]] = {
    "AllOn": all,
    "AnyOn": any,
    "AnyOff": lambda states: not all(states),
    "AllOff": lambda states: not any(states),
}


def drawn(directory: Path, data: bytes, options: UploadOptions | None = None) -> Drawn:
    """The page at 10 x 10 px."""
    with opened(directory, data, options=options or UploadOptions()) as pdf:
        first = draw(pdf, 1, 10, 10, PixelBuffer())
        pixels = bytes(first.pixels)
        assert bytes(draw(pdf, 1, 10, 10, PixelBuffer()).pixels) == pixels
        return replace(first, pixels=memoryview(pixels))


def shows(directory: Path, data: bytes, options: UploadOptions | None = None) -> bool:
    """Whether the page is red."""
    pixels = drawn(directory, data, options).pixels
    assert set(pixels) in ({0xFF}, {0xFF, 0})
    return 0 in pixels


@pytest.mark.parametrize(
    ("config", "group", "expected"),
    [
        ("", "", True),
        ("/OFF [@A]", "", False),
        ("/OFF [@B]", "", True),
        ("/BaseState /OFF", "", False),
        ("/BaseState /OFF /ON [@A]", "", True),
        ("/BaseState /Unchanged", "", True),
        # Usage counts only where the configuration asks for it.
        ("", OFF_IN_VIEW, True),
        ("/OFF [@A]", ON_IN_VIEW, False),
        ("/AS [<< /Event /View /OCGs [@A] /Category [/View] >>]", OFF_IN_VIEW, False),
        ("/OFF [@A] /AS [<< /Event /View /OCGs [@A] /Category [/View] >>]", ON_IN_VIEW, True),
        ("/AS [<< /Event /Print /OCGs [@A] /Category [/View] >>]", OFF_IN_VIEW, True),
        ("/AS [<< /Event /View /OCGs [@A] /Category [/Zoom] >>]", OFF_IN_VIEW, True),
        ("/AS [<< /Event /View /OCGs [@A] /Category [/Print] >>]", "/Usage << /Print << /PrintState /OFF >> >>", False),
        ("/AS [<< /Event /Print /OCGs [@A] /Category [/Print] >>]", "/Usage << /Print << /PrintState /OFF >> >>", True),
        # A layer of another intent has no effect.
        ("/OFF [@A]", "/Intent /Design", True),
        ("/OFF [@A]", "/Intent [/Design /View]", False),
        ("/Intent /All /OFF [@A]", "/Intent /Design", False),
    ],
)
def test_layer_is_on_as_the_default_configuration_says(tmp_path: Path, config: str, group: str, expected: bool) -> None:
    """ISO 32000-1, section 8.11.4. PDFium alone takes five of these otherwise."""
    assert shows(tmp_path, make_pdfs.layered(config, group)) is expected


@pytest.mark.parametrize("intent", ["", "/Intent /View"])
def test_other_configurations_have_no_effect(tmp_path: Path, intent: str) -> None:
    """They are for programs that offer a choice."""
    assert shows(tmp_path, make_pdfs.layered(properties=f"/Configs [<< {intent} /OFF [@A] >>]"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("off", ["", "@A", "@A @B"])
@pytest.mark.parametrize("members", ["[@A @B]", "[@A]", "@A"])
def test_membership_follows_its_policy(tmp_path: Path, policy: str, off: str, members: str) -> None:
    """ISO 32000-1, section 8.11.2.2. PDFium alone reads no policy of a member without an array."""
    states = [layer not in off for layer in ("@A", "@B") if layer in members]
    data = make_pdfs.layered(f"/OFF [{off}]", member=f"/OCGs {members} /P /{policy}")
    assert shows(tmp_path, data) is POLICIES[policy](states)


@pytest.mark.parametrize("way", ["mark", "annotation"])
@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("/VE [/Not @B]", True),
        ("/VE [/And @A @B]", False),
        ("/VE [/Or @A @B]", True),
        ("/VE [/Or [/Not @A] @B]", False),
        ("/VE [/And @A [/Not @B]] /OCGs @B /P /AllOn", True),
        ("/OCGs [null @B]", False),
        ("/OCGs []", True),
    ],
)
def test_membership_follows_its_expression(tmp_path: Path, way: str, member: str, expected: bool) -> None:
    """Layer B is off."""
    assert shows(tmp_path, make_pdfs.layered("/OFF [@B]", member=member, way=way)) is expected


@pytest.mark.parametrize("way", make_pdfs.LAYERED)
@pytest.mark.parametrize("member", ["", "/OCGs [@A @B] /P /AllOn"])
def test_everything_can_belong_to_a_layer(tmp_path: Path, way: str, member: str) -> None:
    """Marked content, form XObjects, images, shadings, and what PDFium alone always draws: annotations and form fields."""
    assert shows(tmp_path, make_pdfs.layered(member=member, way=way))
    result = drawn(tmp_path, make_pdfs.layered("/OFF [@A]", member=member, way=way))
    assert set(result.pixels) == {0xFF}
    assert result.layers == (Layer("A", on=False), *([Layer("B", on=True)] if member else []))


@pytest.mark.parametrize("way", make_pdfs.LAYERED)
def test_upload_switches_layers(tmp_path: Path, way: str) -> None:
    """Off and on again, by name; and what the sheet says of it."""
    off, on = UploadOptions(layers={"A": False}), UploadOptions(layers={"A": True})
    assert not shows(tmp_path, make_pdfs.layered(way=way), off)
    assert shows(tmp_path, make_pdfs.layered("/OFF [@A]", way=way), on)
    assert drawn(tmp_path, make_pdfs.layered("/OFF [@A]", way=way), on).layers == (Layer("A", on=True),)


@pytest.mark.parametrize("policy", POLICIES)
def test_upload_switches_layers_of_a_membership_with_one_member(tmp_path: Path, policy: str) -> None:
    """PDFium alone does not read the policy."""
    data = make_pdfs.layered(member=f"/OCGs @A /P /{policy}")
    for on in (False, True):
        assert shows(tmp_path, data, UploadOptions(layers={"A": on, "B": False})) is POLICIES[policy]([on])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["mark", "form", "annotation"])
def test_membership_in_its_place_follows_its_policy(tmp_path: Path, policy: str, way: str) -> None:
    """A membership dictionary that is no object of its own, also in a document whose layers are switched."""
    for off, options in (("", UploadOptions()), ("@A", UploadOptions()), ("@A", UploadOptions(layers={"A": True, "B": False}))):
        data = make_pdfs.layered(f"/OFF [{off}]", member=f"/OCGs @A /P /{policy}", way=way, is_direct=True)
        assert shows(tmp_path, data, options) is POLICIES[policy]([not off or bool(options.layers)])


def test_layer_that_is_switched_on_turns_its_alternatives_off(tmp_path: Path) -> None:
    """At most one layer of a group of alternatives is on, unless the upload names more."""
    data = make_pdfs.layered("/OFF [@B] /RBGroups [[@A @B]]")
    assert not shows(tmp_path, data, UploadOptions(layers={"B": True}))
    assert shows(tmp_path, data, UploadOptions(layers={"B": True, "A": True}))
    assert shows(tmp_path, data, UploadOptions(layers={"B": False}))


def test_unknown_layer_is_noted_on_the_first_sheet(tmp_path: Path) -> None:
    """The other layers are switched all the same."""
    options = UploadOptions(layers={"A": False, "Furnitur": False})
    with opened(tmp_path, make_pdfs.layered(), options=options) as pdf:
        (page,) = measure(pdf, options, 10).pages
    assert page.notes == (Note("LayerUnknown", "No layer has this name, so it was not switched; the PDF has 2 others: Furnitur."),)
    assert not shows(tmp_path, make_pdfs.layered(), options)
    with opened(tmp_path, make_pdfs.one_page(), options=options) as pdf:
        (page,) = measure(pdf, options, 10).pages
    assert [note.type for note in page.notes] == ["LayerUnknown"]


def test_document_without_a_choice_is_not_copied(tmp_path: Path) -> None:
    """Nor is one whose layers are as they should be already."""
    for data, options, copied in (
        (make_pdfs.layered("/OFF [@B]"), UploadOptions(), False),
        (make_pdfs.layered("/OFF [@B]"), UploadOptions(layers={"B": False}), False),
        (make_pdfs.layered("/OFF [@B]"), UploadOptions(layers={"B": True}), True),
    ):
        with opened(tmp_path, data, options=options) as pdf:
            assert pdf.is_written_anew is copied


def test_layers_of_an_encrypted_document_are_switched(tmp_path: Path) -> None:
    """It opens without a password."""
    data = make_pdfs.encrypted("", data=make_pdfs.layered())
    assert shows(tmp_path, data)
    assert not shows(tmp_path, data, UploadOptions(layers={"A": False}))


@pytest.mark.parametrize(
    "nonsense", ["/OCGs 7", "/OCGs [7 null @A]", "/D 7", "/D << /OFF 7 /AS 7 >>", "/D << /AS [<< /Event /View /OCGs [@A] >>] >>"]
)
def test_nonsense_in_the_properties_is_no_error(tmp_path: Path, nonsense: str) -> None:
    """The page is drawn, with the layers that can be read."""
    shows(tmp_path, make_pdfs.layered(properties=nonsense))
    shows(tmp_path, make_pdfs.layered(properties=nonsense), UploadOptions(layers={"A": False}))


async def test_layers_come_from_a_child(tmp_path: Path) -> None:
    """In a file beside the tiles; a page without layers has none."""
    pool, layers = ChildPool(1), []
    try:
        for number, data in enumerate((make_pdfs.layered("/OFF [@A]"), make_pdfs.one_page())):
            source, target = tmp_path / f"{number}.pdf", tmp_path / str(number)
            source.write_bytes(data)
            target.mkdir()
            await pool.tile_page(str(number), source, TilePage("o/p/q/u", 1, 100, 100, UploadOptions(dpi=72)), target, lambda: None)
            layers.append(read_layers(target))
    finally:
        await pool.close()
    assert layers == [(Layer("A", on=False),), ()]


def test_layers_of_a_sheet_are_bounded(tmp_path: Path) -> None:
    """The worst names fill the file, and it can be read."""
    worst = [Layer("\U0001f600" * 300, on=True) for _ in range(1000)]
    kept = bounded_layers(worst)
    assert 0 < len(kept) < 100
    write_layers(tmp_path, worst)
    assert (tmp_path / LAYERS).stat().st_size <= MOST_LAYERS_BYTES + 100
    assert read_layers(tmp_path) == kept


@pytest.mark.parametrize("left", ["[", "[1]", '{"layers": [{"name": 1, "on": true}]}', "{}"])
def test_damaged_file_of_layers_is_refused(tmp_path: Path, left: str) -> None:
    """The page is then drawn again."""
    (tmp_path / LAYERS).write_text(left)
    with pytest.raises(TilesMissing):
        read_layers(tmp_path)


@pytest.mark.parametrize("is_on", [None, True])
def test_document_that_is_written_anew_stays_open(tmp_path: Path, is_on: bool | None) -> None:
    """Another one is closed when it holds too much memory."""
    path = tmp_path / "source.pdf"
    path.write_bytes(make_pdfs.layered("/OFF [@A]"))
    renderer = Renderer(path)
    pdf = PdfFile(path, options=UploadOptions(layers={} if is_on is None else {"A": is_on}))
    renderer._pdf, renderer._used_after_first_page = pdf, -(1 << 40)
    renderer._bound_kept_memory(pdf)
    assert (renderer._pdf is pdf) is bool(is_on)
    if is_on:
        pdf.close()
