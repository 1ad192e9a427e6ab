"""Makes the cutter's Huffman tables from plans: the more often a symbol occurs in their tiles, the shorter is its code.

``python -m tests.bench.train_huffman plan.pdf ...`` prints the tables as ``activities/render/cutter.py`` has them. Any tables are valid, as
long as every symbol has a code; these only make the tiles of plans smaller. All pages count the same, however many bytes their tiles have.
The printed savings leave out the zero bytes after each 0xff, of which there are fewer with these tables, too.

https://www.w3.org/Graphics/JPEG/itu-t81.pdf, K.2
"""

import base64
import ctypes
import heapq
import random
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from activities.bucket.records import UploadOptions
from activities.render.compile import compile_cutter
from activities.render.cutter import Cutter
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.raster import PixelBuffer, draw
from tests.resources.flat_file import read_flat_file
from tests.resources.jpeg import frame, scan, standard_huffman

OPTIONS = UploadOptions()
MOST_PAGES = 2_000
STANDARD = standard_huffman()
DC_SYMBOLS = tuple(range(12))
AC_SYMBOLS = (0x00, *(run << 4 | size for run in range(16) for size in range(1, 11)), 0xF0)
SYMBOLS = (DC_SYMBOLS, AC_SYMBOLS, DC_SYMBOLS, AC_SYMBOLS)
"""Of each table: DC and AC of luminance, DC and AC of chrominance."""
LONGEST = 16
PAGE_WEIGHT = 10**9

Table = dict[int, tuple[int, int]]
"""The length and the bits of each symbol's code."""
Counts = list[Counter[int]]
"""How often each symbol occurs, by table."""


@dataclass(frozen=True)
class Page:
    """The sizes and the symbols of a page's tiles.

    Args:
        plan: The file.
        number: 1-based.
        size_bytes: Of all different tiles.
        counts: Of their symbols.
    """

    plan: Path
    number: int
    size_bytes: int
    counts: Counts


def split(tables: bytes) -> list[bytes]:
    """The four tables, each as in a DHT segment."""
    parts, at = [], 0
    for symbols in SYMBOLS:
        parts.append(tables[at : at + LONGEST + len(symbols)])
        at += LONGEST + len(symbols)
    return parts


def codes(table: bytes) -> Table:
    """The codes of a table that is as in a DHT segment."""
    found, code, symbols = {}, 0, iter(table[LONGEST:])
    for length in range(1, LONGEST + 1):
        for _ in range(table[length - 1]):
            found[next(symbols)] = (length, code)
            code += 1
        code <<= 1
    return found


def lookup(table: bytes) -> bytes:
    """The length and the symbol of the code that each number of 16 bits begins with."""
    found = bytearray(2 << LONGEST)
    for symbol, (length, code) in codes(table).items():
        first, number = code << (LONGEST - length), 1 << (LONGEST - length)
        found[2 * first : 2 * (first + number)] = bytes([length, symbol]) * number
    return bytes(found)


class SymbolCounter:
    """Counts the symbols of the cutter's tiles, by ``count_symbols.c``.

    Args:
        directory: Receives the compiled library.
    """

    def __init__(self, directory: Path) -> None:
        library = directory / "count_symbols.so"
        source = Path(__file__).with_name("count_symbols.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        self._count = ctypes.CDLL(str(library)).count_symbols
        self._lookup = b"".join(map(lookup, split(STANDARD)))

    def count(self, tiles: Iterator[bytes]) -> Counts:
        """The symbols of these JPEGs."""
        counts = (ctypes.c_uint64 * 1024)()
        for jpeg in tiles:
            width, height, components = frame(jpeg)
            self._count(scan(jpeg), -(-width // 8) * -(-height // 8), components, self._lookup, counts)
        return [Counter({symbol: counts[256 * which + symbol] for symbol in symbols}) for which, symbols in enumerate(SYMBOLS)]


def pages_of(plan: Path, most: int, directory: Path) -> Iterator[Page]:
    """Draws and cuts some pages of a plan set, and counts the symbols of their tiles."""
    library, flat_file = directory / "cutter.so", directory / "tiles.flat"
    if not library.exists():
        compile_cutter(library)
    cutter, counter = Cutter(library), SymbolCounter(directory)
    pdf, buffer = PdfFile(plan), PixelBuffer()
    drawable = [page for page in measure(pdf, OPTIONS, MOST_PAGES).pages if page.reason is None]
    for page in random.Random(1).sample(drawable, min(most, len(drawable))):  # noqa: S311 (a sample, no secret)
        drawn = draw(pdf, page.number, page.width, page.height, buffer)
        with flat_file.open("w+b") as file:
            cutter.cut(
                drawn.pixels,
                page.width,
                page.height,
                blue_first=False,
                tile_size=OPTIONS.tile_size,
                overlap=OPTIONS.overlap,
                quality=OPTIONS.quality,
                file=file.fileno(),
                preview_level=0,
                huffman=STANDARD,
            )
        different = set(read_flat_file(flat_file).tiles.values())
        yield Page(plan, page.number, sum(map(len, different)), counter.count(iter(different)))
    pdf.close()


def mean_counts(pages: list[Page]) -> Counts:
    """The symbols of all pages, each page with the same weight."""
    mean: Counts = [Counter() for _ in SYMBOLS]
    for page in pages:
        total = sum(map(Counter.total, page.counts))
        for counter, of_page in zip(mean, page.counts, strict=True):
            counter.update({symbol: number * PAGE_WEIGHT // total for symbol, number in of_page.items()})
    return mean


def code_lengths(counter: Counter[int], symbols: tuple[int, ...]) -> list[int]:
    """How many codes have each length from 1 to 16. A symbol that does not occur counts once.

    One more symbol is counted, to which the code of ones only falls; no symbol may have it.
    """
    heap: list[tuple[int, int, list[int]]] = [(max(1, counter[symbol]), symbol, [symbol]) for symbol in symbols]
    heap.append((0, 256, [256]))
    heapq.heapify(heap)
    depth = Counter[int]()
    while len(heap) > 1:
        (one, _, left), (other, tie, right) = heapq.heappop(heap), heapq.heappop(heap)
        depth.update(left + right)
        heapq.heappush(heap, (one + other, tie, left + right))
    numbers = Counter(depth.values())
    for length in range(max(numbers), LONGEST, -1):  # figure K.3
        while numbers[length]:
            shorter = next(at for at in range(length - 2, 0, -1) if numbers[at])
            numbers[length] -= 2
            numbers[length - 1] += 1
            numbers[shorter + 1] += 2
            numbers[shorter] -= 1
    numbers[max(length for length in numbers if numbers[length])] -= 1
    return [numbers[length] for length in range(1, LONGEST + 1)]


def best_table(counter: Counter[int], symbols: tuple[int, ...]) -> bytes:
    """The table with the fewest bits for these symbols, as in a DHT segment."""
    ordered = sorted(symbols, key=lambda symbol: (-counter[symbol], symbol))
    return bytes([*code_lengths(counter, symbols), *ordered])


def saved_bytes(counts: Counts, tables: bytes) -> int:
    """How many bytes fewer these tables take than the standard ones for the same symbols."""
    bits = 0
    for counter, old, new in zip(counts, map(codes, split(STANDARD)), map(codes, split(tables)), strict=True):
        bits += sum(number * (old[symbol][0] - new[symbol][0]) for symbol, number in counter.items())
    return bits // 8


def main(plans: list[Path], most: int = 3) -> None:
    """Prints the tables, and the bytes of each page with the standard ones and with these."""
    with tempfile.TemporaryDirectory() as directory:
        pages = [page for plan in plans for page in pages_of(plan, most, Path(directory))]
    tables = b"".join(map(best_table, mean_counts(pages), SYMBOLS))
    for page in pages:
        others = mean_counts([other for other in pages if other.plan != page.plan])
        unseen = b"".join(map(best_table, others, SYMBOLS))
        changes = [-saved_bytes(page.counts, made) / page.size_bytes for made in (tables, unseen)]
        print(f"{page.plan.name:60} {page.number:3}: {page.size_bytes:10,} bytes {changes[0]:+.2%}, without this plan {changes[1]:+.2%}")
    total, saved = sum(page.size_bytes for page in pages), sum(saved_bytes(page.counts, tables) for page in pages)
    print(f"{total:,} -> {total - saved:,} bytes ({-saved / total:+.2%})")
    for line in textwrap.wrap(base64.b64encode(tables).decode(), 128):
        print(f'    "{line}"')


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
