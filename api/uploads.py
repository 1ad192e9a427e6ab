"""Accepts uploads: streams the PDF from the request's body to the bucket, in constant memory.

Oddities, all on purpose:

1. A form is parsed while it arrives, and its file goes straight to the bucket. Starlette's ``request.form()`` would write the file to the
   disk first.
2. The bucket's writer runs in a task of its own, because a cancelled streaming write leaves half an object. A request that ends early
   makes the stream fail instead, and waits for the writer.
3. The record of an ``Idempotency-Key`` names the upload and the digest of the body. It is created in one write, only if absent, after
   ``source.pdf`` and before ``upload.json``. When requests race with one key, also in several processes, each writes its own source, and
   exactly one becomes the upload. A retry after a crash finds the record and completes its upload, or finds no record and begins anew.
   If the record were written before the body, a later request could not tell whether the first request still writes or has died.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.records import (
    MOST_BUDGET_BYTES,
    KeyRecord,
    Layout,
    UploadOptions,
    UploadRecord,
    UploadStatus,
    camel_case,
    options_digest,
    timestamp,
)
from activities.bucket.storage import PART_BYTES, PARTS_AT_ONCE, Bucket
from activities.bucket.uploads import UploadStore
from activities.errors import (
    FileTooLarge,
    IdempotencyConflict,
    InvalidRequest,
    NotAPdf,
    QuotaExceeded,
    TemporalUnavailable,
)
from activities.sealing import PasswordSeal
from activities.webhooks.signing import derived_secret, upload_purpose
from api.http.digests import BodyDigests, refuse_encoded
from api.http.headers import file_name, parameters
from api.http.turns import Turns
from api.passwords import read_password
from api.progress.documents import links
from api.progress.runs import Runs
from api.progress.status import Status
from api.settings import ApiSettings
from api.webhooks import read_webhook

logger = logging.getLogger(__name__)

OPTIONS = {camel_case(name): name for name in ("dpi", "tile_size", "overlap", "quality", "budget_bytes", "window")}
"""The options that are whole numbers."""
LAYOUT, LAYERS, MARKUPS = "layout", "layers", "markups"
DEFAULT_FILE_NAME = "plan.pdf"
MAX_FILE_NAME = 255
MAX_KEY_CHARACTERS = 255
FORM_OVERHEAD_BYTES = 64 << 10
HEADER_WINDOW = 1024
"""``%PDF-`` must begin and end within this many bytes: PDF 1.7, appendix H, note 13."""
CHUNK_BYTES = 1 << 20
SILENCE_S = 60.0
"""A sender that is silent for longer counts as gone, even if its connection is open."""
MIN_BYTES_PER_S = 16 << 10
"""A sender must be this fast in the long run, apart from one silence."""
LONGEST_UPLOAD_S = 6 * 3600.0
UPLOADS_WAITING = 256
MAX_HELD_BYTES = (PARTS_AT_ONCE + 2) * PART_BYTES
"""The most memory that one upload takes: the parts on their way to the bucket, the part that fills up, and a copy."""
COPIES = 3
"""A file that is smaller than a part is in memory so many times at most."""


def new_upload_id() -> str:
    """A UUIDv7, lower case. Ids sort in the order of their creation, to a quarter of a microsecond.

    https://www.rfc-editor.org/rfc/rfc9562#section-5.7, with method 3 of section 6.2
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class Patience:
    """How long to wait for a sender: it may be silent for some time, and must then have earned more time by the bytes that it sent.

    Args:
        silence_s: The longest silence, in seconds.
        bytes_per_s: The speed at which a sender earns as much time as it takes.
        longest_s: The longest time that an upload may take.
    """

    def __init__(self, silence_s: float = SILENCE_S, bytes_per_s: float = MIN_BYTES_PER_S, longest_s: float = LONGEST_UPLOAD_S) -> None:
        self._silence_s = silence_s
        self._bytes_per_s = bytes_per_s
        self._longest_s = longest_s
        self._left_s = silence_s
        self._began = time.monotonic()

    async def next(self, stream: AsyncIterator[bytes]) -> bytes | None:
        """The next piece of a body; None at its end. Only the time that the sender takes counts against its silence.

        Raises:
            HTTPException: The sender was too slow (408).
        """
        asked = time.monotonic()
        left_s = min(self._left_s, self._longest_s - (asked - self._began))
        try:
            async with asyncio.timeout(left_s):
                piece = await anext(stream, None)
        except TimeoutError as error:
            detail = (
                f"the body came too slowly: at most {self._silence_s:g} s without a byte, on average {self._bytes_per_s:,} bytes a second "
                f"and {self._longest_s:,g} s in all are allowed"
            )
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail) from error
        self._left_s += len(piece or b"") / self._bytes_per_s - (time.monotonic() - asked)
        self._left_s = min(self._left_s, self._silence_s)
        return piece


class IncomingFile:
    """The PDF in a request, which is checked, counted and hashed while it streams through.

    Args:
        request: Its body is the PDF or a form with one file.
        max_bytes: The largest file that is accepted.
        patience: How slow the sender may be.

    Raises:
        FileTooLarge: The ``Content-Length`` is over the limit.
        NotAPdf: The ``Content-Length`` is 0.
        EncodedContent: The body has a ``Content-Encoding``.
        InvalidRequest: A header cannot be understood.
        HTTPException: The body's type is neither a PDF nor a form (415).
    """

    def __init__(self, request: Request, max_bytes: int, patience: Patience | None = None) -> None:
        self._request = request
        self._max_bytes = max_bytes
        self._patience = patience or Patience()
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.held_bytes = MAX_HELD_BYTES
        """How much memory the upload takes at most while it is received."""
        if "content-range" in request.headers:
            msg = "Content-Range: a part of a file is not accepted, send the whole file in one request"
            raise InvalidRequest(msg)
        refuse_encoded(request.headers)
        self._digests = BodyDigests(request.headers)
        kind, options = parameters("Content-Type", _raw_header(request, "content-type") or b"")
        self._boundary = options.get("boundary", "")
        self._is_form = kind == "multipart/form-data"
        if self._is_form and not self._boundary:
            msg = "the form's Content-Type has no boundary"
            raise InvalidRequest(msg)
        if not self._is_form and kind not in ("", "application/pdf", "application/octet-stream"):
            detail = f"the body is {kind!r}, send application/pdf or a form with one file"
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
        disposition = _raw_header(request, "content-disposition")
        self._file_name = request.query_params.get("filename") or (file_name(disposition) if disposition else None)
        self._check_announced_size(request.headers.get("content-length"))

    def _check_announced_size(self, length: str | None) -> None:
        if length is None or not length.isdigit():
            return  # ``chunks`` counts the bytes
        self.held_bytes = min(COPIES * (int(length) + CHUNK_BYTES), MAX_HELD_BYTES)
        if int(length) - (FORM_OVERHEAD_BYTES if self._is_form else 0) > self._max_bytes:
            raise too_large_error(int(length), self._max_bytes)
        if length == "0":
            msg = "the body is empty"
            raise NotAPdf(msg)

    @property
    def sha256(self) -> str:
        """The hexadecimal digest of the bytes that ``chunks`` has given so far."""
        return self._digest.hexdigest()

    def announces_other(self, sha256: str) -> bool:
        """Whether the request's digests say that the file is not the one with this SHA-256, hexadecimal."""
        return not self._is_form and self._digests.announces_other(sha256)

    @property
    def file_name(self) -> str:
        """The sender's name of the file, without directories and control characters. It is for people, never for a path."""
        return clean_file_name(self._file_name)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The file, in chunks of about a megabyte.

        Raises:
            NotAPdf: The first kilobyte has no PDF header, or the file is empty.
            FileTooLarge: The file has more bytes than the limit.
            DigestMismatch: The body has another digest than an announced one.
            InvalidRequest: The form is broken or has not exactly one file.
            ClientDisconnect: The sender went away.
            HTTPException: The sender fell silent (408).
        """
        buffer = bytearray()
        checked = False
        async with aclosing(self._form() if self._is_form else self._body()) as pieces:
            async for piece in pieces:
                self.size_bytes += len(piece)
                if self.size_bytes > self._max_bytes:
                    raise too_large_error(self.size_bytes, self._max_bytes)
                self._digest.update(piece)
                buffer += piece
                if not checked and len(buffer) >= HEADER_WINDOW:
                    check_header(buffer)
                    checked = True
                if len(buffer) >= CHUNK_BYTES:
                    yield bytes(buffer)
                    buffer.clear()
        if not checked:
            check_header(buffer)
        if buffer:
            yield bytes(buffer)

    async def _body(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._request.stream()) as stream:
            while (piece := await self._patience.next(stream)) is not None:
                self._digests.update(piece)
                yield piece
        self._digests.check()

    async def _form(self) -> AsyncGenerator[bytes, None]:
        form = _Form(self._boundary.encode())
        async with aclosing(self._body()) as pieces:
            async for piece in pieces:
                for data in form.feed(piece):
                    yield data
                if form.other_bytes > FORM_OVERHEAD_BYTES:
                    detail = f"the form has more than {FORM_OVERHEAD_BYTES:,} bytes beside the file"
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
        if not form.is_complete:
            msg = "the form is cut off"
            raise InvalidRequest(msg)
        if form.files != 1:
            msg = "the form holds no file"
            raise InvalidRequest(msg)
        self._file_name = self._file_name or form.file_name


def clean_file_name(name: str | None) -> str:
    """The sender's name of a file, without directories and control characters. It is for people, never for a path."""
    name = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in name if character.isprintable())[:MAX_FILE_NAME].strip() or DEFAULT_FILE_NAME


class _Form:
    """Cuts the one file out of a ``multipart/form-data`` body while the body arrives."""

    def __init__(self, boundary: bytes) -> None:
        self.files = 0
        self.file_name: str | None = None
        self.is_complete = False
        self.other_bytes = 0
        """The bytes that do not belong to the file: boundaries, headers and other parts."""
        self._data: list[bytes] = []
        self._in_file = False
        self._name, self._value = b"", b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _unreadable_form(error) from error

    def feed(self, piece: bytes) -> list[bytes]:
        """The bytes of the file in ``piece``, a piece of the body."""
        self._data = []
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _unreadable_form(error) from error
        self.other_bytes += len(piece) - sum(map(len, self._data))
        return self._data

    def _part_begin(self) -> None:
        self._in_file = False

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name, value = self._name.lower(), self._value
        self._name, self._value = b"", b""
        if name != b"content-disposition":
            return
        part_file_name = file_name(value)
        if part_file_name is None:
            return
        self._in_file = True
        self.files += 1
        if self.files > 1:
            msg = "the form holds more than one file, send each file in a request of its own"
            raise InvalidRequest(msg)
        self.file_name = part_file_name

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self.is_complete = True


def check_header(beginning: bytes | bytearray) -> None:
    """Raises NotAPdf unless the beginning of a file has a PDF header."""
    if not beginning:
        msg = "the file is empty"
        raise NotAPdf(msg)
    if b"%PDF-" not in beginning[:HEADER_WINDOW]:
        msg = f"'%PDF-' is not in the first {HEADER_WINDOW:,} bytes: this is not a PDF"
        raise NotAPdf(msg)


def _raw_header(request: Request, name: str) -> bytes | None:
    """The bytes of a header as they were sent."""
    value = request.headers.get(name)
    return None if value is None else value.encode("latin-1")


def _unreadable_form(error: FormParserError) -> InvalidRequest:
    logger.info("a form cannot be read: %s", error)
    return InvalidRequest("the form cannot be read: it is not the multipart/form-data that its Content-Type announces")


def read_options(query: Mapping[str, str], most_budget_bytes: int = MOST_BUDGET_BYTES) -> UploadOptions:
    """Reads the options of an upload from the query.

    Args:
        query: The options by name.
        most_budget_bytes: The limit of ``budgetBytes``, which is also its default if that would be more.

    Raises:
        InvalidRequest: An option is unknown, is malformed or is out of its range.
    """
    values: dict[str, Any] = {}
    for name, text in query.items():
        if name == "filename":
            continue
        if name == LAYOUT:
            if text not in list(Layout):
                msg = f"{name} is {text[:80]!r}, allowed are {', '.join(Layout)}"
                raise InvalidRequest(msg)
            values[name] = Layout(text)
            continue
        if name == LAYERS:
            values[name] = _read_layers(text)
            continue
        if name == MARKUPS:
            if text not in ("true", "false"):
                msg = f"{name} is {text[:80]!r}, allowed are true and false"
                raise InvalidRequest(msg)
            values[name] = text == "true"
            continue
        if name not in OPTIONS:
            msg = f"there is no option {name[:80]!r}; there are {', '.join(OPTIONS)}, {LAYOUT}, {LAYERS}, {MARKUPS} and filename"
            raise InvalidRequest(msg)
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            msg = f"{name} is {text[:80]!r}, it must be a whole number"
            raise InvalidRequest(msg)
        values[OPTIONS[name]] = int(text)
    budget_bytes = values.setdefault("budget_bytes", min(UploadOptions.budget_bytes, most_budget_bytes))
    if budget_bytes > most_budget_bytes:
        msg = f"budgetBytes is {budget_bytes:,}, limit {most_budget_bytes:,}: a process that draws a sheet may not take more memory"
        raise InvalidRequest(msg)
    try:
        return UploadOptions(**values)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _read_layers(text: str) -> dict[str, bool]:
    """Reads ``-Furniture,+Demolition``, or JSON such as ``{"Furniture": false}`` for names with a comma or with spaces around them.

    A name without a sign is switched on; and so is one with a space before it, because ``+`` means a space in a query.

    Raises:
        InvalidRequest: The text is malformed, or switches a layer both on and off.
    """
    if text.lstrip().startswith("{"):
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            msg = f"{LAYERS} is {text[:80]!r}, which is not JSON"
            raise InvalidRequest(msg) from error
        if not all(isinstance(is_on, bool) for _, is_on in pairs):
            msg = f"{LAYERS} is {text[:80]!r}, each layer in it must be true or false"
            raise InvalidRequest(msg)
    else:
        signed = [item.strip(" ") for item in text.split(",")]
        pairs = [(item.removeprefix("+") if not item.startswith("-") else item[1:], not item.startswith("-")) for item in signed]
    layers = dict(pairs)
    if len(layers) != len(pairs):
        msg = f"{LAYERS} is {text[:80]!r}, which names a layer twice"
        raise InvalidRequest(msg)
    return layers


def too_large_error(size_bytes: int, max_bytes: int) -> FileTooLarge:
    """The error of a file that has more bytes than it may."""
    return FileTooLarge(f"{size_bytes:,} bytes, limit {max_bytes:,}")


class _UploadAborted(Exception):
    """Makes the bucket's streaming write fail, because the request has failed."""


class Uploads:
    """Accepts uploads.

    Args:
        bucket: Stores the uploads.
        status: Reads the state of an upload.
        runs: Starts the workflows of the uploads.
        settings: The limits of a file, of an organization and of memory.
    """

    def __init__(self, bucket: Bucket, status: Status, runs: Runs, settings: ApiSettings) -> None:
        self._bucket = bucket
        self._store = UploadStore(bucket)
        self._status = status
        self._runs = runs
        self._max_file_bytes = settings.max_file_bytes
        self._most_budget_bytes = settings.most_budget_bytes
        self._max_open_uploads = settings.max_open_uploads
        self._webhooks = settings.webhooks
        self._passwords = PasswordSeal(settings.codec_keys)
        memory_bytes = settings.upload_memory_bytes
        self._turns = Turns(memory_bytes, share=memory_bytes * 3 // 4, line=UPLOADS_WAITING, what="uploads that are being received")
        self._writers: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits up to 2 seconds for the running writes to end. Cancelled requests are aborting theirs."""
        if self._writers:
            await asyncio.wait(self._writers, timeout=2)

    async def create(self, plan: PlanRef, request: Request) -> Response:
        """Answers ``POST …/uploads``."""
        options = read_options(request.query_params, self._most_budget_bytes)
        webhook = read_webhook(request.headers, self._webhooks)
        key = idempotency_key(plan, request.headers.get("idempotency-key"))
        password = await self.password(request)
        file = IncomingFile(request, self._max_file_bytes)
        digest = options_digest(options, webhook)
        earlier = await self._store.key_record_async(key) if key else None
        # The sender may wait until the first byte of the body is asked for, so all that can be refused without it is refused before.
        if earlier is None:
            await self.check_quota(plan)
        else:
            ref = UploadRef(*_parts(plan), earlier.upload)
            await self.check_same(ref, earlier, digest, is_other_file=file.announces_other(earlier.sha256))
        async with self._turns.turn(plan.organization, file.held_bytes):
            if earlier is None:
                ref = UploadRef(*_parts(plan), new_upload_id())
                await self.receive(partial(self._store.put_source_async, ref), file.chunks())
            else:
                async for _ in file.chunks():
                    pass  # only the digest is needed, to compare the file with the first one
        if earlier is None and key:
            earlier = await self.claim(key, ref, file.sha256, digest)
        if earlier is not None:
            ref = UploadRef(*_parts(plan), earlier.upload)
            await self.check_same(ref, earlier, digest, is_other_file=file.sha256 != earlier.sha256)
        record = UploadRecord(
            file.file_name,
            file.size_bytes,
            file.sha256,
            options,
            timestamp(datetime.now(UTC)),
            webhook=webhook,
            idempotency_key=key or "",
        )
        return await self.accept(ref, record, password)

    async def password(self, request: Request) -> str:
        """The password that a request gives for the PDF of its upload; empty without one.

        Raises:
            InvalidRequest: The header cannot be understood.
            PasswordRefused: The password could not be kept secret.
            TemporalUnavailable: Temporal does not answer. Nothing else may keep a password until the workflow starts.
        """
        if password := read_password(request.headers):
            self._passwords.check()
            await self._runs.check_health()
        return password

    def sealed_password(self, ref: UploadRef, request: Request) -> str:
        """The same for an upload that is accepted: sealed. Raises like ``password``, but not ``TemporalUnavailable``."""
        return self._passwords.seal(read_password(request.headers), str(ref))

    async def accept(self, ref: UploadRef, record: UploadRecord, password: str = "") -> Response:
        """Makes ``upload.json`` of an upload whose source is in the bucket, and starts its workflow, unless that was done before.

        Args:
            ref: The upload.
            record: Its ``upload.json``. Of an upload that was accepted before, only the webhook must be the same.
            password: Opens the PDF. It starts also an upload that was accepted before, and had no run because Temporal did not answer.

        Returns:
            The answer to the request: the same for a new upload and for one that was accepted before.
        """
        status, webhook = UploadStatus.QUEUED, record.webhook
        is_new = await self._store.accept_async(ref, record)
        if is_new:
            logger.info("accepted an upload", extra={"ref": str(ref), "size_bytes": record.size_bytes})
        if is_new or (password and await self._store.manifest_async(ref) is None):
            await self._start(ref, self._passwords.seal(password, str(ref)))
        if not is_new:
            status = (await self._status.read(ref)).snapshot.status
        body: dict[str, object] = {"ref": str(ref), "upload": ref.upload, "status": status.value, "links": links(ref)}
        if webhook is not None and self._webhooks.secrets:
            body["webhookSecret"] = derived_secret(self._webhooks.secrets[0], upload_purpose(ref))
        return JSONResponse(body, HTTPStatus.ACCEPTED, {"Location": links(ref)["self"], "Cache-Control": "no-store"})

    def turn(self, organization: str, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Waits for the memory that it takes to receive so many bytes; raises like ``Turns.turn``."""
        return self._turns.turn(organization, min(COPIES * (size_bytes + CHUNK_BYTES), MAX_HELD_BYTES))

    async def check_quota(self, plan: PlanRef) -> None:
        """Returns if the plan's organization may have one more upload.

        Raises:
            QuotaExceeded: Too many of its uploads are unfinished.
        """
        try:
            count = await self._runs.count_open(plan.organization)
        except TemporalUnavailable:
            return  # an upload is accepted without Temporal, too
        if count >= self._max_open_uploads:
            msg = f"{count:,} uploads of {plan.organization} are not finished, limit {self._max_open_uploads:,}"
            raise QuotaExceeded(msg)

    async def _start(self, ref: UploadRef, sealed_password: str) -> None:
        try:
            await self._runs.start(ref, sealed_password)
        except TemporalUnavailable as error:
            # The upload is accepted: the next GET or the sweep starts its workflow.
            logger.warning("the workflow of an accepted upload is not started yet", extra={"ref": str(ref), "problem": str(error)})

    async def claim(self, key: str, ref: UploadRef, sha256: str, digest: str) -> KeyRecord | None:
        """Makes ``ref`` the upload of the key.

        Args:
            key: The key of the record, from ``idempotency_key``.
            ref: The upload, whose source is in the bucket.
            sha256: SHA-256 of the file, or of the name of a source, hexadecimal.
            digest: ``options_digest`` of the request.

        Returns:
            The record of another request that was faster. Then the source of ``ref`` is removed.
        """
        earlier = await self._store.claim_key_async(key, KeyRecord(ref.upload, sha256, digest))
        if earlier is not None:
            await asyncio.to_thread(self._bucket.delete, [ref.source])
        return earlier

    async def check_same(self, ref: UploadRef, earlier: KeyRecord, digest: str, *, is_other_file: bool) -> None:
        """Returns if a request repeats the first request with its key.

        Args:
            ref: The upload of the first request.
            earlier: The record of the first request.
            digest: ``options_digest`` of this request.
            is_other_file: Whether this request has another file.

        Raises:
            IdempotencyConflict: It is another request, or the upload was deleted.
        """
        if is_other_file:
            msg = "this Idempotency-Key was used with another file; a new file needs a new key"
            raise IdempotencyConflict(msg)
        if earlier.options not in (None, digest):
            msg = "this Idempotency-Key was used with other options; other options need a new key"
            raise IdempotencyConflict(msg)
        if await self._store.was_deleted_async(ref):
            msg = f"the upload of this Idempotency-Key, {ref}, was deleted; to send the file again, use a new key"
            raise IdempotencyConflict(msg)

    async def receive(
        self, write: Callable[[AsyncIterator[bytes]], Coroutine[Any, Any, None]], arriving: AsyncGenerator[bytes, None]
    ) -> None:
        """Writes the chunks that arrive to the bucket as one object, wholly or not at all, even when this task is cancelled."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        aborted = False

        async def body() -> AsyncIterator[bytes]:
            while (chunk := await queue.get()) is not None:
                yield chunk
            if aborted:
                raise _UploadAborted

        writer = asyncio.create_task(write(body()))
        self._writers.add(writer)
        writer.add_done_callback(self._writers.discard)
        try:
            async with aclosing(arriving) as chunks:
                async for chunk in chunks:
                    await _hand_over(queue, chunk, writer)
            await _hand_over(queue, None, writer)
            await asyncio.shield(writer)
        except BaseException:
            aborted = True
            if not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)
            await asyncio.wait({writer})
            writer.exception()  # marks the error as seen; it only says that the write was aborted
            raise


async def _hand_over(queue: asyncio.Queue[bytes | None], chunk: bytes | None, writer: asyncio.Task[None]) -> None:
    """Puts a chunk into the queue when the writer has taken the previous chunk; if the writer has failed, raises its error."""
    put = asyncio.create_task(queue.put(chunk))
    try:
        await asyncio.wait({put, writer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        put.cancel()
    if writer.done():
        writer.result()


def idempotency_key(plan: PlanRef, header: str | None) -> str | None:
    """The key of the record of an ``Idempotency-Key`` header; None without the header.

    Raises:
        InvalidRequest: The header is empty or too long.
    """
    if header is None:
        return None
    if not 1 <= len(header) <= MAX_KEY_CHARACTERS:
        msg = f"the Idempotency-Key has {len(header):,} characters, allowed are 1 to {MAX_KEY_CHARACTERS}"
        raise InvalidRequest(msg)
    return plan.idempotency_key(header)


def _parts(plan: PlanRef) -> tuple[str, str, str]:
    return plan.organization, plan.project, plan.plan
