"""Uploads whose client sends the PDF into the bucket itself, in parts.

``begin`` makes ``begun.json``. On an S3 server it also begins a multipart upload, whose parts the client sends to presigned URLs; in a
directory the URLs are of this API (``put_part``). ``complete`` joins the parts, looks at the result, and accepts the upload.

Oddities, all on purpose:

1. All state is in the bucket. So a client may go on after a restart of the API, at another process, or on another day.
2. ``complete`` may be cut off between any two of its steps, and be asked again. If ``source.pdf`` exists, the parts were joined.
3. ``begun.json`` stays when the upload is accepted: a request with the same ``Idempotency-Key`` gets the same upload.
4. A URL of this API is signed by a secret in ``begun.json``, so a browser sends a part to it as it would to an S3 server: without any
   credential. It is answered alike whether the upload does not exist or the signature is wrong.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.parts import DirectoryParts, PartStore, StoredPart, equal_parts
from activities.bucket.records import (
    LEAST_PART_BYTES,
    MOST_PART_BYTES,
    MOST_PARTS,
    BegunRecord,
    KeyRecord,
    UploadRecord,
    options_digest,
    timestamp,
)
from activities.bucket.storage import Bucket
from activities.bucket.store_errors import not_written_error
from activities.bucket.uploads import UploadStore, upload_deleted_error
from activities.errors import (
    AlreadyFinished,
    IdempotencyConflict,
    InvalidRequest,
    NotAllowed,
    ObjectMissing,
    PartsIncomplete,
    UploadNotFound,
)
from api.http.bodies import read_body
from api.http.parameters import plan_ref, upload_ref
from api.paths import upload_path
from api.progress.documents import links
from api.settings import ApiSettings
from api.uploads import (
    CHUNK_BYTES,
    HEADER_WINDOW,
    Patience,
    Uploads,
    check_header,
    clean_file_name,
    idempotency_key,
    new_upload_id,
    read_options,
    too_large_error,
)
from api.webhooks import read_webhook

if TYPE_CHECKING:
    from activities.bucket.s3_parts import S3Parts

logger = logging.getLogger(__name__)

T = TypeVar("T")

URL_LIFE_S = 3600
"""How long the URL of a part is taken."""
MOST_SIGNED = 100
"""Most parts that one request signs: about 0.1 s of CPU."""
NAMED_PARTS = 10
"""Most numbers of parts in the sentence of an error."""
MAX_BODY_BYTES = 2 << 20
"""10,000 parts with their ETags take less."""
JOIN_PAUSES_S = (0, 0.05, 0.1, 0.2, 0.4)
"""Before each look for a source that was joined. versitygw was seen to be without it for some milliseconds."""
THREADS = 8
"""boto3 has no asynchronous calls. Threads of their own, so that a bucket that hangs takes no thread from other requests."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")


class DirectUploads:
    """The handlers.

    Args:
        bucket: Stores the uploads.
        uploads: Accepts an upload whose source is in the bucket.
        settings: The bucket, and the limits of a file.
    """

    def __init__(self, bucket: Bucket, uploads: Uploads, settings: ApiSettings) -> None:
        self._bucket = bucket
        self._store = UploadStore(bucket)
        self._uploads = uploads
        self._max_file_bytes = settings.max_file_bytes
        self._most_budget_bytes = settings.most_budget_bytes
        self._webhooks = settings.webhooks
        self._s3 = _s3_parts(settings.bucket) if settings.bucket.is_s3 else None
        self._parts: PartStore = self._s3 or DirectoryParts(bucket)
        self._threads = ThreadPoolExecutor(THREADS, "parts")

    @property
    def origin(self) -> str | None:
        """The origin to which clients send parts; None if it is this API's."""
        return self._s3.origin if self._s3 else None

    def close(self) -> None:
        """Lets the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ the routes

    async def begin(self, request: Request) -> Response:
        """Begins an upload; with the ``Idempotency-Key`` of an upload that was begun before, the answer is that upload.

        Raises:
            InvalidRequest: The body, an option or a header cannot be understood.
            FileTooLarge: The file has more bytes than the limit.
            QuotaExceeded: The organization has too many unfinished uploads.
            IdempotencyConflict: The key was used for another request, or its upload is gone.
        """
        plan = plan_ref(request)
        options = read_options(request.query_params, self._most_budget_bytes)
        webhook = read_webhook(request.headers, self._webhooks)
        key = idempotency_key(plan, request.headers.get("idempotency-key"))
        password = await self._uploads.password(request)  # refused now if at all; nothing keeps it until the upload is complete
        body = await _read_object(request, {"sizeBytes", "sha256", "partSizeBytes"})
        size_bytes, part_bytes = self._sizes(body)
        begun = BegunRecord(
            clean_file_name(request.query_params.get("filename")),
            size_bytes,
            _sha256(body),
            part_bytes,
            options,
            timestamp(datetime.now(UTC)),
            part_secret=None if self._s3 else secrets.token_hex(32),
            idempotency_key=key,
            webhook=webhook,
        )
        asked = KeyRecord("", _announced(begun), options_digest(options, webhook))
        if key and (earlier := await self._store.key_record_async(key)):
            return await self._answer_again(plan, earlier, asked, password)
        await self._uploads.check_quota(plan)
        ref = UploadRef(plan.organization, plan.project, plan.plan, new_upload_id())
        begun = replace(begun, multipart_id=await self._in_thread(self._parts.begin, ref))
        await self._store.begin_async(ref, begun)
        if key and (earlier := await self._store.claim_key_async(key, replace(asked, upload=ref.upload))):
            await self._in_thread(self._forget, ref, begun)
            return await self._answer_again(plan, earlier, asked, password)
        logger.info("began an upload", extra={"ref": str(ref), "size_bytes": size_bytes})
        return _begun_answer(ref, begun, [], HTTPStatus.CREATED)

    async def show(self, request: Request) -> Response:
        """An upload that was begun, and the parts of it that the bucket has.

        Raises:
            UploadNotFound: No such upload was begun, or it was aborted or has expired.
            AlreadyFinished: The upload is complete.
        """
        ref = upload_ref(request)
        begun = await self._begun(ref)
        return _begun_answer(ref, begun, await self._stored(ref, begun), HTTPStatus.OK)

    async def sign(self, request: Request) -> Response:
        """The URLs to which parts are sent. Raises like ``show``, and InvalidRequest for numbers that no part has."""
        ref = upload_ref(request)
        body = await _read_object(request, {"numbers"})
        begun = await self._begun(ref)
        numbers = body.get("numbers")
        if not isinstance(numbers, list) or len(numbers) > MOST_SIGNED:
            numbers = []
        if not numbers or not all(_is_number(number, begun.part_count) for number in numbers):
            msg = f"numbers must be a list of 1 to {MOST_SIGNED} numbers of parts, from 1 to {begun.part_count:,}"
            raise InvalidRequest(msg)
        expires_at = int(time.time()) + URL_LIFE_S

        def url(number: int) -> str:
            if self._s3:
                return self._s3.url(ref, begun, number, URL_LIFE_S)
            path = f"{upload_path(ref)}/parts/{number}"
            signature = part_signature(begun, number, expires_at)
            return f"{request.url.scheme}://{request.url.netloc}{path}?expires={expires_at}&signature={signature}"

        parts = [{"number": number, "sizeBytes": begun.part_size(number), "url": url(number)} for number in numbers]
        return _answer({"parts": parts, "expiresAt": timestamp(datetime.fromtimestamp(expires_at, UTC))})

    async def put_part(self, request: Request) -> Response:
        """Stores a part in the directory, over any earlier one of the same number.

        Raises:
            NotAllowed: The URL is not signed, or has expired.
            AlreadyFinished: The upload is complete.
            InvalidRequest: The body is not as long as the part.
        """
        ref, query, number = upload_ref(request), request.query_params, request.path_params["part"]
        expires_at = int(query["expires"]) if _SECONDS.fullmatch(query.get("expires", "")) else 0
        begun = await self._store.begun_record_async(ref)
        is_part = begun is not None and begun.part_secret and _is_number(number, begun.part_count)
        signature = part_signature(begun, number, expires_at) if begun is not None and is_part else ""
        if begun is None or not signature or not hmac.compare_digest(signature.encode(), query.get("signature", "").encode()):
            msg = "the address of the part is not one that this server has signed"
            raise NotAllowed(msg)
        if expires_at < time.time():
            msg = "the address of the part has expired, ask for a new one"
            raise NotAllowed(msg)
        await self._begun(ref)
        size_bytes = begun.part_size(number)
        length = request.headers.get("content-length")
        if length is not None and length != str(size_bytes):
            raise _wrong_length_error(number, length, size_bytes)
        async with self._uploads.turn(ref.organization, size_bytes):
            await self._uploads.receive(partial(self._bucket.put_stream, ref.part(number)), _chunks(request, number, size_bytes))
        try:
            await self._begun(ref)
        except (UploadNotFound, AlreadyFinished):
            # Meanwhile it was completed or aborted, and nobody would remove the part.
            await asyncio.to_thread(self._bucket.delete, [ref.part(number)])
            raise
        etag = (await self._bucket.head_async(ref.part(number))).etag
        return Response(headers={"ETag": etag or "", "Cache-Control": "no-store"})

    async def complete(self, request: Request) -> Response:
        """Joins the parts and accepts the upload. A second request has the same answer.

        Raises:
            UploadNotFound: No such upload was begun, or it was aborted or has expired.
            PartsIncomplete: A part is missing, has another size or another ETag. All parts stay.
            NotAPdf: The file is no PDF.
            QuotaExceeded: The organization has too many unfinished uploads.
        """
        ref, password = upload_ref(request), await self._uploads.password(request)
        etags = _etags(await _read_object(request, {"parts"}))
        try:
            begun = await self._begun(ref)
            await self._uploads.check_quota(ref.plan_ref)
            if not await self._has_source(ref, begun):
                await self._join(ref, begun, etags)
        except AlreadyFinished:
            return await self._uploads.accept(ref, await self._store.accepted_async(ref), password)
        check_header(await self._bucket.beginning_async(ref.source, min(begun.size_bytes, HEADER_WINDOW)))
        if not self._s3:
            await self._in_thread(self._parts.discard, ref, begun)
        record = UploadRecord(
            begun.file_name,
            begun.size_bytes,
            begun.sha256,
            begun.options,
            timestamp(datetime.now(UTC)),
            webhook=begun.webhook,
            idempotency_key=begun.idempotency_key or "",
        )
        return await self._uploads.accept(ref, record, password)

    async def abort(self, request: Request) -> Response:
        """Forgets an upload that was begun, and its parts. Raises like ``show``."""
        ref = upload_ref(request)
        await self._in_thread(self._forget, ref, await self._begun(ref))
        logger.info("aborted an upload that was begun", extra={"ref": str(ref)})
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})

    # ------------------------------------------------------------------ the steps

    def _sizes(self, body: dict[str, Any]) -> tuple[int, int]:
        """The size of the file and of a part, in bytes."""
        size_bytes = _whole_number(body, "sizeBytes")
        if size_bytes is None or size_bytes < 1:
            msg = "sizeBytes is missing or 0, it must be the size of the file"
            raise InvalidRequest(msg)
        if size_bytes > self._max_file_bytes:
            raise too_large_error(size_bytes, self._max_file_bytes)
        part_bytes = _whole_number(body, "partSizeBytes")
        if part_bytes is None:
            return size_bytes, equal_parts(size_bytes)
        if not LEAST_PART_BYTES <= part_bytes <= MOST_PART_BYTES or size_bytes > part_bytes * MOST_PARTS:
            msg = (
                f"partSizeBytes is {part_bytes:,}; parts have {LEAST_PART_BYTES:,} to {MOST_PART_BYTES:,} bytes, "
                f"and there are at most {MOST_PARTS:,}"
            )
            raise InvalidRequest(msg)
        return size_bytes, part_bytes

    async def _begun(self, ref: UploadRef) -> BegunRecord:
        """``begun.json`` of an upload that may be completed. Raises like ``show``."""
        begun = await self._store.begun_record_async(ref)
        with suppress(ObjectMissing):
            if (record := await self._store.record_async(ref)).deleted_at is not None:
                raise upload_deleted_error(ref, record.deleted_at)
            msg = f"the upload {ref} is complete"
            raise AlreadyFinished(msg)
        if begun is None:
            msg = f"there is no upload {ref}"
            raise UploadNotFound(msg)
        if begun.expires_at <= datetime.now(UTC):
            msg = f"the upload {ref} was begun at {begun.begun_at} and not completed until {timestamp(begun.expires_at)}"
            raise UploadNotFound(msg)
        return begun

    async def _answer_again(self, plan: PlanRef, earlier: KeyRecord, asked: KeyRecord, password: str) -> Response:
        """The answer to a request whose ``Idempotency-Key`` was used before."""
        if (earlier.sha256, earlier.options) != (asked.sha256, asked.options):
            msg = "this Idempotency-Key was used for another file or with other options; a new upload needs a new key"
            raise IdempotencyConflict(msg)
        ref = UploadRef(plan.organization, plan.project, plan.plan, earlier.upload)
        try:
            begun = await self._begun(ref)
        except AlreadyFinished:
            return await self._uploads.accept(ref, await self._store.accepted_async(ref), password)
        except UploadNotFound as error:
            msg = f"the upload of this Idempotency-Key is gone; to send the file again, use a new key: {error}"
            raise IdempotencyConflict(msg) from error
        return _begun_answer(ref, begun, await self._stored(ref, begun), HTTPStatus.CREATED)

    async def _stored(self, ref: UploadRef, begun: BegunRecord) -> list[StoredPart]:
        """The parts that the bucket has. After a ``complete`` that was cut off, it may have them as ``source.pdf``."""
        try:
            if stored := await self._in_thread(self._parts.stored, ref, begun):
                return stored
        except ObjectMissing:
            pass
        try:
            source = await self._bucket.head_async(ref.source)
        except ObjectMissing:
            return []
        return [StoredPart(number, begun.part_size(number), source.etag or "") for number in range(1, begun.part_count + 1)]

    async def _has_source(self, ref: UploadRef, begun: BegunRecord) -> bool:
        try:
            return (await self._bucket.head_async(ref.source)).size == begun.size_bytes
        except ObjectMissing:
            return False

    async def _join(self, ref: UploadRef, begun: BegunRecord, etags: dict[int, str]) -> None:
        try:
            stored = await self._in_thread(self._parts.stored, ref, begun)
            _check_parts(begun, stored, etags)
            await self._in_thread(self._parts.join, ref, begun, stored)
        except (ObjectMissing, PartsIncomplete) as error:
            # Another request may have joined the parts, or the answer to an earlier try of this one was lost.
            await self._begun(ref)
            if await self._gets_source(ref, begun):
                return
            if isinstance(error, PartsIncomplete):
                raise
            msg = "the bucket does not have the parts any more: abort this upload and begin anew"
            raise PartsIncomplete(msg) from None
        if not await self._gets_source(ref, begun):
            raise not_written_error(ref.source)

    async def _gets_source(self, ref: UploadRef, begun: BegunRecord) -> bool:
        """Whether the source is there, now or soon. A server that joins the parts twice replaces it."""
        for pause_s in JOIN_PAUSES_S:
            await asyncio.sleep(pause_s)
            if await self._has_source(ref, begun):
                return True
        return False

    def _forget(self, ref: UploadRef, begun: BegunRecord) -> None:
        """Removes what an upload that was begun has in the bucket. ``begun.json`` comes last, so that this can be repeated."""
        key = begun.idempotency_key
        if key and (record := self._store.key_record(key)) and record.upload == ref.upload:
            self._bucket.delete([key])
        self._parts.discard(ref, begun)
        self._bucket.delete([ref.source])
        self._bucket.delete([ref.begun])
        self._bucket.remove_empty_directories(ref.prefix)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        # With the context, so that a log line of the thread names the request.
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(copy_context().run, work, *args))


def _s3_parts(settings: BucketSettings) -> "S3Parts":
    from activities.bucket.s3_parts import S3Parts  # imported here, because it takes a second, and a directory needs none of it

    return S3Parts(settings)


async def _read_object(request: Request, names: set[str]) -> dict[str, Any]:
    """The JSON object in the body, which may have only these members."""
    try:
        body = json.loads(await read_body(request, MAX_BODY_BYTES), parse_float=_number)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        msg = f"the body must be a JSON object with {', '.join(sorted(names))}"
        raise InvalidRequest(msg)
    if unknown := sorted(body.keys() - names):
        msg = f"the body has {unknown[0][:80]!r}; it may have {', '.join(sorted(names))}"
        raise InvalidRequest(msg)
    return body


def _number(text: str) -> float:
    """A number with a point or an exponent. In JSON, 1.0 is a whole number, too."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _whole_number(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and not (type(value) is int and 0 <= value < 1 << 53):
        msg = f"{name} is {str(value)[:80]!r}, it must be a whole number"
        raise InvalidRequest(msg)
    return value


def _sha256(body: dict[str, Any]) -> str | None:
    value = body.get("sha256")
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        msg = f"sha256 is {str(value)[:80]!r}, it must have 64 hexadecimal digits, in lower case"
        raise InvalidRequest(msg)
    return value


def _announced(begun: BegunRecord) -> str:
    """The digest of what a request announced, to compare the next request with the same ``Idempotency-Key``."""
    announced = ["begin", begun.file_name, begun.size_bytes, begun.sha256, begun.part_bytes]
    return hashlib.sha256(json.dumps(announced).encode()).hexdigest()


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _etags(body: dict[str, Any]) -> dict[int, str]:
    """The ETags of the parts, by number."""
    parts = body.get("parts")
    if not isinstance(parts, list):
        msg = "parts is missing, it must be the list of all parts"
        raise InvalidRequest(msg)
    etags: dict[int, str] = {}
    for part in parts:
        if not isinstance(part, dict) or not _is_number(part.get("number"), MOST_PARTS) or not isinstance(part.get("etag"), str):
            msg = f"a part is {str(part)[:80]!r}; it must have its number, from 1 to {MOST_PARTS:,}, and its etag"
            raise InvalidRequest(msg)
        etags[part["number"]] = part["etag"]
    return etags


def _check_parts(begun: BegunRecord, stored: Sequence[StoredPart], etags: dict[int, str]) -> None:
    """Raises PartsIncomplete unless the bucket has all parts as the client has sent them."""
    found = {part.number: part for part in stored}
    numbers = range(1, begun.part_count + 1)
    both = [number for number in numbers if number in found and number in etags]
    wrong = {
        "not in the bucket": [number for number in numbers if number not in found],
        "not of the announced size": [n for n in numbers if n in found and found[n].size_bytes != begun.part_size(n)],
        "not named": [number for number in numbers if number not in etags],
        "named with another ETag than the bucket has": [n for n in both if etags[n].strip('"') != found[n].etag.strip('"')],
        "more than there may be": sorted((found.keys() | etags.keys()) - set(numbers)),
    }
    sentences = [f"{_list(numbers)} {'is' if len(numbers) == 1 else 'are'} {what}" for what, numbers in wrong.items() if numbers]
    if sentences:
        msg = f"of {begun.part_count:,} parts, {'; '.join(sentences)}"
        raise PartsIncomplete(msg)


def _list(numbers: Sequence[int]) -> str:
    named = ", ".join(map(str, numbers[:NAMED_PARTS]))
    return f"{named} and {len(numbers) - NAMED_PARTS:,} more" if len(numbers) > NAMED_PARTS else named


def part_signature(begun: BegunRecord, number: int, expires_at: int) -> str:
    """The signature in the URL of a part that this API takes."""
    return hmac.new(bytes.fromhex(begun.part_secret or ""), f"{number} {expires_at}".encode(), "sha256").hexdigest()


async def _chunks(request: Request, number: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
    patience, received, buffer = Patience(), 0, bytearray()
    async with aclosing(request.stream()) as stream:
        while (piece := await patience.next(stream)) is not None:
            received += len(piece)
            if received > size_bytes:
                raise _wrong_length_error(number, f"more than {size_bytes:,}", size_bytes)
            buffer += piece
            if len(buffer) >= CHUNK_BYTES or received == size_bytes:
                yield bytes(buffer)
                buffer.clear()
    if received != size_bytes:
        raise _wrong_length_error(number, f"{received:,}", size_bytes)


def _wrong_length_error(number: int, length: str, size_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"the body has {length[:20]} bytes, part {number:,} has {size_bytes:,}")


def _begun_answer(ref: UploadRef, begun: BegunRecord, stored: Sequence[StoredPart], status: int) -> Response:
    path = upload_path(ref)
    body = {
        "ref": str(ref),
        "upload": ref.upload,
        "fileName": begun.file_name,
        "sizeBytes": begun.size_bytes,
        "sha256": begun.sha256,
        "partSizeBytes": begun.part_bytes,
        "partCount": begun.part_count,
        "expiresAt": timestamp(begun.expires_at),
        "stored": [{"number": part.number, "sizeBytes": part.size_bytes, "etag": part.etag} for part in stored],
        "links": {**links(ref), "parts": f"{path}/parts", "sign": f"{path}/parts/sign", "complete": f"{path}/complete"},
    }
    return _answer(body, status, {"Location": f"{path}/parts"} if status == HTTPStatus.CREATED else {})


def _answer(body: dict[str, Any], status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(body, status, {"Cache-Control": "no-store", **(headers or {})})
