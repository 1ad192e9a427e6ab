"""The scratch: one directory per host, for the PDFs that were fetched and the tiles that are not uploaded yet.

    host                    the host's id, made once; its task queue is named after it
    lock                    locked by the one worker that uses the directory
    sources/{upload}.pdf    fetched once per upload; ``.part`` until it is whole
    pages/{upload}-...      one directory per tiled page, published by rename
    uploads/{upload}        holds REF: the upload to which the pages and the PDF belong
    *.part                  not whole, or not published; removed at the next start

``{upload}`` is a digest of REF, because a file's name may not be as long as REF.
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path

from activities.attempt import BEAT_S, Attempt, raise_if_stopped
from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadRecord
from activities.bucket.storage import CHUNK_BYTES, Bucket
from activities.bucket.uploads import UploadStore
from activities.errors import ObjectMissing, ShareFull, SourceAltered, SourceMissing

logger = logging.getLogger(__name__)

IDLE_S = 60
"""A tiled page that no attempt has used for so long may not be needed any more, so its run is asked. Temporal waits no longer than this
before the next attempt. So even during an outage of the bucket, runs are seldom asked."""

SHARE_BEATS = 10
"""A page that waits because its upload has its full share gives its render slot back after so many heartbeats."""

UNKNOWN_AGE_S = 24 * 60 * 60
"""A file whose upload is not known is removed at this age."""


class ScratchInUse(RuntimeError):
    """Another worker uses the scratch directory."""


class Scratch:
    """The scratch of this host. Opening it removes the unfinished files of earlier processes.

    Args:
        directory: Made if absent.
        limit_bytes: No further page is tiled while the published pages take more.
        limit_pages: Most pages on the scratch: being tiled, waiting for their upload, or being uploaded.
        share_pages: Most pages of one upload among them.
        clock: Seconds since 1970.
        beat_s: How often a page that waits for room beats.
        fetching: Makes a context manager. A PDF is fetched inside of it.

    Raises:
        ScratchInUse: Another worker process uses the directory.
        OSError: The directory cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        limit_bytes: int,
        limit_pages: int = 128,
        share_pages: int = 64,
        *,
        clock: Callable[[], float] = time.time,
        beat_s: float = BEAT_S,
        fetching: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._sources = directory / "sources"
        self._pages = directory / "pages"
        self._refs = directory / "uploads"
        for path in (self._sources, self._pages, self._refs):
            path.mkdir(parents=True, exist_ok=True)
        self.limit_bytes = limit_bytes
        self._limit_pages = limit_pages
        self._share_pages = share_pages
        self._clock = clock
        self._beat_s = beat_s
        self._fetching = fetching
        self._lock = (directory / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            msg = f"another worker uses the scratch directory {directory}; give each its own SITELINK_SCRATCH_DIR"
            raise ScratchInUse(msg) from error
        self.host = _host_id(directory / "host")
        self._fetch_locks: dict[str, asyncio.Lock] = {}
        self._source_users: Counter[str] = Counter()
        self._pages_being_made: Counter[str] = Counter()
        self._claims: Counter[str] = Counter()
        for path in (*self._sources.glob("*.part"), *self._pages.glob("*.part"), *self._refs.glob("*.part")):
            _remove(path)
        self.clean()

    def close(self) -> None:
        """Lets another worker use the directory."""
        self._lock.close()

    def clean(self) -> None:
        """Removes old files that belong to no upload in ``uploads()``. The files of known uploads stay: their runs decide about them."""
        known = {path for paths in self.uploads().values() for path in paths}
        for path in (*self._pages.iterdir(), *self._sources.iterdir(), *self._refs.iterdir()):
            if path not in known and not self._is_in_use(path) and self._age_s(path) > UNKNOWN_AGE_S:
                _remove(path)

    def _age_s(self, path: Path) -> float:
        """Seconds since the file was written, or an attempt stopped using it."""
        try:
            return self._clock() - path.lstat().st_mtime
        except FileNotFoundError:  # it was uploaded and removed meanwhile
            return 0.0

    @asynccontextmanager
    async def source(self, ref: UploadRef, record: UploadRecord, bucket: Bucket, attempt: Attempt) -> AsyncIterator[Path]:
        """Yields the path of an upload's PDF on this host. The PDF is fetched once, and stays while activities use it.

        Raises:
            SourceMissing: The bucket answers, but has no such PDF.
            SourceAltered: The fetched PDF is not the one that was accepted.
            BucketError: The bucket failed.
        """
        digest = _ref_digest(ref)
        path = self._sources / f"{digest}.pdf"
        self._record_ref(ref)
        self._source_users[digest] += 1
        attempt.step = "fetches the PDF"
        try:
            async with _hold_with_beats(self._fetch_locks.setdefault(digest, asyncio.Lock()), attempt.beat):
                if not path.exists() or path.stat().st_size != record.size_bytes:
                    with self._fetching():
                        await attempt.in_thread(lambda stop: _fetch(bucket, ref, record, path, stop), more_follows=True)
            yield path
        finally:
            self._source_users[digest] -= 1
            if not self._source_users[digest]:
                del self._source_users[digest]
                self._fetch_locks.pop(digest, None)

    @asynccontextmanager
    async def room(self, ref: UploadRef, beat: Callable[[], None]) -> AsyncIterator[None]:
        """Reserves room for one more page, which is made in the block. Waits, with heartbeats, while the scratch is over a limit.

        The caller holds a render slot while it waits. When the upload has its full share, the wait is short: the slot then goes to the page
        of another upload.

        A page that waits for its upload counts, even if its next attempt is a minute away: after an outage of the bucket all attempts may
        come back together.

        Raises:
            ShareFull: The upload had its full share for ``SHARE_BEATS`` heartbeats.
        """
        digest, beats = _ref_digest(ref), 0
        while (
            (has_share := self._page_count(digest) >= self._share_pages)
            or self._page_count() >= self._limit_pages
            or self.published_bytes() > self.limit_bytes
        ):
            beats = beats + 1 if has_share else 0
            if beats > SHARE_BEATS:
                msg = f"{self._share_pages:,} sheets of this upload are on their way to the bucket on this host; others wait for them"
                raise ShareFull(msg)
            beat()
            await asyncio.sleep(self._beat_s)
        self._pages_being_made[digest] += 1
        try:
            yield
        finally:
            self._pages_being_made -= Counter([digest])  # keeps no zeros

    def _page_count(self, digest: str = "") -> int:
        """The number of pages of the upload with this digest; of all uploads by default."""
        waiting = {path.name for path in self._pages.iterdir() if path.suffix != ".part"} - self._claims.keys()
        names = (*waiting, *self._claims.elements(), *self._pages_being_made.elements())
        return sum(name.startswith(digest) for name in names)

    def published_bytes(self) -> int:
        """The bytes of the pages on the scratch, as the limit counts them."""
        total = 0
        for page in self._pages.iterdir():
            # It was uploaded and removed meanwhile, or a render child that was taken over has left something else in its place.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                total += sum(path.lstat().st_size for path in page.iterdir())
        return total

    def new_page(self, ref: UploadRef, sheet: int) -> Path:
        """Makes an empty directory for a page, not published yet; ``sheet`` is 1-based."""
        self._record_ref(ref)
        path = self._pages / f"{_ref_digest(ref)}-{sheet}-{secrets.token_hex(6)}.part"
        path.mkdir()
        return path

    def _record_ref(self, ref: UploadRef) -> None:
        """Writes REF into the upload's file. On a full disk, an earlier file stays as it was."""
        path = self._refs / _ref_digest(ref)
        part = path.with_suffix(".part")
        try:
            part.write_text(str(ref))
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def publish(self, page: Path) -> str:
        """Publishes a finished page; returns its name."""
        published = page.with_suffix("")
        page.rename(published)
        self._touch(published)
        return published.name

    def page(self, name: str) -> Path:
        """The directory of a published page, which may be gone."""
        return self._pages / Path(name).name

    @contextmanager
    def claim_page(self, name: str) -> Iterator[Path]:
        """Yields the directory of a published page, and keeps other attempts from removing it until the block ends."""
        page = self.page(name)
        self._claims[page.name] += 1
        try:
            yield page
        finally:
            self._claims[page.name] -= 1
            if not self._claims[page.name]:
                del self._claims[page.name]
            self._touch(page)

    def _touch(self, page: Path) -> None:
        with suppress(FileNotFoundError):  # it was uploaded and removed meanwhile
            os.utime(page, times=(self._clock(), self._clock()), follow_symlinks=False)

    def idle_pages(self, ref: UploadRef) -> list[Path]:
        """The published pages of an upload that no attempt has used for ``IDLE_S`` seconds."""
        pages = (path for path in self._pages.glob(f"{_ref_digest(ref)}-*") if path.suffix != ".part")
        return [path for path in pages if path.name not in self._claims and self._age_s(path) > IDLE_S]

    @property
    def has_pages(self) -> bool:
        """Whether any page is on the scratch."""
        return any(self._pages.iterdir())

    def remove(self, page: Path) -> None:
        """Removes a page, published or not, unless another attempt uses it, too."""
        if self._claims[page.name] <= 1:
            _remove(page)

    def discard(self, ref: UploadRef) -> None:
        """Removes the pages of an upload, and its PDF unless an activity uses it."""
        self.remove_unused(self._files(_ref_digest(ref)))

    def uploads(self) -> dict[UploadRef, list[Path]]:
        """The files of each known upload: its PDF, its pages, published or not, and the file that holds its REF."""
        found = {}
        for ref_file in (path for path in self._refs.iterdir() if path.suffix != ".part"):
            with suppress(FileNotFoundError, ValueError):  # it was removed meanwhile, or is not whole
                found[UploadRef.parse(ref_file.read_text())] = self._files(ref_file.name)
        return found

    def _files(self, digest: str) -> list[Path]:
        return [*self._sources.glob(f"{digest}.*"), *self._pages.glob(f"{digest}-*"), self._refs / digest]

    def remove_unused(self, paths: Iterable[Path]) -> None:
        """Removes files that ``uploads()`` returned, but not a PDF that an activity uses, nor the REF of this PDF's upload."""
        for path in paths:
            if not self._is_in_use(path):
                _remove(path)

    def _is_in_use(self, path: Path) -> bool:
        """Whether this is the PDF of an upload, or its REF, while an activity uses the PDF or fetches it."""
        return path.name.partition(".")[0] in self._source_users


@asynccontextmanager
async def _hold_with_beats(lock: asyncio.Lock, beat: Callable[[], None]) -> AsyncIterator[None]:
    """Holds the lock during the block; sends heartbeats while it waits for the lock."""
    while True:
        try:
            async with asyncio.timeout(BEAT_S):
                await lock.acquire()
            break
        except TimeoutError:
            beat()
    try:
        yield
    finally:
        lock.release()


def _fetch(bucket: Bucket, ref: UploadRef, record: UploadRecord, path: Path, stop: threading.Event) -> None:
    """Fetches a PDF. An attempt that is stopped leaves its part, and the next attempt fetches only the rest."""
    part = path.with_suffix(".part")
    store = UploadStore(bucket)
    try:
        accepted, digest = store.source_sha256(ref, record), hashlib.sha256()
        with part.open("a+b") as file:
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
            for chunk in bucket.chunks(ref.source, file.tell()) if file.tell() < record.size_bytes else ():
                digest.update(chunk)
                file.write(chunk)
                raise_if_stopped(stop)
        if (size_bytes := part.stat().st_size) != record.size_bytes:
            msg = f"source.pdf has {size_bytes:,} bytes, {record.size_bytes:,} were accepted"
            raise SourceAltered(msg)
        if not accepted:
            accepted = asyncio.run(store.set_source_sha256_async(ref, digest.hexdigest()))
        if digest.hexdigest() != accepted:
            msg = f"source.pdf has sha256 {digest.hexdigest()}, {accepted} was accepted"
            raise SourceAltered(msg)
        part.rename(path)
    except CancelledError:
        raise  # the next attempt needs the part
    except ObjectMissing as error:
        part.unlink(missing_ok=True)
        msg = f"the bucket has no {ref.source}"
        raise SourceMissing(msg) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _host_id(path: Path) -> str:
    with suppress(FileNotFoundError):
        if host := path.read_text().strip():  # after a power cut the file may be empty, and hosts without an id would share one queue
            return host
    part = path.with_suffix(".part")
    part.write_text(host := secrets.token_hex(6))
    part.rename(path)
    return host


def _ref_digest(ref: UploadRef) -> str:
    return hashlib.sha256(str(ref).encode()).hexdigest()[:16]


def _remove(path: Path) -> None:
    """Removes a file, or a directory with everything in it, whatever a render child has left there. Follows no link.

    The directory may be deeper than a path can say, or forbidden to its owner. So each directory in it is first moved to the top.
    """
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        try:
            _remove_directory(path)
        except OSError as error:
            logger.warning(
                "a directory of the scratch cannot be removed: %s", os.strerror(error.errno or 0), extra={"directory": path.name}
            )


def _remove_directory(path: Path) -> None:
    top = _open_directory(path)
    try:
        directories = _remove_files(top)
        while directories:
            name = directories.pop()
            directory = _open_directory(name, top)
            try:
                for inner in _remove_files(directory):
                    moved = secrets.token_hex(16)
                    os.close(_open_directory(inner, directory))
                    os.rename(inner, moved, src_dir_fd=directory, dst_dir_fd=top)
                    directories.append(moved)
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    path.rmdir()


def _remove_files(directory: int) -> list[str]:
    """Removes all files of a directory; returns the names of the directories in it."""
    directories = []
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            directories.append(name)
    return directories


def _open_directory(path: Path | str, directory: int | None = None) -> int:
    """Opens a directory, and allows its owner everything in it."""
    handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        same = Path(f"/proc/self/fd/{handle}")
        same.chmod(0o700)  # by a path of its own it could follow a link
        return os.open(same, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(handle)
