"""Whatever was deleted, added or told: after a reconcile the bucket verifies, the progress equals it, and the bytes are those of before."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from temporalio.client import Client

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Snapshot, from_json
from activities.bucket.storage import Bucket
from api.cli.event_stream import EventParser
from deploy.stack import Stack
from tests.resources.make_pdfs import plan_set
from tests.servers.s3 import TestServer
from tests.waiting import DEADLINE_S
from workflows.messages import SheetNumbers
from workflows.starting import reopen_upload

pytestmark = pytest.mark.usefixtures("temporal_binary")

PLAN = PlanRef("acme", "tower", "reconcile")
UPLOADS = "/v1/organizations/acme/projects/tower/plans/reconcile/uploads"
PAGES = 3


@dataclass
class Uploaded:
    """A complete upload of three small sheets, and every byte of it."""

    stack: Stack
    bucket: Bucket
    ref: UploadRef
    objects: dict[str, bytes]

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.stack.api_url}{UPLOADS}/{self.ref.upload}"

    def derived(self) -> dict[str, bytes]:
        """Everything below ``sheets/`` now, relative to it."""
        prefix = self.ref.sheets_prefix
        return {info.key.removeprefix(prefix): self.bucket.get(info.key).body for info in self.bucket.objects(prefix)}

    def reconcile(self, times: int = 1) -> dict[str, Any]:
        """Asks for it, so often at once, and waits for the end; on the way the version never falls."""
        for _ in range(times):
            assert httpx2.post(f"{self.url}/reconcile", timeout=DEADLINE_S).status_code == 202
        return self.end()

    def end(self) -> dict[str, Any]:
        """Watches the upload until it has ended; the final document."""
        parser, version = EventParser(), 0
        with httpx2.stream("GET", f"{self.url}/events", timeout=DEADLINE_S) as answer:
            for chunk in answer.iter_bytes():
                for event in parser.feed(chunk):
                    document: dict[str, Any] = json.loads(event.data)
                    assert document["version"] >= version
                    version = document["version"]
                    if event.event == "end":
                        return document
        pytest.fail("the stream ended without an end")

    def tell(self, *events: tuple[int, ...]) -> None:
        """The events of the bucket, one signal each."""

        async def signal() -> None:
            client = await Client.connect(self.stack.temporal_address)
            for sheets in events:
                await reopen_upload(client, self.ref, "sheets_stored", SheetNumbers(sheets))

        asyncio.run(signal())


def _uploaded(stack: Stack, bucket: Bucket) -> Uploaded:
    body = plan_set(PAGES, 300, 200)
    answer = httpx2.post(
        f"{stack.api_url}{UPLOADS}?dpi=72&tileSize=128", content=body, headers={"Content-Type": "application/pdf"}, timeout=DEADLINE_S
    )
    uploaded = Uploaded(stack, bucket, UploadRef.parse(answer.raise_for_status().json()["ref"]), {})
    assert uploaded.end()["status"] == "complete"
    uploaded.objects = uploaded.derived()
    assert len(uploaded.objects) > PAGES * 16
    return uploaded


@pytest.fixture(scope="module")
def in_directory(stack: Stack) -> Uploaded:
    """In a directory."""
    return _uploaded(stack, Bucket(BucketSettings((stack.data_dir / "bucket").absolute().as_uri())))


@pytest.fixture(scope="module")
def on_server(new_stack_of_module: Callable[..., Stack], s3_server: TestServer) -> Uploaded:
    """On an S3 server."""
    where = s3_server.new_bucket("site")
    return _uploaded(new_stack_of_module(**s3_server.environment(where)), Bucket(where))


TILES = [f"tiles/sheet-{{n}}_files/{name}.jpeg" for name in ("0/0_0", "8/1_0", "9/0_0", "9/2_1")]
DELETED = st.sets(st.tuples(st.integers(1, PAGES), st.sampled_from(["thumbnail.jpeg", "sheet.json", "tiles/sheet-{n}.dzi", *TILES])))
JUNK = st.sets(
    st.sampled_from(
        [
            "loose.txt",
            "sheet-0/x",
            "sheet-4/tiles/sheet-4.dzi",
            "other/deep/y",
            "sheet-1/tiles/sheet-1_files/99/0_0.jpeg",
            "sheet-2/tiles/sheet-2_files/9/7_7.jpeg",
            "sheet-2/tiles/sheet-3.dzi",
            "sheet-3/notes",
        ]
    )
)
EVENTS = st.lists(st.lists(st.integers(0, PAGES + 1), min_size=1, max_size=3).map(tuple), max_size=4)
REALLY = settings(max_examples=10, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def _survives(
    uploaded: Uploaded,
    deleted: set[tuple[int, str]],
    gone: set[int],
    junk: set[str],
    events: tuple[list[tuple[int, ...]], list[tuple[int, ...]]],
    forgets: bool,
    times: int,
) -> None:
    ref, bucket = uploaded.ref, uploaded.bucket
    before = uploaded.end()
    uploaded.tell(*events[0])
    names = {f"sheet-{number}/{name.format(n=number)}" for number, name in deleted}
    names |= {name for name in uploaded.objects if int(name.split("/")[0][6:]) in gone}
    bucket.delete([ref.sheets_prefix + name for name in names])
    for name in junk:
        bucket.put(ref.sheets_prefix + name, b"junk")
    if forgets:
        uploaded.end()
        bucket.delete([ref.manifest])
    dry = httpx2.post(f"{uploaded.url}/reconcile?dryRun=true", timeout=DEADLINE_S).json()
    assert forgets or dry["verified"] is not bool(names | junk)
    uploaded.tell(*events[1])
    document = uploaded.reconcile(times)
    assert (document["status"], document["completedPages"], document["progress"]) == ("complete", PAGES, 100)
    assert document["reconciled"]
    assert document["version"] > before["version"]
    assert uploaded.derived() == uploaded.objects
    assert httpx2.get(f"{uploaded.url}/verify", timeout=DEADLINE_S).json()["verified"]
    manifest = from_json(Snapshot, bucket.get(ref.manifest).body)
    assert manifest.version == document["version"]
    assert all(sheet.status == "ready" for sheet in manifest.sheets)


DAMAGE = {
    "deleted": DELETED,
    "gone": st.sets(st.integers(1, PAGES), max_size=2),
    "junk": JUNK,
    "events": st.tuples(EVENTS, EVENTS),
    "forgets": st.booleans(),
    "times": st.integers(1, 3),
}


@REALLY
@given(**DAMAGE)
def test_any_damage_in_a_directory_is_repaired(in_directory: Uploaded, **damage: Any) -> None:
    """Any subset of objects deleted, any junk added, any order of duplicate, lost and late events."""
    _survives(in_directory, **damage)


@REALLY
@given(**DAMAGE)
def test_any_damage_on_a_server_is_repaired(on_server: Uploaded, **damage: Any) -> None:
    """The same over S3."""
    _survives(on_server, **damage)
