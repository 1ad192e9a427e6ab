"""The objects of one sheet in the bucket, and foreign objects among them, as one LIST shows them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from activities.bucket.dzi import Pyramid, parse_tile_name, tile_name
from activities.bucket.keys import SheetObject, SheetPart, UploadRef, parse_sheet_path
from activities.bucket.records import Layout
from activities.bucket.storage import Bucket, ObjectInfo


@dataclass
class Listing:
    """The objects below the prefix of sheet ``number``."""

    number: int
    tiles: dict[str, ObjectInfo] = field(default_factory=dict)
    """The tiles by name. A name may be outside the sheet's pyramid; ``is_tile_of`` tells."""
    thumbnail: ObjectInfo | None = None
    record: ObjectInfo | None = None
    descriptor: ObjectInfo | None = None
    archive: ObjectInfo | None = None
    foreign: list[str] = field(default_factory=list)
    """Objects that belong to no sheet, as paths below ``sheets/``."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no object. In a local directory, a deleted sheet leaves an empty directory, so that it still looks begun."""
        return not (self.tiles or self.thumbnail or self.record or self.descriptor or self.archive or self.foreign)

    def has_marker(self, layout: Layout) -> bool:
        """Whether the sheet looks committed. In both layouts, only its ``.dzi`` says so.

        Args:
            layout: The layout of the sheet.
        """
        return self.descriptor is not None or (self.archive is not None and layout is not Layout.BOTH)

    def tiles_of(self, pyramid: Pyramid | None, layout: Layout) -> dict[str, ObjectInfo]:
        """The tiles that belong to the sheet. Without a pyramid every tile does, unless the sheet is packed."""
        if not layout.has_tiles:
            return {}
        if not pyramid:  # nobody knows the sheet's size
            return dict(self.tiles)
        if 2 * len(self.tiles) < pyramid.tile_count:
            return {name: info for name, info in self.tiles.items() if is_tile_of(pyramid, name)}
        # To write the names of all tiles takes a third of the CPU that it takes to parse each name of a whole sheet.
        names = {tile_name(*place) for place in pyramid.tiles()}
        return {name: info for name, info in self.tiles.items() if name in names}

    def surplus(self, ref: UploadRef, pyramid: Pyramid | None, layout: Layout) -> list[str]:
        """The keys of all foreign objects, of the tiles outside the pyramid, and of the objects that only another layout has."""
        other = [info for info, belongs in ((self.descriptor, layout.has_tiles), (self.archive, layout.has_archive)) if not belongs]
        tiles = self.tiles_of(pyramid, layout)
        return [
            *(ref.sheets_prefix + path for path in self.foreign),
            *(info.key for info in other if info is not None),
            *(info.key for name, info in self.tiles.items() if name not in tiles),
        ]

    @classmethod
    def fetch(cls, bucket: Bucket, ref: UploadRef, number: int) -> Self:
        """Lists the objects of a sheet; blocks.

        Raises:
            BucketError: The bucket failed.
        """
        return cls.of(ref, number, bucket.objects(ref.sheet_prefix(number)))

    @classmethod
    def of(cls, ref: UploadRef, number: int, objects: Iterable[ObjectInfo]) -> Self:
        """Sorts the objects of a sheet that were listed."""
        listing = cls(number)
        sheets_prefix = ref.sheets_prefix  # built once, not for each of some thousand objects
        for info in objects:
            path = info.key.removeprefix(sheets_prefix)
            match parse_sheet_path(path):
                case SheetObject(part=SheetPart.TILE, tile=name):
                    listing.tiles[name] = info
                case SheetObject(part=SheetPart.THUMBNAIL):
                    listing.thumbnail = info
                case SheetObject(part=SheetPart.RECORD):
                    listing.record = info
                case SheetObject(part=SheetPart.DESCRIPTOR):
                    listing.descriptor = info
                case SheetObject(part=SheetPart.ARCHIVE):
                    listing.archive = info
                case None:
                    listing.foreign.append(path)
        return listing


def is_tile_of(pyramid: Pyramid, name: str) -> bool:
    """Whether the pyramid has the tile called ``{level}/{col}_{row}.jpeg``."""
    tile = parse_tile_name(name)
    return tile is not None and pyramid.has_tile(*tile)
