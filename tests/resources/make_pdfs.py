"""The small PDFs that tests need, written by hand so that each shows one thing, and named for it.

``python -m tests.resources.make_pdfs DIRECTORY`` writes all of them.
"""

import io
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pikepdf

MARKS = b"1 0 0 rg 10 10 40 30 re f 0 0 1 RG 3 w 5 5 m 190 90 l S 0 0.6 0 rg 120 60 50 20 re f"
"""Something to see on a page of 200 x 100 pt."""


class Writer:
    """Writes objects in the order in which they are added. The catalog is object 1, the page tree object 2, and the others follow."""

    def __init__(self) -> None:
        self._objects: dict[int, bytes] = {}
        self._next = 3

    def reserve(self) -> int:
        """The number of an object that is added later."""
        self._next += 1
        return self._next - 1

    def set(self, number: int, body: str | bytes) -> int:
        """Adds the object of a reserved number."""
        self._objects[number] = body.encode() if isinstance(body, str) else body
        return number

    def add(self, body: str | bytes) -> int:
        """Adds an object; returns its number."""
        return self.set(self.reserve(), body)

    def stream(self, data: bytes, entries: str = "") -> int:
        """Adds a stream; ``entries`` go into its dictionary."""
        return self.add(b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries.encode(), data))

    def page(self, content: bytes = MARKS, entries: str = "/MediaBox [0 0 200 100]") -> int:
        """Adds a page; ``entries`` go into its dictionary."""
        return self.add(f"<< /Type /Page /Parent 2 0 R {entries} /Contents {self.stream(content)} 0 R >>")

    def finish(self, pages: Sequence[int], catalog: str = "", count: int | None = None) -> bytes:
        """The file with these pages; ``catalog`` goes into the catalog, and ``count`` is what the page tree says instead of the truth."""
        self.set(1, f"<< /Type /Catalog /Pages 2 0 R {catalog} >>")
        kids = " ".join(f"{page} 0 R" for page in pages)
        self.set(2, f"<< /Type /Pages /Kids [{kids}] /Count {len(pages) if count is None else count} >>")
        out = io.BytesIO()
        out.write(b"%PDF-1.7\n")
        offsets = {}
        for number, body in sorted(self._objects.items()):
            offsets[number] = out.tell()
            out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        start = out.tell()
        out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(offsets) + 1))
        for number in range(1, len(offsets) + 1):
            out.write(b"%010d 00000 n \n" % offsets[number])
        out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, start))
        return out.getvalue()


def one_page(content: bytes = MARKS, entries: str = "/MediaBox [0 0 200 100]") -> bytes:
    """One page."""
    writer = Writer()
    return writer.finish([writer.page(content, entries)])


def rotated_90() -> bytes:
    """A page of 200 x 100 pt that is turned upright."""
    return one_page(entries="/MediaBox [0 0 200 100] /Rotate 90")


def crop_box_smaller() -> bytes:
    """Only 100 x 50 pt of 200 x 100 show."""
    return one_page(entries="/MediaBox [0 0 200 100] /CropBox [50 25 150 75]")


def user_unit_10() -> bytes:
    """A page of 20 x 10 units of 10 pt each: as large as 200 x 100 pt, but PDFium reports 20 x 10."""
    return one_page(b"1 0 0 rg 1 1 4 3 re f", "/MediaBox [0 0 20 10] /UserUnit 10")


def junk_behind_the_end(data: bytes) -> bytes:
    """The same file with so much text behind its end that a reader finds no ``startxref`` where it looks for it."""
    return data + b" no part of the drawing" * 120


def attachments_encrypted(data: bytes) -> bytes:
    """The same file with an encryption for which only attached files need a password: ISO 32000-1, table 20, ``EFF``."""
    key, digest = "00" * 32, "ab" * 16
    encrypt = (
        "/Filter /Standard /V 4 /R 4 /Length 128 /CF << /StdCF << /AuthEvent /EFOpen /CFM /AESV2 /Length 16 >> >> "
        f"/StmF /Identity /StrF /Identity /EFF /StdCF /O <{key}> /U <{key}> /P -4"
    )
    return data.replace(b"/Root 1 0 R", f"/ID [<{digest}> <{digest}>] /Encrypt << {encrypt} >> /Root 1 0 R".encode())


def portfolio(*names: str, pages: int = 1) -> bytes:
    """A portfolio with some pages of its own, and with empty files of these names inside."""
    writer = Writer()
    specs = [
        writer.add(f"<< /Type /Filespec /F ({name}) /UF ({name}) /EF << /F {writer.stream(b'', '/Type /EmbeddedFile')} 0 R >> >>")
        for name in names
    ]
    tree = " ".join(f"({index:03}) {spec} 0 R" for index, spec in enumerate(specs))
    return writer.finish(
        [writer.page() for _ in range(pages)],
        f"/Collection << /Type /Collection /View /D >> /Names << /EmbeddedFiles << /Names [{tree}] >> >>",
    )


def user_unit_nonsense() -> bytes:
    """Six pages whose UserUnits are not positive, finite numbers."""
    writer = Writer()
    units = ("(ten)", "-3", "0", "null", "1e999", "[2]")
    return writer.finish([writer.page(entries=f"/MediaBox [0 0 200 100] /UserUnit {unit}") for unit in units])


def annotation_on_white() -> bytes:
    """Nothing but an annotation: a red square in the lower left."""
    writer = Writer()
    appearance = writer.stream(b"1 0 0 rg 0 0 50 50 re f", "/Type /XObject /Subtype /Form /BBox [0 0 50 50]")
    annotation = writer.add(f"<< /Type /Annot /Subtype /Stamp /Rect [10 10 60 60] /F 4 /AP << /N {appearance} 0 R >> >>")
    return writer.finish([writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{annotation} 0 R]")])


def blank() -> bytes:
    """An empty page."""
    return one_page(b"")


def titles() -> bytes:
    """Six pages with titles.

    Bookmark with a destination, bookmark with a GoTo action, page label only, bookmark with control characters, page label beside a
    bookmark whose remote go-to means another file, nested bookmark.
    """
    writer = Writer()
    pages = [writer.page() for _ in range(6)]
    outlines, *items = (writer.reserve() for _ in range(7))
    nested = writer.reserve()
    entries = (
        f"/Title (A-101 - First Floor Plan) /Dest [{pages[0]} 0 R /Fit]",
        f"/Title (A-102 - Roof Plan) /A << /S /GoTo /D [{pages[1]} 0 R /Fit] >>",
        f"/Title (  A-104\\n\\001\\033 Sections\\t\\205{'x' * 200}) /Dest [{pages[3]} 0 R /Fit]",
        "/Title (Of another file) /A << /S /GoToR /F (other.pdf) /D [4 /Fit] >>",
        f"/Title (Second bookmark of the first page) /Dest [{pages[0]} 0 R /Fit]",
        f"/Title (Chapter) /First {nested} 0 R /Last {nested} 0 R /Count 1",
    )
    _set_outline(writer, outlines, items, entries)
    writer.set(nested, f"<< /Title <FEFF00C4002D003600200393> /Dest [{pages[5]} 0 R /Fit] /Parent {items[5]} 0 R >>")
    labels = "/PageLabels << /Nums [0 << >> 2 << /P (M-) /S /D /St 7 >> 3 << >> 4 << /P (E-5) >> 5 << >>] >>"
    return writer.finish(pages, f"/Outlines {outlines} 0 R {labels}")


def outline_loop() -> bytes:
    """An outline whose items are their own next, parent and child: the walk must end, and still find both titles."""
    writer = Writer()
    pages = [writer.page(), writer.page()]
    outlines, first, second = writer.reserve(), writer.reserve(), writer.reserve()
    writer.set(outlines, f"<< /Type /Outlines /First {first} 0 R /Last {second} 0 R >>")
    writer.set(first, f"<< /Title (one) /Dest [{pages[0]} 0 R /Fit] /Next {second} 0 R /First {first} 0 R /Parent {outlines} 0 R >>")
    writer.set(second, f"<< /Title (two) /Dest [{pages[1]} 0 R /Fit] /Next {first} 0 R /First {first} 0 R /Parent {outlines} 0 R >>")
    return writer.finish(pages, f"/Outlines {outlines} 0 R")


FIELDS = {
    "text": "red",
    "half": "red",
    "orphan": "green",
    "kind unknown": "green",
    "checked": "green",
    "value only": "green",
    "unchecked": "",
    "signature": "red",
    "text made": "blue",
    "check made": "blue",
    "radio made": "blue",
    "radio off": "",
    "nothing known": "",
    "hidden": "",
    "not for screens": "",
}
"""The fields of ``form``, from the top down, and the colour that must show in each; empty where nothing must show."""

FIELD_PT = 20
"""Height of the row of a field. The field lies between 60 and 190 pt from the left."""


def form(acro_form: bool = True, entries: str = "") -> bytes:
    """Fields with and without appearance. ``orphan`` is on the page but not in the form's list; two fields have no type."""
    writer = Writer()
    font = writer.add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    default_appearance = "/DA (/F 12 Tf 0 0 1 rg)"

    def appearance(operators: str) -> str:
        resources = "/Resources << /ExtGState << /Half << /ca 0.5 >> >> >>"
        return f"{writer.stream(operators.encode(), f'/Type /XObject /Subtype /Form /BBox [0 0 130 18] {resources}')} 0 R"

    red, green = appearance("1 0 0 rg 0 0 130 18 re f"), appearance("0 0.6 0 rg 0 0 130 18 re f")
    states = f"/AP << /N << /Yes {green} >> >>"
    bodies = {
        "text": f"/FT /Tx /F 4 /V (x) /AP << /N {red} >>",
        "half": f"/FT /Tx /V (x) /AP << /N {appearance('/Half gs 1 0 0 rg 0 0 130 18 re f')} >>",
        "orphan": f"/FT /Tx /F 4 /V (x) /AP << /N {green} >>",
        "kind unknown": f"/F 4 /AP << /N {green} >>",
        "checked": f"/FT /Btn /F 4 /V /Yes /AS /Yes {states}",
        "value only": f"/FT /Btn /F 4 /V /Yes {states}",
        "unchecked": f"/FT /Btn /F 4 /V /Off /AS /Off {states}",
        "signature": f"/FT /Sig /F 132 /AP << /N {red} >>",
        "text made": f"/FT /Tx /F 4 {default_appearance} /V (QTY 12)",
        "check made": f"/FT /Btn /F 4 {default_appearance} /V /Yes /AS /Yes /MK << /CA (4) >>",
        "radio made": f"/FT /Btn /Ff 49152 /F 4 {default_appearance} /V /Gas /AS /Gas /MK << /CA (l) >>",
        "radio off": f"/FT /Btn /Ff 49152 /F 4 {default_appearance} /V /Off /AS /Off /MK << /CA (l) >>",
        "nothing known": "/F 4",
        "hidden": f"/FT /Tx /F 2 /V (x) /AP << /N {red} >>",
        "not for screens": f"/FT /Tx /F 32 /V (x) /AP << /N {red} >>",
    }
    height = FIELD_PT * len(bodies)
    fields = {}
    for row, (name, body) in enumerate(bodies.items()):
        bottom = height - FIELD_PT * (row + 1) + 1
        fields[name] = writer.add(f"<< /Type /Annot /Subtype /Widget /T ({name}) /Rect [60 {bottom} 190 {bottom + 18}] {body} >>")
    on_page = " ".join(f"{field} 0 R" for field in fields.values())
    page = writer.page(b"", f"/MediaBox [0 0 200 {height}] /Annots [{on_page}] {entries}")
    listed = " ".join(f"{field} 0 R" for name, field in fields.items() if name != "orphan")
    resources = f"/DR << /Font << /F {font} 0 R >> >>"
    return writer.finish([page], f"/AcroForm << /Fields [{listed}] {resources} >>" if acro_form else "")


def form_filled_in_later() -> bytes:
    """Two fields, 40 pt high, with blue text. The form asks for new appearances: one field has none, the other has an old red one."""
    writer = Writer()
    font = writer.add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    old = writer.stream(b"1 0 0 rg 0 0 180 40 re f", "/Type /XObject /Subtype /Form /BBox [0 0 180 40]")
    field = "<< /Type /Annot /Subtype /Widget /FT /Tx /F 4 /DA (/F 18 Tf 0 0 1 rg) /V (96 DEG)"
    fields = f"{writer.add(f'{field} /T (a) /Rect [10 55 190 95] >>')} 0 R "
    fields += f"{writer.add(f'{field} /T (b) /Rect [10 5 190 45] /AP << /N {old} 0 R >> >>')} 0 R"
    form = f"/AcroForm << /Fields [{fields}] /NeedAppearances true /DR << /Font << /F {font} 0 R >> >> >>"
    return writer.finish([writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{fields}]")], form)


def form_on_three_pages() -> bytes:
    """Each page has a field that all pages share, and a field of its own. No field has an appearance, and the form lists no font."""
    writer = Writer()
    shared, kids, own, pages = writer.reserve(), [], [], []
    for number in (1, 2, 3):
        widget = "<< /Type /Annot /Subtype /Widget"
        kids.append(f"{writer.add(f'{widget} /Parent {shared} 0 R /Rect [10 10 190 40]>>')} 0 R")
        name, text = f"/T (own {number})", f"/FT /Tx /DA (/F{number} {8 + number} Tf 1 0 0 rg) /V (page {number})"
        own.append(f"{writer.add(f'{widget} {name} {text} /Rect [10 60 190 90] >>')} 0 R")
        pages.append(writer.page(b"", f"/MediaBox [0 0 200 100] /Annots [{kids[-1]} {own[-1]}]"))
    writer.set(shared, f"<< /T (shared) /FT /Tx /DA (/Zapf 0 Tf 0 0 1 rg) /V (A-101) /Kids [{' '.join(kids)}] >>")
    return writer.finish(pages, f"/AcroForm << /Fields [{shared} 0 R {' '.join(own)}] >>")


def form_without_appearances(*values: str) -> bytes:
    """One text field a page, in a font that has Latin letters only. Its value is in its parent; its text is at the bottom left."""
    writer = Writer()
    helvetica = writer.add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    parents, pages = [], []
    for number, value in enumerate(values):
        parent = writer.reserve()
        kid = writer.add(f"<< /Type /Annot /Subtype /Widget /Parent {parent} 0 R /Rect [10 10 390 90] /F 4 >>")
        text = f"<FEFF{value.encode('utf-16-be').hex()}>"
        writer.set(parent, f"<< /FT /Tx /T (field{number}) /V {text} /DA (/Helv {FONT_SIZE} Tf 0 g) /Kids [{kid} 0 R] >>")
        parents.append(f"{parent} 0 R")
        pages.append(writer.page(b"", f"/MediaBox [0 0 400 100] /Annots [{kid} 0 R]"))
    resources = f"/DR << /Font << /Helv {helvetica} 0 R >> >>"
    return writer.finish(pages, f"/AcroForm << /Fields [{' '.join(parents)}] /DA (/Helv 20 Tf 0 g) {resources} >>")


def xfa_form() -> bytes:
    """A page that takes the place of an XFA form, which few programs draw."""
    writer = Writer()
    xfa = writer.stream(b"<xdp:xdp xmlns:xdp='http://ns.adobe.com/xdp/'/>")
    return writer.finish([writer.page()], f"/AcroForm << /Fields [] /XFA {xfa} 0 R >> /NeedsRendering true")


def markups(*bodies: str, entries: str = "/MediaBox [0 0 200 100]") -> bytes:
    """A white page with annotations; each body has the entries of its dictionary without ``/Type``."""
    writer = Writer()
    annotations = " ".join(f"{writer.add(f'<< /Type /Annot {body} >>')} 0 R" for body in bodies)
    return writer.finish([writer.page(b"", f"{entries} /Annots [{annotations}]")])


LAYERED = ("mark", "form", "image", "shading", "mark in form", "form in mark", "annotation", "field")
"""The ways in which something belongs to a layer."""


def layered(
    config: str = "", group: str = "", member: str = "", way: str = "mark", properties: str = "", *, is_direct: bool = False
) -> bytes:
    """A page of 100 x 100 pt that is red where the content of a layer shows. The document has the layers A and B.

    Args:
        config: Entries of the default configuration. In all arguments, ``@A`` and ``@B`` refer to the layers.
        group: Entries of the dictionary of layer A.
        member: Entries of a membership dictionary; without, the content belongs to layer A.
        way: Of ``LAYERED``.
        properties: Further entries of ``/OCProperties``.
        is_direct: Whether the membership dictionary stands where it is used.
    """
    writer = Writer()
    a, b = writer.add(f"<< /Type /OCG /Name (A) {group} >>"), writer.add("<< /Type /OCG /Name (B) >>")
    config, member, properties = (entries.replace("@A", f"{a} 0 R").replace("@B", f"{b} 0 R") for entries in (config, member, properties))
    owner = f"{a} 0 R"
    if member:
        owner = f"<< /Type /OCMD {member} >>"
        owner = owner if is_direct else f"{writer.add(owner)} 0 R"
    red = b"1 0 0 rg 0 0 100 100 re f"
    marked, owned, shape = b"/OC /L BDC %s EMC", f"/Properties << /L {owner} >>", "/Type /XObject /Subtype /Form /BBox [0 0 100 100]"
    content, resources, entries, catalog = b"", "", "", f"/OCProperties << /OCGs [{a} 0 R {b} 0 R] /D << {config} >> {properties} >>"
    match way:
        case "mark":
            content, resources = marked % red, owned
        case "form":
            content, resources = b"/X Do", f"/XObject << /X {writer.stream(red, f'{shape} /OC {owner}')} 0 R >>"
        case "image":
            image = "/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceRGB /BitsPerComponent 8"
            picture = writer.stream(b"\xff\0\0", f"{image} /OC {owner}")
            content, resources = b"100 0 0 100 0 0 cm /X Do", f"/XObject << /X {picture} 0 R >>"
        case "shading":
            function = "/Function << /FunctionType 2 /Domain [0 1] /C0 [1 0 0] /C1 [1 0 0] /N 1 >>"
            shading = f"<< /ShadingType 2 /ColorSpace /DeviceRGB /Coords [0 0 100 0] {function} >>"
            content, resources = marked % b"/S sh", f"{owned} /Shading << /S {shading} >>"
        case "mark in form":
            content, resources = b"/X Do", f"/XObject << /X {writer.stream(marked % red, f'{shape} /Resources << {owned} >>')} 0 R >>"
        case "form in mark":
            content, resources = marked % b"/X Do", f"{owned} /XObject << /X {writer.stream(red, shape)} 0 R >>"
        case _:
            kind = "/Widget /FT /Tx /T (t) /V (x)" if way == "field" else "/Stamp"
            appearance = f"/AP << /N {writer.stream(red, shape)} 0 R >>"
            note = writer.add(f"<< /Type /Annot /Subtype {kind} /Rect [0 0 100 100] /F 4 {appearance} /OC {owner} >>")
            entries, catalog = f"/Annots [{note} 0 R]", f"{catalog} /AcroForm << /Fields [{f'{note} 0 R' if way == 'field' else ''}] >>"
    return writer.finish([writer.page(content, f"/MediaBox [0 0 100 100] /Resources << {resources} >> {entries}")], catalog)


def no_pages() -> bytes:
    """A sound PDF without a page."""
    return Writer().finish([])


def password_needed() -> bytes:
    """A PDF that opens only with the user password ``secret``."""
    return encrypted("secret")


def empty_password() -> bytes:
    """An encrypted PDF that opens without a password."""
    return encrypted("")


def cut_off() -> bytes:
    """The first half of a file whose objects lie in streams: a reader cannot rebuild it."""
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(one_page())) as pdf:
        pdf.save(out, object_stream_mode=pikepdf.ObjectStreamMode.generate)
    return out.getvalue()[: len(out.getvalue()) // 2]


def html_error_page() -> bytes:
    """An error page that a failed download has stored as plan.pdf."""
    return b"<html><body>502 Bad Gateway</body></html>"


def header_after_junk() -> bytes:
    """Some bytes before ``%PDF-``, as mail gateways leave them: readers look for it in the first 1,024 bytes."""
    return b"\r\n" * 10 + one_page()


def bad_pages_among_good() -> bytes:
    """Page 1 is good, 2 has no area, 3 cannot be loaded, 4 is over every budget, 5 is good."""
    writer = Writer()
    pages = [
        writer.page(),
        writer.page(entries="/MediaBox [0 0 100 100] /CropBox [500 500 600 600]"),
        writer.add("(no page at all)"),
        writer.page(entries="/MediaBox [0 0 1000000 1000000]"),
        writer.page(),
    ]
    return writer.finish(pages)


def many_pages(count: int) -> bytes:
    """One page object that the page tree names ``count`` times."""
    writer = Writer()
    return writer.finish([writer.page()] * count)


def strips(count: int, width_pt: float, height_pt: float) -> bytes:
    """A page tree that names one blank page so many times: a small file with many large pages."""
    writer = Writer()
    page = writer.add(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width_pt:.4f} {height_pt:.4f}] >>")
    return writer.finish([page] * count)


def count_lies() -> bytes:
    """One page, though the page tree counts a thousand million."""
    writer = Writer()
    return writer.finish([writer.page()], count=10**9)


def nested_forms(simple_pages: int = 0) -> bytes:
    """Simple pages, and one with nine forms, each of which draws the next ten times: a file of 2 KB that takes hours to draw."""
    writer = Writer()
    form = writer.stream(b"0 0 1 1 re f", "/Type /XObject /Subtype /Form /BBox [0 0 200 100]")
    for _ in range(9):
        resources = f"/Type /XObject /Subtype /Form /BBox [0 0 200 100] /Resources << /XObject << /F {form} 0 R >> >>"
        form = writer.stream(b"/F Do " * 10, resources)
    last = writer.page(b"/F Do", f"/MediaBox [0 0 200 100] /Resources << /XObject << /F {form} 0 R >> >>")
    return writer.finish([*(writer.page() for _ in range(simple_pages)), last])


def nested_groups(width_pt: float, height_pt: float, depth: int = 4, user_unit: float = 1) -> bytes:
    """Transparency groups within one another, as large as the page: each takes 4 bytes of memory a pixel while it is drawn."""
    writer = Writer()
    group = "/Group << /S /Transparency /CS /DeviceRGB /I true >>"
    state = "/ExtGState << /G << /BM /Multiply /ca 0.9 >> >>"
    content, inner = f"0.2 0.4 0.8 rg 10 10 {width_pt - 20} {height_pt - 20} re f".encode(), ""
    for _ in range(depth):
        resources = f"/Resources << {state} {inner} >>"
        form = writer.stream(content, f"/Type /XObject /Subtype /Form /BBox [0 0 {width_pt} {height_pt}] {group} {resources}")
        content, inner = b"/G gs /F Do", f"/XObject << /F {form} 0 R >>"
    box = f"/MediaBox [0 0 {width_pt} {height_pt}] /UserUnit {user_unit}"
    return writer.finish([writer.page(content, f"{box} {group} /Resources << {state} {inner} >>")])


def inflates_to(size_bytes: int) -> bytes:
    """A content stream that is small in the file and takes this size in memory."""
    writer = Writer()
    deflate = zlib.compressobj(1)
    block = b"q Q\n" * (1 << 18)
    data = b"".join([deflate.compress(block) for _ in range(size_bytes // len(block))]) + deflate.flush()
    contents = writer.stream(data, "/Filter /FlateDecode")
    return writer.finish([writer.add(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents {contents} 0 R >>")])


def wide_image(width: int, height: int) -> bytes:
    """An RGB image of one colour that fills the page. Inflated, it takes 3 bytes a pixel."""
    writer = Writer()
    deflate = zlib.compressobj(1)
    row = b"\x20\x40\x80" * width
    data = b"".join([deflate.compress(row) for _ in range(height)]) + deflate.flush()
    image = writer.stream(
        data,
        f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode",
    )
    resources = f"/Resources << /XObject << /I {image} 0 R >> >>"
    return writer.finish([writer.page(b"q 200 0 0 100 0 0 cm /I Do Q", f"/MediaBox [0 0 200 100] {resources}")])


def images(pages: int, count: int, side: int, *, deflated: bool = True) -> bytes:
    """Pages that each draw so many white RGB images of their own, of ``side`` x ``side`` px, which take 3 bytes a pixel."""
    writer = Writer()
    pixels = b"\xff" * (3 * side * side)
    data, filtered = (zlib.compress(pixels, 1), "/Filter /FlateDecode") if deflated else (pixels, "")
    entries = f"/Type /XObject /Subtype /Image /Width {side} /Height {side} /ColorSpace /DeviceRGB /BitsPerComponent 8 {filtered}"
    content = MARKS + b"".join(b" q 20 0 0 20 %d 70 cm /I%d Do Q" % (7 * number, number) for number in range(count))
    numbers = []
    for _ in range(pages):
        names = " ".join(f"/I{number} {writer.stream(data, entries)} 0 R" for number in range(count))
        numbers.append(writer.page(content, f"/MediaBox [0 0 200 100] /Resources << /XObject << {names} >> >>"))
    return writer.finish(numbers)


def plan_set(count: int, width_pt: int = 1224, height_pt: int = 792, padding: bytes = b"") -> bytes:
    """A small plan set: every sheet has a border, a grid of walls, a title block and a bookmark like ``A-101 - Floor 1``.

    The padding makes the file larger: it is a stream of its own, which no page uses.
    """
    writer = Writer()
    font = writer.add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    pages, entries = [], []
    for number in range(1, count + 1):
        title = f"A-{100 + number} - Floor {number}"
        lines = [f"1 w 18 18 {width_pt - 36} {height_pt - 36} re S 3 w"]
        step = 40 + 5 * (number % 7)
        lines += [f"{x} 90 m {x} {height_pt - 60} l S" for x in range(60, width_pt - 250, step)]
        lines += [f"60 {y} m {width_pt - 260} {y} l S" for y in range(90, height_pt - 60, 2 * step)]
        lines.append(f"0.8 0.2 0.1 rg {width_pt - 220} 30 190 60 re f 0 g BT /F 18 Tf {width_pt - 210} 52 Td ({title}) Tj ET")
        page = writer.page("\n".join(lines).encode(), f"/MediaBox [0 0 {width_pt} {height_pt}] /Resources << /Font << /F {font} 0 R >> >>")
        pages.append(page)
        entries.append(f"/Title ({title}) /Dest [{page} 0 R /Fit]")
    outlines = writer.reserve()
    _set_outline(writer, outlines, [writer.reserve() for _ in entries], entries)
    if padding:
        writer.stream(padding)
    return writer.finish(pages, f"/Outlines {outlines} 0 R")


FONT_SIZE = 20
"""Font size of the text in the pages below, and the width of each character, in points."""


def text_by_cmap(name: str, ordering: str, cmap: str, text: str) -> bytes:
    """A line in a font of an East Asian character set that the file does not embed.

    Args:
        name: The font.
        ordering: The character collection, such as ``Japan1``.
        cmap: A predefined CMap of UTF-16 codes, or ``Identity-H``.
        text: The line.
    """
    writer = Writer()
    descriptor = writer.add(f"<< /Type /FontDescriptor /FontName /{name} /Flags 4 /FontBBox [0 -200 1000 900] >>")
    descendant = writer.add(
        f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /{name} /FontDescriptor {descriptor} 0 R"
        f" /CIDSystemInfo << /Registry (Adobe) /Ordering ({ordering}) /Supplement 2 >> >>"
    )
    font = writer.add(f"<< /Type /Font /Subtype /Type0 /BaseFont /{name} /Encoding /{cmap} /DescendantFonts [{descendant} 0 R] >>")
    return writer.finish([writer.page(*_line(font, text.encode("utf-16-be")))])


def text_by_names(name: str, *texts: str, hidden: bool = False) -> bytes:
    """A page with a line for each text, all in one simple font that the file does not embed and whose encoding names every character.

    Args:
        name: The font.
        texts: Together at most 223 different characters.
        hidden: Whether the text is not painted, like the text behind a scan.
    """
    writer = Writer()
    descriptor = writer.add(f"<< /Type /FontDescriptor /FontName /{name} /Flags 32 /FontBBox [0 -200 1000 900] >>")
    font, codes = _add_simple_font(writer, name, "".join(texts), f"/FontDescriptor {descriptor} 0 R")
    pages = [writer.page(*_line(font, bytes(codes[character] for character in text), hidden=hidden)) for text in texts]
    return writer.finish(pages)


def text_with_its_font(file: Path, text: str) -> bytes:
    """A line in a TrueType font that the file embeds."""
    writer = Writer()
    data = writer.stream(file.read_bytes())
    descriptor = writer.add(f"<< /Type /FontDescriptor /FontName /Embedded /Flags 32 /FontBBox [0 -200 1000 900] /FontFile2 {data} 0 R >>")
    font = writer.add(
        f"<< /Type /Font /Subtype /TrueType /BaseFont /Embedded /FontDescriptor {descriptor} 0 R /Encoding /WinAnsiEncoding >>"
    )
    return writer.finish([writer.page(*_line(font, text.encode()))])


def markup_by_names(name: str, text: str, *, told: bool = True, signature: bool = False) -> bytes:
    """A free-text markup whose appearance has a line in a simple font, like that of ``text_by_names``.

    Args:
        name: The font.
        text: At most 223 different characters.
        told: Whether the text is also in the markup's ``/Contents``.
        signature: Whether it is a signature field instead, whose text lies in forms within its appearance.
    """
    writer = Writer()
    font, codes = _add_simple_font(writer, name, text)
    content, box = _line(font, bytes(codes[character] for character in text))
    form = writer.stream(content, "/Type /XObject /Subtype /Form " + box.replace("/MediaBox", "/BBox"))
    for _ in range(2 if signature else 0):
        form = writer.stream(b"/In Do", f"/Type /XObject /Subtype /Form /BBox [0 0 400 100] /Resources << /XObject << /In {form} 0 R >> >>")
    kind = "/Widget /FT /Sig /T (seal) /V << /Type /Sig >>" if signature else "/FreeText"
    contents = f"/Contents <FEFF{text.encode('utf-16-be').hex()}>" if told else ""
    markup = writer.add(f"<< /Type /Annot /Subtype {kind} /Rect [0 0 400 100] /F 4 /DA (0 g) {contents} /AP << /N {form} 0 R >> >>")
    return writer.finish([writer.page(b"", f"/MediaBox [0 0 400 100] /Annots [{markup} 0 R]")])


def text_drawn_by_procedures() -> bytes:
    """A line in a Type 3 font, whose glyphs are drawings in the file."""
    writer = Writer()
    square = writer.stream(b"1000 0 0 0 800 800 d1 0 0 800 800 re f")
    font = writer.add(
        f"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 1000 1000] /FontMatrix [0.001 0 0 0.001 0 0] /CharProcs << /s {square} 0 R >>"
        " /Encoding << /Differences [65 /s] >> /FirstChar 65 /LastChar 65 /Widths [1000] /Resources << >> >>"
    )
    return writer.finish([writer.page(*_line(font, b"AAA"))])


def _set_outline(writer: Writer, outlines: int, items: Sequence[int], entries: Sequence[str]) -> None:
    """Sets the objects of an outline: its items, linked in order, each with its entries."""
    for index, entry in enumerate(entries):
        following = f"/Next {items[index + 1]} 0 R" if index + 1 < len(items) else ""
        writer.set(items[index], f"<< {entry} /Parent {outlines} 0 R {following} >>")
    writer.set(outlines, f"<< /Type /Outlines /First {items[0]} 0 R /Last {items[-1]} 0 R /Count {len(items)} >>")


def _add_simple_font(writer: Writer, name: str, characters: str, entries: str = "") -> tuple[int, dict[str, int]]:
    """A simple font that the file does not embed and whose encoding names these characters; and the code of each character."""
    codes = {character: code for code, character in enumerate(sorted(set(characters)), 32)}
    encoding = f"<< /Type /Encoding /Differences [32 {' '.join(f'/uni{ord(character):04X}' for character in codes)}] >>"
    font = writer.add(
        f"<< /Type /Font /Subtype /TrueType /BaseFont /{name} /FirstChar 32 /LastChar 255 /Widths [{'1000 ' * 224}]"
        f" {entries} /Encoding {encoding} >>"
    )
    return font, codes


def _line(font: int, codes: bytes, *, hidden: bool = False) -> tuple[bytes, str]:
    """The content of a page with a line of text, and its entries."""
    content = f"BT {3 if hidden else 0} Tr /F {FONT_SIZE} Tf 10 40 Td <{codes.hex()}> Tj ET"
    return content.encode(), f"/MediaBox [0 0 400 100] /Resources << /Font << /F {font} 0 R >> >>"


def encrypted(user: str, revision: Literal[2, 3, 4, 5, 6] = 6, *, data: bytes | None = None) -> bytes:
    """A PDF that opens with a user password, or with the owner's, ``owner``; without any if the user's is empty.

    Args:
        user: The user password.
        revision: 2 is RC4 with 40 bits, 3 RC4 with 128 bits, 4 AES with 128 bits, 5 (Adobe's) and 6 AES with 256 bits.
        data: The PDF to encrypt; by default one page.
    """
    out = io.BytesIO()
    has_aes = revision >= 4
    encryption = pikepdf.Encryption(owner="owner", user=user, R=revision, aes=has_aes, metadata=has_aes)
    with pikepdf.open(io.BytesIO(data or one_page())) as pdf, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encryption R=5 is deprecated")
        pdf.save(out, encryption=encryption)
    return out.getvalue()


ALL: dict[str, Callable[[], bytes]] = {
    make.__name__: make
    for make in (
        rotated_90,
        crop_box_smaller,
        user_unit_10,
        user_unit_nonsense,
        annotation_on_white,
        blank,
        titles,
        outline_loop,
        no_pages,
        password_needed,
        empty_password,
        cut_off,
        html_error_page,
        header_after_junk,
        bad_pages_among_good,
        count_lies,
        nested_forms,
        form,
        form_filled_in_later,
        xfa_form,
    )
} | {
    "many_pages_3000": lambda: many_pages(3000),
    "inflates_to_256_mib": lambda: inflates_to(1 << 28),
    "wide_image_8000x8000": lambda: wide_image(8000, 8000),
    "plan_set_8": lambda: plan_set(8),
}


if __name__ == "__main__":
    for name, make in ALL.items():
        (Path(sys.argv[1]) / f"{name}.pdf").write_bytes(make())
