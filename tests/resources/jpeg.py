"""Parts of a JPEG file: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B."""

from collections.abc import Iterator

START_OF_FRAME = 0xC0
HUFFMAN_TABLES = 0xC4
START_OF_SCAN = 0xDA


def segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker and the content of each segment up to the scan; the scan's content is its header and all the rest of the file."""
    at = 2
    while True:
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == START_OF_SCAN:
            yield marker, jpeg[at + 4 :]
            return
        yield marker, jpeg[at + 4 : end]
        at = end


def frame(jpeg: bytes) -> tuple[int, int, int]:
    """Width, height and number of components."""
    content = dict(segments(jpeg))[START_OF_FRAME]
    return int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big"), content[5]


def scan(jpeg: bytes) -> bytes:
    """The coded pixels and what follows them, without the scan's header."""
    content = dict(segments(jpeg))[START_OF_SCAN]
    return content[1 + 2 * content[0] + 3 :]


def huffman_tables(jpeg: bytes) -> dict[int, bytes]:
    """The Huffman tables by class and number: how many codes have each length, then the symbols."""
    tables: dict[int, bytes] = {}
    for marker, content in segments(jpeg):
        while marker == HUFFMAN_TABLES and content:
            end = 17 + sum(content[1:17])
            tables[content[0]] = content[1:end]
            content = content[end:]
    return tables


def outline(width: int, height: int, content: bytes = b"") -> bytes:
    """Begins and ends like a JPEG of this size, and has these bytes instead of pixels: no decoder reads it."""
    frame = b"\xff\xc0\x00\x0b\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x01\x01\x11\x00"
    return b"\xff\xd8" + frame + content + b"\xff\xd9"
