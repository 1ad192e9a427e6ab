"""The set-up of a bucket on an S3 server, and multipart uploads with presigned parts: boto3 can do both, obstore cannot.

Cloudflare R2 and other servers reject some defaults of boto3: https://developers.cloudflare.com/r2/examples/aws/boto3/
So requests have a checksum only where S3 requires one, have the bucket's name in the path, and never wait for ``100 Continue``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from activities.bucket.location import BucketSettings, S3Location
from activities.bucket.parts import StoredPart
from activities.bucket.records import BEGUN_LIFE
from activities.bucket.storage import CONNECT_TIMEOUT, RETRIES, SILENCE_TIMEOUT
from activities.bucket.store_errors import named_s3_error
from activities.errors import ObjectMissing, PartsIncomplete

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CreateBucketRequestTypeDef

REFUSED_PARTS = ("EntityTooSmall", "InvalidPart", "InvalidPartOrder")
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html#API_CompleteMultipartUpload_Errors"""

STALE_DAYS = BEGUN_LIFE.days
"""The server cannot tell the parts of clients from those of a killed process, so that all live as long. The sweep can tell them."""
CORS_MAX_AGE_S = 3600
ALLOWED_HEADERS = ["*", "Content-Type", "Range"]
"""R2 did not take ``*`` for these: https://mikeesto.medium.com/pre-signed-urls-cors-on-cloudflare-r2-c90d43370dc4."""
EXPOSED_HEADERS = ["Accept-Ranges", "Content-Length", "Content-Range", "ETag"]
"""Without ``Content-Range`` and ``ETag`` a page that reads a packed sheet by ranges cannot tell whether the object was cut or replaced."""
RULE_ID = "sitelink-abort-stale-uploads"


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted.

    Args:
        key: The key of the object that was to be written.
        upload_id: The multipart upload's id, for ``abort``.
        started_at: When the upload was begun, by the server's clock.
    """

    key: str
    upload_id: str
    started_at: datetime


class BucketSetup:
    """Sets up a bucket on an S3 server. Keys are given and returned without the bucket's prefix. Every method blocks.

    Args:
        settings: The bucket and its server.

    Raises:
        ValueError: A setting cannot be used, or the bucket is a local directory, which needs no set-up.
    """

    def __init__(self, settings: BucketSettings) -> None:
        if not settings.is_s3:
            msg = f"SITELINK_BUCKET is {settings.url}; only a bucket on an S3 server, s3://name, is set up"
            raise ValueError(msg)
        self._location = S3Location.from_settings(settings)
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
        """Makes the bucket unless it exists.

        Returns:
            Whether the bucket was made.

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
        """Lets pages of these origins read the bucket and PUT to presigned URLs; replaces all earlier CORS rules.

        Args:
            origins: Origins such as ``https://plans.example.com``.

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
                            "AllowedHeaders": ALLOWED_HEADERS,
                            "ExposeHeaders": EXPOSED_HEADERS,
                            "MaxAgeSeconds": CORS_MAX_AGE_S,
                        }
                    ]
                },
            )

    def abort_stale_uploads(self) -> None:
        """Tells the server to abort every multipart upload of ``STALE_DAYS`` days; replaces the bucket's other lifecycle rules.

        Raises:
            BucketError: The server refuses or does not answer. A server without lifecycle rules refuses.
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

    def server_time(self) -> datetime | None:
        """The time on the server's clock, which also an answer tells that refuses the request; None if the answer tells no time.

        Raises:
            BucketError: The server does not answer.
        """
        with self._named_errors():
            try:
                headers = self._client.list_objects_v2(Bucket=self._location.bucket, MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"]
            except ClientError as error:
                headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        try:
            return parsedate_to_datetime(headers.get("date", ""))
        except ValueError:
            return None

    def allowed_origins(self) -> list[str]:
        """The origins whose pages may PUT to presigned URLs, as the CORS rules name them; ``*`` may be among them, or part of one.

        Raises:
            BucketError: The server refuses or does not answer. A server without CORS rules refuses.
        """
        rules = self._rules(self._client.get_bucket_cors, "CORSRules", "NoSuchCORSConfiguration")
        return [origin for rule in rules if "PUT" in rule["AllowedMethods"] for origin in rule["AllowedOrigins"]]

    def aborts_stale_uploads(self) -> bool:
        """Whether a rule of the server aborts unfinished multipart uploads.

        Raises:
            BucketError: The server refuses or does not answer. A server without lifecycle rules refuses.
        """
        rules = self._rules(self._client.get_bucket_lifecycle_configuration, "Rules", "NoSuchLifecycleConfiguration")
        return any(rule["Status"] == "Enabled" and "AbortIncompleteMultipartUpload" in rule for rule in rules)

    def _rules(self, get: Callable[..., Any], name: str, absent: str) -> list[Any]:
        """The rules of the bucket that ``get`` asks for; an empty list where the server's code says ``absent``."""
        with self._named_errors():
            try:
                return list(get(Bucket=self._location.bucket)[name])
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != absent:
                    raise
                return []

    def unfinished_uploads(self, prefix: str = "") -> list[UnfinishedUpload]:
        """Lists the multipart uploads below ``prefix`` that were neither completed nor aborted.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        start = f"{self._location.prefix}/" if self._location.prefix else ""
        with self._named_errors():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._location.bucket, Prefix=start + prefix)
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            return [UnfinishedUpload(upload["Key"].removeprefix(start), upload["UploadId"], upload["Initiated"]) for upload in uploads]

    def start_upload(self, key: str) -> str:
        """Begins a multipart upload; returns its id.

        Args:
            key: The object's key.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors(key):
            return self._client.create_multipart_upload(Bucket=self._location.bucket, Key=self._full_key(key))["UploadId"]

    def part_url(self, key: str, upload_id: str, number: int, size_bytes: int, expires_s: int) -> str:
        """The URL to which one part is PUT, without credentials. No request is made.

        The size is signed, so that nobody can store more than was announced.

        Args:
            key: The object's key.
            upload_id: The multipart upload's id.
            number: The part's number, from 1.
            size_bytes: The only ``Content-Length`` that the server takes there.
            expires_s: Seconds until the URL expires, at most 604,800.
        """
        part = {"Bucket": self._location.bucket, "Key": self._full_key(key), "UploadId": upload_id}
        return self._client.generate_presigned_url("upload_part", {**part, "PartNumber": number, "ContentLength": size_bytes}, expires_s)

    def parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """The parts of a multipart upload that the bucket has, by number.

        Raises:
            ObjectMissing: There is no such upload: it was completed or aborted.
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors(key), self._missing_uploads(key):
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=self._location.bucket, Key=self._full_key(key), UploadId=upload_id
            )
            return [StoredPart(part["PartNumber"], part["Size"], part["ETag"]) for page in pages for part in page.get("Parts", [])]

    def complete(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Makes the object from the parts that were uploaded.

        Args:
            key: The object's key.
            upload_id: The multipart upload's id.
            etags: The ETag of every part, in order.

        Raises:
            PartsIncomplete: A part is missing, is too small, or has another ETag.
            ObjectMissing: There is no such upload: it was completed or aborted.
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors(key), self._missing_uploads(key):
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._location.bucket,
                    Key=self._full_key(key),
                    UploadId=upload_id,
                    MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]},
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code not in REFUSED_PARTS:
                    raise
                msg = f"the bucket does not take the parts: {code}"
                raise PartsIncomplete(msg) from None

    def abort(self, key: str, upload_id: str) -> None:
        """Aborts a multipart upload and removes its parts. It is no error if the upload does not exist any more.

        Raises:
            BucketError: The server refuses or does not answer.
        """
        with self._named_errors(key):
            try:
                self._client.abort_multipart_upload(Bucket=self._location.bucket, Key=self._full_key(key), UploadId=upload_id)
            except self._client.exceptions.NoSuchUpload:
                return

    def _full_key(self, key: str) -> str:
        return f"{self._location.prefix}/{key}" if self._location.prefix else key

    @property
    def origin(self) -> str:
        """The origin of the URLs of parts, such as ``https://host``."""
        return self._client.meta.endpoint_url

    @contextmanager
    def _missing_uploads(self, key: str) -> Iterator[None]:
        try:
            yield
        except self._client.exceptions.NoSuchUpload:
            msg = f"there is no such multipart upload of {key}"
            raise ObjectMissing(msg) from None

    @contextmanager
    def _named_errors(self, key: str = "") -> Iterator[None]:
        name = key or self._location.bucket
        try:
            yield
        except ClientError as error:
            details = error.response.get("Error", {})
            code, message = details.get("Code", ""), details.get("Message", "")
            raise named_s3_error(code, message, bucket=self._location.bucket, key=name) from None
        except BotoCoreError as error:
            raise named_s3_error("", str(error), bucket=self._location.bucket, key=name) from None
