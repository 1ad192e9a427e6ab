"""File names as senders write them: in a header of the request or of a form's part."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadRecord
from activities.bucket.storage import Bucket
from activities.errors import InvalidRequest
from api.http.headers import LONGEST_BYTES, file_name, parameters, split_parameters
from tests.unit.api_fakes import BASE, PDF, FakeTemporal, client_of, files_in, make_app

MAIL = "=?utf-8?B?R3LDvG4ucGRm?="
"""``Grün.pdf`` as .NET writes it."""

NAMES = [
    ('filename="site plan.pdf"', "site plan.pdf"),
    ("filename=plan.pdf", "plan.pdf"),
    ("FileName = plan.pdf ", "plan.pdf"),
    ('filename="Grün; \\"Nord\\".pdf"', 'Grün; "Nord".pdf'),
    ('filename="C:\\plans\\a.pdf"', "a.pdf"),
    ('filename="\\\\\\\\server\\share\\a.pdf"', "a.pdf"),
    ("filename*=UTF-8''Gr%C3%BCn.pdf", "Grün.pdf"),
    ("filename*=utf-8'de'Gr%c3%bcn.pdf", "Grün.pdf"),
    ("filename*=iso-8859-1''Gr%FCn.pdf", "Grün.pdf"),
    ("filename=Gruen.pdf; filename*=UTF-8''Gr%C3%BCn.pdf", "Grün.pdf"),
    (f"filename=\"{MAIL}\"; filename*=utf-8''Gr%C3%BCn.pdf", "Grün.pdf"),
    (f'filename="{MAIL}"', "Grün.pdf"),
    (f"filename={MAIL}", "Grün.pdf"),
    (f'filename="{MAIL} {MAIL}"', "Grün.pdfGrün.pdf"),
    ('filename="=?UTF-8?Q?Gr=C3=BCn_Nord.pdf?="', "Grün Nord.pdf"),
    ('filename="=?utf-8?B?!!!?="', "=?utf-8?B?!!!?="),
    ('filename="=?utf-8?B?/w==?="', "w==?="),  # no UTF-8: the name as it stands, without its directories
    ("filename*=idna''x%FF", "plan.pdf"),
    ("filename*=idna''x%FF; filename=b.pdf", "b.pdf"),
    ("filename*=utf-8''x%FF; filename=b.pdf", "b.pdf"),
    ("filename*=utf-8''x%F; filename=b.pdf", "b.pdf"),
    ("filename*=utf-8'b.pdf", "plan.pdf"),
    ("filename*=utf-8''..%2F..%2Fetc%2Fpasswd", "passwd"),
    ("filename*=utf-8''a%1B%5B2Jb%0D%0Ac.pdf", "a[2Jbc.pdf"),
    ('filename=""', "plan.pdf"),
    ('filename="unterminated.pdf', '"unterminated.pdf'),
    ("filename=first.pdf; filename=second.pdf", "first.pdf"),
    (";;; filename=a.pdf ;;", "a.pdf"),
]
"""The text after ``attachment;`` or ``form-data; name=file;``, and the name that the upload gets."""


@pytest.fixture
async def client(bucket: Bucket, temporal: FakeTemporal) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(make_app(bucket, temporal)) as client:
        yield client


def form(disposition: str) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a form whose one part has this header."""
    head = f"Content-Disposition: {disposition}\r\nContent-Type: application/pdf\r\n\r\n"
    return b"--cut\r\n" + head.encode() + PDF + b"\r\n--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}


@pytest.mark.parametrize(("written", "name"), NAMES)
async def test_file_name_is_read_however_it_is_written(client: httpx2.AsyncClient, bucket: Bucket, written: str, name: str) -> None:
    """In the request's header and in a form's part alike. A name that cannot be decoded is lost, but the upload is accepted."""
    body, headers = form(f"form-data; name=file; {written}")
    for answer in (
        await client.post(BASE, content=PDF, headers={b"Content-Disposition": f"attachment; {written}".encode()}),
        await client.post(BASE, content=body, headers=headers),
    ):
        assert answer.status_code == 202, answer.text
        assert bucket.get_record(UploadRecord, UploadRef.parse(answer.json()["ref"]).record).file_name == name


async def test_part_without_a_file_name_is_a_field(client: httpx2.AsyncClient) -> None:
    """A form without a file is refused; a part is a file only if it has a file name."""
    body, headers = form("form-data; name=filename")
    assert "no file" in (await client.post(BASE, content=body, headers=headers)).json()["detail"]


@pytest.mark.parametrize("place", ["Content-Disposition", "Content-Type", "part"])
async def test_header_that_is_too_long_is_refused(client: httpx2.AsyncClient, tmp_path: Path, place: str) -> None:
    """The message has the header's name, its size and the limit, and nothing is stored."""
    long = "application/pdf" + ";" * 3_000
    body, headers = form(long) if place == "part" else (PDF, {place: long})
    answer = await client.post(BASE, content=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert f"has 3,015 bytes, limit {LONGEST_BYTES:,}" in answer.json()["detail"]
    assert files_in(tmp_path / "bucket") == []


def test_limit_holds_for_the_longest_usual_name() -> None:
    """The longest file name on Linux, 255 bytes, fits percent-encoded."""
    name = "ü" * 127
    assert file_name(f"attachment; filename*=UTF-8''{'%C3%BC' * 127}".encode()) == name
    with pytest.raises(InvalidRequest):
        parameters("Content-Disposition", b"x" * (LONGEST_BYTES + 1))


@pytest.mark.parametrize("piece", [b";", b'"', b'\\"', b';a="', b';a="\\', b"; ", b";a=b", b";=", b'";', b"= ", b"%", b"'"])
def test_parsing_takes_time_in_proportion(piece: bytes) -> None:
    """A header of eight times the length takes about eight times the CPU; a parser with quadratic time would take 64 times."""

    def cpu_s(count: int) -> float:
        header = b"x;filename=" + piece * count
        times = []
        for _ in range(5):
            begun = time.thread_time()
            split_parameters(header)
            times.append(time.thread_time() - begun)
        return min(times)

    assert cpu_s(40_000) < 24 * max(cpu_s(5_000), 1e-4)


@given(st.binary(max_size=LONGEST_BYTES))
def test_no_header_breaks_the_parser(header: bytes) -> None:
    """Any bytes give a name that can be encoded in UTF-8, or no name."""
    (file_name(header) or "").encode()
    (file_name(b"x;filename*=" + header[:900]) or "").encode()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_every_name_arrives(name: str) -> None:
    """A name arrives unchanged, quoted as in a form or percent-encoded."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    assert file_name(f"x; filename*=utf-8''{encoded}".encode()) == name
    if not name.startswith("=?"):
        assert file_name(f'x; filename="{quoted}"'.encode()) == name
