"""``GET …/plans/{plan}/events``, with a real Temporal server, API processes and a real directory; only activities are pretended."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.storage import Bucket
from api.cli.event_stream import EventParser
from tests.integration.test_api import Activities, ApiProcess, merged, send, url_of
from tests.integration.test_watchers import bucket, manifest, new_api
from tests.unit.api_fakes import BASE
from tests.waiting import DEADLINE_S, until_async
from tests.workflow.fakes import pages, working

__all__ = ["bucket", "new_api"]

EVENTS = BASE.removesuffix("/uploads") + "/events"


class PlanClient:
    """A client of the plan's stream, which merges the events of each upload."""

    def __init__(self) -> None:
        self.parser = EventParser()
        self.events: dict[str, list[tuple[str, str]]] = {}
        self.names: list[tuple[str, str]] = []
        """The name and the upload of each event, in order."""

    def take(self, chunk: bytes) -> None:
        """Takes bytes of the stream."""
        for event in self.parser.feed(chunk):
            document = json.loads(event.data)
            upload = document.pop("upload")
            self.names.append((event.event, upload))
            self.events.setdefault(upload, []).append((event.event, json.dumps(document)))

    def knows(self, ref: UploadRef) -> dict[str, Any]:
        """What the client knows of an upload."""
        return merged(self.events[ref.upload])

    def has(self, name: str, ref: UploadRef) -> bool:
        """Whether an event came."""
        return (name, ref.upload) in self.names

    async def follow(self, http: httpx2.AsyncClient, urls: list[str], room: Callable[[], int]) -> None:
        """Follows the stream without end; each connection breaks after ``room()`` bytes, and the next goes to the next address."""
        while True:
            urls.append(urls.pop(0))
            left = room()
            self.parser.restart()
            headers = {"Last-Event-ID": self.parser.last_event_id} if self.parser.last_event_id else {}
            async with http.stream("GET", urls[0], headers=headers) as response:
                assert response.status_code == 200
                async for chunk in response.aiter_bytes():
                    self.take(chunk[:left])
                    left -= len(chunk)
                    if left <= 0:
                        break


@asynccontextmanager
async def following(
    http: httpx2.AsyncClient, apis: list[ApiProcess], room: Callable[[], int] = lambda: 1 << 40
) -> AsyncIterator[PlanClient]:
    """A client that follows the plan meanwhile."""
    client = PlanClient()
    task = asyncio.create_task(client.follow(http, [api.url + EVENTS for api in apis], room))
    try:
        yield client
    finally:
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError), result


async def test_stream_has_all_uploads_also_new_and_deleted_ones(
    new_api: Callable[[], ApiProcess], bucket: Bucket, temporal: Client, http: httpx2.AsyncClient
) -> None:
    """Uploads of two processes show up by themselves and go on to their ends; a deletion ends an upload, and not the stream."""
    apis = [new_api(), new_api()]
    fake = Activities(pages(5), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        first = await send(http, apis[0])
        async with following(http, apis[:1]) as client:
            await until_async(lambda: client.has("snapshot", first))
            second = await send(http, apis[1])
            await until_async(lambda: client.has("snapshot", second))
            fake.gate.set()
            await until_async(lambda: client.has("end", first) and client.has("end", second))
            assert client.knows(first) == manifest(bucket, first)
            assert client.knows(second) == manifest(bucket, second)
            assert (await http.post(f"{url_of(apis[1], second)}/reconcile")).status_code == 202
            await until_async(lambda: client.names.count(("end", second.upload)) == 2)
            assert client.knows(second) == manifest(bucket, second)
            assert client.knows(second)["reconciled"]
            assert (await http.delete(url_of(apis[0], first))).status_code == 202
            await until_async(lambda: client.has("deleted", first))
            assert not client.has("deleted", second)
            last_id = client.parser.last_event_id
        assert (await http.delete(url_of(apis[1], second))).status_code == 202
        third = await send(http, apis[1])
        client = PlanClient()
        client.parser.last_event_id = last_id
        task = asyncio.create_task(client.follow(http, [apis[1].url + EVENTS], lambda: 1 << 40))
        await until_async(lambda: client.has("deleted", second) and client.has("end", third))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert {upload for _, upload in client.names} == {second.upload, third.upload}  # the client was told about the first before


async def test_client_that_is_cut_at_random_bytes_knows_the_truth(
    new_api: Callable[[], ApiProcess], bucket: Bucket, temporal: Client, http: httpx2.AsyncClient
) -> None:
    """Three uploads at once, two processes, connections that break after a random number of bytes: nothing is missed."""
    apis = [new_api(), new_api()]
    chance = random.Random(7)  # noqa: S311 - no secret
    fake = Activities(pages(12), bucket)
    fake.gate.clear()
    async with working(temporal, fake):
        refs = [await send(http, apis[number % 2]) for number in range(3)]
        async with following(http, apis, lambda: chance.randrange(60_000)) as client:
            await until_async(lambda: all(client.has("snapshot", ref) for ref in refs))
            fake.gate.set()
            await until_async(lambda: all(client.has("end", ref) for ref in refs))
        for ref in refs:
            assert client.knows(ref) == manifest(bucket, ref)
            versions = [json.loads(data)["version"] for _, data in client.events[ref.upload]]
            assert versions == sorted(versions)
        # A client that has everything gets nothing again, not even from the other process.
        headers = {"Last-Event-ID": client.parser.last_event_id}
        async with http.stream("GET", apis[0].url + EVENTS, headers=headers) as response, asyncio.timeout(DEADLINE_S):
            assert await anext(response.aiter_bytes()) == b"retry: 1000\n\n"
