"""Two hosts, one of which is lost with all its tiles, or reaches Temporal no more: the upload finishes, and in bounded time."""

import asyncio
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from tests.chaos.guarantees import Watch, accepted, assert_whole, path_of, sheets_of, wait_for
from tests.resources.make_pdfs import plan_set
from tests.servers.faults import Faults, Rule, answers, delays, faulty
from tests.servers.fleet import Fleet
from tests.servers.s3 import TestServer
from tests.waiting import ASK_S, until

logger = logging.getLogger(__name__)

PAGES = 6
CUT_S = 120
"""Longer than every timeout by which Temporal notices a lost worker."""

pytestmark = pytest.mark.timeout(1200)


@dataclass
class Hosts:
    """Two hosts with tile workers, whose bucket is behind a proxy."""

    fleet: Fleet
    faults: Faults
    settings: BucketSettings
    expected: dict[str, str]
    """The objects of the sheets of ``BODY`` after a run in which nothing failed."""

    def holder(self) -> str:
        """Waits until a tile worker holds the tiles of a page; returns its name."""
        until(lambda: self.tiled_pages("tile-1") or self.tiled_pages("tile-2"))
        return "tile-1" if self.tiled_pages("tile-1") else "tile-2"

    def tiled_pages(self, name: str) -> list[Path]:
        """The pages that lie tiled on the scratch of a host."""
        return [path for path in self.fleet.scratch(name).glob("pages/*") if path.suffix != ".part"]

    def until_scratch_is_empty(self, name: str) -> None:
        """Waits until a host has neither a page nor a PDF."""
        scratch = self.fleet.scratch(name)
        until(lambda: not [*scratch.glob("pages/*"), *scratch.glob("sources/*")])

    def is_complete(self, ref: UploadRef) -> None:
        """Waits until the upload is complete, and checks that it is what it would be without a fault."""
        status = wait_for(self.fleet, path_of(ref), lambda status: status["completedAt"] is not None)
        assert (status["status"], status["completedPages"]) == ("complete", PAGES)
        assert_whole(self.settings, ref, self.expected)


def other_of(name: str) -> str:
    """The other tile worker."""
    return "tile-1" if name == "tile-2" else "tile-2"


BODY = plan_set(PAGES, 900, 600)


@pytest.fixture
def hosts(temporal_binary: Path, s3_server: TestServer, tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts that have made one plan."""
    settings = s3_server.new_bucket()
    with ExitStack() as stack:
        faults = stack.enter_context(faulty(settings.endpoint))
        environment = s3_server.environment(replace(settings, endpoint=faults.url))
        fleet = Fleet(tmp_path / "fleet", temporal_binary, {**environment, "SITELINK_RENDER_SLOTS": "1"})
        stack.callback(fleet.stop)
        fleet.start()
        ref = accepted(fleet, BODY)
        with Watch(fleet, ref) as watch:
            assert watch.end()["status"] == "complete"
        yield Hosts(fleet, faults, settings, sheets_of(Bucket(settings), ref))


def pending_uploads(fleet: Fleet, ref: UploadRef) -> list[PendingActivityInfo]:
    """The uploads of pages that the run waits for."""

    async def ask() -> list[PendingActivityInfo]:
        client = await Client.connect(fleet.temporal.address)
        described = await client.get_workflow_handle(ref.workflow_id).describe()
        return [pending for pending in described.raw_description.pending_activities if pending.activity_type.name == "upload_page"]

    return asyncio.run(ask())


SLOW = Rule(delays(0.2), method="PUT", target="_files/")
REFUSED = Rule(answers(503, "SlowDown"), method="PUT", target="_files/")


@pytest.mark.parametrize("rule", [SLOW, REFUSED], ids=["in an upload", "between two tries"])
def test_host_that_is_lost_for_good_costs_no_sheet(hosts: Hosts, rule: Rule) -> None:
    """It is killed with tiles on its scratch, which goes with it. The other host tiles these sheets again.

    An upload that runs is given up when its heartbeats stay out. One whose last try has failed waits for its next try first, and then
    for somebody who takes it from the queue of that host.
    """
    hosts.faults.lay(replace(rule))
    ref = accepted(hosts.fleet, BODY)
    lost = hosts.holder()
    if rule is REFUSED:
        scheduled = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        until(lambda: any(p.attempt > 2 and p.state == scheduled for p in pending_uploads(hosts.fleet, ref)), ASK_S)
    hosts.fleet.processes[lost].kill()
    shutil.rmtree(hosts.fleet.scratch(lost))
    hosts.faults.lay()
    lost_at = time.monotonic()
    hosts.is_complete(ref)
    logger.warning("complete %.0f s after the loss of its host", time.monotonic() - lost_at)
    hosts.until_scratch_is_empty(other_of(lost))


def test_host_that_does_not_reach_temporal_costs_no_sheet(hosts: Hosts) -> None:
    """Its sheets are tiled again by the other host. Then no worker reaches Temporal for two minutes: everything goes on by itself."""
    fleet = hosts.fleet
    hosts.faults.lay(replace(SLOW))
    ref = accepted(fleet, BODY)
    alone = hosts.holder()
    fleet.links[alone].cut()
    cut_at = time.monotonic()
    hosts.is_complete(ref)
    logger.warning("complete %.0f s after the cut", time.monotonic() - cut_at)

    waiting = accepted(fleet, BODY)
    other = other_of(alone)
    until(lambda: hosts.tiled_pages(other))
    cut = ("workflow-1", other)
    for name in cut:
        fleet.links[name].cut()
    cut_at = time.monotonic()
    hosts.faults.lay()
    until(lambda: time.monotonic() - cut_at > CUT_S, ASK_S)
    for name in (alone, *cut):
        fleet.links[name].mend()
    hosts.is_complete(waiting)
    logger.warning("complete %.0f s after the end of the cut", time.monotonic() - cut_at - CUT_S)

    fleet.processes[other].kill()
    hosts.is_complete(accepted(fleet, BODY))
    hosts.until_scratch_is_empty(alone)
