"""The command line ``sitelink``: its arguments, its commands, its exit codes.

``client`` talks to the server, ``views`` and ``terminal`` show what it says.
"""

import argparse
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from activities.bucket.keys import PlanRef, UploadRef
from api.cli.client import (
    CommandError,
    EventParser,
    LocalFile,
    NotReached,
    Patience,
    Server,
    Unavailable,
    WrongUse,
    named,
    plan_path,
    upload_path,
)
from api.cli.streams import abandon_stdout, prepare_streams
from api.cli.views import (
    RUNNING,
    JsonView,
    LinesView,
    Tally,
    View,
    file_size,
    print_json,
    repair_report,
    say,
    sheet_failure,
    sheet_name,
    sheet_notes,
    sheet_report,
    upload_report,
)

T = TypeVar("T")
Lines = Callable[[Mapping[str, Any]], Iterable[str]]

COMPLETE, NOT_COMPLETE, WRONG_USE, NOT_REACHED, OUTPUT_LOST, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141

DEFAULT_PLAN = "local/demo/plan"
UPLOAD_TRIES = 5
MOST_NOTES = 20

HELP = """\
Sends construction plans to a SiteLink server and watches how they become Deep Zoom tiles.

REF is org/project/plan/upload, as `sitelink upload` and `sitelink list` print it.
"""
EXIT_CODES = """\
exit codes:
  0    the upload is complete. From status: complete, or still running; from list, cancel, reconcile, retry and delete: the server agreed;
       from verify and reconcile --dry-run: nothing is wrong; from events: every one could be read
  1    the upload is partial, failed or cancelled, or the server refused the file or the request;
       from verify and reconcile --dry-run: something is wrong; from events: some are kept aside;
       from reconcile of a plan: some uploads were passed over, for a record of theirs cannot be read
  2    wrong use: a malformed REF, a missing file, an option out of its range
  3    the server was not reached; with --bucket, the bucket
  4    stdout is closed or full; an accepted upload goes on
  130  interrupted by Ctrl-C; an accepted upload goes on

environment:
  SITELINK_URL       the server; default: the stack of SITELINK_DATA_DIR (default `var`), else http://127.0.0.1:8000
  SITELINK_TOKEN     sent as a bearer token, only to a SITELINK_URL, by https or on this machine
  SITELINK_BUCKET    for --bucket; default: the directory `bucket` in SITELINK_DATA_DIR
"""

OPTIONS = (
    ("--dpi", "dpi", "resolution of the tiles (300)"),
    ("--tile-size", "tileSize", "pixels of a tile's side (256)"),
    ("--overlap", "overlap", "pixels that neighbouring tiles share (1)"),
    ("--quality", "quality", "JPEG quality (85)"),
    ("--budget-bytes", "budgetBytes", "most bytes of pixels a sheet may take before its resolution is lowered (1 GiB)"),
    ("--window", "window", "sheets in work at once (16)"),
)
"""The options of an upload, their names in the API's query, their meaning; their ranges are the server's."""


# Sending and watching


def send(server: Server, plan: PlanRef, file: LocalFile, options: Mapping[str, int], view: View) -> dict[str, Any]:
    """Sends a file, again if the connection breaks: the key makes it one upload all the same.

    Raises:
        CommandError: The server was not reached or refused.
    """
    key = str(uuid.uuid4())
    patience = Patience()
    broken = 0
    while True:
        try:
            with view.sending(file.size_bytes) as sent:
                return server.upload(plan, file, options, key, sent)
        except NotReached as error:
            if error.connected:
                broken += 1
                patience.alive()
            delay_s = patience.delay_s()
            if broken in (0, UPLOAD_TRIES) or delay_s is None:
                raise
            view.trouble(f"sending again in {delay_s:.0f} s: {error}")
            time.sleep(delay_s)


def follow(server: Server, ref: UploadRef, view: View, patience: Patience, *, reached: bool = False) -> None:
    """Shows an upload's events until its end, through any lost connection.

    Args:
        server: The API.
        ref: The upload.
        view: What shows them.
        patience: When to give up.
        reached: Whether the server has answered already; if not, the first connection must succeed.

    Raises:
        NotReached: It did not, or patience came to its end.
        CommandError: The server refused.
    """
    parser = EventParser()
    trouble = ""
    while True:
        try:
            with server.events(ref, parser.last_event_id) as chunks:
                reached = True
                if chunks is None:
                    document = server.request("GET", upload_path(ref))
                    if document["status"] not in RUNNING:
                        view.event("end", document)
                        return
                if trouble:
                    view.trouble("")
                parser.restart()
                for chunk in chunks or ():
                    patience.alive()
                    for name, data in parser.feed(chunk):
                        if name in ("snapshot", "change", "end"):
                            view.event(name, server.progress(data))
                        if name == "end":
                            return
            trouble = "the server ended the stream"
        except NotReached as error:
            if not reached and not error.connected:
                raise
            trouble = str(error)
        except Unavailable as error:
            trouble = f"the server answers {error}"
        delay_s = patience.delay_s(parser.retry_s or 1)
        if delay_s is None:
            msg = f"server not reached any more: {trouble}"
            raise NotReached(msg, connected=reached)
        view.trouble(f"trying again in {delay_s:.0f} s: {trouble}")
        time.sleep(delay_s)


def watch(server: Server, ref: UploadRef, view: View, *, reached: bool = False) -> int:
    """Shows an upload until its end; the exit code is its outcome."""
    try:
        with view:
            follow(server, ref, view, Patience(), reached=reached)
    except KeyboardInterrupt:
        print(f"\nThe upload goes on. Watch it again: sitelink watch {ref}", file=sys.stderr)
        return INTERRUPTED
    if not isinstance(view, JsonView):
        say(view.progress.summary())
        if forecast := view.progress.forecast:
            say(forecast)
        print(server.page(ref))
    return outcome(view.progress.head["status"])


def outcome(status: str) -> int:
    """The exit code of an upload's status; one that still runs has not failed."""
    return COMPLETE if status == "complete" or status in RUNNING else NOT_COMPLETE


def choose_view(arguments: argparse.Namespace) -> View:
    """How to show an upload."""
    if arguments.json:
        return JsonView()
    if arguments.terminal:
        from api.cli.terminal import TerminalView

        return TerminalView()
    return LinesView()


# The commands


def upload_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink upload``."""
    file = LocalFile.at(arguments.file)
    view = choose_view(arguments)
    options = {name: value for _, name, _ in OPTIONS if (value := getattr(arguments, name)) is not None}
    try:
        answer = send(server, arguments.to, file, options, view)
    except KeyboardInterrupt:
        print(f"\nInterrupted before the server's answer; `sitelink list {arguments.to}` shows what it has.", file=sys.stderr)
        return INTERRUPTED
    ref = UploadRef.parse(answer["ref"])
    view.accepted(answer, server.page(ref))
    return COMPLETE if arguments.no_watch else watch(server, ref, view, reached=True)


def watch_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink watch``."""
    return watch(server, arguments.ref, choose_view(arguments))


def status_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink status``."""
    document = server.request("GET", upload_path(arguments.ref))
    if arguments.json:
        print_json("snapshot", document)
        return outcome(document["status"])
    progress = Tally()
    progress.apply(document)
    print(arguments.ref)
    say(f"  {document['fileName'] or '?'}, {file_size(document['sizeBytes'])}, {document['createdAt']}")
    say(f"  {progress.summary()}")
    if forecast := progress.forecast:
        say(f"  {forecast}")
    if document["warning"]:
        say(f"  warning: {document['warning']}")
    for sheet in progress.sheets_in("tiling", "uploading"):
        say(f"  {sheet_name(sheet)}: {sheet['status']}")
    for sheet in progress.sheets_in("failed"):
        say(f"  {sheet_failure(sheet)}")
    notes = [line for sheet in progress.sheets_in("ready") for line in sheet_notes(sheet)]
    for line in notes[:MOST_NOTES]:
        say(f"  {line}")
    if len(notes) > MOST_NOTES:
        say(f"  and {len(notes) - MOST_NOTES:,} more notes, which --json shows")
    print(f"  {server.page(arguments.ref)}")
    return outcome(document["status"])


def cancel_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink cancel``."""
    _ask(server, arguments, "cancel", "cancel")
    return COMPLETE


def reconcile_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink reconcile``: an upload, or each of a plan."""
    target: UploadRef | PlanRef = arguments.target
    if arguments.dry_run:
        return _dry_run(server, arguments)
    path = upload_path(target) if isinstance(target, UploadRef) else plan_path(target)
    answer = server.request("POST", f"{path}/reconcile", deep=arguments.deep)
    passed_over = answer.get("passedOver", ())
    if arguments.json:
        print_json("accepted", answer)
        return NOT_COMPLETE if passed_over else COMPLETE
    for ref in [target] if isinstance(target, UploadRef) else answer["refs"]:
        print(f"asked to reconcile: sitelink watch {ref}")
    for upload in passed_over:
        say(f"passed over {upload['ref']}: {named(upload['type'], upload['detail'])}", sys.stderr)
    return NOT_COMPLETE if passed_over else COMPLETE


def _dry_run(server: Server, arguments: argparse.Namespace) -> int:
    target: UploadRef | PlanRef = arguments.target
    refs = [target] if isinstance(target, UploadRef) else _uploads_of(server, target)
    verified = [_show_reports(server.dry_run(ref, deep=arguments.deep), arguments, repair_report, _named_report) for ref in refs]
    return COMPLETE if all(verified) else NOT_COMPLETE


def _named_report(report: Mapping[str, Any]) -> Iterator[str]:
    yield report["ref"]
    yield from upload_report(report)


def _uploads_of(server: Server, plan: PlanRef) -> list[UploadRef]:
    return [UploadRef.parse(upload["ref"]) for upload in server.uploads(plan)]


def delete_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink delete``."""
    answer = server.request("DELETE", upload_path(arguments.ref))
    if arguments.json:
        print_json("accepted", answer)
    else:
        print(f"deleted: {arguments.ref}; what it holds in the bucket is being removed")
    return COMPLETE


def retry_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink retry``: the sheets named, or every failed one; of a cancelled upload, all that was not done."""
    sheets = arguments.sheets
    if not sheets:
        document = server.request("GET", upload_path(arguments.ref))
        sheets = [sheet["number"] for sheet in document["sheets"] if sheet["status"] == "failed"]
        if document["status"] == "cancelled":  # to ask for one resumes it
            pending = [sheet["number"] for sheet in document["sheets"] if sheet["status"] == "pending"]
            sheets += pending[:1] if document["totalPages"] else [1]
    if not sheets:
        print("no sheet has failed", file=sys.stderr)
    for number in sheets:
        _ask(server, arguments, f"sheets/{number}/retry", f"retry sheet-{number}")
    return COMPLETE


def _ask(server: Server, arguments: argparse.Namespace, path: str, what: str) -> None:
    answer = server.request("POST", f"{upload_path(arguments.ref)}/{path}")
    if arguments.json:
        print_json("accepted", answer)
    else:
        print(f"asked to {what}: sitelink watch {arguments.ref}")


def verify_command(server: Server | None, arguments: argparse.Namespace) -> int:
    """``sitelink verify``: by the server, or without one from the bucket alone."""
    if server is not None:
        reports = server.verify(arguments.ref, deep=arguments.deep)
    else:
        from api.cli.offline import verify_bucket

        reports = verify_bucket(arguments.ref, arguments.environ, deep=arguments.deep)
    return COMPLETE if _show_reports(reports, arguments, sheet_report, upload_report) else NOT_COMPLETE


def _show_reports(reports: Iterable[Mapping[str, Any]], arguments: argparse.Namespace, of_sheet: Lines, of_upload: Lines) -> bool:
    """Shows the reports of the sheets and, last, of the upload; whether that says that nothing is wrong."""
    verified = False
    for report in reports:
        is_sheet = "number" in report
        if arguments.json:
            print_json("sheet" if is_sheet else "upload", report)
        else:
            for line in of_sheet(report) if is_sheet else of_upload(report):
                say(line)
        verified = not is_sheet and report["verified"]
    return verified


def list_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink list``: newest first."""
    for upload in server.uploads(arguments.plan):
        if arguments.json:
            print_json("upload", upload)
            continue
        counted = f"{upload['completedPages']:,}/{upload['totalPages']:,}"
        size = file_size(upload["sizeBytes"])
        say(f"{upload['ref']}  {upload['createdAt']}  {upload['status']:<10}  {counted:>9}  {size:>9}  {upload['fileName'] or '?'}")
        if upload.get("warning"):
            say(f"  warning: {upload['warning']}")
    return COMPLETE


def events_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink events``: what came as an event of R2 and is none, newest first."""
    kept = server.request("GET", "/v1/events/unreadable")["unreadable"]
    for event in kept:
        if arguments.json:
            print_json("unreadable", event)
        else:
            say(f"{event['keptAt']}  {event['attempts']} attempts  {event['error']}")
            say(f"  {event['key']}")
    if not kept and not arguments.json:
        print("every event could be read")
    return NOT_COMPLETE if kept else COMPLETE


# The arguments


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="sitelink", description=HELP, epilog=EXIT_CODES, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plan, ref = _telling(PlanRef.parse), _telling(UploadRef.parse)

    def add(name: str, run: Callable[[Server, argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, epilog=EXIT_CODES, formatter_class=layout)
        command.add_argument("--json", action="store_true", help='one {"event": ..., "data": ...} a line')
        command.set_defaults(run=run)
        return command

    upload = add("upload", upload_command, "send a PDF and watch it")
    upload.add_argument("file", type=Path, metavar="FILE")
    upload.add_argument("--to", type=plan, default=DEFAULT_PLAN, metavar="ORG/PROJECT/PLAN", help=f"where it goes ({DEFAULT_PLAN})")
    upload.add_argument("--no-watch", action="store_true", help="leave when the server has accepted it")
    for flag, name, meaning in OPTIONS:
        upload.add_argument(flag, dest=name, type=int, metavar="N", help=meaning)
    for name, run, summary in (
        ("watch", watch_command, "show an upload until its end"),
        ("status", status_command, "say how an upload stands now"),
        ("cancel", cancel_command, "stop an upload"),
        ("retry", retry_command, "try failed sheets again, or resume a cancelled upload"),
        ("delete", delete_command, "remove an upload and all its sheets for good; asks nothing"),
    ):
        command = add(name, run, summary)
        command.add_argument("ref", type=ref, metavar="REF")
        if name == "retry":
            meaning = "3 or sheet-3; every failed one if none is named"
            command.add_argument("sheets", type=_telling(_sheet), nargs="*", metavar="SHEET", help=meaning)
    reconcile = add("reconcile", reconcile_command, "make the progress agree with what the bucket holds, and repair that")
    target = _telling(lambda text: UploadRef.parse(text) if text.count("/") == 3 else PlanRef.parse(text))
    reconcile.add_argument("target", type=target, metavar="REF", help="an upload, or org/project/plan for each of a plan's")
    reconcile.add_argument("--dry-run", action="store_true", help="only say what it would do")
    reconcile.add_argument("--deep", action="store_true", help="read every tile back and decode it: finds wrong bytes in a directory, too")
    verify = add("verify", verify_command, "prove that the bucket holds every tile; changes nothing")
    verify.add_argument("ref", type=ref, metavar="REF")
    verify.add_argument("--deep", action="store_true", help="read every tile back and decode it: proves the bytes in a directory, too")
    verify.add_argument("--bucket", action="store_true", help="look into the bucket itself: needs neither server nor Temporal")
    listing = add("list", list_command, "list a plan's uploads, newest first")
    listing.add_argument("plan", type=plan, nargs="?", default=DEFAULT_PLAN, metavar="ORG/PROJECT/PLAN")
    add("events", events_command, "list what came as an R2 event and could not be read")
    return parser


def _telling(read: Callable[[str], T]) -> Callable[[str], T]:
    """``read`` as argparse wants it: it shows only the sentence of its own kind of error."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _sheet(text: str) -> int:
    number = text.removeprefix("sheet-")
    if not (number.isascii() and number.isdigit() and int(number)):
        msg = f"{text!r} is no sheet: 3 or sheet-3"
        raise ValueError(msg)
    return int(number)


def run(argv: list[str], environ: Mapping[str, str]) -> int:
    """Runs the command of the arguments ``argv``; its exit code."""
    arguments = build_parser().parse_args(argv)
    arguments.terminal = sys.stdout.isatty() and environ.get("TERM", "") not in ("", "dumb", "unknown")
    arguments.environ = environ
    try:
        if getattr(arguments, "bucket", False):
            return verify_command(None, arguments)
        with Server.from_env(environ) as server:
            code: int = arguments.run(server, arguments)
            return code
    except CommandError as error:
        say(str(error), sys.stderr)
        return WRONG_USE if isinstance(error, WrongUse) else NOT_REACHED if isinstance(error, NotReached) else NOT_COMPLETE


def main() -> int:
    """The program ``sitelink``; its exit code."""
    # SIGTERM would leave a terminal without its cursor.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not prepare_streams():
        print("stdout is closed: there is nowhere to write to", file=sys.stderr)
        return OUTPUT_LOST
    try:
        try:
            code = run(sys.argv[1:], os.environ)
        except SystemExit as left:  # argparse's help, wrong use, SIGTERM
            code = int(left.code or 0)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        abandon_stdout()
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        print(f"the output cannot be written: {error.strerror}", file=sys.stderr)
        return OUTPUT_LOST
    return code


if __name__ == "__main__":
    sys.exit(main())
