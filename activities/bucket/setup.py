"""What obstore lacks on an S3 server, by boto3: making and setting up the bucket, and presigned requests.

Cloudflare R2 and other servers do not take everything that boto3 does by default: https://developers.cloudflare.com/r2/examples/aws/boto3/
So checksums and their trailers are sent only where S3 requires one, the bucket stands in the path, and nothing waits for ``100 Continue``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from activities.bucket.storage import CONNECT_TIMEOUT, PART_BYTES, RETRIES, SILENCE_TIMEOUT, BucketSettings, S3Location, named_s3_error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CreateBucketRequestTypeDef

MOST_PARTS = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

STALE_DAYS = 1
CORS_MAX_AGE_S = 3600
RULE_ID = "sitelink-abort-stale-uploads"


@dataclass(frozen=True)
class PresignedUpload:
    """A multipart upload that somebody without credentials may fill.

    Args:
        key: Of the object.
        upload_id: Names it to ``complete`` and ``abort``.
        part_bytes: Size of every part but the last.
        urls: Where each part is PUT, in order; every answer's ``ETag`` is needed to complete.
    """

    key: str
    upload_id: str
    part_bytes: int
    urls: Sequence[str]


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted.

    Args:
        key: Of the object that it would have become.
        upload_id: Names it to ``abort``.
        started_at: When it was begun, by the server's clock.
    """

    key: str
    upload_id: str
    started_at: datetime


class BucketSetup:
    """A bucket on an S3 server, as its owner sees it. Keys are without the bucket's prefix; every method blocks.

    Args:
        settings: Where it is.

    Raises:
        ValueError: A setting cannot be used, or it is a local directory, which needs no set-up.
    """

    def __init__(self, settings: BucketSettings) -> None:
        if not settings.is_s3:
            msg = f"SITELINK_BUCKET is {settings.url}; only a bucket on an S3 server, s3://name, is set up"
            raise ValueError(msg)
        self._location = S3Location.of(settings)
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=self._location.endpoint,
            region_name=self._location.region,
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=settings.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=CONNECT_TIMEOUT.total_seconds(),
                read_timeout=SILENCE_TIMEOUT.total_seconds(),
                retries={"mode": "standard", "total_max_attempts": RETRIES + 1},
            ),
        )
        self._client.meta.events.unregister("before-call.s3", add_expect_header)

    def create(self) -> bool:
        """Makes the bucket; False when it is there already.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors():
            try:
                self._client.list_objects_v2(Bucket=self._location.bucket, MaxKeys=1)
            except self._client.exceptions.NoSuchBucket:
                request: CreateBucketRequestTypeDef = {"Bucket": self._location.bucket}
                if self._location.endpoint is None and self._location.region != "us-east-1":
                    request["CreateBucketConfiguration"] = {"LocationConstraint": self._location.region}  # type: ignore[typeddict-item]
                self._client.create_bucket(**request)
                return True
            return False

    def allow_origins(self, origins: Sequence[str]) -> None:
        """Lets pages of these origins read the bucket and PUT to presigned URLs; replaces what was allowed before.

        Args:
            origins: Such as ``https://plans.example.com``.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors():
            self._client.put_bucket_cors(
                Bucket=self._location.bucket,
                CORSConfiguration={
                    "CORSRules": [
                        {
                            "AllowedOrigins": list(origins),
                            "AllowedMethods": ["GET", "HEAD", "PUT"],
                            "AllowedHeaders": ["*"],
                            "ExposeHeaders": ["ETag"],
                            "MaxAgeSeconds": CORS_MAX_AGE_S,
                        }
                    ]
                },
            )

    def abort_stale_uploads(self) -> None:
        """Has the server itself abort every multipart upload that is a day old; replaces the bucket's other lifecycle rules.

        Raises:
            BucketError: The server refuses, as one without lifecycle does, or does not answer.
        """
        with self._named_errors():
            self._client.put_bucket_lifecycle_configuration(
                Bucket=self._location.bucket,
                LifecycleConfiguration={
                    "Rules": [
                        {
                            "ID": RULE_ID,
                            "Status": "Enabled",
                            "Filter": {"Prefix": ""},
                            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": STALE_DAYS},
                        }
                    ]
                },
            )

    def unfinished_uploads(self, prefix: str = "") -> list[UnfinishedUpload]:
        """The multipart uploads below ``prefix`` that were neither completed nor aborted.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        start = f"{self._location.prefix}/" if self._location.prefix else ""
        with self._named_errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._location.bucket, Prefix=start + prefix)
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            return [UnfinishedUpload(upload["Key"].removeprefix(start), upload["UploadId"], upload["Initiated"]) for upload in uploads]

    def presigned_get(self, key: str, expires_s: int) -> str:
        """A URL by which anybody may read one object, for some seconds."""
        return self._sign("get_object", {"Key": self._full(key)}, expires_s)

    def presigned_put(self, key: str, expires_s: int) -> str:
        """A URL by which anybody may write one object, at most 5 GiB, for some seconds."""
        return self._sign("put_object", {"Key": self._full(key)}, expires_s)

    def start_upload(self, key: str, size_bytes: int, expires_s: int) -> PresignedUpload:
        """Begins a multipart upload whose parts anybody may PUT, for some seconds.

        Args:
            key: Of the object.
            size_bytes: Of the object, at least 1.
            expires_s: How long the URLs are good.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        part_bytes = equal_parts(size_bytes)
        with self._named_errors(key):
            upload_id = self._client.create_multipart_upload(Bucket=self._location.bucket, Key=self._full(key))["UploadId"]
        urls = [
            self._sign("upload_part", {"Key": self._full(key), "UploadId": upload_id, "PartNumber": number}, expires_s)
            for number in range(1, math.ceil(size_bytes / part_bytes) + 1)
        ]
        return PresignedUpload(key, upload_id, part_bytes, urls)

    def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Makes the object of its parts.

        Args:
            key: Of the object.
            upload_id: Of the upload.
            etags: One for each part, in order.

        Raises:
            BucketError: The server refuses, as it does when a part is missing, or does not answer.
        """
        with self._named_errors(key):
            self._client.complete_multipart_upload(
                Bucket=self._location.bucket,
                Key=self._full(key),
                UploadId=upload_id,
                MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]},
            )

    def abort(self, key: str, upload_id: str) -> None:
        """Forgets an upload and its parts; one that is gone already is no error.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors(key):
            try:
                self._client.abort_multipart_upload(Bucket=self._location.bucket, Key=self._full(key), UploadId=upload_id)
            except self._client.exceptions.NoSuchUpload:
                return

    def _full(self, key: str) -> str:
        return f"{self._location.prefix}/{key}" if self._location.prefix else key

    def _sign(self, operation: str, parameters: Mapping[str, str | int], expires_s: int) -> str:
        return self._client.generate_presigned_url(operation, {"Bucket": self._location.bucket, **parameters}, expires_s)

    @contextmanager
    def _named_errors(self, key: str = "") -> Iterator[None]:
        what = key or self._location.bucket
        try:
            yield
        except ClientError as error:
            said = error.response.get("Error", {})
            code, message = said.get("Code", ""), said.get("Message", "")
            raise named_s3_error(code, message, bucket=self._location.bucket, key=what) from None
        except BotoCoreError as error:
            raise named_s3_error("", str(error), bucket=self._location.bucket, key=what) from None


def equal_parts(size_bytes: int) -> int:
    """The size of the parts of an object: all equal but the last, whole MiB, at least 8 of them, and not too many parts."""
    return max(PART_BYTES, math.ceil(size_bytes / MOST_PARTS / (1 << 20)) << 20)
