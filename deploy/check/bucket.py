"""Tries the bucket: lists it, writes, reads and removes a small object, and looks at its rules and its clock."""

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from activities.bucket.location import BucketSettings
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import LEAST_FREE_BYTES, Bucket
from activities.errors import BucketError, ClockSkewed, NoSuchBucket, SiteLinkError, StorageDenied
from deploy.check.table import Finding, Grade

PROBE_PREFIX = "check/"
MOST_SKEW_S = 60
"""S3 refuses requests 15 minutes apart, tokens 30 seconds: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"""

ADVICE: dict[type[SiteLinkError], str] = {
    NoSuchBucket: "python -m deploy.bucket --create; or correct SITELINK_BUCKET",
    StorageDenied: "give these credentials the right to list, read, write and delete objects; or correct the credentials",
    ClockSkewed: "set the clock of this machine, for example by chrony",
}
NOT_REACHED = "start the server, or correct SITELINK_S3_ENDPOINT; the log lines above say more"


def check_bucket(settings: BucketSettings, origins: Sequence[str]) -> list[Finding]:
    """The findings about a bucket.

    Args:
        settings: The bucket; they can be used.
        origins: The origins of pages that should be able to send PDFs straight into it.
    """
    if settings.is_s3:
        return _check_server(settings, origins)
    return _check_directory(settings)


def _check_directory(settings: BucketSettings) -> list[Finding]:
    directory, check = settings.directory, "bucket"
    if not_there := missing_directory(check, directory, "SITELINK_BUCKET"):
        return [not_there]
    if not directory.is_dir():
        return [Finding(check, Grade.WRONG, f"{directory} is not a directory", "correct SITELINK_BUCKET")]
    if failed := _probe(settings):
        return [failed]
    free_bytes = shutil.disk_usage(directory).free
    facts = f"{directory} can be listed, written and read; {free_bytes:,} bytes free"
    if free_bytes < LEAST_FREE_BYTES:
        return [Finding(check, Grade.WRONG, facts, f"make room: {LEAST_FREE_BYTES:,} bytes are wanted")]
    return [Finding(check, Grade.OK, facts)]


def missing_directory(check: str, directory: Path, setting: str) -> Finding | None:
    """The finding about a directory that is not there, or is not to be seen; None if it is there."""
    try:
        if directory.exists():
            return None
        parent = next(parent for parent in directory.parents if parent.exists())
    except OSError as error:
        return Finding(check, Grade.WRONG, f"{directory}: {error.strerror}", f"let this user reach it, or correct {setting}")
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return Finding(check, Grade.NOTE, f"{directory} is not there", "the first process that starts makes it")
    advice = f"make it, or correct {setting}: {parent} may not be written by this user"
    return Finding(check, Grade.WRONG, f"{directory} is not there", advice)


def _check_server(settings: BucketSettings, origins: Sequence[str]) -> list[Finding]:
    setup = BucketSetup(settings)
    try:
        findings = _clock(setup.server_time())
    except BucketError as error:
        return [_failure(error)]
    if failed := _probe(settings) or _probe_parts(setup):
        return [*findings, failed]
    facts = f"{settings.url} can be listed, written and read, also in parts"
    return [Finding("bucket", Grade.OK, facts), *findings, *_rules(setup, origins)]


def _failure(error: BucketError) -> Finding:
    return Finding("bucket", Grade.WRONG, str(error), ADVICE.get(type(error), NOT_REACHED))


def _clock(server_time: datetime | None) -> list[Finding]:
    check = "clock"
    if server_time is None:
        return [Finding(check, Grade.NOTE, "the bucket's server tells no time", "see that the clock of this machine is right")]
    skew_s = (datetime.now(UTC) - server_time).total_seconds()
    facts = f"this machine is {abs(skew_s):,.0f} s {'ahead of' if skew_s > 0 else 'behind'} the bucket's server"
    if abs(skew_s) > MOST_SKEW_S:
        return [Finding(check, Grade.WRONG, facts, ADVICE[ClockSkewed])]
    return [Finding(check, Grade.OK, facts)]


def _probe(settings: BucketSettings) -> Finding | None:
    """Lists, writes, reads and removes; the finding if one of them fails."""
    key, body = f"{PROBE_PREFIX}{secrets.token_hex(8)}", secrets.token_bytes(64)
    try:
        bucket = Bucket(settings)
        bucket.children(PROBE_PREFIX)
        bucket.put_seen(key, body)
        try:
            is_whole = bucket.get(key).body == body
        finally:
            bucket.delete([key])
        is_removed = not bucket.has(key)
    except BucketError as error:
        return _failure(error)
    except SiteLinkError as error:
        return Finding("bucket", Grade.WRONG, f"it does not have what it has taken: {error}", "use a bucket that is read as it was written")
    finally:
        if not settings.is_s3:
            with suppress(OSError):
                (settings.directory / PROBE_PREFIX).rmdir()
    if not is_whole or not is_removed:
        facts = "it gives back other bytes than it has taken" if not is_whole else "it has an object that was removed"
        return Finding("bucket", Grade.WRONG, facts, "use a bucket that is read as it was written: no cache may be before it")
    return None


def _probe_parts(setup: BucketSetup) -> Finding | None:
    """Begins, lists and aborts a multipart upload: PDFs and packed sheets need one, and each sweep looks for unfinished ones."""
    key = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    try:
        upload_id = setup.start_upload(key)
        try:
            setup.unfinished_uploads(PROBE_PREFIX)
        finally:
            setup.abort(key, upload_id)
    except BucketError as error:
        return _failure(error)
    return None


def _rules(setup: BucketSetup, origins: Sequence[str]) -> list[Finding]:
    command = " ".join(["python -m deploy.bucket", *(f"--origin {origin}" for origin in origins)])

    def cors() -> Finding:
        allowed = setup.allowed_origins()
        missing = [origin for origin in origins if not any(fnmatchcase(origin, pattern) for pattern in allowed)]
        if missing or not allowed:
            facts = f"pages of {', '.join(missing) or 'any origin'} cannot send PDFs straight into the bucket"
            return Finding("bucket: CORS", Grade.NOTE, facts, command)
        return Finding("bucket: CORS", Grade.OK, f"pages of {', '.join(allowed)} may write to presigned URLs")

    def lifecycle() -> Finding:
        if setup.aborts_stale_uploads():
            return Finding("bucket: lifecycle", Grade.OK, "the server aborts unfinished multipart uploads")
        return Finding("bucket: lifecycle", Grade.NOTE, "no rule aborts unfinished multipart uploads: the nightly sweep does", command)

    return [_rule("bucket: CORS", cors), _rule("bucket: lifecycle", lifecycle)]


def _rule(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except BucketError as error:
        return Finding(check, Grade.NOTE, f"not known: {error}", "the server does not offer it, or these credentials may not read it")
