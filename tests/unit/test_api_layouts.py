"""``pack``, ``unpack`` and ``conversion`` of the API: who may ask, what is refused, what is started."""

import asyncio

import pytest
from starlette.applications import Starlette

from activities.bucket.records import SheetStatus, to_json
from activities.bucket.storage import Bucket
from activities.interface import WORKFLOW_QUEUE
from api.access.policies import scoped
from api.access.principal import Scope
from api.contract.routes import described_routes
from api.paths import UPLOAD
from tests.unit.api_fakes import PATH, REF, FakeTemporal, accept, client_of, closed_run, snapshot
from tests.waiting import until_async

VERBS = pytest.mark.parametrize("verb", ["pack", "unpack"])


@VERBS
async def test_stored_upload_is_converted(app: Starlette, bucket: Bucket, temporal: FakeTemporal, verb: str) -> None:
    """A workflow of its own is started; a second request joins it."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(SheetStatus.READY)))
    temporal.state = closed_run()
    async with client_of(app) as client:
        answer = await client.post(f"{PATH}/{verb}")
    assert (answer.status_code, answer.json()) == (202, {"ref": str(REF)})
    (start,) = temporal.starts
    assert (start["id"], start["task_queue"]) == (f"layout/{REF}", WORKFLOW_QUEUE)


async def test_run_that_is_about_to_end_is_waited_for(app: Starlette, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A client that has seen the final status need not know that the run ends a moment later."""
    await accept(bucket)
    temporal.state = snapshot(SheetStatus.READY)
    async with client_of(app) as client:
        waiting = asyncio.create_task(client.post(f"{PATH}/pack"))
        await until_async(lambda: temporal.queries > 1)
        await bucket.put_async(REF.manifest, to_json(temporal.state))
        temporal.state = closed_run()
        assert (await waiting).status_code == 202


@VERBS
async def test_upload_that_runs_is_not_converted(app: Starlette, bucket: Bucket, temporal: FakeTemporal, verb: str) -> None:
    """Its run still makes sheets; nor is one that does not exist, or is deleted."""
    async with client_of(app) as client:
        assert (await client.post(f"{PATH}/{verb}")).json()["type"] == "UploadNotFound"
        await accept(bucket)
        temporal.state = snapshot(SheetStatus.READY, SheetStatus.TILING)
        answer = await client.post(f"{PATH}/{verb}")
        assert (answer.status_code, answer.json()["type"]) == (409, "UploadBusy")
        assert "processing" in answer.json()["detail"]
        await client.delete(PATH)
        started = len(temporal.starts)
        for request in (client.post(f"{PATH}/{verb}"), client.get(f"{PATH}/conversion")):
            answer = await request
            assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")
    assert len(temporal.starts) == started


def test_operators_convert_and_readers_look(app: Starlette) -> None:
    """The log of changes has both requests that change something."""
    policies = {(route.method, route.path): route.policy for route in described_routes(app.routes)}
    for verb in ("pack", "unpack"):
        assert policies["POST", f"{UPLOAD}/{verb}"] == scoped(Scope.OPERATE, action=verb)
    assert policies["GET", f"{UPLOAD}/conversion"] == scoped(Scope.READ)
