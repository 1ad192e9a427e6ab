"""Where the bucket is: the settings, and what they say about an S3 server."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote_to_bytes, urlsplit

from activities.environment import secret

R2_DOMAIN = ".r2.cloudflarestorage.com"

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?:[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*)?")


@dataclass(frozen=True)
class BucketSettings:
    """Where the bucket is.

    Args:
        url: ``file:///absolute/directory``, made if absent, or ``s3://name/optional/prefix``.
        endpoint: Address of the S3 server, ``https://host``; empty for Amazon S3.
        access_key_id: Credential for the S3 server.
        secret_access_key: Credential for the S3 server.
        region: Region of the S3 server; ``auto`` for R2.
    """

    url: str
    endpoint: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    region: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads ``SITELINK_BUCKET`` and the settings of an S3 server. The default is the directory ``bucket`` in ``SITELINK_DATA_DIR``."""
        data_directory = Path(environ.get("SITELINK_DATA_DIR") or "var")
        return cls(
            url=environ.get("SITELINK_BUCKET") or (data_directory.absolute() / "bucket").as_uri(),
            endpoint=environ.get("SITELINK_S3_ENDPOINT") or "",
            access_key_id=environ.get("AWS_ACCESS_KEY_ID") or "",
            secret_access_key=secret(environ, "AWS_SECRET_ACCESS_KEY"),
            region=environ.get("AWS_REGION") or "",
        )

    @property
    def is_s3(self) -> bool:
        """Whether the bucket is on an S3 server, and not a directory."""
        return urlsplit(self.url).scheme == "s3"

    @property
    def directory(self) -> Path:
        """The local directory that is the bucket.

        Raises:
            ValueError: The URL does not name a directory.
        """
        parts = urlsplit(self.url)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            msg = f"SITELINK_BUCKET is {_without_secret(self.url)!r}; file:///path or s3://name/optional/prefix is wanted"
            raise ValueError(msg)
        if {"?", "#"} & set(self.url):
            msg = f"SITELINK_BUCKET is {self.url!r}; in a URL, ? is written as %3F, # as %23 and % as %25"
            raise ValueError(msg)
        return Path(os.fsdecode(unquote_to_bytes(parts.path)))


@dataclass(frozen=True)
class S3Location:
    """A bucket on an S3 server, by checked settings.

    Args:
        bucket: The bucket's name.
        prefix: The prefix of all keys, without a slash at either end; may be empty.
        endpoint: ``https://host``; None for Amazon S3.
        region: The region for which requests are signed.
    """

    bucket: str
    prefix: str
    endpoint: str | None
    region: str

    @classmethod
    def from_settings(cls, settings: BucketSettings) -> Self:
        """Checks the settings.

        Raises:
            ValueError: A setting cannot be used. The message names its variable and shows no secret.
        """
        parts = urlsplit(settings.url)
        prefix = parts.path.strip("/")
        name_is_good = _BUCKET_NAME.fullmatch(parts.netloc) and _PREFIX.fullmatch(prefix)
        if not name_is_good or {".", ".."} & set(prefix.split("/")) or parts.query or parts.fragment:
            msg = f"SITELINK_BUCKET is {_without_secret(settings.url)!r}; s3://name/optional/prefix is wanted, the name in lower case"
            raise ValueError(msg)
        endpoint = urlsplit(settings.endpoint.rstrip("/"))
        if settings.endpoint and (
            endpoint.scheme not in ("http", "https") or not endpoint.hostname or "@" in endpoint.netloc or endpoint.path or endpoint.query
        ):
            msg = f"SITELINK_S3_ENDPOINT is {_without_secret(settings.endpoint)!r}; https://host is wanted, without the bucket's name"
            raise ValueError(msg)
        for name, value in (("AWS_ACCESS_KEY_ID", settings.access_key_id), ("AWS_SECRET_ACCESS_KEY", settings.secret_access_key)):
            if not value:
                msg = f"{name} is not set, and SITELINK_BUCKET is {settings.url}"
                raise ValueError(msg)
        is_r2 = (endpoint.hostname or "").endswith(R2_DOMAIN)
        return cls(parts.netloc, prefix, settings.endpoint.rstrip("/") or None, settings.region or ("auto" if is_r2 else "us-east-1"))


def _without_secret(url: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", url)
