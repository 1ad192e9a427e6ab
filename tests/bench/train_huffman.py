"""Makes the cutter's Huffman tables from plans: counts the symbols of their tiles, and gives frequent symbols the shorter codes.

``python -m tests.bench.train_huffman plan.pdf ...`` prints the tables as ``activities/render/cutter.py`` has them. They were made from pages
of ten plan sets. Any tables are valid, as long as every symbol has a code; these only make the tiles of plans smaller.
https://www.w3.org/Graphics/JPEG/itu-t81.pdf, K.2
"""

import heapq
import random
import sys
from collections import Counter
from pathlib import Path

DC_SYMBOLS = list(range(12))
AC_SYMBOLS = [run << 4 | size for run in range(16) for size in range(1, 11)] + [0x00, 0xF0]
LONGEST = 16


def segments(jpeg: bytes) -> tuple[dict[int, dict[tuple[int, int], int]], int, bytes]:
    """The Huffman tables of a JPEG (code by length and bits, by class and number), its components, and its scan without stuffed bytes."""
    tables: dict[int, dict[tuple[int, int], int]] = {}
    components, at = 1, 2
    while True:
        marker, size = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        body = jpeg[at + 4 : at + 2 + size]
        if marker == 0xC4:
            tables[body[0]] = codes(body[1:])
        elif marker == 0xC0:
            components = body[5]
        at += 2 + size
        if marker == 0xDA:
            return tables, components, jpeg[at:-2].replace(b"\xff\x00", b"\xff")


def codes(table: bytes) -> dict[tuple[int, int], int]:
    """The symbol of each code, by its length and bits."""
    found, code, symbols = {}, 0, iter(table[16:])
    for length in range(1, LONGEST + 1):
        for _ in range(table[length - 1]):
            found[length, code] = next(symbols)
            code += 1
        code <<= 1
    return found


def count(jpeg: bytes, counters: list[Counter[int]]) -> None:
    """Counts the symbols of a JPEG without subsampling: DC and AC of luminance, DC and AC of chrominance."""
    tables, components, scan = segments(jpeg)
    bits, total = int.from_bytes(scan, "big"), 8 * len(scan)
    text = f"{bits:0{total}b}"
    by_text = [
        {f"{code:0{length}b}": symbol for (length, code), symbol in tables.get(number, {}).items()} for number in (0x00, 0x10, 0x01, 0x11)
    ]
    at = 0

    def read(which: int) -> int:
        nonlocal at
        codes_of_table, end = by_text[which], at + 1
        while (symbol := codes_of_table.get(text[at:end])) is None:
            end += 1
        counters[which][symbol] += 1
        at = end
        return symbol

    while total - at >= 8 or "0" in text[at:]:
        for component in range(components):
            which = 2 * (component > 0)
            at += read(which)
            place = 0
            while place < 63:
                symbol = read(which + 1)
                if symbol == 0:
                    break
                place += (symbol >> 4) + 1
                at += symbol & 15


def lengths(counter: Counter[int], symbols: list[int]) -> dict[int, int]:
    """The length of each symbol's code, at most 16. One code more is counted, because the code of ones only is not allowed."""
    heap = [(counter[symbol] + 1, symbol, [symbol]) for symbol in symbols] + [(0, 256, [256])]
    heapq.heapify(heap)
    depth = dict.fromkeys([*symbols, 256], 0)
    while len(heap) > 1:
        (one, _, left), (other, tie, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in left + right:
            depth[symbol] += 1
        heapq.heappush(heap, (one + other, tie, left + right))
    numbers = Counter(depth.values())
    for length in range(max(numbers), LONGEST, -1):  # figure K.3
        while numbers[length]:
            shorter = length - 2
            while not numbers[shorter]:
                shorter -= 1
            numbers[length] -= 2
            numbers[length - 1] += 1
            numbers[shorter + 1] += 2
            numbers[shorter] -= 1
    longest = max(length for length in numbers if numbers[length])
    numbers[longest] -= 1  # the code of ones only
    ordered = iter(sorted(symbols, key=lambda symbol: (-counter[symbol], symbol)))
    return {next(ordered): length for length in range(1, LONGEST + 1) for _ in range(numbers[length])}


def table(counter: Counter[int], symbols: list[int]) -> bytes:
    """The table as in a DHT segment."""
    found = lengths(counter, symbols)
    return bytes([list(found.values()).count(length) for length in range(1, LONGEST + 1)]) + bytes(found)
