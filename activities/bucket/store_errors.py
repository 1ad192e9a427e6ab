"""The named error for whatever obstore, boto3 or an S3 server says.

The words of a library or a server may name paths, hosts and classes. So they go to the log only. The message of a named error has the
object's key, and S3's code or the system's words for an error number.
"""

import errno
import logging
import os
import re
from pathlib import Path

from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError

from activities.bucket.keys import upload_of
from activities.errors import ClockSkewed, NoSuchBucket, ObjectMissing, SiteLinkError, StorageDenied, StorageUnavailable

logger = logging.getLogger(__name__)

DENIED_CODES = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "Unauthorized",  # R2: https://developers.cloudflare.com/r2/api/error-codes/
        "XAdminUserNotFound",  # versitygw's InvalidAccessKeyId
    }
)

LABELLED_CODES = DENIED_CODES | {
    "BadDigest",
    "EntityTooLarge",
    "ExpiredToken",
    "InternalError",
    "InvalidRequest",
    "NoSuchBucket",
    "NoSuchUpload",
    "OperationAborted",
    "PreconditionFailed",
    "QuotaExceeded",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "TooManyRequests",
}
"""The codes that metrics name. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList"""

_ERRNO_PATTERN = re.compile(r"\(os error ([0-9]+)\)")
"""obstore has no classes for most errors of a directory. It raises GenericError, and only its text has the error number."""
_REFUSED_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS)

_CODE_PATTERN = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)")
"""The code in the answer's XML, or in obstore's words for a key that a bulk delete could not remove."""
_STATUS_PATTERN = re.compile(r"status code: ([0-9]{3})")
_MESSAGE_PATTERN = re.compile(r"<Message>([^<]*)</Message>")


def named_s3_error(code: str, message: str, *, bucket: str, key: str) -> SiteLinkError:
    """The named error for an S3 error code.

    Args:
        code: The code in the answer's XML; empty when there was none.
        message: The answer's message, or the client's words when no answer came.
        bucket: The bucket's name.
        key: The key or the prefix of the request.
    """
    if code == "NoSuchKey":
        return ObjectMissing(f"no object {key}")
    log_failure(key, f"{code}: {message}")
    if code == "NoSuchBucket":
        return NoSuchBucket(f"there is no bucket {bucket}")
    if code == "RequestTimeTooSkewed":
        return ClockSkewed(f"the bucket refuses {key}, because the clock of this machine is wrong")
    if code in DENIED_CODES:
        return StorageDenied(f"the bucket refuses {key}: {code}")
    return StorageUnavailable(f"the bucket failed at {key}: {code or 'it gave no answer that says why'}")


def may_pass(error: BaseException) -> bool:
    """Whether an S3 server may take the same request in a moment: it asked for fewer requests, failed, or gave no answer."""
    if status := _STATUS_PATTERN.search(str(error)):
        return status[1] in ("408", "429") or status[1].startswith("5")
    return not code_and_message(error)[0]


def log_failure(key: str, message: str) -> None:
    """Logs the words of a library or a server, with the key and, where the key has one, the upload."""
    ref = upload_of(key)
    logger.warning("the bucket failed: %s", message, extra={"key": key, **({"ref": ref} if ref else {})})


def not_written_error(name: str) -> StorageUnavailable:
    """The error of a bucket that confirmed a write, but does not have the object as it was sent."""
    return StorageUnavailable(f"the bucket said that it has written {name}, but does not have it as it was sent")


def code_and_message(error: BaseException) -> tuple[str, str]:
    """The code and the message of an S3 server's answer, out of the text of obstore's exception."""
    text = str(error)
    code, message = _CODE_PATTERN.search(text), _MESSAGE_PATTERN.search(text)
    if code is None:
        return "", _first_line(error).partition("<")[0].strip()
    return code[1] or code[2], message[1] if message else _first_line(error).partition(" (code: ")[0]


def named_directory_error(error: BaseException, root: Path | None, key: str) -> SiteLinkError:
    """The named error for a failure of a local directory.

    Args:
        error: What obstore or the system raised.
        root: The directory that is the bucket; None while it is not known.
        key: Of the object.
    """
    is_missing = isinstance(error, FileNotFoundError | NotFoundError)
    if is_missing and root is not None and root.is_dir():
        return ObjectMissing(f"no object {key}")
    log_failure(key, _first_line(error))
    if is_missing:
        return NoSuchBucket("the bucket's directory is gone")
    if isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError) or _errno(error) in _REFUSED_ERRNOS:
        return StorageDenied(f"the bucket refuses {key}: {system_words(error)}")
    return StorageUnavailable(f"the bucket failed at {key}: {system_words(error)}")


def error_label(error: BaseException) -> str:
    """A short name of an error for metrics, out of a bounded number of names: a server may put anything into its answer.

    Returns:
        S3's code, if it is a usual one; else the HTTP status, or the system's name of the error's number.
    """
    if (code := code_and_message(error)[0]) in LABELLED_CODES:
        return code
    if status := _STATUS_PATTERN.search(str(error)):
        return status[1]
    number = _errno(error)
    return errno.errorcode.get(number, "other") if number else "other"


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    number = _ERRNO_PATTERN.search(str(error))
    return int(number[1]) if number else None


def system_words(error: BaseException) -> str:
    """The system's words for the error's number; where it has none, a hint at the log."""
    number = _errno(error)
    return os.strerror(number) if number else "the log says why"


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
