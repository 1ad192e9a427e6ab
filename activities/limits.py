"""The published limits of a document. ``count_pages`` decides by them once for each upload, before any tile is made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from activities.bucket.dzi import tile_count
from activities.bucket.records import UploadOptions, bounded_notes
from activities.bucket.weight import DETAIL_BYTES, MOST_PAGES, cut, fair_titles
from activities.errors import PageTooLarge, TooManyTiles
from activities.interface import Page


@dataclass(frozen=True)
class DocumentLimits:
    """The most that a document may have.

    Args:
        pages: Pages.
        side_px: Pixels of the longer side of a sheet.
        sheet_tiles: Tiles of a sheet, on all levels together.
        upload_tiles: Tiles of all sheets together.
    """

    pages: int = MOST_PAGES
    side_px: int = 100_000
    sheet_tiles: int = 200_000
    upload_tiles: int = 10_000_000

    def check_page(self, page: Page, options: UploadOptions) -> Page:
        """Returns the page. A page over a limit loses its size, and gets the name of the error and a sentence."""
        longest, tiles = max(page.width, page.height), _tile_count(page, options)
        if longest > self.side_px:
            reason, detail = (
                PageTooLarge.__name__,
                f"page {page.number:,} is {longest:,} px long at {page.dpi:,} dpi, limit {self.side_px:,}",
            )
        elif tiles > self.sheet_tiles:
            reason, detail = TooManyTiles.__name__, f"page {page.number:,} makes {tiles:,} tiles, limit {self.sheet_tiles:,}"
        else:
            return page
        return replace(page, width=0, height=0, dpi=0, scaled=False, reason=reason, detail=detail)

    def check_pages(self, pages: Sequence[Page], options: UploadOptions) -> tuple[Page, ...]:
        """Returns all pages, each as ``check_page`` returns it, with texts that fit into the progress of the upload.

        Raises:
            TooManyTiles: The pages within the limits make more tiles than an upload may have.
        """
        bounded = (self.check_page(page, options) for page in pages)
        checked = tuple(
            replace(page, title=title, detail=page.detail and cut(page.detail, DETAIL_BYTES), notes=bounded_notes(page.notes))
            for page, title in zip(bounded, fair_titles([page.title for page in pages]), strict=True)
        )
        tiles = sum(_tile_count(page, options) for page in checked)
        if tiles > self.upload_tiles:
            msg = f"all pages together make {tiles:,} tiles, limit {self.upload_tiles:,}"
            raise TooManyTiles(msg)
        return checked


def _tile_count(page: Page, options: UploadOptions) -> int:
    return tile_count(page.width, page.height, options.tile_size) if page.reason is None else 0
