"""One document through the real activities of a host, in the order and with the retries of ``ProcessUpload``, without a server."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.exceptions import ApplicationError

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadOptions, UploadRecord, to_json
from activities.bucket.storage import Bucket
from activities.errors import RenderOutOfMemory
from activities.host import Host
from activities.interface import CountPages, DiscardScratch, HalvePage, Page, TiledPage, TilePage, UploadPage
from activities.render.child import ChildLimits, ChildPool
from activities.scratch import Scratch
from activities.threads import FairThreads
from tests.unit.attempts import Attempts
from worker.app import Activities

OPTIONS = UploadOptions()
MOST_TRIES = 6
"""More than any error that ends needs: an activity that fails more often would be tried for ever."""


@dataclass
class Outcome:
    """How one document ended.

    Args:
        pages: How many pages were counted; None if the document was refused.
        refusal: Name and sentence of the error that refused the document.
        sheets: By page number, ``ready`` or the name of the error.
        details: By page number, the sentence of the error, or the types of the notes.
        tries: How many attempts of an activity failed.
    """

    pages: int | None = None
    refusal: tuple[str, str] | None = None
    sheets: dict[int, str] = field(default_factory=dict)
    details: dict[int, str] = field(default_factory=dict)
    tries: int = 0


@asynccontextmanager
async def one_host(directory: Path, slots: int = 1, limits: ChildLimits | None = None) -> AsyncIterator["OneHost"]:
    """A host with its bucket and scratch below the directory."""
    bucket = Bucket(BucketSettings((directory / "bucket").as_uri()))
    pool = ChildPool(slots, limits)
    scratch = Scratch(directory / "scratch", 8 << 30)
    with FairThreads(2, "test") as threads, FairThreads(2, "uploads") as uploads, closing(scratch):
        try:
            host = Host(bucket=bucket, scratch=scratch, children=pool, threads=threads, uploads=uploads)
            yield OneHost(bucket, Activities(host), directory / "scratch")
        finally:
            await pool.close()


class OneHost:
    """The activities of a host, its bucket and its scratch."""

    def __init__(self, bucket: Bucket, activities: Activities, scratch: Path) -> None:
        self.bucket = bucket
        self.activities = activities
        self._scratch = scratch

    def leftovers(self) -> list[str]:
        """Files on the scratch that belong to an upload."""
        return [str(path.relative_to(self._scratch)) for path in self._scratch.rglob("*") if path.parent != self._scratch]

    async def run(self, path: Path, pages: Callable[[Page], bool] = lambda _: True, options: UploadOptions = OPTIONS) -> Outcome:
        """Counts the pages of a file, tiles and uploads those that ``pages`` chooses, and discards the upload's scratch."""
        ref, outcome = _ref(path), Outcome()
        self._accept(ref, path, options)
        try:
            document = await self._until_final(outcome, self.activities.count_pages, CountPages(str(ref)))
            outcome.pages = len(document.pages)
            for page in filter(pages, document.pages):
                await self._sheet(outcome, str(ref), page, options)
        except ApplicationError as error:
            outcome.refusal = error.type or "", error.message
        finally:
            await self.activities.discard_scratch(DiscardScratch(str(ref)))
        return outcome

    def sheets(self, path: Path) -> dict[str, bytes]:
        """The bytes of every object of a file's sheets."""
        return {info.key: self.bucket.get(info.key).body for info in self.bucket.objects(f"{_ref(path).prefix}sheets/")}

    def _accept(self, ref: UploadRef, path: Path, options: UploadOptions) -> None:
        data = path.read_bytes()
        self.bucket.put(ref.source, data)
        record = UploadRecord(path.name, len(data), hashlib.sha256(data).hexdigest(), options, "2026-01-31T00:00:00.000Z")
        self.bucket.put(ref.record, to_json(record))

    async def _sheet(self, outcome: Outcome, ref: str, page: Page, options: UploadOptions) -> None:
        if page.reason is not None:
            outcome.sheets[page.number], outcome.details[page.number] = page.reason, page.detail or ""
            return
        try:
            page, tiled = await self._tile(outcome, ref, page, options)
            record = await self._until_final(outcome, self.activities.upload_page, UploadPage(ref, page, options, tiled))
        except ApplicationError as error:
            outcome.sheets[page.number], outcome.details[page.number] = error.type or "", error.message
        else:
            outcome.sheets[page.number] = "ready"
            outcome.details[page.number] = " ".join(note.type for note in record.notes)

    async def _tile(self, outcome: Outcome, ref: str, page: Page, options: UploadOptions) -> tuple[Page, TiledPage]:
        """Tiles a page, at half its resolution if it needs too much memory, as the workflow does."""
        for is_half in (False, True):
            try:
                args = TilePage(ref, page.number, page.width, page.height, options)
                return page, await self._until_final(outcome, self.activities.tile_page, args)
            except ApplicationError as error:
                if error.type != RenderOutOfMemory.__name__ or is_half:
                    raise
                asked = HalvePage(ref, page.number, page.dpi, width=page.width, height=page.height)
                half = await self._until_final(outcome, self.activities.halve_page, asked)
                if half is None:
                    raise
                page = half
        raise AssertionError

    async def _until_final(self, outcome: Outcome, activity: Callable[..., Any], argument: Any) -> Any:
        """Runs attempts of an activity until one succeeds or Temporal would not try again."""
        attempts = Attempts()
        for _ in range(MOST_TRIES):
            try:
                return await attempts.next().run(activity, argument)
            except ApplicationError as error:
                outcome.tries += 1
                if error.non_retryable:
                    raise
                last = error
        msg = f"{last.type} is not final after {MOST_TRIES} tries: {last.message}"
        raise AssertionError(msg)


def _ref(path: Path) -> UploadRef:
    return UploadRef.parse(f"o/p/q/{re.sub('[^A-Za-z0-9]', '-', 'u' + path.stem)[:64]}")
