"""``python -m deploy.bucket``: sets up the S3 bucket that the environment names, and says each step.

It may be run again at any time. A step that the server does not offer is named, and the other steps are done.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from activities.bucket.location import BucketSettings
from activities.bucket.setup import STALE_DAYS, BucketSetup
from activities.errors import BucketError, SiteLinkError

DONE, FAILED, WRONG_USE = 0, 1, 2

DEFAULT_ORIGINS = ("http://127.0.0.1:8000", "http://localhost:8000")
"""The embedded stack serves its page at one of these addresses."""


def set_up(setup: BucketSetup, url: str, origins: Sequence[str], *, create: bool, say: Callable[[str], None]) -> int:
    """Does every step; returns the exit code.

    Args:
        setup: The bucket.
        url: The bucket's name in the sentences.
        origins: The origins of pages that may read the bucket and write to presigned URLs.
        create: Whether to make the bucket when it does not exist.
        say: Gets a sentence about each step.
    """
    failed = False
    try:
        if create:
            say(f"{url}: created" if setup.create() else f"{url}: exists already")
        unfinished = len(setup.unfinished_uploads())
        say(f"unfinished multipart uploads: {unfinished:,}")
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
        say(f"lifecycle: the server aborts multipart uploads that are unfinished after {STALE_DAYS} days")
    except BucketError as error:
        say(f"lifecycle: not set. The server does not offer it, or these credentials do not allow it. {error.type}: {error}")
        say("lifecycle: SiteLink's nightly sweep aborts unfinished multipart uploads instead")
    return FAILED if failed else DONE


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code.

    Args:
        argv: The arguments after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.bucket", description="Sets up the bucket that SITELINK_BUCKET names.")
    parser.add_argument("--create", action="store_true", help="make the bucket when it does not exist")
    parser.add_argument(
        "--origin",
        action="append",
        metavar="URL",
        help=f"origin of a page that may use the bucket; may be repeated; default: {' and '.join(DEFAULT_ORIGINS)}",
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
