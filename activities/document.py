"""``count_pages`` and ``halve_page``: open the PDF and decide the geometry of its pages."""

from dataclasses import replace

from temporalio import activity

from activities.bucket.dzi import MINIMUM_DPI
from activities.bucket.keys import UploadRef
from activities.bucket.records import bounded_notes, scaled_note
from activities.bucket.storage import PART_BYTES
from activities.errors import RenderCrashed
from activities.host import HostActivities
from activities.interface import CountPages, Document, HalvePage, Page
from activities.render.attempt import RenderAttempt


class DocumentActivities(HostActivities):
    """The activities that look at the document as a whole."""

    @activity.defn
    async def count_pages(self, args: CountPages) -> Document:
        """See ``UploadActivities.count_pages``."""
        attempt = RenderAttempt()
        host, ref = self._host, UploadRef.parse(args.ref)
        with attempt.named_errors():
            password = host.passwords.open(args.sealed_password, args.ref)
            record = await attempt.in_thread(lambda _: self._store.record(ref), more_follows=True)
            async with host.scratch.source(ref, record, host.bucket, attempt) as source:
                attempt.step = "reads the pages"
                document = await host.children.count_pages(
                    str(ref), source, record.options, host.limits.pages, attempt.beat, password, fresh=attempt.is_retry
                )
            pages = host.limits.check_pages(document.pages, record.options)
            source_parts = -(-record.size_bytes // PART_BYTES)
            forecast = host.forecaster.forecast(
                pages,
                record.options,
                source_parts,
                is_s3=not host.bucket.answers_prove_writes,
                puts_per_s=host.bucket.limiter.rate,
            )
            return Document(pages, forecast)

    @activity.defn
    async def halve_page(self, args: HalvePage) -> Page | None:
        """See ``UploadActivities.halve_page``."""
        attempt = RenderAttempt()
        host, ref = self._host, UploadRef.parse(args.ref)
        with attempt.named_errors():
            password = host.passwords.open(args.sealed_password, args.ref)
            record = await attempt.in_thread(lambda _: self._store.record(ref), more_follows=True)
            options = record.options
            async with host.scratch.source(ref, record, host.bucket, attempt) as source:

                async def measure(dpi: int) -> Page:
                    asked = replace(options, dpi=dpi)
                    document = await host.children.count_pages(
                        str(ref), source, asked, host.limits.pages, attempt.beat, password, fresh=attempt.is_retry
                    )
                    if args.number > len(document.pages):
                        msg = f"the render process found {len(document.pages):,} pages, fewer than before"
                        raise RenderCrashed(msg)
                    return document.pages[args.number - 1]

                half = (await measure(options.dpi)).dpi // 2
                if not MINIMUM_DPI <= half < args.dpi:
                    return None
                page = await measure(half)
            # ``count_pages`` has checked the limits at the size that the page had.
            if page.reason or page.width > (args.width or page.width) or page.height > (args.height or page.height):
                msg = f"the render process found another page {args.number:,} at half its resolution"
                raise RenderCrashed(msg)
            # The note does not give the memory limit, because sheet.json must be the same whichever host makes the sheet.
            note = scaled_note(half, options.dpi, "the page needs more memory than one page may take")
            return replace(page, scaled=True, notes=bounded_notes((note, *page.notes)))
