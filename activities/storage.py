"""The bucket: objects by obstore over a local directory. Every error leaves as a named one.

Oddities of a local directory that this module hides or its callers must know:

1. Deleted prefixes leave empty directories, which a LIST with a delimiter still shows: an empty prefix means nothing.
2. A write that is killed leaves ``name#1`` behind; LIST does not show it, and no later write of the name replaces it.
3. Its ETags are no MD5, and nothing is on the disk before ``sync``.
"""

import ctypes
import errno
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore

from activities.errors import NoSuchBucket, ObjectMissing, StorageDenied, StorageUnavailable

_REFUSED = re.compile(rf"\(os error (?:{errno.EACCES}|{errno.EPERM}|{errno.EROFS})\)")
"""A directory's refusal to write has no class of its own: obstore raises GenericError, and only its text has the number."""

_UNFINISHED = re.compile(r".+#[0-9]+")


@dataclass(frozen=True)
class BucketSettings:
    """Where the bucket is.

    Args:
        url: ``file:///absolute/directory``, made if absent.
    """

    url: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads ``SITELINK_BUCKET``; its default is the directory ``bucket`` in ``SITELINK_DATA_DIR``."""
        data_directory = Path(environ.get("SITELINK_DATA_DIR") or "var")
        return cls(environ.get("SITELINK_BUCKET") or (data_directory.absolute() / "bucket").as_uri())


@dataclass(frozen=True)
class ObjectInfo:
    """One entry of a LIST; ``etag`` carries its quotes."""

    key: str
    size: int
    etag: str | None
    modified: datetime


@dataclass(frozen=True)
class StoredObject:
    """An object with its bytes."""

    info: ObjectInfo
    body: bytes


class Bucket:
    """Objects by key.

    The methods without ``async`` block and are for threads: 1 to 4 of them are cheapest over a directory.

    Raises:
        ValueError: The URL is of a kind this release does not speak.
        StorageUnavailable: A local directory could not be made.
    """

    def __init__(self, settings: BucketSettings) -> None:
        parts = urlsplit(settings.url)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            msg = f"SITELINK_BUCKET is {settings.url!r}; this release writes to a local directory, file:///path"
            raise ValueError(msg)
        self._root = Path(unquote(parts.path))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(self._root)
        except (OSError, BaseError) as error:
            msg = f"the bucket directory {self._root} cannot be used: {error}"
            raise StorageUnavailable(msg) from error

    @contextmanager
    def _named_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotFoundError) as error:
            if not self._root.is_dir():
                msg = f"the bucket directory {self._root} is gone"
                raise NoSuchBucket(msg) from error
            msg = f"no object {key}"
            raise ObjectMissing(msg) from error
        except (PermissionError, PermissionDeniedError, UnauthenticatedError) as error:
            msg = f"the bucket refuses {key}: {_first_line(error)}"
            raise StorageDenied(msg) from error
        except (OSError, BaseError) as error:
            if _REFUSED.search(str(error)):
                msg = f"the bucket refuses {key}: {_first_line(error)}"
                raise StorageDenied(msg) from error
            msg = f"the bucket failed at {key}: {_first_line(error)}"
            raise StorageUnavailable(msg) from error

    def get(self, key: str) -> StoredObject:
        """Reads an object whole.

        Raises:
            ObjectMissing: There is none.
            BucketError: The bucket failed.
        """
        with self._named_errors(key):
            result = obstore.get(self._store, key)
            return StoredObject(_info(result.meta), bytes(result.bytes()))

    async def get_async(self, key: str) -> StoredObject:
        """``get``, for an event loop."""
        with self._named_errors(key):
            result = await obstore.get_async(self._store, key)
            return StoredObject(_info(result.meta), bytes(await result.bytes_async()))

    def head(self, key: str) -> ObjectInfo:
        """Size and ETag of an object; raises like ``get``."""
        with self._named_errors(key):
            return _info(obstore.head(self._store, key))

    async def head_async(self, key: str) -> ObjectInfo:
        """``head``, for an event loop."""
        with self._named_errors(key):
            return _info(await obstore.head_async(self._store, key))

    def put(self, key: str, body: bytes) -> None:
        """Writes an object whole, over any earlier one.

        Raises:
            BucketError: The bucket failed.
        """
        with self._named_errors(key):
            obstore.put(self._store, key, body, use_multipart=False)

    async def put_async(self, key: str, body: bytes) -> None:
        """``put``, for an event loop."""
        with self._named_errors(key):
            await obstore.put_async(self._store, key, body, use_multipart=False)

    async def create_async(self, key: str, body: bytes) -> bool:
        """Writes an object only if there is none; says whether it did."""
        with self._named_errors(key):
            try:
                await obstore.put_async(self._store, key, body, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    async def put_stream(self, key: str, body: AsyncIterator[bytes]) -> None:
        """Writes an object from a stream in constant memory, at once or not at all.

        To give up, raise inside ``body``: cancelling the caller leaves the unfinished write behind.
        """
        with self._named_errors(key):
            await obstore.put_async(self._store, key, body)

    def chunks(self, key: str) -> Iterator[bytes]:
        """Reads an object in constant memory; raises like ``get``."""
        with self._named_errors(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=4 << 20):
                yield bytes(chunk)

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below ``prefix``, in no order."""
        with self._named_errors(prefix):
            for batch in obstore.list(self._store, prefix, chunk_size=1000):
                for entry in batch:
                    yield _info(entry)

    def directories(self, prefix: str) -> list[str]:
        """The names directly below ``prefix`` that have something, or had, below them."""
        with self._named_errors(prefix):
            result = obstore.list_with_delimiter(self._store, prefix)
            return [path.rstrip("/").rsplit("/", 1)[-1] for path in result["common_prefixes"]]

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; one that is absent already is no error."""
        for key in keys:
            with self._named_errors(key):
                try:
                    obstore.delete(self._store, key)
                except (FileNotFoundError, NotFoundError):
                    continue

    def remove_unfinished(self, prefix: str) -> None:
        """Removes what killed writes have left behind below ``prefix``.

        Args:
            prefix: Nobody else writes there now.
        """
        with self._named_errors(prefix):
            for path in (self._root / prefix).rglob("*#*"):
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Returns when everything written so far would survive a power cut.

        https://man7.org/linux/man-pages/man2/syncfs.2.html
        """
        with self._named_errors(str(self._root)):
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(descriptor)


def _info(meta: "obstore.ObjectMeta") -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
