"""Accepts uploads of a PDF that lies in the bucket already: the request names its key instead of sending the file.

A directory is read by this process, which thereby learns the SHA-256. An S3 server copies by itself, so the SHA-256 is not known until a
worker reads the copy.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.records import UploadRecord, options_digest, timestamp
from activities.bucket.storage import LARGEST_COPY_BYTES, Bucket
from activities.bucket.store_errors import not_written_error
from activities.bucket.uploads import UploadStore
from activities.errors import InvalidRequest
from api.http.bodies import read_body
from api.http.digests import BodyDigests, refuse_encoded
from api.http.headers import parameters
from api.settings import ApiSettings
from api.uploads import (
    CHUNK_BYTES,
    HEADER_WINDOW,
    LAYERS,
    MARKUPS,
    Uploads,
    check_header,
    clean_file_name,
    idempotency_key,
    new_upload_id,
    read_options,
    too_large_error,
)
from api.webhooks import read_webhook

MAX_BODY_BYTES = 64 << 10


def names_source(request: Request) -> bool:
    """Whether a request to make an upload has JSON in place of a file."""
    return parameters("Content-Type", request.headers.get("content-type", "").encode("latin-1"))[0] == "application/json"


class Sources:
    """Accepts uploads of objects in the bucket.

    Args:
        bucket: Holds the objects and the uploads.
        uploads: Accepts the uploads.
        settings: Which objects may be named, and how large they may be.
    """

    def __init__(self, bucket: Bucket, uploads: Uploads, settings: ApiSettings) -> None:
        self._bucket = bucket
        self._store = UploadStore(bucket)
        self._uploads = uploads
        self._prefix = settings.source_prefix
        self._max_bytes = settings.max_file_bytes
        self._most_budget_bytes = settings.most_budget_bytes
        self._webhooks = settings.webhooks

    async def create(self, plan: PlanRef, request: Request) -> Response:
        """Answers ``POST …/uploads`` with a JSON body."""
        webhook = read_webhook(request.headers, self._webhooks)
        key = idempotency_key(plan, request.headers.get("idempotency-key"))
        password = await self._uploads.password(request)
        refuse_encoded(request.headers)
        query = await _read(request)
        source = query.pop("source", "")
        options = read_options(query, self._most_budget_bytes)
        self._prefix.check(plan, source)
        digest = options_digest(options, webhook)
        name_sha256 = hashlib.sha256(f"source {source}".encode()).hexdigest()
        earlier = await self._store.key_record_async(key) if key else None
        sha256: str | None = None
        if earlier is None:
            await self._uploads.check_quota(plan)
            ref = UploadRef(plan.organization, plan.project, plan.plan, new_upload_id())
            sha256 = await self._copy(source, ref)
            if key:
                earlier = await self._uploads.claim(key, ref, name_sha256, digest)
        if earlier is not None:
            ref = UploadRef(plan.organization, plan.project, plan.plan, earlier.upload)
            await self._uploads.check_same(ref, earlier, digest, is_other_file=earlier.sha256 != name_sha256)
            sha256 = None
        size_bytes = (await self._bucket.head_async(ref.source)).size
        file_name = clean_file_name(query.get("filename") or source)
        now = timestamp(datetime.now(UTC))
        record = UploadRecord(file_name, size_bytes, sha256, options, now, webhook=webhook, idempotency_key=key or "")
        return await self._uploads.accept(ref, record, password)

    async def _copy(self, source: str, ref: UploadRef) -> str | None:
        """Copies the object to ``source.pdf`` of the upload; returns its SHA-256, hexadecimal, or None if only the bucket has read it.

        Raises:
            ObjectMissing: There is no such object.
            FileTooLarge: It has more bytes than the limit.
            NotAPdf: It has no PDF header.
            BucketError: The bucket failed.
        """
        if (file := await asyncio.to_thread(self._bucket.open_file, source)) is not None:
            with file:
                size_bytes = os.fstat(file.fileno()).st_size
                if size_bytes > self._max_bytes:
                    raise too_large_error(size_bytes, self._max_bytes)
                async with self._uploads.turn(ref.organization, size_bytes):
                    return await self._read_into(ref, file, size_bytes)
        size_bytes = (await self._bucket.head_async(source)).size
        max_bytes = min(self._max_bytes, LARGEST_COPY_BYTES)
        if size_bytes > max_bytes:
            raise too_large_error(size_bytes, max_bytes)
        check_header(await self._bucket.beginning_async(source, min(size_bytes, HEADER_WINDOW)) if size_bytes else b"")
        await self._bucket.copy_async(source, ref.source)
        if (await self._bucket.head_async(ref.source)).size != size_bytes:
            raise not_written_error(ref.source)
        return None

    async def _read_into(self, ref: UploadRef, file: BinaryIO, left_bytes: int) -> str:
        check_header(await asyncio.to_thread(os.pread, file.fileno(), HEADER_WINDOW, 0))
        digest = hashlib.sha256()

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal left_bytes
            while chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, left_bytes)):
                left_bytes -= len(chunk)
                digest.update(chunk)
                yield chunk

        await self._uploads.receive(partial(self._store.put_source_async, ref), chunks())
        return digest.hexdigest()


async def _read(request: Request) -> dict[str, str]:
    """The source, the options and the file name, from the JSON body and the query.

    Raises:
        InvalidRequest: The body is no JSON object with a source, or an option is given twice or is no text or number.
        DigestMismatch: The body has another digest than an announced one.
        HTTPException: The body is too large (413), or comes too slowly (408).
    """
    digests = BodyDigests(request.headers)
    body = await read_body(request, MAX_BODY_BYTES)
    digests.update(bytes(body))
    digests.check()
    document: object = None
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
    if not isinstance(document, Mapping) or not isinstance(document.get("source"), str):
        msg = 'the body is not a JSON object with the key of a PDF in the bucket, such as {"source": "incoming/acme/plan.pdf"}'
        raise InvalidRequest(msg)
    values = dict(request.query_params)
    for name, value in document.items():
        if name in values:
            msg = f"{name[:80]} is in the body and in the query"
            raise InvalidRequest(msg)
        is_json = (name == MARKUPS and isinstance(value, bool)) or (name == LAYERS and isinstance(value, dict))
        if not is_json and (isinstance(value, bool) or not isinstance(value, str | int)):
            msg = f"{name[:80]} is neither a text nor a whole number"
            raise InvalidRequest(msg)
        values[name] = json.dumps(value) if is_json else str(value)
    return values
