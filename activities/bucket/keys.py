"""Object keys: the only module that makes and parses them.

organizations/{org}/webhooks.json
organizations/{org}/projects/{project}/plans/{plan}/
    keys/{sha256 of Idempotency-Key}.json
    uploads/{upload}/
        source.pdf  source.json  begun.json  upload.json  manifest.json  reopened.json
        parts/part-{n}
        sheets/sheet-{n}/thumbnail.jpeg
        sheets/sheet-{n}/sheet.json
        sheets/sheet-{n}/tiles/sheet-{n}.dzi
        sheets/sheet-{n}/tiles/sheet-{n}_files/{level}/{col}_{row}.jpeg
        sheets/sheet-{n}/tiles/sheet-{n}.pmtiles
events/unreadable/{sha256 of the message}.json
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Self

from activities.bucket.dzi import parse_tile_name

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SHEET_DIRECTORY = re.compile(r"sheet-([1-9][0-9]{0,8})")
_UPLOAD_PREFIX = re.compile(
    rf"organizations/({ID_PATTERN.pattern})/projects/({ID_PATTERN.pattern})/plans/({ID_PATTERN.pattern})/uploads/({ID_PATTERN.pattern})/"
)

UNREADABLE_EVENTS_PREFIX = "events/unreadable/"
"""Here messages are kept that were delivered as R2 events but are not R2 events."""
_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

ROOT = "organizations/"
"""The keys of all uploads begin with this."""


def check_id(kind: str, value: str) -> str:
    """Returns ``value`` if it may stand in a key.

    Raises:
        ValueError: It does not match ``[A-Za-z0-9][A-Za-z0-9_-]{0,63}``; the message names ``kind``.
    """
    if not ID_PATTERN.fullmatch(value):
        msg = f"{kind} {value[:80]!r} is not an id: 1 to 64 letters, digits, '-' or '_', starting with a letter or digit"
        raise ValueError(msg)
    return value


def webhooks_record(organization: str) -> str:
    """``webhooks.json``: where an organization's webhooks are sent.

    Raises:
        ValueError: The organization is malformed.
    """
    return f"{ROOT}{check_id('organization', organization)}/webhooks.json"


def webhook_workflow_id(organization: str, delivery: str) -> str:
    """The id of the workflow that delivers one webhook.

    Raises:
        ValueError: An id is malformed.
    """
    return f"webhook/{check_id('organization', organization)}/{check_id('delivery', delivery)}"


@dataclass(frozen=True)
class PlanRef:
    """The tenancy path of a plan: ``org/project/plan``.

    Raises:
        ValueError: An id is malformed.
    """

    organization: str
    project: str
    plan: str

    def __post_init__(self) -> None:
        check_id("organization", self.organization)
        check_id("project", self.project)
        check_id("plan", self.plan)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``org/project/plan``.

        Raises:
            ValueError: The text is not three ids.
        """
        parts = text.split("/")
        if len(parts) != 3:
            msg = f"{text[:200]!r} is not org/project/plan"
            raise ValueError(msg)
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.organization}/{self.project}/{self.plan}"

    @property
    def prefix(self) -> str:
        """Ends with ``/``."""
        return f"organizations/{self.organization}/projects/{self.project}/plans/{self.plan}/"

    @property
    def uploads_prefix(self) -> str:
        """Ends with ``/``; below it, each upload is a directory."""
        return f"{self.prefix}uploads/"

    @property
    def keys_prefix(self) -> str:
        """Ends with ``/``; below it are the records of the plan's ``Idempotency-Key`` headers."""
        return f"{self.prefix}keys/"

    def idempotency_key(self, header: str) -> str:
        """The record of one ``Idempotency-Key`` header. The key has a hash of the header, because a header may hold any characters."""
        return f"{self.keys_prefix}{hashlib.sha256(header.encode()).hexdigest()}.json"


@dataclass(frozen=True)
class UploadRef:
    """The path of one upload, which messages and documents call REF: ``org/project/plan/upload``.

    Raises:
        ValueError: An id is malformed.
    """

    organization: str
    project: str
    plan: str
    upload: str

    def __post_init__(self) -> None:
        PlanRef(self.organization, self.project, self.plan)
        check_id("upload", self.upload)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``org/project/plan/upload``.

        Raises:
            ValueError: The text is not four ids.
        """
        parts = text.split("/")
        if len(parts) != 4:
            msg = f"{text[:200]!r} is not org/project/plan/upload"
            raise ValueError(msg)
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.organization}/{self.project}/{self.plan}/{self.upload}"

    @property
    def plan_ref(self) -> PlanRef:
        """The plan this upload is a version of."""
        return PlanRef(self.organization, self.project, self.plan)

    @property
    def workflow_id(self) -> str:
        """The id of the upload's workflow: one per upload."""
        return f"upload/{self}"

    @property
    def delete_workflow_id(self) -> str:
        """The id of the workflow that deletes the upload."""
        return f"delete/{self}"

    @property
    def layout_workflow_id(self) -> str:
        """The id of the workflow that converts the upload to another layout."""
        return f"layout/{self}"

    def delivery(self, event: str, receiver: str, occasion: str) -> str:
        """The id of a webhook about the upload, its ``webhook-id``. It is the same however often the webhook is sent.

        Args:
            event: The type of the event.
            receiver: Which of the receivers gets it.
            occasion: Tells events of one type apart.
        """
        return f"msg_{hashlib.sha256(f'{self} {event} {receiver} {occasion}'.encode()).hexdigest()[:32]}"

    @property
    def made_at(self) -> datetime | None:
        """When the upload's id, a UUIDv7, was made; None for an id of another kind.

        https://www.rfc-editor.org/rfc/rfc9562#section-5.7
        """
        match = _UUID7.fullmatch(self.upload)
        return datetime.fromtimestamp(int(match[1] + match[2], 16) / 1000, UTC) if match else None

    @property
    def prefix(self) -> str:
        """Ends with ``/``."""
        return f"{self.plan_ref.uploads_prefix}{self.upload}/"

    @property
    def source(self) -> str:
        """The PDF as it was sent: the first object."""
        return f"{self.prefix}source.pdf"

    @property
    def source_record(self) -> str:
        """``source.json``: the SHA-256 of ``source.pdf``, if ``upload.json`` does not say it."""
        return f"{self.prefix}source.json"

    @property
    def record(self) -> str:
        """``upload.json``, the second object: an upload exists if and only if it has one."""
        return f"{self.prefix}upload.json"

    @property
    def begun(self) -> str:
        """``begun.json``, of an upload whose client sends ``source.pdf`` in parts."""
        return f"{self.prefix}begun.json"

    @property
    def parts_prefix(self) -> str:
        """Ends with ``/``; below it are such parts, if the bucket is a directory."""
        return f"{self.prefix}parts/"

    def part(self, number: int) -> str:
        """One such part; numbers count from 1."""
        return f"{self.parts_prefix}part-{number}"

    @property
    def manifest(self) -> str:
        """``manifest.json``: the final progress of a run."""
        return f"{self.prefix}manifest.json"

    @property
    def reopened(self) -> str:
        """``reopened.json``: a run goes on with an upload that had ended, and has not ended yet."""
        return f"{self.prefix}reopened.json"

    @property
    def sheets_prefix(self) -> str:
        """Ends with ``/``; below it, each sheet that was begun is a directory."""
        return f"{self.prefix}sheets/"

    def sheet_prefix(self, sheet: int) -> str:
        """Ends with ``/``; below it are all objects of one sheet. Here and below, ``sheet`` counts from 1."""
        return f"{self.sheets_prefix}sheet-{sheet}/"

    def thumbnail(self, sheet: int) -> str:
        """The sheet's thumbnail, longest side 512 px."""
        return f"{self.sheet_prefix(sheet)}thumbnail.jpeg"

    def sheet_record(self, sheet: int) -> str:
        """``sheet.json``, written after the tiles."""
        return f"{self.sheet_prefix(sheet)}sheet.json"

    def descriptor(self, sheet: int) -> str:
        """The ``.dzi``: the commit marker of a sheet whose tiles are objects, written last."""
        return f"{self.sheet_prefix(sheet)}tiles/sheet-{sheet}.dzi"

    def archive(self, sheet: int) -> str:
        """The ``.pmtiles`` with all tiles of a sheet: the commit marker of a sheet that has no ``.dzi``."""
        return f"{self.sheet_prefix(sheet)}tiles/sheet-{sheet}.pmtiles"

    def tiles_prefix(self, sheet: int) -> str:
        """Ends with ``/``; a tile's key is this prefix and the tile's name, ``{level}/{col}_{row}.jpeg``."""
        return f"{self.sheet_prefix(sheet)}tiles/sheet-{sheet}_files/"


def upload_of(key: str) -> str:
    """REF of the upload to which the object at ``key`` belongs; empty if it belongs to no upload."""
    match = _UPLOAD_PREFIX.match(key)
    return "/".join(match.groups()) if match else ""


def sheet_of_directory(name: str) -> int | None:
    """The number of the sheet whose directory is called ``name`` (``sheet-12``), or None for a foreign name."""
    match = _SHEET_DIRECTORY.fullmatch(name)
    return int(match.group(1)) if match else None


def sheet_numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the sheets among the names of directories, ascending."""
    return sorted(filter(None, map(sheet_of_directory, names)))


class SheetPart(Enum):
    """The kinds of objects that a sheet has."""

    THUMBNAIL = auto()
    RECORD = auto()
    DESCRIPTOR = auto()
    ARCHIVE = auto()
    TILE = auto()


@dataclass(frozen=True)
class SheetObject:
    """An object that a sheet may have.

    Args:
        sheet: The sheet's number.
        part: Which of the sheet's objects.
        tile: The name of the tile, ``{level}/{col}_{row}.jpeg``; empty for any other part.
    """

    sheet: int
    part: SheetPart
    tile: str = ""


def parse_sheet_path(path: str) -> SheetObject | None:
    """The object of a sheet at ``path`` below ``sheets/``; None for a path that no sheet has.

    A path counts only in the spelling that SiteLink writes: without leading zeros, for example.
    """
    directory, _, name = path.partition("/")
    sheet = sheet_of_directory(directory)
    if sheet is None:
        return None
    tile = name.removeprefix(f"tiles/{directory}_files/")
    if tile != name:
        return SheetObject(sheet, SheetPart.TILE, tile) if parse_tile_name(tile) else None
    parts = {
        "thumbnail.jpeg": SheetPart.THUMBNAIL,
        "sheet.json": SheetPart.RECORD,
        f"tiles/{directory}.dzi": SheetPart.DESCRIPTOR,
        f"tiles/{directory}.pmtiles": SheetPart.ARCHIVE,
    }
    return SheetObject(sheet, parts[name]) if name in parts else None


def sheet_of_marker(key: str) -> tuple[UploadRef, int] | None:
    """The upload and the number of the sheet whose ``.dzi`` or ``.pmtiles`` is at ``key``; None for any other key."""
    match = _UPLOAD_PREFIX.match(key)
    if match is None:
        return None
    ref = UploadRef(*match.groups())
    if not key.startswith(ref.sheets_prefix):
        return None
    found = parse_sheet_path(key.removeprefix(ref.sheets_prefix))
    return (ref, found.sheet) if found is not None and found.part in (SheetPart.DESCRIPTOR, SheetPart.ARCHIVE) else None


def unreadable_event(message: bytes) -> str:
    """The key that keeps a message that is not an R2 event. The same message always has the same key."""
    return f"{UNREADABLE_EVENTS_PREFIX}{hashlib.sha256(message).hexdigest()}.json"


def walk_uploads(directories: Callable[[str], Iterable[str]], after: UploadRef | None = None) -> Iterator[UploadRef]:
    """Yields every directory that may be an upload, in the order of names. Lists one directory at a time.

    Args:
        directories: Lists the names directly below a prefix.
        after: Begin after this upload; None for the first.
    """
    begin = (after.organization, after.project, after.plan, after.upload) if after else ()

    def names(prefix: str, *above: str) -> list[str]:
        depth = len(above)
        low = begin[depth] if begin and above == begin[:depth] else ""
        found = sorted(filter(ID_PATTERN.fullmatch, directories(prefix)))
        return [name for name in found if (name > low if depth == 3 else name >= low)]

    for organization in names(ROOT):
        projects = f"{ROOT}{organization}/projects/"
        for project in names(projects, organization):
            plans = f"{projects}{project}/plans/"
            for plan in names(plans, organization, project):
                uploads = PlanRef(organization, project, plan).uploads_prefix
                for upload in names(uploads, organization, project, plan):
                    yield UploadRef(organization, project, plan, upload)
