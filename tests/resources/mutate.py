"""Damaged PDFs, each rebuilt from a sound one and a seed.

Most edits are made to the file as qpdf writes it without compression, because a change of a compressed stream seldom reaches more than the
decompressor. The same bytes, seed and release of pikepdf always give the same file.
"""

import io
import random
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from warnings import catch_warnings

import pikepdf

LARGEST_PLAIN_BYTES = 12 << 20
"""A file that is larger without compression is edited as it is."""

_NUMBER = re.compile(rb"(?<![\w.#-])-?\d+(?:\.\d+)?(?![\w.])")
_NAME = re.compile(rb"/[A-Za-z][A-Za-z0-9]*")
_REFERENCE = re.compile(rb"\b\d+ 0 R\b")
_WINDOW_BYTES = 4096
_NUMBERS = (
    b"0 1 -1 2 3 7 8 16 31 32 90 255 256 1000 65535 65536 100000 -32768 2147483647 -2147483648 4294967295 4294967296"
    b" 9223372036854775807 99999999999999999999 0.000001 -0.5 1e9 3.4e38 .5 1000000.5"
).split()
_NAMES = (
    b"/FlateDecode /LZWDecode /DCTDecode /JPXDecode /JBIG2Decode /CCITTFaxDecode /ASCII85Decode /RunLengthDecode /ASCIIHexDecode /Crypt"
    b" /DeviceN /Separation /ICCBased /Indexed /Pattern /Lab /CalRGB /DeviceCMYK /DeviceGray /Type0 /Type3 /TrueType /CIDFontType2"
    b" /Page /Pages /Catalog /XObject /Form /Image /SMask /Mask /Group /Transparency /Kids /Parent /Contents /Resources /Annots"
    b" /Length /Filter /DecodeParms /Predictor /Columns /Width /Height /BitsPerComponent /ShadingType /FunctionType /Domain /Range"
).split()

Edit = Callable[[random.Random, bytes, bytes], bytes]


def mutate(data: bytes, other: bytes, seed: int) -> bytes:
    """The file with some damage.

    Args:
        data: A PDF.
        other: Another PDF, of which a part may be put in.
        seed: Decides what is done.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    if rng.random() < 0.8:
        data = plain(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        data = rng.choice(_EDITS)(rng, data, other) or data
    return saved_again(data) if rng.random() < 0.4 else data


@lru_cache(maxsize=8)
def plain(data: bytes) -> bytes:
    """The file without compression and object streams; unchanged where qpdf cannot read it, or it becomes too large."""
    return _rewritten(data, lambda pdf: None, uncompressed=True)


def saved_again(data: bytes) -> bytes:
    """The file with a sound cross-reference table, so that readers need not search for the objects; unchanged where qpdf cannot read it."""
    return _rewritten(data, lambda pdf: None)


def _rewritten(data: bytes, edit: Callable[[pikepdf.Pdf], None], *, uncompressed: bool = False) -> bytes:
    out = io.BytesIO()
    decode = pikepdf.StreamDecodeLevel.generalized if uncompressed else pikepdf.StreamDecodeLevel.none
    try:
        with catch_warnings(action="ignore"), pikepdf.open(io.BytesIO(data), suppress_warnings=True) as pdf:
            if uncompressed and not _fits(pdf):
                return data
            edit(pdf)
            pdf.save(
                out,
                compress_streams=False,
                stream_decode_level=decode,
                object_stream_mode=pikepdf.ObjectStreamMode.disable,
                static_id=True,
                fix_metadata_version=False,
            )
    except Exception:  # noqa: BLE001 (pikepdf's errors have no common base)
        return data
    return out.getvalue() if len(out.getvalue()) <= LARGEST_PLAIN_BYTES else data


def _fits(pdf: pikepdf.Pdf) -> bool:
    """Whether the streams take little enough room without compression: some PDFs inflate to gigabytes."""
    room = LARGEST_PLAIN_BYTES
    for stream in pdf.objects:
        if room > 0 and isinstance(stream, pikepdf.Stream) and "/FlateDecode" in str(stream.get("/Filter")):
            with suppress(zlib.error):
                room -= len(zlib.decompressobj().decompress(stream.read_raw_bytes(), room))
    return room > 0


def _span(rng: random.Random, data: bytes, most: int) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + 1 + int(most ** rng.random()))


def _flip(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), rng.choice((1, 4, 16, 64, 400)))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _delete(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    start, end = _span(rng, data, 65536)
    return data[:start] + data[end:]


def _duplicate(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    start, end = _span(rng, data, 65536)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _copy(rng: random.Random, data: bytes, other: bytes) -> bytes:
    source = rng.choice((data, other))
    start, end = _span(rng, source, 65536)
    at = rng.randrange(len(data) + 1)
    return data[:at] + source[start:end] + data[at + rng.choice((0, end - start)) :]


def _truncate(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _replace_tokens(pattern: re.Pattern[bytes], replacement: Callable[[random.Random, bytes, list[bytes]], bytes]) -> Edit:
    """An edit that replaces tokens close to one another."""

    def edit(rng: random.Random, data: bytes, _other: bytes) -> bytes:
        start = rng.randrange(len(data) + 1)
        tokens = list(pattern.finditer(data, start, start + _WINDOW_BYTES))
        if not tokens:
            return data
        texts = [token.group() for token in tokens]
        for token in sorted(rng.sample(tokens, min(len(tokens), rng.choice((1, 1, 3)))), key=lambda token: -token.start()):
            data = data[: token.start()] + replacement(rng, token.group(), texts) + data[token.end() :]
        return data

    return edit


def _number(rng: random.Random, old: bytes, _all: list[bytes]) -> bytes:
    near = str(int(float(old[:15])) + rng.choice((-1, 1, 2))).encode()
    return rng.choice((near, rng.choice(_NUMBERS), b"-" + old.lstrip(b"-"), old + b"000"))


def _name(rng: random.Random, _old: bytes, others: list[bytes]) -> bytes:
    return rng.choice((rng.choice(others), rng.choice(_NAMES)))


def _reference(rng: random.Random, _old: bytes, others: list[bytes]) -> bytes:
    return rng.choice((rng.choice(others), b"%d 0 R" % rng.randrange(1, 60), b"null", b"[]", b"<<>>"))


def _cut_stream(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """A stream that ends early, while its dictionary keeps the length."""
    end = data.find(b"endstream", rng.randrange(len(data) + 1))
    start = data.rfind(b"stream", 0, max(0, end))
    if end < 0 or start < 0:
        return data
    return data[: rng.randrange(start, end)] + data[end:]


def _edit_tree(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """Entries of a page, or of a node above pages, that say something else."""

    def edit(pdf: pikepdf.Pdf) -> None:
        page = pdf.pages[rng.randrange(len(pdf.pages))].obj
        node = page.get("/Parent", page) if rng.random() < 0.3 else page
        big = rng.choice((0, -1, 0.001, 14400, 1e6, 1e9, 2**31, 2**40, 1e38))
        key, value = rng.choice(
            (
                ("/MediaBox", [0, 0, big, rng.choice((1, 100, 792, big))]),
                ("/CropBox", [rng.choice((0, -100, 50)), 0, big, 792]),
                ("/Rotate", rng.choice((90, 45, -90, 2**31, 450))),
                ("/UserUnit", rng.choice((big, 0, -1, 75))),
                ("/Kids", [page, page.get("/Parent", page), page]),
                ("/Count", rng.choice((0, -5, 2**31, 100000))),
                ("/Contents", [page.get("/Contents", page)] * rng.choice((1, 2, 300))),
                ("/Parent", page),
                ("/Resources", page),
                ("/Type", pikepdf.Name(rng.choice(("/Pages", "/Catalog", "/Font")))),
                ("/Annots", [page, None, 5, [page]]),
                ("/Group", pikepdf.Dictionary(S=pikepdf.Name.Transparency, CS=page.get("/Resources", page), I=True, K=True)),
            )
        )
        node[key] = value

    return _rewritten(data, edit)


def _swap_values(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """Two objects that get one another's value for a key, whatever its type."""

    def edit(pdf: pikepdf.Pdf) -> None:
        objects = [each for each in pdf.objects if isinstance(each, (pikepdf.Dictionary, pikepdf.Stream)) and len(each.keys())]
        for _ in range(rng.choice((1, 3))):
            one, two = rng.choice(objects), rng.choice(objects)
            one_key, two_key = rng.choice(sorted(one.keys())), rng.choice(sorted(two.keys()))
            if "/Length" not in (one_key, two_key):
                one[one_key], two[two_key] = two[two_key], one[one_key]

    return _rewritten(data, edit)


_EDITS: Sequence[Edit] = (
    _flip,
    _delete,
    _duplicate,
    _copy,
    _truncate,
    _splice,
    _cut_stream,
    _edit_tree,
    _swap_values,
    *(_replace_tokens(_NUMBER, _number),) * 3,
    *(_replace_tokens(_NAME, _name),) * 2,
    *(_replace_tokens(_REFERENCE, _reference),) * 2,
)
