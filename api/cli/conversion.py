"""``sitelink pack`` and ``sitelink unpack``: convert a stored upload, and show how far that is."""
# ruff: noqa: T201 - talks to a terminal

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from activities.bucket.keys import UploadRef
from api.cli.client import Server
from api.cli.errors import NotReached, Unavailable, join_by_colon
from api.cli.transfer import Patience
from api.cli.words import print_json, say
from api.paths import upload_path

COMPLETE, NOT_COMPLETE, INTERRUPTED = 0, 1, 130
POLL_S = 1.0


def convert_command(server: Server, arguments: argparse.Namespace) -> int:
    """``sitelink pack`` and ``sitelink unpack``."""
    ref: UploadRef = arguments.ref
    answer = server.request("POST", f"{upload_path(ref)}/{arguments.command}")
    if arguments.no_watch:
        if arguments.json:
            print_json("accepted", answer)
        else:
            print(f"asked to {arguments.command}: {ref}")
        return COMPLETE
    try:
        conversion = _follow(server, ref, arguments)
    except KeyboardInterrupt:
        print(f"\nIt goes on. Show it again: sitelink {arguments.command} {ref}", file=sys.stderr)
        return INTERRUPTED
    if not arguments.json:
        say(f"{conversion['status']}: {conversion['convertedSheets']:,} of {conversion['totalSheets']:,} sheets are {conversion['layout']}")
        for sheet in conversion["refused"]:
            say(f"sheet-{sheet['number']}: left as it is, {join_by_colon(sheet['reason'], sheet['detail'])}")
        if (more := conversion["refusedCount"] - len(conversion["refused"])) > 0:
            say(f"and {more:,} more sheets were left as they are")
    return COMPLETE if conversion["status"] == "complete" else NOT_COMPLETE


def _follow(server: Server, ref: UploadRef, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Shows each change until the end, and returns it; goes on when the server is away for less than a minute."""
    patience, shown = Patience(), None
    while True:
        try:
            conversion: dict[str, Any] = server.request("GET", f"{upload_path(ref)}/conversion")
        except (NotReached, Unavailable) as error:
            if (delay_s := patience.delay_s()) is None:
                raise
            say(f"trying again in {delay_s:.0f} s: {error}", sys.stderr)
            time.sleep(delay_s)
            continue
        patience.reset()
        if conversion != shown:
            _show(conversion, arguments)
            shown = conversion
        if conversion["status"] != "running":
            return conversion
        time.sleep(POLL_S)


def _show(conversion: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json("conversion", conversion)
        return
    total, done = conversion["totalSheets"], conversion["doneSheets"]
    line = f"{done:,} of {total:,} sheets" if total else "waiting for a worker"
    if arguments.terminal:
        print(f"\r{line} ", end="" if conversion["status"] == "running" else "\n", flush=True)
    else:
        say(line)
