"""``sitelink.js`` in Node.js against the real API on a socket, behind proxies that cut, hold and refuse; only the workflow is pretended."""

import asyncio
import json
import os
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, Snapshot, UploadStatus, to_json
from activities.bucket.storage import Bucket
from api.access.credentials import SESSION_COOKIE
from api.access.principal import Principal, Scope
from api.access.settings import AccessSettings, Mode
from api.access.tokens import SKEW_S, OwnTokens
from api.app import CLIENT
from tests.servers.gateway import Gateway, serving, serving_gateway
from tests.unit.api_fakes import PATH, REF, Upstream, accept, change, closed_run, make_app, make_bucket, snapshot
from tests.waiting import DEADLINE_S, until_async

PENDING, READY = SheetStatus.PENDING, SheetStatus.READY
SHEETS = 30

PRELUDE = f"""
import * as sitelink from {json.dumps((CLIENT / "sitelink.js").as_uri())};
const [server, ref, ...rest] = process.argv.slice(1);
const say = (value) => process.stdout.write(JSON.stringify(value) + "\\n");
const told = ({{ version, status, ended, changed }}) => ({{ version, status, ended, changed: changed.map((sheet) => sheet.number) }});
const hurry = (factor) => {{
  const wait = globalThis.setTimeout;
  globalThis.setTimeout = (call, milliseconds, ...more) => wait(call, milliseconds / factor, ...more);
}};
"""
"""``hurry`` makes time pass faster: no test waits for a timeout of a minute."""


def node_path() -> str:
    """The program of Node.js. Without one a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    if path := shutil.which("node"):
        return path
    if os.environ.get("CI"):
        pytest.fail("no Node.js on this machine: install it, the client's tests must run on CI")
    pytest.skip("no Node.js on this machine: install it to test the client")


class Script:
    """A running script that says lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[Any] = []

    async def next(self) -> Any:
        """The next line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await self._process.stdout.readline()
        assert line, (await self._process.stderr.read()).decode() if self._process.stderr else ""
        self.lines.append(json.loads(line))
        return self.lines[-1]

    def write(self, data: bytes) -> None:
        """Writes to the script's standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    async def rest(self) -> list[Any]:
        """All lines to the script's end, which must be a success."""
        async with asyncio.timeout(DEADLINE_S):
            out, error = await self._process.communicate()
        assert self._process.returncode == 0, error.decode()
        self.lines += [json.loads(line) for line in out.splitlines()]
        return self.lines


@asynccontextmanager
async def running(script: str, server: str, *arguments: str) -> AsyncIterator[Script]:
    """Runs a script with the client module."""
    process = await asyncio.create_subprocess_exec(
        node_path(),
        "--input-type=module",
        "--eval",
        PRELUDE + script,
        "--",
        server,
        str(REF),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Script(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said_by(script: str, server: str, *arguments: str) -> list[Any]:
    """The lines of a script that ends by itself."""
    async with running(script, server, *arguments) as started:
        return await started.rest()


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    """The bucket of the API."""
    return make_bucket(tmp_path / "bucket")


@pytest.fixture
async def upstream(bucket: Bucket) -> Upstream:
    """The workflow of one upload, whose sheets are all pending."""
    await accept(bucket, REF)
    return Upstream(snapshot(*[PENDING] * SHEETS))


@pytest.fixture
async def api(bucket: Bucket, upstream: Upstream) -> AsyncIterator[str]:
    """The API on a socket; gives its address."""
    async with serving(make_app(bucket, upstream)) as url:
        yield url


async def make_ready(upstream: Upstream, numbers: range) -> None:
    """Makes sheets ready, one after the other."""
    for number in numbers:
        assert isinstance(upstream.state, Snapshot)
        state, _ = change(upstream.state, number, READY)
        await upstream.set(state)


async def end(upstream: Upstream, bucket: Bucket) -> Snapshot:
    """Ends the upload as complete."""
    assert isinstance(upstream.state, Snapshot)
    final = replace(upstream.state, status=UploadStatus.COMPLETE, progress=100, version=upstream.state.version + 1)
    await bucket.put_async(REF.manifest, to_json(final))
    await upstream.set(final)
    upstream.last = final
    await upstream.set(closed_run())
    return final


WATCH = """
const merged = new Map();
let state;
const watching = sitelink.watch(ref, { server });
for await (state of watching) {
  for (const sheet of state.changed) merged.set(sheet.number, sheet);
  say(told(state));
}
say(await watching.next());
say({ ...state, changed: [...merged.values()].sort((one, other) => one.number - other.number) });
"""


async def check_truth(api: str, lines: list[Any]) -> None:
    """Versions grow, the watching ended once, and what it told is what the API tells."""
    *states, done, last = lines
    assert done == {"done": True}
    versions = [state["version"] for state in states]
    assert versions == sorted(versions)
    assert [state["ended"] for state in states] == [False] * (len(states) - 1) + [True]
    async with httpx2.AsyncClient(trust_env=False) as http:
        truth = (await http.get(f"{api}{PATH}")).json()
    assert last["changed"] == last["sheets"] == truth["sheets"]
    assert {name: last[name] for name in truth} == truth


async def test_watch_tells_every_state_to_the_end(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """The first state, every change, and one end; the states merged are the server's final state."""
    async with running(WATCH, api) as script:
        first = await script.next()
        assert (first["version"], len(first["changed"])) == (100, SHEETS)
        for number in range(1, SHEETS + 1):
            await make_ready(upstream, range(number, number + 1))
            assert (await script.next())["changed"] == [number]
        await end(upstream, bucket)
        await check_truth(api, await script.rest())


async def test_watch_survives_connections_that_break_anywhere(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """Streams that are cut after any byte lose nothing: the next stream brings exactly what was missed."""
    sizes = random.Random(7)  # noqa: S311 - a repeatable test
    gateway = Gateway(api, cut_after=lambda: sizes.randint(1, 2000))
    async with serving_gateway(gateway), running("hurry(20);" + WATCH, gateway.url) as script:
        await script.next()

        for number in range(1, SHEETS + 1):
            await make_ready(upstream, range(number, number + 1))
            while (await script.next())["version"] < 100 + number:
                pass
        await end(upstream, bucket)
        await check_truth(api, await script.rest())
        assert len(gateway.asked("/events")) > 3
        assert all("after=" in passed.query for passed in gateway.asked("/events"))
        assert len(gateway.asked(REF.upload)) <= 2  # the status at the beginning; streams resume by the version


async def test_watch_polls_where_streams_do_not_get_through(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """Behind a proxy that holds streams back the client polls instead, and sees the end."""
    gateway = Gateway(api, holds_streams=True, drops_wait=True)
    async with serving_gateway(gateway), running("hurry(20);" + WATCH, gateway.url) as script:
        await script.next()
        await make_ready(upstream, range(1, SHEETS + 1))
        while (await script.next())["version"] < 100 + SHEETS:
            pass
        await end(upstream, bucket)
        await check_truth(api, await script.rest())
        assert len(gateway.asked("/events")) == 1
        assert any("wait=25" in passed.query for passed in gateway.asked(REF.upload))


async def test_watch_notices_a_stream_that_falls_silent(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """Without heartbeats the stream is given up. If it kept changes back, the client polls from then on."""
    gateway = Gateway(api, silent_after=lambda: 30, drops_wait=True)  # the first bytes, and then nothing
    async with serving_gateway(gateway), running("hurry(20);" + WATCH, gateway.url) as script:
        await script.next()
        await until_async(lambda: gateway.open_streams == 1)
        await make_ready(upstream, range(1, SHEETS + 1))
        while (await script.next())["version"] < 100 + SHEETS:
            pass
        await end(upstream, bucket)
        await check_truth(api, await script.rest())
        assert gateway.open_streams == 0


POLL = """
hurry(Number(rest[0]));
for await (const state of sitelink.watch(ref, { server, transport: "poll" })) say(told(state));
"""


async def test_poll_waits_for_the_next_change(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """A server that holds the answer back until there is a change is asked once for each change."""
    gateway = Gateway(api)
    async with serving_gateway(gateway), running(POLL, gateway.url, "1") as script:
        await script.next()
        await make_ready(upstream, range(1, 2))
        assert await script.next() == {"version": 101, "status": "processing", "ended": False, "changed": [1]}
        await end(upstream, bucket)
        assert (await script.rest())[-1]["ended"]
        assert [passed.query for passed in gateway.asked(REF.upload)] == [
            "",
            "after=100&wait=25&changes=true",
            "after=101&wait=25&changes=true",
        ]
        assert gateway.asked("/events") == []


async def test_poll_of_a_server_that_does_not_wait_is_seldom_and_saves_the_transfer(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """Answers that come at once are asked for again after a pause, with the ETag: nothing new is a 304."""
    gateway = Gateway(api, drops_wait=True)
    async with serving_gateway(gateway), running(POLL, gateway.url, "20") as script:
        await script.next()
        await until_async(lambda: [passed.status for passed in gateway.passed].count(304) >= 3)
        await end(upstream, bucket)
        assert (await script.rest())[-1]["ended"]
        assert gateway.asked("/events") == []


async def test_wake_connects_at_once(api: str, upstream: Upstream, bucket: Bucket) -> None:
    """An app that comes back to the foreground need not wait for the back-off: it asks for the status now."""
    script_text = """
    process.stdin.on("data", () => watching.wake());
    const watching = sitelink.watch(ref, { server, onConnection: (connection) => say(connection) });
    for await (const state of watching) say(told(state));
    process.exit(0);
    """
    gateway = Gateway(api)
    async with serving_gateway(gateway), running(script_text, gateway.url) as script:
        await until_async(lambda: gateway.open_streams == 1)
        gateway.broken = True
        await make_ready(upstream, range(1, 2))
        while await script.next() != "unreachable":
            pass
        await end(upstream, bucket)
        gateway.broken = False
        script.write(b"wake\n")
        assert (await script.rest())[-1] == {"version": 102, "status": "complete", "ended": True, "changed": [1]}
        assert "ended" in script.lines


SECRET = "a secret of one's own backend for the tests"  # noqa: S105 - for tests


@pytest.fixture
async def guarded(bucket: Bucket, upstream: Upstream) -> AsyncIterator[str]:
    """The API with access control on a socket; gives its address."""
    access = AccessSettings(Mode.JWT, secrets=(SECRET,), ticket_secrets=(SECRET,))
    async with serving(make_app(bucket, upstream, access=access)) as url:
        yield url


def ticket(*, left_s: float = 600) -> str:
    """A ticket for the upload that the API accepts for so many more seconds."""
    reader = Principal("jo", REF.organization, 0, REF.project, REF.plan, None, frozenset({Scope.READ}))
    return OwnTokens("ticket", (SECRET,)).make(reader, int(time.time() + left_s) - SKEW_S)


TICKETS = """
const tickets = JSON.parse(rest.pop());
const ticket = async (of) => { say(`${of} asks`); return tickets.shift(); };
"""


async def test_refused_ticket_is_replaced(guarded: str, upstream: Upstream, bucket: Bucket) -> None:
    """The function that gives tickets is called again when the server says 401; watching and tiles share the ticket."""
    await make_ready(upstream, range(1, 2))
    await put_sheet(bucket)
    gateway = Gateway(guarded)
    tickets = [ticket(left_s=-60), ticket()]
    script_text = (
        TICKETS
        + """
    const source = await sitelink.tileSource(ref, 1, { server, ticket });
    say((await fetch(await sitelink.thumbnail(ref, 1, { server, ticket }))).status);
    const onConnection = (connection) => ["live", "ended"].includes(connection) || say(connection);
    for await (const state of sitelink.watch(ref, { server, ticket, onConnection })) say(told(state));
    """
    )
    async with serving_gateway(gateway), running(script_text, gateway.url, json.dumps(tickets)) as script:
        assert [await script.next() for _ in range(3)] == [f"{REF} asks", f"{REF} asks", 200]
        assert (await script.next())["version"] == 101
        await until_async(lambda: gateway.open_streams == 1)
        await end(upstream, bucket)
        assert (await script.rest())[-1]["ended"]
    assert [passed.ticket for passed in gateway.passed if passed.status == 401] == tickets[:1]
    assert all("ticket" not in passed.query for passed in gateway.passed if not passed.path.endswith("thumbnail.jpeg"))


async def test_ticket_that_cannot_be_replaced_ends_the_watching(guarded: str, upstream: Upstream) -> None:
    """A refused string, a function that only gives refused tickets, and an upload that does not exist: one error, then the end."""
    script_text = """
    const [old, good] = rest;
    for (const [of, ticket] of [[ref, old], [ref, () => old], [ref.slice(0, -1) + "9", good]]) {
      const watching = sitelink.watch(of, { server, ticket });
      await watching.next().catch((problem) => say([problem.type, problem.status, problem.transient]));
      say(await watching.next());
    }
    """
    lines = await said_by(script_text, guarded, ticket(left_s=-60), ticket())
    done = {"done": True}
    refused = ["CredentialRequired", 401, False]
    assert lines == [refused, done, refused, done, ["UploadNotFound", 404, False], done]


async def test_ticket_function_that_fails_is_asked_again(guarded: str, upstream: Upstream) -> None:
    """The page's own backend may be down for a moment, too."""
    script_text = """
    hurry(20);
    let asked = 0;
    const ticket = () => { if (++asked < 3) throw new Error("offline"); return rest[0]; };
    for await (const state of sitelink.watch(ref, { server, ticket, onConnection: say })) { say(state.version); break; }
    """
    assert await said_by(script_text, guarded, ticket()) == ["unreachable", "live", 100]


async def test_session_is_waited_for(guarded: str, upstream: Upstream) -> None:
    """After a refusal, calls wait until there is a new session, for longer than any request may take; then each is sent once more."""
    script_text = """
    hurry(10);
    const load = globalThis.fetch;
    let signedIn = false;
    globalThis.fetch = (url, options) => load(url, signedIn ? { ...options, headers: { ...options.headers, Cookie: rest[0] } } : options);
    let asked = 0;
    const session = async () => {
      asked++;
      await new Promise((resolve) => setTimeout(resolve, 35_000)); // 3.5 s
      signedIn = true;
    };
    const options = { server, session };
    const [one, two] = await Promise.all([sitelink.status(ref, options), sitelink.uploads(ref.split("/").slice(0, 3).join("/"), options)]);
    say([one.ref === ref, two.uploads.length, asked]);
    """
    reader = Principal("jo", REF.organization, 0, scopes=frozenset({Scope.READ}))
    cookie = f"{SESSION_COOKIE}={OwnTokens('session', (SECRET,)).make(reader, int(time.time()) + 600)}"
    assert await said_by(script_text, guarded, cookie) == [[True, 1, 1]]


async def test_watch_is_left_without_a_trace(api: str, upstream: Upstream) -> None:
    """``break``, ``return()`` and an aborted signal close the stream, and the iterator ends without an error."""
    script_text = """
    for await (const state of sitelink.watch(ref, { server })) { say(state.version); break; }
    const controller = new AbortController();
    const watching = sitelink.watch(ref, { server, signal: controller.signal });
    say((await watching.next()).value.version);
    process.stdin.on("data", () => controller.abort());
    say(await watching.next());
    process.stdin.unref();
    """
    gateway = Gateway(api)
    async with serving_gateway(gateway), running(script_text, gateway.url) as script:
        assert [await script.next(), await script.next()] == [100, 100]
        await until_async(lambda: gateway.open_streams == 1)
        script.write(b"stop\n")
        assert (await script.rest())[-1] == {"done": True}
        await until_async(lambda: gateway.open_streams == 0)


async def put_sheet(bucket: Bucket) -> Pyramid:
    """Puts the thumbnail, the ``.dzi`` and the tiles of sheet 1 into the bucket."""
    pyramid = Pyramid(1000, 700, 254, 1)
    await bucket.put_async(REF.thumbnail(1), b"\xff\xd8 thumbnail")
    for tile in pyramid.tiles():
        await bucket.put_async(REF.tiles_prefix(1) + tile_name(*tile), b"\xff\xd8 " + tile_name(*tile).encode())
    await bucket.put_async(REF.descriptor(1), pyramid.descriptor().encode())
    return pyramid


async def test_tile_source_has_the_geometry_and_loads_every_tile(guarded: str, bucket: Bucket) -> None:
    """Size, levels and addresses are those of the ``.dzi``; a tile that is refused is loaded with a new ticket at the same address."""
    await accept(bucket, REF)
    pyramid = await put_sheet(bucket)
    script_text = (
        TICKETS
        + """
    const source = await sitelink.tileSource(ref, 1, { server, ticket });
    const { getTileUrl, downloadTileStart, downloadTileAbort, ...geometry } = source;
    say(geometry);
    const load = (src) => new Promise((finish, fail) => downloadTileStart({ src, finish, fail }));
    for (const tile of JSON.parse(rest[0])) say(await (await load(getTileUrl(...tile))).text());
    const template = sitelink.tileUrlTemplate(ref, 1, { server }).replace("{z}", 1).replace("{x}", 0).replace("{y}", 0);
    say(template === getTileUrl(1, 0, 0));
    await load(getTileUrl(1, 7, 0)).catch(say);
    await sitelink.tileSource(ref, 2, { server, ticket }).catch((problem) => say(problem.type));
    """
    )
    tickets = [ticket(left_s=-60), ticket()]
    lines = await said_by(script_text, guarded, json.dumps(list(pyramid.tiles())), json.dumps(tickets))
    assert lines[:2] == [f"{REF} asks"] * 2
    assert lines[2] == {"width": 1000, "height": 700, "tileSize": 254, "tileOverlap": 1, "minLevel": 0, "maxLevel": pyramid.max_level}
    names = [f"\ufffd\ufffd {tile_name(*tile)}" for tile in pyramid.tiles()]
    assert lines[3:] == [*names, True, lines[-2], "ObjectMissing"]


async def test_upload_sends_a_file_and_tells_refusals(api: str, upstream: Upstream) -> None:
    """Name, options and key reach the server, a new token is asked for, and a refusal has its name."""
    script_text = """
    const seen = [];
    const onProgress = (sent, total) => seen.push([sent, total]);
    const file = new File(["%PDF-1.7\\n", "x".repeat(5000)], "Grün & gut.pdf");
    let asked = 0;
    const token = () => `token-${++asked}`;
    const to = ref.split("/").slice(0, 3).join("/");
    const sent = { server, to, onProgress, options: { dpi: 150 }, idempotencyKey: "one", token };
    const first = await sitelink.upload(file, sent);
    const second = await sitelink.upload(file, sent);
    say([first.ref === second.ref, seen, (await sitelink.status(first.ref, { server })).fileName]);
    const failed = (problem) => say([problem.name, problem.type, problem.status]);
    await sitelink.upload(file, { ...sent, options: { dpi: 151 } }).catch(failed);
    await sitelink.upload(new Blob(["text"]), { server, to }).catch(failed);
    await sitelink.upload(file, { server, to: "../etc" }).catch(failed);
    await sitelink.upload(file, { server: "http://127.0.0.1:9", to }).catch(failed);
    await sitelink.upload(file, { server, to, signal: AbortSignal.abort() }).catch((error) => say(error.name));
    """
    [first, *refusals] = await said_by(script_text, api)
    assert first == [True, [[0, 5009], [5009, 5009]] * 2, "Grün & gut.pdf"]
    assert refusals == [
        ["Problem", "IdempotencyConflict", 422],
        ["Problem", "NotAPdf", 422],
        ["Problem", "BadReference", 400],
        ["Problem", "NoConnection", 0],
        "AbortError",
    ]


async def test_client_files_may_be_loaded_by_every_page(api: str) -> None:
    """Any origin may load the module; a browser asks for it each time, and the ETag saves the transfer."""
    async with httpx2.AsyncClient(trust_env=False, base_url=api) as http:
        for name in ("sitelink.js", "sitelink.d.ts", "package.json"):
            answer = await http.get(f"/client/{name}", headers={"Origin": "https://plans.example.com"})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
            again = await http.get(f"/client/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.headers["access-control-allow-origin"]) == (304, "*")
        assert (await http.get("/client/sitelink.js")).headers["content-type"].startswith("text/javascript")
        assert (await http.get("/client/../app.py")).status_code == 404


async def test_large_file_is_sent_in_parts_and_goes_on_by_its_key(bucket: Bucket, upstream: Upstream) -> None:
    """Where nothing is remembered for it, the caller keeps the key. What is not known to be the same file is another upload.

    What is not a PDF is forgotten at once.
    """
    script_text = """
    const part = 8 << 20;
    const content = new Uint8Array(2 * part + 5).map((_, index) => (index * 7919) >> 5);
    content.set(new TextEncoder().encode("%PDF-1.7"));
    const file = new Blob([content]);
    const to = ref.split("/").slice(0, 3).join("/");
    const options = { server, to, inParts: true };
    const fetched = globalThis.fetch;
    const parts = [];
    let hold = 2;
    globalThis.fetch = (url, init) => {
      const number = init.method === "PUT" ? Number(new URL(url).pathname.split("/").pop()) : 0;
      if (number) parts.push(number);
      if (number !== hold) return fetched(url, init);
      return new Promise((_, fail) => init.signal.addEventListener("abort", () => fail(init.signal.reason)));
    };
    const stopping = new AbortController();
    const first = { ...options, idempotencyKey: "mine", onProgress: (sent) => sent > part && stopping.abort(), signal: stopping.signal };
    await sitelink.upload(file, first).catch((error) => say(error.name));
    say(parts.splice(0).sort());
    hold = -1;
    const seen = [];
    const sent = await sitelink.upload(file, { ...options, idempotencyKey: "mine", onProgress: (bytes) => seen.push(bytes) });
    say([parts, seen[0], seen.at(-1), sent.status, sent.ref]);
    say((await sitelink.upload(file, options)).ref === sent.ref);
    let begun;
    const other = { ...options, onBegin: (ref) => (begun = ref) };
    await sitelink.upload(new Blob([content.slice(1)]), other).catch((problem) => say(problem.type));
    await sitelink.abortUpload(begun, { server }).catch((problem) => say(problem.type));
    """
    async with serving(make_app(bucket, upstream, max_file_bytes=64 << 20)) as api:
        name, first, (second, begun_at, ended_at, status, ref), is_same, *refusals = await said_by(script_text, api)
    assert (name, first, second) == ("AbortError", [1, 2, 3], [2])
    assert refusals == ["NotAPdf", "UploadNotFound"]
    assert (begun_at, ended_at, status, is_same) == ((8 << 20) + 5, (16 << 20) + 5, "queued", False)
    content = bytearray((index * 7919 >> 5) & 255 for index in range((16 << 20) + 5))
    content[:8] = b"%PDF-1.7"
    assert bucket.get(UploadRef.parse(ref).source).body == content
