"""The program ``sitelink``, also ``python -m api.cli``: its arguments and its exit codes."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from activities.bucket.keys import PlanRef, UploadRef, check_id
from activities.bucket.records import Layout
from activities.environment import unknown_settings
from api.cli.client import Server
from api.cli.commands import (
    INTERRUPTED,
    NOT_COMPLETE,
    UPLOAD_OPTIONS,
    cancel_command,
    delete_command,
    deliveries_command,
    events_command,
    list_command,
    read_password,
    reconcile_command,
    redeliver_command,
    retry_command,
    status_command,
    upload_command,
    verify_command,
    watch_command,
)
from api.cli.conversion import convert_command
from api.cli.errors import CommandError, NotReached, WrongUse
from api.cli.streams import abandon_stdout, prepare_streams
from api.cli.tokens import lifetime, scopes, token_command
from api.cli.words import say

T = TypeVar("T")

WRONG_USE, NOT_REACHED, OUTPUT_LOST, BROKEN_PIPE = 2, 3, 4, 141

DEFAULT_PLAN = "local/demo/plan"

HELP = """\
Sends construction plans to a SiteLink server and watches how they become Deep Zoom tiles.

REF is org/project/plan/upload, as `sitelink upload` and `sitelink list` print it.
"""
EXIT_CODES = """\
exit codes:
  0    the upload is complete; from status: complete, or still running;
       from list, cancel, reconcile, retry, delete, deliveries and redeliver: the server accepted the request;
       from pack and unpack: every ready sheet has the layout;
       from verify and reconcile --dry-run: nothing is wrong; from events: no message was kept aside
  1    the upload is partial, failed or cancelled, or the server refused the file or the request;
       from pack and unpack: some sheets were left as they are;
       from verify and reconcile --dry-run: something is wrong; from events: some messages were kept aside;
       from reconcile of a plan: some uploads were passed over, because one of their records cannot be read
  2    wrong use: a malformed REF, a missing file, an option out of its range
  3    the server was not reached; with --bucket, the bucket
  4    stdout is closed or full; an accepted upload goes on
  130  interrupted by Ctrl-C; an accepted upload goes on

environment:
  SITELINK_URL          the server; default: the stack of SITELINK_DATA_DIR (default `var`), else http://127.0.0.1:8000
  SITELINK_TOKEN        a bearer token; sent only to the SITELINK_URL, and only by https or to this machine
  SITELINK_JWT_SECRET   for token; also SITELINK_JWT_ISSUER and SITELINK_JWT_AUDIENCE
  SITELINK_BUCKET       for --bucket; default: the directory `bucket` in SITELINK_DATA_DIR
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="sitelink", description=HELP, epilog=EXIT_CODES, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plan, ref = _argument(PlanRef.parse), _argument(UploadRef.parse)

    def add(name: str, run: Callable[[Server, argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, epilog=EXIT_CODES, formatter_class=layout)
        command.add_argument("--json", action="store_true", help='one {"event": ..., "data": ...} a line')
        command.set_defaults(run=run)
        return command

    upload = add("upload", upload_command, "send a PDF and watch it")
    upload.add_argument("file", type=Path, metavar="FILE")
    upload.add_argument(
        "--to", type=plan, default=DEFAULT_PLAN, metavar="ORG/PROJECT/PLAN", help=f"the plan of the upload; default: {DEFAULT_PLAN}"
    )
    upload.add_argument("--no-watch", action="store_true", help="exit when the server has accepted the file")
    for flag, name, meaning in UPLOAD_OPTIONS:
        upload.add_argument(flag, dest=name, type=int, metavar="N", help=meaning)
    upload.add_argument("--layout", choices=list(map(str, Layout)), help="one object a tile (exploded), one a sheet (packed), or both")
    upload.add_argument(
        "--layers", metavar="LAYERS", help="layers to switch off and on, such as --layers=-Furniture,+Demolition, with the equals sign"
    )
    upload.add_argument("--no-markups", dest="markups", action="store_const", const="false", help="leave review markups out")
    for name, run, summary in (
        ("watch", watch_command, "show an upload until its end"),
        ("status", status_command, "show the state of an upload now"),
        ("cancel", cancel_command, "stop an upload"),
        ("retry", retry_command, "try failed sheets again, or resume a cancelled upload"),
        ("delete", delete_command, "remove an upload and all its sheets for good; asks nothing"),
    ):
        command = add(name, run, summary)
        command.add_argument("ref", type=ref, metavar="REF")
        if name == "retry":
            meaning = "3 or sheet-3; without a sheet, every failed sheet"
            command.add_argument("sheets", type=_argument(_sheet_number), nargs="*", metavar="SHEET", help=meaning)
    for name, summary in (
        ("pack", "make each ready sheet of a stored upload one object in the bucket, and show how far that is"),
        ("unpack", "make each tile of a stored upload an object in the bucket, and show how far that is"),
    ):
        command = add(name, convert_command, summary)
        command.add_argument("ref", type=ref, metavar="REF")
        command.add_argument("--no-watch", action="store_true", help="exit when the server has accepted the request")
    reconcile = add("reconcile", reconcile_command, "make the progress agree with the bucket, and repair the bucket")
    target = _argument(lambda text: UploadRef.parse(text) if text.count("/") == 3 else PlanRef.parse(text))
    reconcile.add_argument("target", type=target, metavar="REF", help="an upload, or org/project/plan for every upload of a plan")
    reconcile.add_argument("--dry-run", action="store_true", help="only say what the reconcile would do")
    reconcile.add_argument(
        "--deep", action="store_true", help="read every tile back and decode it: this also finds wrong bytes in a directory"
    )
    for command in (upload, commands.choices["retry"], reconcile):
        command.add_argument("--password-file", metavar="FILE", help="its first line is the password of the PDF; - asks for it")
    verify = add("verify", verify_command, "prove that the bucket holds every tile; changes nothing")
    verify.add_argument("ref", type=ref, metavar="REF")
    verify.add_argument("--deep", action="store_true", help="read every tile back and decode it: this also proves the bytes in a directory")
    verify.add_argument("--bucket", action="store_true", help="read the bucket itself: needs neither server nor Temporal")
    listing = add("list", list_command, "list a plan's uploads, newest first")
    listing.add_argument("plan", type=plan, nargs="?", default=DEFAULT_PLAN, metavar="ORG/PROJECT/PLAN")
    add("events", events_command, "list the messages that were kept aside because they are not R2 events")
    deliveries = add("deliveries", deliveries_command, "list the newest webhooks of an organization, and whether they were delivered")
    organization = _argument(lambda text: check_id("the organization", text))
    deliveries.add_argument("organization", type=organization, metavar="ORG")
    deliveries.add_argument("--failed", action="store_true", help="only webhooks that were given up")
    redeliver = add("redeliver", redeliver_command, "send webhooks again, with the same webhook-id")
    redeliver.add_argument("organization", type=organization, metavar="ORG")
    redeliver.add_argument("ids", type=_argument(lambda text: check_id("the webhook", text)), nargs="+", metavar="ID")
    token = add("token", lambda _, arguments: token_command(arguments), "sign a token with SITELINK_JWT_SECRET")
    for flag in ("--org", "--project", "--plan"):
        meaning = f"only for this {'organization' if flag == '--org' else flag[2:]}"
        token.add_argument(flag, type=_argument(lambda text: check_id("the name", text)), metavar="ID", help=meaning)
    token.add_argument("--scope", type=_argument(scopes), default="read", help='words of "read write operate"; default: read')
    token.add_argument("--ttl", type=_argument(lifetime), default="1h", metavar="TIME", help="90s, 30m, 1h or 7d; default: 1h")
    token.add_argument("--subject", default="sitelink-token", metavar="NAME", help="who it is, for the log; default: sitelink-token")
    token.add_argument("--system", action="store_true", help="also for what belongs to no organization")
    return parser


def _argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """Wraps ``read`` for argparse, which shows the message of an ``ArgumentTypeError`` and of no other error."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _sheet_number(text: str) -> int:
    number = text.removeprefix("sheet-")
    if not (number.isascii() and number.isdigit() and int(number)):
        msg = f"{text!r} is not a sheet; write 3 or sheet-3"
        raise ValueError(msg)
    return int(number)


def run(argv: list[str], environ: Mapping[str, str]) -> int:
    """Runs the command that the arguments name; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    arguments.terminal = sys.stdout.isatty() and environ.get("TERM", "") not in ("", "dumb", "unknown")
    arguments.environ = environ
    for name in unknown_settings(environ):
        say(f"unknown setting: {name}", sys.stderr)
    try:
        if getattr(arguments, "bucket", False):
            return verify_command(None, arguments)
        if arguments.command == "token":
            return token_command(arguments)
        with Server.from_env(environ) as server:
            if getattr(arguments, "password_file", None) is not None:
                server.use_password(read_password(arguments.password_file))
            code: int = arguments.run(server, arguments)
            return code
    except CommandError as error:
        say(str(error), sys.stderr)
        return WRONG_USE if isinstance(error, WrongUse) else NOT_REACHED if isinstance(error, NotReached) else NOT_COMPLETE


def main() -> int:
    """Runs the program ``sitelink``; returns its exit code."""
    # SIGTERM raises SystemExit, so that the views can show the terminal's cursor again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not prepare_streams():
        print("stdout is closed: the output cannot be written", file=sys.stderr)
        return OUTPUT_LOST
    try:
        try:
            code = run(sys.argv[1:], os.environ)
        except SystemExit as error:  # from argparse (help, wrong use) or SIGTERM
            code = int(error.code or 0)
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
