"""The arithmetic of the pyramid, against what libvips really writes."""

import io
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from activities.bucket.dzi import BYTES_PER_PIXEL, MINIMUM_DPI, Pyramid, SheetSize, sheet_size, tile_name

EDGES = st.sampled_from([1, 2, 3, 255, 256, 257, 258, 259, 511, 512, 513])
LENGTHS = st.one_of(EDGES, st.integers(1, 600))


@given(width=LENGTHS, height=LENGTHS, tile_size=st.sampled_from([128, 254, 256, 300]), overlap=st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_pyramid_names_and_sizes_what_libvips_writes(width: int, height: int, tile_size: int, overlap: int) -> None:
    """Every tile's name and size, and no other tile, for any image, tile size and overlap."""
    pyramid = Pyramid(width, height, tile_size, overlap)
    expected = {tile_name(*tile): pyramid.tile_rectangle(*tile)[2:] for tile in pyramid.tiles()}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "t.zip"
        pyvips.Image.black(width, height, bands=3).dzsave(str(path), tile_size=tile_size, overlap=overlap, keep="none")
        with zipfile.ZipFile(path) as archive:
            tiles = {name.removeprefix("t_files/"): archive.read(name) for name in archive.namelist() if name.endswith(".jpeg")}
            image = ET.fromstring(archive.read("t.dzi"))  # noqa: S314 (libvips wrote it)
    assert {name: Image.open(io.BytesIO(data)).size for name, data in tiles.items()} == expected
    assert pyramid.tile_count == len(expected)
    ours = ET.fromstring(pyramid.descriptor())  # noqa: S314 (ours)
    assert ours.tag == image.tag
    assert {name: ours.attrib[name] for name in ("Format", "Overlap", "TileSize")} == {
        name: image.attrib[name] for name in ("Format", "Overlap", "TileSize")
    }
    assert ours[0].attrib == image[0].attrib == {"Width": str(width), "Height": str(height)}


@pytest.mark.parametrize(
    "numbers",
    [(0, 1, 256, 1), (1, 0, 256, 1), (1, 1, 0, 0), (1, 1, 256, -1), (1, 1, 256, 256)],
    ids=lambda numbers: "-".join(map(str, numbers)),
)
def test_pyramid_refuses_numbers_out_of_range(numbers: tuple[int, int, int, int]) -> None:
    """There is no pyramid without area, without tiles, or whose overlap is as large as a tile."""
    with pytest.raises(ValueError, match="no pyramid"):
        Pyramid(*numbers)


def test_pyramid_of_an_arch_e1_sheet_has_the_known_tiles() -> None:
    """42 x 30 inches at 300 dpi: 15 levels, 2,427 tiles."""
    pyramid = Pyramid(12600, 9000)
    assert (pyramid.max_level, pyramid.tile_count) == (14, 2427)


@pytest.mark.parametrize(
    ("points", "user_unit", "dpi", "expected"),
    [
        ((3024, 2160), 1, 300, (12600, 9000)),
        ((612, 792), 1, 300, (2550, 3300)),
        ((20, 10), 10, 72, (200, 100)),
        ((0.1, 0.1), 1, 30, (1, 1)),
        ((595.32, 841.92), 1, 300, (2481, 3508)),
    ],
)
def test_sheet_size_rounds_and_never_vanishes(points: tuple[float, float], user_unit: float, dpi: int, expected: tuple[int, int]) -> None:
    """``max(1, round(points x UserUnit x dpi / 72))``."""
    assert sheet_size(*points, user_unit, dpi, 1 << 30) == SheetSize(*expected, dpi=dpi, scaled=False)


def test_sheet_size_lowers_the_dpi_to_the_budget() -> None:
    """The highest whole dpi that fits is taken, and ``scaled`` is set."""
    size = sheet_size(14400, 14400, 1, 300, 1 << 30)
    assert size is not None
    assert size.scaled
    assert size.width * size.height * BYTES_PER_PIXEL <= 1 << 30
    assert round(14400 * (size.dpi + 1) / 72) ** 2 * BYTES_PER_PIXEL > 1 << 30


@pytest.mark.parametrize("dpi", [300, MINIMUM_DPI])
def test_sheet_size_refuses_a_page_that_fits_only_below_30_dpi(dpi: int) -> None:
    """None for a page that is over the budget at 30 dpi, whatever was asked for."""
    assert sheet_size(1e6, 1e6, 1, dpi, 1 << 30) is None


@given(
    width=st.floats(0.01, 3e38), height=st.floats(0.01, 3e38), user_unit=st.floats(0.001, 1e6), dpi=st.integers(30, 1200),
    budget=st.integers(1 << 20, 4 << 30),
)  # fmt: skip
@settings(max_examples=200)
def test_sheet_size_is_within_the_budget_or_none(width: float, height: float, user_unit: float, dpi: int, budget: int) -> None:
    """This holds for any page that PDFium can report."""
    size = sheet_size(width, height, user_unit, dpi, budget)
    if size is not None:
        assert 1 <= size.width * size.height * BYTES_PER_PIXEL <= budget
        assert MINIMUM_DPI <= size.dpi <= dpi
        assert size.scaled == (size.dpi < dpi)
