"""Verifies an upload without a server. Imported only by ``verify --bucket``, because the bucket's library takes long to load."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import to_wire
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from activities.errors import BucketError, SiteLinkError
from api.cli.errors import NotReached, Refused, WrongUse, join_by_colon


def verify_bucket(ref: UploadRef, environ: Mapping[str, str], *, deep: bool) -> Iterator[dict[str, Any]]:
    """Verifies an upload from the bucket alone. Gives the same reports as the API: one for each sheet, then one for the upload.

    Raises:
        WrongUse: The bucket's settings cannot be used.
        NotReached: The bucket failed.
        Refused: There is no such upload.
    """
    logging.getLogger("activities").addHandler(logging.NullHandler())  # a person who runs a command should see no log lines
    try:
        settings = BucketSettings.from_env(environ)
        if not settings.is_s3 and not settings.directory.is_dir():
            # Checked here, because Bucket would make the directory.
            msg = f"there is no bucket {settings.url}: SITELINK_DATA_DIR or SITELINK_BUCKET says where it is"
            raise NotReached(msg, connected=False)
        bucket = Bucket(settings)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    except BucketError as error:
        raise NotReached(join_by_colon(error.type, str(error)), connected=False) from error
    try:
        for report in verify_upload(bucket, ref, deep=deep):
            yield to_wire(report)
    except BucketError as error:
        raise NotReached(join_by_colon(error.type, str(error)), connected=True) from error
    except SiteLinkError as error:
        raise Refused(join_by_colon(error.type, str(error))) from error
