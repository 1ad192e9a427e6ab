"""``python -m deploy.bucket``: sets up the bucket on an S3 server that the environment names, and says what it did.

It may be run again at any time. What a server does not offer is said, and the rest goes on.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from activities.bucket.setup import STALE_DAYS, BucketSetup
from activities.bucket.storage import BucketSettings
from activities.errors import BucketError, SiteLinkError

DONE, FAILED, WRONG_USE = 0, 1, 2

DEFAULT_ORIGINS = ("http://127.0.0.1:8000", "http://localhost:8000")
"""Where the page of the embedded stack is."""


def set_up(setup: BucketSetup, url: str, origins: Sequence[str], *, create: bool, say: Callable[[str], None]) -> int:
    """Does all of it; returns the exit code.

    Args:
        setup: The bucket.
        url: How to call it.
        origins: Of pages that may read the bucket and write to presigned URLs.
        create: Whether to make it when it is not there.
        say: Gets a sentence about each step.
    """
    failed = False
    try:
        if create:
            say(f"{url}: created" if setup.create() else f"{url}: there already")
        unfinished = len(setup.unfinished_uploads())
        say(f"multipart uploads that are not finished: {unfinished:,}")
    except SiteLinkError as error:
        say(f"{error.type}: {error}")
        return FAILED
    try:
        setup.allow_origins(origins)
        say(f"CORS: pages of {', '.join(origins)} may read, and write to presigned URLs")
    except BucketError as error:
        failed = True
        say(f"CORS: not set. {error.type}: {error}")
    try:
        setup.abort_stale_uploads()
        say(f"lifecycle: multipart uploads are aborted by the server after {STALE_DAYS} day")
    except BucketError as error:
        say(f"lifecycle: not set, this server does not offer it or these credentials may not. {error.type}: {error}")
        say("lifecycle: without it, parts that a killed process leaves behind stay until somebody aborts them; uploads work all the same")
    return FAILED if failed else DONE


def main(argv: Sequence[str]) -> int:
    """Reads arguments and environment; returns the exit code.

    Args:
        argv: Arguments after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.bucket", description="Sets up the bucket that SITELINK_BUCKET names.")
    parser.add_argument("--create", action="store_true", help="make the bucket when it is not there")
    parser.add_argument(
        "--origin",
        action="append",
        metavar="URL",
        help=f"of a page that may use the bucket; may be repeated; default: {' and '.join(DEFAULT_ORIGINS)}",
    )
    arguments = parser.parse_args(argv)
    settings = BucketSettings.from_env(os.environ)
    try:
        setup = BucketSetup(settings)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return WRONG_USE
    return set_up(setup, settings.url, arguments.origin or DEFAULT_ORIGINS, create=arguments.create, say=_say)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
