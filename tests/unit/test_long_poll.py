"""``GET …/uploads/{upload}?after=VERSION&wait=SECONDS``: the progress at its next change, for clients without a stream."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette

from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus, to_json
from activities.bucket.storage import Bucket
from api.app import create_app
from api.settings import ApiSettings
from tests.unit.api_fakes import NO_WORKER, PATH, REF, RawRequest, Upstream, accept, change, client_of, closed_run, make_app, snapshot
from tests.waiting import until_async

READY, PENDING = SheetStatus.READY, SheetStatus.PENDING
LONG = 50
LATE = 1_800_000_000_000
"""A version that is later than the start of the fake run."""


@pytest.fixture
def upstream() -> Upstream:
    """A workflow with three sheets."""
    return Upstream(snapshot(PENDING, PENDING, PENDING))


@pytest.fixture
async def app(bucket: Bucket, upstream: Upstream) -> Starlette:
    """The API, with an accepted upload."""
    await accept(bucket)
    return make_app(bucket, upstream)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the API."""
    async with client_of(app) as client:
        yield client


async def set_ready(upstream: Upstream, number: int) -> None:
    """Changes a sheet."""
    assert not isinstance(upstream.state, Exception)
    await upstream.set(change(upstream.state, number, READY)[0])


async def test_client_without_the_current_version_does_not_wait(client: httpx2.AsyncClient) -> None:
    """An older version, a version from the future, and no version are answered at once."""
    for after in (99, 101, None):
        answer = await client.get(PATH, params={"wait": LONG, **({} if after is None else {"after": after})})
        assert (answer.status_code, answer.json()["version"], len(answer.json()["sheets"])) == (200, 100, 3)


async def test_any_number_of_clients_wait_by_one_question(app: Starlette, client: httpx2.AsyncClient, upstream: Upstream) -> None:
    """A change answers all of them, with the whole progress; the answer has the same fields as without waiting."""
    stream = RawRequest(app, "GET", f"{PATH}/events", {})  # it stays, so a client that comes late finds the same question
    stream.feed(b"", more=False)
    await until_async(lambda: upstream.updates != [])
    waiting = [asyncio.create_task(client.get(PATH, params={"after": 100, "wait": LONG})) for _ in range(20)]
    await asyncio.sleep(0.1)  # most of them wait now
    assert (upstream.queries, len(upstream.updates)) == (1, 1)
    await set_ready(upstream, 2)
    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {101}
    assert upstream.queries == 1
    assert (await client.get(PATH)).json() == answers[0].json()
    stream.disconnect()
    await stream.task


async def test_when_time_is_up_the_answer_is_the_progress(client: httpx2.AsyncClient) -> None:
    """A client that knows nothing of ETags gets the whole progress; one that sends its ETag gets a 304."""
    now = await client.get(PATH)
    answer = await client.get(PATH, params={"after": 100, "wait": 1})
    assert (answer.status_code, answer.json(), answer.headers["etag"]) == (200, now.json(), now.headers["etag"])
    answer = await client.get(PATH, params={"after": 100, "wait": 1}, headers={"If-None-Match": now.headers["etag"]})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_changes_are_the_sheets_since_the_version(client: httpx2.AsyncClient, upstream: Upstream) -> None:
    """Merged by number they give the whole progress. A version from the future gets all sheets."""
    await set_ready(upstream, 1)
    await set_ready(upstream, 3)
    for after, numbers in ((100, [1, 3]), (101, [3]), (200, [1, 2, 3])):
        for wait in (0, LONG):
            answer = (await client.get(PATH, params={"after": after, "wait": wait, "changes": "true"})).json()
            assert ([sheet["number"] for sheet in answer["sheets"]], answer["completedPages"]) == (numbers, 2)


async def test_ended_upload_is_answered_at_once(client: httpx2.AsyncClient, bucket: Bucket, upstream: Upstream) -> None:
    """There will be no change to wait for."""
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, READY, READY)))
    await upstream.set(closed_run())
    answer = await client.get(PATH, params={"after": 100, "wait": LONG})
    assert (answer.status_code, answer.json()["status"], answer.json()["version"]) == (200, "complete", 100)


async def test_deletion_ends_the_wait(client: httpx2.AsyncClient, upstream: Upstream) -> None:
    """The client learns that the upload is gone."""
    waiting = asyncio.create_task(client.get(PATH, params={"after": 100, "wait": LONG}))
    await until_async(lambda: upstream.updates != [])
    assert (await client.delete(PATH)).status_code == 202
    answer = await waiting
    assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")


async def test_state_that_would_take_the_client_back_is_no_news(bucket: Bucket) -> None:
    """While Temporal does not answer, only the last known state is there, and it may be older than the client's."""
    await accept(bucket)
    upstream = Upstream(snapshot(PENDING))
    upstream.state = NO_WORKER
    async with client_of(make_app(bucket, upstream)) as client:
        waiting = asyncio.create_task(client.get(PATH, params={"after": LATE, "wait": LONG}))
        await until_async(lambda: upstream.queries > 1)
        assert not waiting.done()
        await upstream.set(snapshot(READY, version=LATE + 1))
        assert (await waiting).json()["version"] == LATE + 1


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=", "wait=x", "wait=51", "wait=-1", "wait=", "wait=1.5", "changes=maybe"])
async def test_malformed_parameter_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    """By name, before anything is waited for."""
    answer = await client.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert query.split("=")[0] in answer.json()["detail"]


async def test_upload_that_does_not_exist_is_not_waited_for(client: httpx2.AsyncClient) -> None:
    """It is a 404 at once."""
    answer = await client.get(PATH[:-1] + "9", params={"after": 1, "wait": LONG})
    assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")


async def test_client_that_goes_away_waits_no_longer(bucket: Bucket) -> None:
    """Else a reader without a single open connection could hold all that an organization may stream and wait."""
    await accept(bucket)
    app = create_app(bucket, Upstream(snapshot(PENDING)).connect, ApiSettings(BucketSettings("file:///unused"), max_streams=2))
    for _ in range(5):
        request = RawRequest(app, "GET", f"{PATH}?after=100&wait={LONG}", {})
        request.feed(b"", more=False)
        await until_async(lambda request=request: request.received > 1)  # type: ignore[misc]
        request.disconnect()
        async with asyncio.timeout(LONG / 2):
            await request.task
        assert request.status == 400  # which nobody reads; one too many would be 429
