"""The bucket: objects in a local directory or on an S3 server, by obstore. Every error is raised as a named error.

Oddities of a local directory that this module hides or its callers must know:

1. Deleted prefixes leave empty directories, which a LIST with a delimiter still shows. So a listed prefix may hold no object.
2. A write that is killed leaves a file ``name#1``. LIST does not show this file, and no later write replaces it.
3. ETags are no MD5s, and nothing is sure to be on the disk before ``sync``.

Oddities of an S3 server:

4. obstore's exception classes follow the HTTP status and say too little: a missing bucket and a missing object are both
   ``FileNotFoundError``, and a LIST with a wrong key is a ``GenericError``. So the S3 code in the answer decides the name of the error.
   An answer without a code is ``StorageUnavailable``.
   https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList
5. The answer to a failed HEAD has no body, and so no code. The request is repeated as a GET, whose answer has one.
6. obstore retries 429, 408, every 5xx and lost connections, with back-off, but only for seconds. Temporal retries for longer.
   ``put`` repeats its requests itself, so that ``limiter`` sees each refusal.
7. obstore does not retry a write that must not replace an object. ``create_async`` retries it. If the object then exists, it may be from
   an earlier try whose answer was lost. So its bytes are compared.
8. A server, or a proxy before it, may confirm a write that did not happen (``answers_prove_writes``). So an object on which others rely
   is read back after the write: by the methods with ``_seen`` in their names, and for all tiles of a sheet by one LIST.
9. An answer may quote the text that was signed. So only its code and message are used, and the named error has no cause.
"""

import asyncio
import ctypes
import errno
import hashlib
import logging
import os
import random
import re
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from activities.bucket.limiter import LEAST, Limiter
from activities.bucket.location import BucketSettings, S3Location
from activities.bucket.records import from_json
from activities.bucket.store_errors import (
    code_and_message,
    error_label,
    log_failure,
    may_pass,
    named_directory_error,
    named_s3_error,
    not_written_error,
    system_words,
)
from activities.errors import (
    DamagedRecord,
    NewerSchema,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Config

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

PART_BYTES = 8 << 20
"""Size of each part but the last of a streamed object. S3 wants at least 5 MiB, and R2 wants equal parts:
https://developers.cloudflare.com/r2/objects/multipart-objects/"""
PARTS_AT_ONCE = 4
CHUNK_BYTES = 4 << 20

LARGEST_READ_BYTES = 64 << 20
"""No record, tile or thumbnail is larger. Others may write into the bucket, so a larger object is not read into memory."""

LARGEST_COPY_BYTES = 5 << 30
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html"""

COPIED_BYTES = 64 << 20
"""How much of a file one call copies."""
LARGEST_PUT_BYTES = 4 * PART_BYTES
"""Up to this size an archive is one PUT, which costs a third of a multipart upload of one part; a larger one is sent in parts."""
ARCHIVES_AT_ONCE = 16
"""Each takes up to ``LARGEST_PUT_BYTES`` of memory."""

LIST_PAGE = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""
DELETE_BATCH = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html"""

CONNECT_TIMEOUT = timedelta(seconds=10)
SILENCE_TIMEOUT = timedelta(minutes=2)
"""Longest wait for the beginning of an answer, and for each read after that. A bucket may be slow, but not silent."""
REQUEST_TIMEOUT = timedelta(hours=1)
IDLE_TIMEOUT, PUT_IDLE_TIMEOUT = timedelta(seconds=90), timedelta(seconds=2)
"""How long a connection without a request is kept. ``put`` may open hundreds, and a server that limits them would refuse other clients."""

RETRIES = 4
RETRY_TIMEOUT = timedelta(seconds=30)
FIRST_DELAY, LONGEST_DELAY = timedelta(seconds=0.5), timedelta(seconds=5)

LEAST_FREE_BYTES = 64 << 20
"""A disk with fewer free bytes counts as full: a few sheets take as much, and most plans take more."""

ROOM_KEY = "readyz"
"""The key of an empty object, which is written to check whether an S3 server takes writes."""

_UNFINISHED_NAME = re.compile(r".+#[0-9]+")


@dataclass(frozen=True)
class ObjectInfo:
    """One entry of a LIST. ``etag`` includes its quotes."""

    key: str
    size: int
    etag: str | None
    modified: datetime

    @property
    def plain_etag(self) -> str:
        """The ETag without its quotes; "" if the server gave no ETag."""
        return (self.etag or "").strip('"')


@dataclass(frozen=True)
class StoredObject:
    """An object with its bytes."""

    info: ObjectInfo
    body: bytes


@dataclass(frozen=True)
class Stream:
    """An object, and its bytes as they come; the stream raises like ``Bucket.get``."""

    info: ObjectInfo
    chunks: AsyncIterator[bytes]


class Bucket:
    """Objects by key. Keys are given and returned without the prefix of the bucket's settings.

    The methods without ``async`` block, and are for threads: 1 to 4 threads are cheapest over a directory. For an S3
    server, ``limiter`` tells how many are of use.

    Args:
        settings: The bucket.
        max_requests: Most requests of the blocking methods at once, ``chunks`` and ``objects`` not counted; default: no limit.
        on_put: Called after each try of ``put``, and after ``put_archive``, whose tries obstore repeats itself: with the seconds and, if it
            failed, with a name of the error, else "".

    Raises:
        ValueError: A setting cannot be used.
        StorageUnavailable: A local directory could not be made.
    """

    def __init__(
        self, settings: BucketSettings, *, max_requests: int | None = None, on_put: Callable[[float, str], None] = lambda *_: None
    ) -> None:
        self._on_put = on_put
        self._request_slots: AbstractContextManager[object] = threading.BoundedSemaphore(max_requests) if max_requests else nullcontext()
        self._archive_slots = threading.BoundedSemaphore(ARCHIVES_AT_ONCE)
        self._root: Path | None = None
        self._s3: S3Location | None = None
        self._store: LocalStore | S3Store
        self.limiter = Limiter(max_requests or LEAST)
        """How many calls of ``put`` to make at once. Only they are counted: they are small, and alike."""
        if settings.is_s3:
            self._s3 = S3Location.from_settings(settings)
            self._store = _s3_store(self._s3, settings)
            self._one_try = _s3_store(self._s3, settings, retries=0, idle_timeout=PUT_IDLE_TIMEOUT)
            return
        self._root = settings.directory
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(self._root)
        except (OSError, BaseError) as error:
            msg = f"the bucket's directory, of SITELINK_BUCKET or SITELINK_DATA_DIR, cannot be used: {system_words(error)}"
            log_failure(str(self._root), str(error))
            raise StorageUnavailable(msg) from error

    def own_key(self, bucket: str, key: str) -> str | None:
        """The key, without the prefix, of an object that an event of the bucket names.

        Args:
            bucket: The name of the object's bucket. A directory has no name, so any name is taken for it.
            key: The object's key with the prefix.

        Returns:
            None for an object of another bucket, or outside the prefix.
        """
        if self._s3 is None:
            return key
        prefix = f"{self._s3.prefix}/" if self._s3.prefix else ""
        if bucket != self._s3.bucket or not key.startswith(prefix):
            return None
        return key.removeprefix(prefix)

    @property
    def answers_prove_writes(self) -> bool:
        """Whether the answer to a write proves that the object was written: true for a directory, false for an S3 server (oddity 8)."""
        return self._root is not None

    @contextmanager
    def _named_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (OSError, BaseError) as error:
            if self._s3 is not None:
                raise named_s3_error(*code_and_message(error), bucket=self._s3.bucket, key=key) from None
            raise named_directory_error(error, self._root, key) from error

    def get(self, key: str) -> StoredObject:
        """Reads an object whole.

        Raises:
            ObjectMissing: There is no such object.
            DamagedRecord: It is larger than any object that is read whole.
            BucketError: The bucket failed.
        """
        with self._named_errors(key), self._request_slots:
            result = obstore.get(self._store, key)
            return StoredObject(_bounded_info(key, result.meta), bytes(result.bytes()))

    async def get_async(self, key: str) -> StoredObject:
        """``get``, for an event loop."""
        with self._named_errors(key):
            result = await obstore.get_async(self._store, key)
            return StoredObject(_bounded_info(key, result.meta), bytes(await result.bytes_async()))

    def get_range(self, key: str, start: int, end: int, etag: str | None = None) -> StoredObject:
        """Reads the bytes of an object from ``start`` to before ``end``, or to the object's end. ``info`` is about the whole object.

        Args:
            key: Of the object.
            start: The first byte. If the object ends before it, no bytes are read.
            end: The byte after the last.
            etag: The object must have this ETag; None for any.

        Raises:
            ObjectMissing: There is no such object, or it has another ETag.
            BucketError: The bucket failed.
        """
        with self._named_errors(key), self._request_slots, _missing_if_replaced(key):
            try:
                result = obstore.get(self._store, key, options=_range(start, end, etag))
            except BaseError as error:
                if _INVALID_RANGE not in str(error):
                    raise
                return StoredObject(_info(obstore.head(self._store, key)), b"")
            return StoredObject(_info(result.meta), bytes(result.bytes()))

    async def get_range_async(self, key: str, start: int, end: int, etag: str | None = None) -> StoredObject:
        """``get_range``, for an event loop."""
        stream = await self.stream_async(key, start, end, etag)
        return StoredObject(stream.info, b"".join([chunk async for chunk in stream.chunks]))

    async def stream_async(self, key: str, start: int = 0, end: int | None = None, etag: str | None = None) -> Stream:
        """``get_range`` for many bytes, which are not held in memory; without an end, all bytes of the object."""
        with self._named_errors(key), _missing_if_replaced(key):
            try:
                result = await obstore.get_async(self._store, key, options=_range(start, end, etag))
            except BaseError as error:
                if _INVALID_RANGE not in str(error):
                    raise
                return Stream(_info(await obstore.head_async(self._store, key)), _no_chunks())
        return Stream(_info(result.meta), self._chunks_of(key, result))

    async def _chunks_of(self, key: str, result: "obstore.GetResult") -> AsyncIterator[bytes]:
        with self._named_errors(key):
            async for chunk in result.stream(min_chunk_size=1 << 20):
                yield bytes(chunk)

    def get_record(self, kind: type[T], key: str) -> T:
        """Reads a JSON object of ours.

        Raises:
            ObjectMissing: There is no such object.
            UnreadableRecord: The record is damaged, or of a newer schema.
            BucketError: The bucket failed.
        """
        return read_record(kind, key, self.get(key).body)

    async def get_record_async(self, kind: type[T], key: str) -> T:
        """``get_record``, for an event loop."""
        return read_record(kind, key, (await self.get_async(key)).body)

    def head(self, key: str) -> ObjectInfo:
        """Size, ETag and time of an object. Raises like ``get``."""
        with self._named_errors(key), self._request_slots:
            try:
                return _info(obstore.head(self._store, key))
            except _HEAD_ERRORS:
                if self._s3 is None:
                    raise
                return _info(obstore.get(self._store, key).meta)

    def has(self, key: str) -> bool:
        """Whether there is an object.

        Raises:
            BucketError: The bucket failed.
        """
        try:
            self.head(key)
        except ObjectMissing:
            return False
        return True

    async def head_async(self, key: str) -> ObjectInfo:
        """``head``, for an event loop."""
        with self._named_errors(key):
            try:
                return _info(await obstore.head_async(self._store, key))
            except _HEAD_ERRORS:
                if self._s3 is None:
                    raise
                return _info((await obstore.get_async(self._store, key)).meta)

    def put(self, key: str, body: bytes) -> None:
        """Writes an object whole, over any earlier one.

        Raises:
            BucketError: The bucket failed.
        """
        with self._named_errors(key):
            if self._root is not None:
                self._observe_write(_write_file, f"{self._root}/{key}", (body,))
                return
            with self._request_slots:
                self._put(key, body)

    def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Writes one object after the other, as ``put`` does. Objects of one directory that follow each other take less CPU.

        Args:
            objects: Their keys and bodies.

        Raises:
            BucketError: The bucket failed.
        """
        if not self._root:  # an S3 server has no directories
            for key, body in objects:
                self.put(key, body)
            return
        for parent, neighbours in groupby(objects, lambda named: named[0].rpartition("/")[0]):
            with self._named_errors(parent):
                folder = _open_folder(f"{self._root}/{parent}")
            try:
                for key, body in neighbours:
                    try:
                        self._observe_write(_write_file, key.rpartition("/")[2], (body,), folder=folder)
                    except OSError:  # put names the error. If somebody has removed the directory, put makes it again
                        self.put(key, body)
            finally:
                os.close(folder)

    def _observe_write(self, write: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Makes one try of a write, and tells how it went. A context manager would take twice the CPU, for each tile."""
        began = time.monotonic()
        try:
            write(*args, **kwargs)
        except (OSError, BaseError) as error:
            self._on_put(time.monotonic() - began, error_label(error))
            raise
        self._on_put(time.monotonic() - began, "")

    def _put(self, key: str, body: bytes) -> None:
        """Sends a PUT, and repeats it as often as obstore would. The limiter learns of each try."""
        begun, attempt = time.monotonic(), 0
        while True:
            try:
                with self.limiter.request():
                    self._observe_write(obstore.put, self._one_try, key, body, use_multipart=False)
            except (OSError, BaseError) as error:
                if not may_pass(error):
                    raise
                self.limiter.refused()
                if attempt == RETRIES or time.monotonic() - begun > RETRY_TIMEOUT.total_seconds():
                    raise
            else:
                return
            # Not all at the same moment: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            time.sleep(FIRST_DELAY.total_seconds() * 2**attempt * random.uniform(0.5, 1))  # noqa: S311
            attempt += 1

    def put_archive(self, key: str, chunks: Iterable[bytes], size_bytes: int) -> None:
        """Writes an object of some megabytes whole, over any earlier one: in one PUT, or in equal parts if it is large.

        In a directory, everything that was written before it survives a power cut if it does.

        Args:
            key: Of the object.
            chunks: Its bytes. When they raise an error, nothing is written.
            size_bytes: How many bytes there are.

        Raises:
            BucketError: The bucket failed.
        """
        with self._named_errors(key), self._request_slots:
            if self._root is not None:
                self._observe_write(_write_file, f"{self._root}/{key}", chunks, before_rename=self.sync)
                return
            is_large = size_bytes > LARGEST_PUT_BYTES
            with self._archive_slots:
                self._observe_write(
                    obstore.put,
                    self._store,
                    key,
                    iter(chunks),
                    use_multipart=is_large,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )

    def put_archive_seen(self, key: str, chunks: Iterable[bytes], index: bytes, size_bytes: int) -> None:
        """``put_archive``. Where the answer does not prove the write, the object's size and its first bytes are looked up.

        Args:
            key: Of the object.
            chunks: Its bytes.
            index: Its first bytes, which tell it from every other object that was ever at the key.
            size_bytes: How many bytes it has.

        Raises:
            BucketError: The bucket failed, or confirmed a write that did not happen.
        """
        self.put_archive(key, chunks, size_bytes)
        if not self.answers_prove_writes:
            with _not_written_if_missing(key):
                stored = self.get_range(key, 0, len(index))
                _check_written(key, stored.info.size == size_bytes and stored.body == index)

    async def put_async(self, key: str, body: bytes) -> None:
        """``put``, for an event loop."""
        with self._named_errors(key):
            await obstore.put_async(self._store, key, body, use_multipart=False)

    def put_seen(self, key: str, body: bytes) -> None:
        """``put`` of an object on which others rely. Where the answer does not prove the write, the object is read back.

        Its size alone would prove nothing, because an earlier object at the same key often has the same size.

        Raises:
            BucketError: The bucket failed, or confirmed a write that did not happen.
        """
        self.put(key, body)
        if not self.answers_prove_writes:
            with _not_written_if_missing(key):
                _check_written(key, self.get(key).body == body)

    async def check_room(self, least_bytes: int = LEAST_FREE_BYTES) -> None:
        """Checks that the bucket takes writes: an S3 server by a PUT, a directory by its permissions and its free bytes and inodes.

        Args:
            least_bytes: Bytes that a directory must have free.

        Raises:
            BucketError: The bucket takes no writes now.
        """
        if self._root is None:
            await self.put_async(ROOM_KEY, b"")
            return
        with self._named_errors("its root"):
            file_system = await asyncio.to_thread(os.statvfs, self._root)
        if file_system.f_flag & os.ST_RDONLY or not os.access(self._root, os.W_OK | os.X_OK):
            msg = "the bucket's directory may not be written"
            raise StorageDenied(msg)
        free_bytes = file_system.f_bavail * file_system.f_frsize
        if free_bytes < least_bytes:
            msg = f"the bucket's disk has {free_bytes:,} bytes free, {least_bytes:,} are wanted"
            raise StorageUnavailable(msg)
        if file_system.f_files and not file_system.f_favail:
            msg = "the bucket's disk has no inode free"
            raise StorageUnavailable(msg)

    async def create_async(self, key: str, body: bytes) -> bool:
        """Writes an object only if there is none at the key.

        Returns:
            Whether the object is the one that was written.
        """
        for attempt in range(1 + RETRIES):
            with self._named_errors(key):
                try:
                    await obstore.put_async(self._store, key, body, mode="create", use_multipart=False)
                except AlreadyExistsError as error:
                    if self._s3 is None:
                        return False
                    if code_and_message(error)[0] != "PreconditionFailed":
                        raise
                    break
                except (OSError, BaseError) as error:
                    if self._s3 is None or code_and_message(error)[0] or attempt == RETRIES:
                        raise
                else:
                    return True
            await asyncio.sleep(FIRST_DELAY.total_seconds() * 2**attempt)
        return (await self.get_async(key)).body == body

    async def create_seen_async(self, key: str, body: bytes) -> bool:
        """``create_async`` of an object on which others rely. Where the answer does not prove the write, the object's size is looked up.

        Raises:
            BucketError: The bucket failed, or confirmed a write that did not happen.
        """
        created = await self.create_async(key, body)
        if created:
            await self._check_size_async(key, len(body))
        return created

    async def put_stream(self, key: str, body: AsyncIterator[bytes]) -> None:
        """Writes an object from a stream, in constant memory. The object appears whole or not at all. A large one is sent in equal parts.

        To end the write early, raise in ``body``. Cancelling the caller would leave an unfinished write in the bucket. A part that is on
        its way at the end may be stored after the server has aborted the multipart upload; the sweep removes it.
        """
        buffered: list[bytes] = []
        async for chunk in body:
            buffered.append(chunk)
            if sum(map(len, buffered)) > PART_BYTES:
                break
        else:
            await self.put_async(key, b"".join(buffered))  # unlike a multipart upload, it leaves nothing unfinished when an answer is lost
            return

        async def all_chunks() -> AsyncIterator[bytes]:
            yield b"".join(buffered)
            buffered.clear()
            async for chunk in body:
                yield chunk

        with self._named_errors(key):
            await obstore.put_async(
                self._store, key, all_chunks(), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )

    async def put_stream_seen(self, key: str, body: AsyncIterator[bytes]) -> None:
        """``put_stream`` of an object on which others rely. Where the answer does not prove the write, the object's size is looked up.

        Raises:
            BucketError: The bucket failed, or confirmed a write that did not happen.
        """
        size_bytes = 0

        async def counted_chunks() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            async for chunk in body:
                size_bytes += len(chunk)
                yield chunk

        await self.put_stream(key, counted_chunks())
        await self._check_size_async(key, size_bytes)

    async def _check_size_async(self, key: str, size_bytes: int) -> None:
        if not self.answers_prove_writes:
            with _not_written_if_missing(key):
                _check_written(key, (await self.head_async(key)).size == size_bytes)

    async def beginning_async(self, key: str, length_bytes: int) -> bytes:
        """The first bytes of an object that has at least so many. Raises like ``get``."""
        with self._named_errors(key):
            return bytes(await obstore.get_range_async(self._store, key, start=0, length=length_bytes))

    def join(self, keys: Iterable[str], key: str) -> None:
        """Makes one object of several, in constant memory. It appears whole or not at all. Only a directory can do it.

        Raises:
            ObjectMissing: One of the objects does not exist.
            BucketError: The bucket failed.
        """
        with self._named_errors(key), _replacing(f"{self._root}/{key}") as descriptor:
            for part in keys:
                with Path(f"{self._root}/{part}").open("rb") as file:
                    while os.sendfile(descriptor, file.fileno(), None, COPIED_BYTES):
                        pass

    def chunks(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Reads an object in chunks, in constant memory, from byte ``start`` to its end. Raises like ``get``.

        An S3 server has an error for a start that is not before the end.
        """
        with self._named_errors(key):
            if self._root is not None:  # ten times as fast as obstore's stream
                with (self._root / key).open("rb") as file:
                    file.seek(start)
                    while chunk := file.read(CHUNK_BYTES):
                        yield chunk
                return
            options: GetOptions = {"range": {"offset": start}} if start else {}
            for part in obstore.get(self._store, key, options=options).stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(part)

    async def copy_async(self, source: str, target: str) -> None:
        """Has an S3 server copy an object of at most ``LARGEST_COPY_BYTES``. Raises like ``get``.

        It is not for a directory: obstore would make a second name of the same file, so that a write to the one would change the other.
        """
        with self._named_errors(source):
            await obstore.copy_async(self._store, source, target)

    def open_file(self, key: str) -> BinaryIO | None:
        """Opens an object of a directory for reading; None on an S3 server. Raises like ``get``.

        No link is followed, neither at the end of the key nor before it: it could lead out of the directory that the key names.
        """
        if self._root is None:
            return None
        with self._named_errors(key):
            *directories, name = key.split("/")
            try:
                directory = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    for part in directories:
                        outer = directory
                        directory = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
                        os.close(outer)
                    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                finally:
                    os.close(directory)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO):
                    raise FileNotFoundError from error
                raise
            if not stat.S_ISREG(os.fstat(file).st_mode) or _UNFINISHED_NAME.fullmatch(name):
                os.close(file)
                raise FileNotFoundError
            return os.fdopen(file, "rb")

    def objects(self, prefix: str, after: str = "", last: str = "") -> Iterator[ObjectInfo]:
        """All objects below ``prefix``; those of a directory in no order.

        Args:
            prefix: Ends with ``/``, or is empty.
            after: Only the objects of an S3 server whose keys come after this one. So the pages of a long LIST can be asked for at once.
            last: Only the objects whose keys do not come after this one; "" for no end.
        """
        with self._named_errors(prefix):
            for batch in obstore.list(self._store, prefix, offset=after or None, chunk_size=LIST_PAGE):
                for info in map(_info, batch):
                    if last and info.key > last:
                        return
                    yield info
                    if info.key == last:  # there is no need for a further page
                        return

    def children(self, prefix: str) -> tuple[list[str], list[ObjectInfo]]:
        """The names of the directories directly below ``prefix``, which may be empty (oddity 1), and the objects directly below it."""
        with self._named_errors(prefix), self._request_slots:
            result = obstore.list_with_delimiter(self._store, prefix)
            return _directories(result["common_prefixes"]), [_info(entry) for entry in result["objects"]]

    def directories(self, prefix: str) -> list[str]:
        """The names of the directories directly below ``prefix``, which may be empty (oddity 1)."""
        if self._root is None:
            return self.children(prefix)[0]
        # obstore would ask for the size and the time of each entry, which takes most of its CPU time.
        with self._named_errors(prefix), suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._root / prefix) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
        return []

    async def directories_async(self, prefix: str) -> list[str]:
        """``directories``, for an event loop."""
        with self._named_errors(prefix):
            return _directories((await obstore.list_with_delimiter_async(self._store, prefix))["common_prefixes"])

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects, on an S3 server 1,000 by one request. It is no error if an object does not exist."""
        if self._s3 is not None:
            remaining = iter(keys)
            while batch := list(islice(remaining, DELETE_BATCH)):
                with self._named_errors(batch[0] if len(batch) == 1 else f"{batch[0]} and {len(batch) - 1:,} more"), self._request_slots:
                    obstore.delete(self._store, batch)
            return
        for key in keys:
            with self._named_errors(key), self._request_slots:
                try:
                    obstore.delete(self._store, key)
                except (FileNotFoundError, NotFoundError):
                    continue

    def remove_unfinished(self, prefix: str, *, before: datetime | None = None, deep: bool = True) -> int:
        """Removes the files that killed writes left below ``prefix`` (oddity 2). An S3 server has no such files.

        Args:
            prefix: The prefix. Without ``before``, nobody else may be writing below it.
            before: Only files that were last written before this time are removed; None for all.
            deep: Whether to remove all such files below the prefix, or only those directly below it.

        Returns:
            How many files were removed.
        """
        if self._root is None:
            return 0
        removed = 0
        with self._named_errors(prefix):
            # Not rglob: it fails when a directory is removed meanwhile.
            for directory, _, names in os.walk(self._root / prefix):
                for path in (Path(directory, name) for name in names if _UNFINISHED_NAME.fullmatch(name)):
                    with suppress(FileNotFoundError):  # the write has just ended, or somebody else removed the file
                        if before is None or path.stat().st_mtime < before.timestamp():
                            path.unlink()
                            removed += 1
                if not deep:
                    break
        return removed

    def remove_empty_directories(self, prefix: str) -> None:
        """Removes the empty directories at and below ``prefix``. An S3 server has no directories."""
        if self._root is not None:
            for path, _, _ in os.walk(self._root / prefix, topdown=False):
                with suppress(OSError):  # it is not empty, or does not exist any more
                    Path(path).rmdir()

    def last_written(self, prefix: str) -> datetime | None:
        """When something was last written below ``prefix``, in a directory also by an unfinished write; None if there is nothing."""
        if self._root is None:
            return max((info.modified for info in self.objects(prefix)), default=None)
        newest = 0.0
        with self._named_errors(prefix):
            for path, _, names in os.walk(self._root / prefix):
                for entry in (Path(path), *(Path(path, name) for name in names)):
                    with suppress(FileNotFoundError):
                        newest = max(newest, entry.stat().st_mtime)
        return datetime.fromtimestamp(newest, UTC) if newest else None

    def sync(self) -> None:
        """Returns when everything that was written so far would survive a power cut. An S3 server promises this with each answer.

        https://man7.org/linux/man-pages/man2/syncfs.2.html
        """
        if self._root is None:
            return
        with self._named_errors("its root"):
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(descriptor)

    async def sync_async(self) -> None:
        """``sync``, for an event loop. Only a directory needs a thread for it."""
        if self._root is not None:
            await asyncio.to_thread(self.sync)


def read_record(kind: type[T], key: str, body: bytes) -> T:
    """Parses ``body``, the object at ``key``, as a record.

    Raises:
        UnreadableRecord: The record is damaged, or of a newer schema. The message names the key.
    """
    try:
        return from_json(kind, body)
    except NewerSchema as error:
        msg = f"{key} cannot be read: {error}"
        raise NewerSchema(msg) from error
    except ValueError as error:
        msg = f"{key} cannot be read: {error}"
        raise DamagedRecord(msg) from error


def etag_of(chunks: Iterable[bytes], size_bytes: int) -> str:
    """The ETag, without quotes, that an S3 server gives an object that ``put_archive`` writes: its MD5, or that of its parts' MD5s.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """
    if size_bytes <= LARGEST_PUT_BYTES:
        return _md5(chunks).hexdigest()
    digests, buffer = [], bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= PART_BYTES:
            digests.append(_md5((buffer[:PART_BYTES],)).digest())
            del buffer[:PART_BYTES]
    if buffer:
        digests.append(_md5((buffer,)).digest())
    return f"{_md5(digests).hexdigest()}-{len(digests)}"


def _md5(chunks: Iterable[bytes | bytearray]) -> "hashlib._Hash":
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest


def _nothing() -> None:
    """Does nothing."""


def _open_folder(path: str) -> int:
    """Opens a directory, and makes it first if it is missing.

    Files in an open directory are found by their names alone. Otherwise the kernel walks down the whole path for each file.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        Path(path).mkdir(parents=True, exist_ok=True)
        return os.open(path, flags)


def _write_file(path: str, chunks: Iterable[bytes], before_rename: Callable[[], None] = _nothing, folder: int | None = None) -> None:
    """Replaces a file at once, and makes its directories. obstore does the same in 2.5 times the CPU, by a thread of its own."""
    with _replacing(path, before_rename, folder) as descriptor:
        for chunk in chunks:
            written = 0
            while written < len(chunk):
                written += os.write(descriptor, memoryview(chunk)[written:])


@contextmanager
def _replacing(path: str, before_rename: Callable[[], None] = _nothing, folder: int | None = None) -> Iterator[int]:
    """A file to write, which takes its place at ``path`` at once when the block ends well.

    Args:
        path: Absolute, or a name in ``folder``.
        before_rename: Called when the file is whole.
        folder: The descriptor of an open directory, which is not made again if it is gone.
    """
    number = 1
    while True:
        unfinished = f"{path}#{number}"
        try:
            descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder)
            break
        except FileExistsError:  # of another write, or of one that was killed
            number += 1
        except FileNotFoundError:
            if folder is not None:
                raise
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        before_rename()
        os.rename(unfinished, path, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=folder)
        raise


_INVALID_RANGE = "InvalidRange"
"""In the text of the error about a range that begins behind the end of an object: of an S3 server the code, of a directory the class."""

_HEAD_ERRORS = (FileNotFoundError, NotFoundError, PermissionDeniedError, UnauthenticatedError)
"""The errors of a failed HEAD for which the answer to a GET says more (oddity 5)."""


def _s3_store(location: S3Location, settings: BucketSettings, *, retries: int = RETRIES, idle_timeout: timedelta = IDLE_TIMEOUT) -> S3Store:
    config: S3Config = {
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
        "region": location.region,
        "virtual_hosted_style_request": False,
    }
    if location.endpoint:
        config["aws_endpoint_url_s3"] = location.endpoint  # an option of this name is not overridden by the environment
    return S3Store(
        location.bucket,
        prefix=location.prefix or None,
        config=config,
        client_options={
            "allow_http": (location.endpoint or "").startswith("http://"),
            "connect_timeout": CONNECT_TIMEOUT,
            "pool_idle_timeout": idle_timeout,
            "read_timeout": SILENCE_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
        },
        retry_config={
            "max_retries": retries,
            "retry_timeout": RETRY_TIMEOUT,
            "backoff": {"init_backoff": FIRST_DELAY, "max_backoff": LONGEST_DELAY, "base": 2},
        },
    )


async def _no_chunks() -> AsyncIterator[bytes]:
    for chunk in list[bytes]():
        yield chunk


def _range(start: int, end: int | None, etag: str | None) -> "GetOptions":
    """The options of a request for some bytes of an object; without an end, for all bytes."""
    options: GetOptions = {} if end is None else {"range": (start, end)}
    if etag is not None:
        options["if_match"] = etag
    return options


@contextmanager
def _missing_if_replaced(key: str) -> Iterator[None]:
    try:
        yield
    except PreconditionError as error:
        msg = f"no object {key} as it was: it was replaced"
        raise ObjectMissing(msg) from error


@contextmanager
def _not_written_if_missing(key: str) -> Iterator[None]:
    try:
        yield
    except ObjectMissing as error:
        raise not_written_error(key) from error


def _check_written(key: str, is_written: bool) -> None:
    if not is_written:
        raise not_written_error(key)


def _bounded_info(key: str, meta: "obstore.ObjectMeta") -> ObjectInfo:
    info = _info(meta)
    if info.size > LARGEST_READ_BYTES:
        msg = f"{key} cannot be read: it has {info.size:,} bytes, limit {LARGEST_READ_BYTES:,}"
        raise DamagedRecord(msg)
    return info


def _info(meta: "obstore.ObjectMeta") -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])


def _directories(prefixes: Iterable[str]) -> list[str]:
    return [prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in prefixes]
