"""A thousand watchers: API processes that stop, are killed or are changed under them, with a real Temporal server and real sockets."""

import asyncio
import json
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus
from activities.bucket.storage import Bucket
from api.cli.event_stream import EventParser
from api.http.connections import SEND_BUFFER_BYTES, BoundedServer, ConnectionLimits
from api.progress.delivery import PIECE_BYTES
from deploy.temporal import TemporalServer
from tests.bench.stream_clients import Clients
from tests.integration.test_api import Activities, ApiProcess, deaf_connection, end_runs, merged, running, send, streaming, url_of
from tests.unit.api_fakes import PATH, Upstream, accept, change, make_app, make_bucket, snapshot
from tests.waiting import DEADLINE_S, until_async
from tests.workflow.fakes import pages, working

WATCHERS = 1000
HIGH_WATER_BYTES = 64 << 10
"""What asyncio keeps of a connection's answer before it asks the writer to wait."""
CHUNK_HEAD_BYTES = 16
"""At most so much is around each piece in HTTP."""


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """The bucket of the API processes of a test."""
    return Bucket(BucketSettings((tmp_path / "bucket").as_uri()))


@pytest.fixture
async def new_api(tmp_path: Path, temporal_server: TemporalServer, temporal: Client) -> AsyncIterator[Callable[[], ApiProcess]]:
    """Starts API processes that share a bucket."""
    started: list[ApiProcess] = []
    with ExitStack() as processes:

        def start() -> ApiProcess:
            process = running(tmp_path / f"api-{len(started)}", temporal_server.address, SITELINK_BUCKET=(tmp_path / "bucket").as_uri())
            started.append(processes.enter_context(process))
            return started[-1]

        yield start
    for api in started:
        await end_runs(temporal, api)


def events_in(pieces: list[bytes]) -> list[tuple[str, str]]:
    """Name and data of the events in pieces of a stream."""
    parser = EventParser()
    return [(event.event, event.data) for piece in pieces for event in parser.feed(piece)]


async def watch_to_the_end(url: str, before: list[bytes], truth: Callable[[], dict[str, Any]]) -> None:
    """Lets all watchers come back with the version that they have. Each must know the truth at the end."""
    last = json.loads(events_in(before)[-1][1])["version"]
    clients = Clients(f"{url}/events", headers=f"Last-Event-ID: {last}\r\n")
    await asyncio.to_thread(clients.connect, WATCHERS)
    assert await asyncio.to_thread(clients.read_until, lambda: clients.all_ended, DEADLINE_S)
    assert clients.errors == []
    streams = {tuple(client.pieces) for client in clients.clients.values()}
    for stream in streams:
        events = events_in([*before, *stream])
        assert events[-1][0] == "end"
        assert merged(events[:-1]) == merged(events) == truth()
    clients.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_thousand_watchers_of_a_process_that_ends_miss_nothing(
    new_api: Callable[[], ApiProcess], bucket: Bucket, temporal: Client, how: signal.Signals
) -> None:
    """SIGTERM ends a thousand streams before uvicorn would cancel them, and their clients go on with the other process.

    After SIGKILL, they go on with the process that takes the place of the killed one.
    """
    api = new_api()
    fake = Activities(pages(20), bucket)
    fake.gate.clear()
    async with working(temporal, fake), httpx2.AsyncClient(timeout=120, trust_env=False) as http:
        ref = await send(http, api)
        clients = Clients(f"{url_of(api, ref)}/events")
        await asyncio.to_thread(clients.connect, WATCHERS)
        if how is signal.SIGTERM:
            other = new_api()
            assert await asyncio.to_thread(api.end, how) == 0
            assert "graceful shutdown exceeded" not in api.log.read_text()
        else:
            other = api
            await asyncio.to_thread(api.end, how)
        assert await asyncio.to_thread(clients.read_until, lambda: clients.all_ended, DEADLINE_S)
        assert len(clients.errors) == (0 if how is signal.SIGTERM else WATCHERS)
        clients.close()
        if other is api:
            await asyncio.to_thread(api.start)
        longest = max((client.pieces for client in clients.clients.values()), key=len)
        watching = asyncio.create_task(watch_to_the_end(url_of(other, ref), longest, lambda: manifest(bucket, ref)))
        fake.gate.set()
        await watching


def manifest(bucket: Bucket, ref: UploadRef) -> dict[str, Any]:
    """The final state in the bucket."""
    document: dict[str, Any] = json.loads(bucket.get(ref.manifest).body)
    return document


async def test_clients_cut_at_random_bytes_know_the_truth(new_api: Callable[[], ApiProcess], bucket: Bucket, temporal: Client) -> None:
    """Each connection breaks after a random number of bytes, and the client comes back to one of two processes."""
    apis = [new_api(), new_api()]
    fake = Activities(pages(40), bucket)
    fake.gate.clear()
    async with working(temporal, fake), httpx2.AsyncClient(timeout=120, trust_env=False) as http:
        ref = await send(http, apis[0])
        chances = [random.Random(seed) for seed in range(12)]  # noqa: S311 - no secrets
        clients = [asyncio.create_task(cut_client(http, [url_of(api, ref) for api in apis], chance)) for chance in chances]
        fake.gate.set()
        for events in await asyncio.gather(*clients):
            versions = [json.loads(data)["version"] for _, data in events]
            assert versions == sorted(versions)
            assert merged(events) == manifest(bucket, ref)


async def cut_client(http: httpx2.AsyncClient, urls: list[str], chance: random.Random) -> list[tuple[str, str]]:
    """The events of a client whose connections break, until the end."""
    parser = EventParser()
    events: list[tuple[str, str]] = []
    while not events or events[-1][0] != "end":
        room = chance.randrange(30_000)  # a snapshot has about half of them
        parser.restart()
        headers = {"Last-Event-ID": parser.last_event_id} if parser.last_event_id else {}
        async with http.stream("GET", f"{chance.choice(urls)}/events", headers=headers) as response:
            if response.status_code == 204:
                return events
            async for chunk in response.aiter_bytes():
                events += [(event.event, event.data) for event in parser.feed(chunk[:room])]
                room -= len(chunk)
                if room <= 0:
                    break
    return events


async def test_clients_that_hardly_read_take_bounded_memory(tmp_path: Path) -> None:
    """Of a state of 6 MB, the server keeps some pieces for a client that reads nothing or a byte now and then; another sees all changes."""
    state = snapshot(*[SheetStatus.PENDING] * 300)
    state = replace(state, sheets=tuple(replace(sheet, title="A" * 20_000) for sheet in state.sheets))
    upstream, bucket = Upstream(state), make_bucket(tmp_path / "bucket")
    await accept(bucket)
    app = make_app(bucket, upstream)
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = BoundedServer(app, ConnectionLimits(100), graceful_shutdown_s=1, on_stop=app.state.stop)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        port = listener.getsockname()[1]
        deaf = [sockets.enter_context(deaf_connection(port)) for _ in range(20)]
        async with (
            httpx2.AsyncClient(timeout=120, trust_env=False) as http,
            streaming(http, f"http://127.0.0.1:{port}{PATH}") as stream,
        ):
            await stream.next()
            for number in range(1, 21):
                state, _ = change(state, number, SheetStatus.READY)
                await upstream.set(state)
                assert json.loads((await stream.next())[1])["completedPages"] == number
                assert all(connection.recv(1) for connection in deaf[::2])
            transports = [connection.transport for connection in server.server_state.connections]
            assert len(transports) == len(deaf) + 1
            for transport in transports:
                assert transport.get_write_buffer_size() <= HIGH_WATER_BYTES + PIECE_BYTES + CHUNK_HEAD_BYTES
                size = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                assert size == 2 * SEND_BUFFER_BYTES  # as the kernel tells it
        for connection in deaf:
            connection.close()
        await until_async(lambda: not server.server_state.connections)
        server.should_exit = True
        async with asyncio.timeout(DEADLINE_S):
            await serving
