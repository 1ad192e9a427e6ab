"""The parts of the command line: the event stream, the patience, the output, the arguments."""

import fcntl
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.records import SheetStatus, UploadStatus, to_wire
from activities.bucket.report import Proof, SheetReport, UploadReport
from api.addresses import StackAddresses
from api.cli.__main__ import build_parser
from api.cli.__main__ import run as run_command
from api.cli.client import LocalFile, Server
from api.cli.commands import exit_code
from api.cli.errors import Refused, WrongUse, join_by_colon
from api.cli.event_stream import EventParser, ServerEvent
from api.cli.reports import sheet_report, upload_report
from api.cli.transfer import Patience
from api.cli.views import LinesView, Tally
from api.cli.words import duration, file_size, money, printable, size_range

PORTS_OFF = "http://127.0.0.1:9"


def parse(chunks: Iterable[bytes], parser: EventParser | None = None) -> list[ServerEvent]:
    """The events of a stream that arrives in these chunks."""
    parser = parser or EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_parser_reads_every_field() -> None:
    """Event, id, retry, comments, data of several lines, one space after the colon, and a field without a colon."""
    parser = EventParser()
    stream = b": hello\nretry: 2500\n\nevent: change\nid: 7\ndata: a\ndata:  b\ndata\ndata:c\nother: x\n\ndata: plain\n\n"
    assert parse([stream], parser) == [ServerEvent("change", "a\n b\n\nc"), ServerEvent("message", "plain")]
    assert (parser.last_event_id, parser.retry_s) == ("7", 2.5)


def test_parser_drops_what_the_standard_drops() -> None:
    """An event without data, an id with NUL, a retry that is not a number, and an event that was cut off."""
    parser = EventParser()
    stream = b"id: 1\nevent: change\n\nid: a\0b\nretry: 1s\ndata: x\n\nid: 9\ndata: cut"
    assert parse([stream], parser) == [ServerEvent("message", "x")]
    assert (parser.last_event_id, parser.retry_s) == ("1", None)


def test_parser_takes_the_byte_order_mark_of_each_connection() -> None:
    """A restart forgets half an event, keeps the last id, and accepts a new byte order mark."""
    parser = EventParser()
    assert parse([b"\xef\xbb\xbfid: 4\ndata: x\n\nid: 5\ndata: ha"], parser) == [ServerEvent("message", "x")]
    parser.restart()
    assert parse([b"\xef\xbb\xbfdata: y\n\n"], parser) == [ServerEvent("message", "y")]
    assert parser.last_event_id == "4"


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["snapshot", "change", "end"]), st.text().filter(lambda text: not set("\r\n") & set(text))), max_size=5
    ),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_parser_does_not_mind_how_the_stream_is_cut(events: list[tuple[str, str]], end: str, cuts: list[int]) -> None:
    """With any line ending, text and chunks the events are the same, even when a chunk ends within CRLF or within a character."""
    lines = [f"{end}".join([f"event: {name}", f"id: {number}", f"data: {data}", "", ""]) for number, (name, data) in enumerate(events)]
    # A single CR at the very end may be the half of a CRLF: it ends the line all the same.
    stream = "".join(lines).encode()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parser = EventParser()
    assert parse((stream[start:stop] for start, stop in itertools.pairwise(edges)), parser) == [
        ServerEvent(name, data) for name, data in events
    ]
    assert parser.last_event_id == (str(len(events) - 1) if events else "")


def test_patience_doubles_up_to_ten_seconds_and_ends() -> None:
    """Tries are 1 s to 10 s apart, and end after 60 s without a sign of life."""
    now = 0.0
    patience = Patience(limit_s=60, clock=lambda: now)
    delays = []
    while (delay := patience.delay_s()) is not None:
        delays.append(delay)
        now += delay
    assert delays == [1, 2, 4, 8, 10, 10, 10, 10, 10]
    patience.reset()
    assert patience.delay_s() == 1


def test_patience_takes_the_delay_that_the_server_asks_for_within_bounds() -> None:
    """The first delay is that of ``retry:``, but at least 1 s and at most 10 s."""
    assert [Patience().delay_s(first_s) for first_s in (0.01, 3, 3600)] == [1, 3, 10]


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (5_000_000_000_000, "5,000.0 GB"),
    ],
)
def test_file_size_reads_well(size_bytes: int, words: str) -> None:
    """A size has one digit after the point, and a larger unit from 1000 on."""
    assert file_size(size_bytes) == words


def test_estimates_read_as_estimates() -> None:
    """Sizes have two digits, and one unit where one is enough. Times are at least 1 s. Amounts have cents."""
    ranges = [(12_345_678, 20_999_999), (312_345_678, 1_649_876_543), (940_000, 999_960), (0, 0), (5_010, 5_020)]
    assert [size_range(*each) for each in ranges] == ["12 to 21 MB", "310 MB to 1.6 GB", "940 kB to 1 MB", "0 bytes", "5 kB"]
    assert [duration(seconds) for seconds in (0.2, 89, 120, 5000, 9000)] == ["1 s", "89 s", "2 min", "83 min", "2.5 h"]
    assert [money(dollars) for dollars in (0, 0.004, 0.0109, 1234.5)] == ["$0.00", "less than $0.01", "$0.01", "$1,234.50"]


@given(st.text())
def test_printable_text_cannot_steer_a_terminal(text: str) -> None:
    """Each character is printable, or is replaced by one that is."""
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)


def test_a_name_and_a_sentence_are_joined_by_a_colon() -> None:
    """A part that is missing is left out."""
    assert [join_by_colon("NotAPdf", "no PDF"), join_by_colon("NotAPdf", None), join_by_colon(None, None)] == [
        "NotAPdf: no PDF",
        "NotAPdf",
        "",
    ]


def test_tally_refuses_a_newer_schema_by_name() -> None:
    """The message says that the server is newer, not that it is broken."""
    with pytest.raises(Refused, match=r"NewerSchema: .* schema 2, .* up to 1"):
        Tally().apply({"schema": 2, "sheets": []})


def test_a_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A further attempt prints no line. Another warning prints one, and so does a warning that was gone meanwhile."""
    view = LinesView()
    warnings = ["Slow: a (attempt 3)", "Slow: a (attempt 4)", "Slow: b (attempt 5)", "Slow: b", None, "Slow: b (attempt 9)"]
    for warning in warnings:
        view.show_event("change", {"status": "processing", "completedPages": 0, "totalPages": 2, "warning": warning, "sheets": []})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "warning: Slow: a (attempt 3)",
        "warning: Slow: b (attempt 5)",
        "warning: Slow: b (attempt 9)",
    ]


def test_a_sheets_report_is_a_line_and_its_findings() -> None:
    """A ready sheet is ok or wrong; any other sheet shows its status. Long lists are cut."""

    def lines(number: int, status: SheetStatus, **found: Any) -> list[str]:
        return list(sheet_report(to_wire(SheetReport(number, status, **found))))

    assert lines(3, SheetStatus.READY, expected=1706, found=1706, verified=True) == ["sheet-3  1706/1706 tiles  ok"]
    broken = lines(
        4, SheetStatus.READY, expected=30, found=5, missing=("0/0_0.jpeg", "1/0_0.jpeg"), missing_count=25, problems=("no .dzi",)
    )
    assert broken == ["sheet-4  5/30 tiles  wrong", "  missing: 0/0_0.jpeg, 1/0_0.jpeg and 23 more", "  no .dzi"]
    assert lines(5, SheetStatus.FAILED, found=7, reason="WorkerLost") == ["sheet-5  failed: WorkerLost; 7 tiles are there"]
    assert lines(6, SheetStatus.PENDING) == ["sheet-6  pending"]


def test_an_uploads_report_says_what_its_proof_is() -> None:
    """The last line names the proof of a verified upload, the wrong parts of a wrong one, or says that nothing was verified."""

    def lines(total_sheets: int = 1, **found: Any) -> list[str]:
        report = UploadReport("a/b/c/d", UploadStatus.COMPLETE, total_sheets=total_sheets, expected=9, found=9, **found)
        return list(upload_report(to_wire(report)))

    assert lines(verified=True, verified_sheets=1, proof=Proof.DIGEST) == ["verified: 1 of 1 sheet, 9/9 tiles, every digest"]
    partly = lines(3, verified=True, verified_sheets=2, proof=Proof.DIGEST)
    assert partly == ["verified: 2 of 3 sheets, 9/9 tiles, every digest; the others are not ready"]
    assert lines(verified=True) == ["nothing to verify: none of 1 sheet is ready"]
    assert lines(0, verified=True) == ["nothing to verify: there is no sheet yet"]
    assert lines(wrong_sheets=1) == ["wrong: 1 of 1 sheet. Verified: 0 of 1 sheet, 9/9 tiles found"]
    whole = lines(verified_sheets=1, foreign=("junk/a",), foreign_count=30, problems=("it contradicts itself",))
    summary = "wrong: the upload as a whole. Verified: 1 of 1 sheet, 9/9 tiles found"
    assert whole == ["  foreign: junk/a", "  it contradicts itself", summary]
    both = lines(3, wrong_sheets=2, verified_sheets=1, problems=("it contradicts itself",))
    assert both[-1] == "wrong: 2 of 3 sheets and the upload as a whole. Verified: 1 of 3 sheets, 9/9 tiles found"


def test_exit_code_of_every_status() -> None:
    """0 for an upload that is complete or still runs, else 1."""
    assert [exit_code(status) for status in ("complete", "queued", "processing", "partial", "failed", "cancelled")] == [0, 0, 0, 1, 1, 1]


def test_a_local_file_is_a_regular_file(tmp_path: Path) -> None:
    """A missing file, a directory, and a pipe without a writer are wrong use, at once."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(WrongUse):
            LocalFile.at(path)


def test_a_local_file_is_sent_with_its_first_length(tmp_path: Path) -> None:
    """Bytes that are added later are not sent. Missing bytes are an error, because the length was announced."""
    path = tmp_path / "plan.pdf"
    path.write_bytes(bytes(700_000))
    file = LocalFile.at(path)
    sent: list[int] = []
    path.write_bytes(bytes(800_000))
    assert sum(map(len, file.chunks(sent.append))) == sum(sent) == 700_000
    path.write_bytes(bytes(10))
    with pytest.raises(WrongUse, match="shorter"):
        list(file.chunks(sent.append))
    path.unlink()
    with pytest.raises(WrongUse, match="No such file"):
        list(file.chunks(sent.append))


def test_a_file_name_of_any_bytes_has_a_name() -> None:
    """A name that is not UTF-8 can be sent, too."""
    assert LocalFile(Path(os.fsdecode(b"pl\xe4n.pdf")), 1).name == "pl\ufffdn.pdf"


def test_the_server_is_the_url_then_the_stack_then_the_default(tmp_path: Path) -> None:
    """SITELINK_URL comes first. A stack.json that is absent, half written or left behind by a killed stack is ignored."""

    def url(**environ: str) -> str:
        with Server.from_env({"SITELINK_DATA_DIR": str(tmp_path), **environ}) as server:
            return server.url

    assert url() == "http://127.0.0.1:8000"
    with (tmp_path / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for broken in ('{"api": ', "[]", '{"api": "http://127.0.0.1:4711"}'):
            (tmp_path / "stack.json").write_text(broken)
            assert url() == "http://127.0.0.1:8000"
        StackAddresses("http://127.0.0.1:4711", "127.0.0.1:1", "http://127.0.0.1:2").write(tmp_path)
        assert url() == "http://127.0.0.1:4711"
    assert url() == "http://127.0.0.1:8000"
    assert url(SITELINK_URL="https://plans.example.org/base/") == "https://plans.example.org/base"


@pytest.mark.parametrize("url", ["plans.example.org", "ftp://host", "http://", "http://host:port"])
def test_a_malformed_server_address_is_wrong_use(url: str) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(WrongUse, match="address"):
        Server(url)


@pytest.mark.parametrize("url", ["", "http://plans.example.org", "http://10.0.0.1:8000", "http://127.0.0.1.example.org"])
def test_a_token_is_not_sent_to_an_unnamed_server_or_unencrypted(url: str) -> None:
    """Not to a server that the data directory names, and not by http over a network. The message does not show the token."""
    with pytest.raises(WrongUse, match="SITELINK_TOKEN is only sent") as caught:
        Server.from_env({"SITELINK_URL": url, "SITELINK_TOKEN": "hush"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://plans.example.org", "http://localhost:8000", "http://127.0.0.2:8000", "http://[::1]:8000"])
def test_a_token_goes_by_https_or_to_this_machine(url: str) -> None:
    """These addresses are accepted together with a token."""
    with Server.from_env({"SITELINK_URL": url, "SITELINK_TOKEN": "hush"}) as server:
        assert server.url == url


@pytest.mark.parametrize("token", ["sec ret", "secret\n", "s\u00e9cret"])
def test_a_token_that_cannot_be_sent_is_not_shown(token: str) -> None:
    """It is wrong use, and the message does not show the token."""
    with pytest.raises(WrongUse, match="SITELINK_TOKEN") as caught:
        Server("http://127.0.0.1:9", token)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["verify"],
        ["verify", "a/b/c", "--bucket"],
        ["verify", "a/b/c/d", "--deeper"],
        ["status"],
        ["status", "a/b/c"],
        ["status", "a/b/c/.."],
        ["watch", "a/b/c/d/e"],
        ["list", "a/b"],
        ["retry", "a/b/c/d", "0"],
        ["retry", "a/b/c/d", "sheet-x"],
        ["upload", "x.pdf", "--to", "a/b"],
        ["upload", "x.pdf", "--dpi", "fine"],
        ["upload", "x.pdf", "--layout", "tar"],
        ["upload", "/nowhere/x.pdf"],
    ],
)
def test_wrong_use_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """There is a sentence on stderr, nothing on stdout, and no request."""
    try:
        code: int | str | None = run_command(arguments, {"SITELINK_URL": PORTS_OFF})
    except SystemExit as error:  # raised by argparse
        code = error.code
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err


def test_arguments_have_their_defaults() -> None:
    """The default plan is local/demo/plan, as on the page. Options that are not given are not sent."""
    upload = build_parser().parse_args(["upload", "x.pdf"])
    assert upload.to == PlanRef("local", "demo", "plan") == build_parser().parse_args(["list"]).plan
    assert upload.dpi is None
    retry = build_parser().parse_args(["retry", "a/b/c/d", "3", "sheet-12"])
    assert (retry.ref, retry.sheets) == (UploadRef("a", "b", "c", "d"), [3, 12])


def test_help_loads_no_library() -> None:
    """`sitelink --help` starts fast: neither httpx2 nor rich is imported, and Temporal and the bucket's library never are."""
    libraries = {"httpx2", "rich", "temporalio", "obstore", "starlette", "asyncio"}
    code = f"import sys, api.cli.__main__; print(sorted({libraries!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=Path(__file__).parents[2])
    assert result.stdout == "[]\n"


def test_token_is_what_its_options_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Signed with the first secret, for the issuer and the audience of the server; no server is asked."""
    file = tmp_path / "secret"
    file.write_text(f"{'a' * 32},{'b' * 32}\n")
    environ = {"SITELINK_JWT_SECRET_FILE": str(file), "SITELINK_JWT_ISSUER": "backend", "SITELINK_JWT_AUDIENCE": "plans"}
    words = ["token", "--org", "acme", "--project", "tower", "--plan", "a1", "--scope", "read  write", "--ttl", "90s", "--subject", "jo"]
    assert run_command(words, environ) == 0
    claims = jwt.decode(capsys.readouterr().out.strip(), "a" * 32, ["HS256"], issuer="backend", audience="plans")
    assert claims.pop("exp") - claims.pop("iat") == 90
    expected = {"sub": "jo", "org": "acme", "project": "tower", "plan": "a1", "scope": "read write", "iss": "backend", "aud": "plans"}
    assert claims == expected


@pytest.mark.parametrize(
    ("words", "environ", "why"),
    [
        ("--org acme", {}, "SITELINK_JWT_SECRET"),
        ("--org acme", {"SITELINK_JWT_SECRET": "short"}, "32 bytes"),
        ("--org acme --plan a1", {"SITELINK_JWT_SECRET": "a" * 32}, "--project"),
        ("", {"SITELINK_JWT_SECRET": "a" * 32}, "--org"),
    ],
)
def test_token_that_cannot_be_made_is_refused(capsys: pytest.CaptureFixture[str], words: str, environ: dict[str, str], why: str) -> None:
    """Exit code 2, and nothing on stdout that a script could take for a token."""
    assert run_command(["token", *words.split()], environ) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert why in output.err


@pytest.mark.parametrize("words", ["--scope admin", "--ttl 1", "--ttl 0s", "--ttl 400d", "--org ../acme"])
def test_malformed_option_of_a_token_is_refused(words: str) -> None:
    """By the parser of the arguments."""
    with pytest.raises(SystemExit):
        build_parser().parse_args(["token", "--org", "acme", *words.split()])


def test_an_unknown_setting_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, so that stdout is as it would be without it."""
    assert run_command(["token", "--org", "acme"], {"SITELINK_JWT_SECRET": "a" * 32, "SITELINK_TOKN": "hush"}) == 0
    output = capsys.readouterr()
    assert output.err == "unknown setting: SITELINK_TOKN (is SITELINK_TOKEN meant?)\n"
    assert len(output.out.split(".")) == 3
