"""The commands of ``sitelink``. Each returns its exit code."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from getpass import getpass
from pathlib import Path
from typing import Any

from activities.bucket.keys import PlanRef, UploadRef
from api.cli.client import PAGE_LIMIT, LocalFile, Server
from api.cli.errors import WrongUse, join_by_colon
from api.cli.parts import send_file
from api.cli.reports import repair_report, sheet_report, upload_report
from api.cli.transfer import Patience, follow
from api.cli.views import RUNNING, JsonView, LinesView, Tally, View
from api.cli.words import file_size, print_json, say, sheet_failure, sheet_name, sheet_notes
from api.paths import DELIVERIES, REDELIVER, UNREADABLE_EVENTS, plan_path, upload_path

Lines = Callable[[Mapping[str, Any]], Iterable[str]]

COMPLETE, NOT_COMPLETE, INTERRUPTED = 0, 1, 130

MOST_NOTES = 20

UPLOAD_OPTIONS = (
    ("--dpi", "dpi", "resolution of the tiles (300)"),
    ("--tile-size", "tileSize", "pixels of a tile's side (256)"),
    ("--overlap", "overlap", "pixels that neighbouring tiles share (1)"),
    ("--quality", "quality", "JPEG quality (85)"),
    ("--budget-bytes", "budgetBytes", "most bytes of pixels of a sheet; a larger sheet gets a lower resolution (1 GiB)"),
    ("--window", "window", "sheets in work at once (16)"),
)
"""Each option of an upload that is a number: its flag, its name in the API's query, its help text. The server checks the ranges."""


def choose_view(arguments: argparse.Namespace) -> View:
    """The view for these arguments and this terminal."""
    if arguments.json:
        return JsonView()
    if arguments.terminal:
        from api.cli.terminal import TerminalView

        return TerminalView()
    return LinesView()


def watch(server: Server, ref: UploadRef, view: View, *, reached: bool = False) -> int:
    """Shows an upload until its end; returns the exit code for its final status."""
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
    return exit_code(view.progress.head["status"])


def exit_code(status: str) -> int:
    """The exit code for an upload's status; an upload that still runs has not failed."""
    return COMPLETE if status == "complete" or status in RUNNING else NOT_COMPLETE


def read_password(file: str) -> str:
    """The password in the first line of a file; ``-`` stands for the terminal, where it is not shown, or for stdin.

    Raises:
        WrongUse: The file cannot be read.
    """
    try:
        if file == "-":
            return getpass("Password of the PDF: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
        with Path(file).open(encoding="utf-8") as lines:
            return lines.readline().rstrip("\r\n")
    except OSError as error:
        msg = f"{file}: {error.strerror}"
        raise WrongUse(msg) from error
    except (UnicodeDecodeError, EOFError):
        msg = f"{file}: the password cannot be read, it must be UTF-8"
        raise WrongUse(msg) from None


def upload_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink upload``."""
    file = LocalFile.at(arguments.file)
    view = choose_view(arguments)
    names = [*(name for _, name, _ in UPLOAD_OPTIONS), "layout", "layers", "markups"]
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        answer = send_file(server, arguments.to, file, options, view, arguments.environ)
    except KeyboardInterrupt as error:
        unknown = f"Interrupted before the server answered; `sitelink list {arguments.to}` shows whether it has the upload."
        print(f"\n{str(error) or unknown}", file=sys.stderr)
        return INTERRUPTED
    ref = UploadRef.parse(answer["ref"])
    view.show_accepted(answer, server.page(ref))
    return COMPLETE if arguments.no_watch else watch(server, ref, view, reached=True)


def watch_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink watch``."""
    return watch(server, arguments.ref, choose_view(arguments))


def status_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink status``."""
    document = server.request("GET", upload_path(arguments.ref))
    if arguments.json:
        print_json("snapshot", document)
        return exit_code(document["status"])
    progress = Tally()
    progress.apply(document)
    print(arguments.ref)
    say(f"  {document['fileName'] or '?'}, {file_size(document['sizeBytes'])}, {document['createdAt']}")
    say(f"  {progress.summary()}")
    if forecast := progress.forecast:
        say(f"  {forecast}")
    if left := progress.time_left:
        say(f"  {left}")
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
        say(f"  and {len(notes) - MOST_NOTES:,} more notes; --json shows all")
    print(f"  {server.page(arguments.ref)}")
    return exit_code(document["status"])


def cancel_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink cancel``."""
    _post_request(server, arguments, "cancel", "cancel")
    return COMPLETE


def reconcile_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink reconcile``: one upload, or every upload of a plan."""
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
        say(f"passed over {upload['ref']}: {join_by_colon(upload['type'], upload['detail'])}", sys.stderr)
    return NOT_COMPLETE if passed_over else COMPLETE


def _dry_run(server: Server, arguments: argparse.Namespace) -> int:
    target: UploadRef | PlanRef = arguments.target
    refs = [target] if isinstance(target, UploadRef) else _uploads_of(server, target)
    verified = [_show_reports(server.dry_run(ref, deep=arguments.deep), arguments, repair_report, _upload_report_with_ref) for ref in refs]
    return COMPLETE if all(verified) else NOT_COMPLETE


def _upload_report_with_ref(report: Mapping[str, Any]) -> Iterator[str]:
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
        print(f"deleted: {arguments.ref}; its objects in the bucket are being removed")
    return COMPLETE


def retry_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink retry``: the named sheets. Without names, every failed sheet, and the pending sheets of an upload that ended early."""
    sheets = arguments.sheets
    if not sheets:
        document = server.request("GET", upload_path(arguments.ref))
        sheets = [sheet["number"] for sheet in document["sheets"] if sheet["status"] == "failed"]
        if document["status"] == "cancelled" or document.get("reason") == "Terminated":  # a retry of any sheet resumes the upload
            pending = [sheet["number"] for sheet in document["sheets"] if sheet["status"] == "pending"]
            sheets += pending[:1] if document["totalPages"] else [1]
    if not sheets:
        print("no sheet has failed", file=sys.stderr)
    for number in sheets:
        _post_request(server, arguments, f"sheets/{number}/retry", f"retry sheet-{number}")
    return COMPLETE


def _post_request(server: Server, arguments: argparse.Namespace, path: str, request: str) -> None:
    answer = server.request("POST", f"{upload_path(arguments.ref)}/{path}")
    if arguments.json:
        print_json("accepted", answer)
    else:
        print(f"asked to {request}: sitelink watch {arguments.ref}")


def verify_command(server: Server | None, arguments: argparse.Namespace) -> int:
    """``sitelink verify``: the server verifies, or, without a server, this process reads the bucket."""
    if server is not None:
        reports = server.verify(arguments.ref, deep=arguments.deep)
    else:
        from api.cli.offline import verify_bucket

        reports = verify_bucket(arguments.ref, arguments.environ, deep=arguments.deep)
    return COMPLETE if _show_reports(reports, arguments, sheet_report, upload_report) else NOT_COMPLETE


def _show_reports(reports: Iterable[Mapping[str, Any]], arguments: argparse.Namespace, sheet_lines: Lines, upload_lines: Lines) -> bool:
    """Shows the reports of the sheets and then the report of the upload; returns whether the upload is verified."""
    verified = False
    for report in reports:
        is_sheet = "number" in report
        if arguments.json:
            print_json("sheet" if is_sheet else "upload", report)
        else:
            for line in sheet_lines(report) if is_sheet else upload_lines(report):
                say(line)
        verified = not is_sheet and report["verified"]
    return verified


def list_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink list``: the uploads of a plan, newest first."""
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


def deliveries_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink deliveries``: the newest webhooks of an organization."""
    path = DELIVERIES.format(organization=arguments.organization)
    for delivery in server.request("GET", path, limit=PAGE_LIMIT, **({"status": "failed"} if arguments.failed else {}))["deliveries"]:
        if arguments.json:
            print_json("delivery", delivery)
            continue
        attempt = f"  attempt {delivery['attempts']}" if delivery["attempts"] else ""
        reason = f"  {delivery['reason']}" if delivery["reason"] else ""
        state = f"{delivery['event']:<15}  {delivery['status']:<10}"
        say(f"{delivery['id']}  {delivery['startedAt']}  {state}  {delivery['ref']}{attempt}{reason}")
    return COMPLETE


def redeliver_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink redeliver``."""
    for name in arguments.ids:
        answer = server.request("POST", REDELIVER.format(organization=arguments.organization, delivery=name))
        if arguments.json:
            print_json("accepted", answer)
        else:
            print(f"asked to send again: {name}")
    return COMPLETE


def events_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink events``: the messages that were kept aside because they are not R2 events, newest first."""
    kept = server.request("GET", UNREADABLE_EVENTS)["unreadable"]
    for event in kept:
        if arguments.json:
            print_json("unreadable", event)
        else:
            say(f"{event['keptAt']}  {event['attempts']} attempts  {event['error']}")
            say(f"  {event['key']}")
    if not kept and not arguments.json:
        print("no message was kept aside: every message was an R2 event")
    return NOT_COMPLETE if kept else COMPLETE
