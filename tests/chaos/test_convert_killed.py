"""``sitelink pack`` and ``unpack``, whose worker is killed in the middle: each sheet is committed all the time, and the bytes are right."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from deploy.stack import Stack
from tests.chaos.guarantees import PLAN, address, assert_whole, path_of, sheets_of, wait_for
from tests.integration.test_cli import sitelink
from tests.resources.make_pdfs import plan_set
from tests.servers.recorder import Answer, Recorder, Request, recording
from tests.servers.s3 import TestServer
from tests.waiting import DEADLINE_S, until

SHEETS = 6


def stored(stack: Stack, layout: Layout) -> UploadRef:
    """A complete upload in this layout; all of them are of one small plan set."""
    answer = httpx2.post(
        stack.api_url + PLAN.format(plan="a1"),
        params={"filename": "plan.pdf", "dpi": "72", "layout": layout},
        content=plan_set(SHEETS),
        headers={"Content-Type": "application/pdf"},
        timeout=DEADLINE_S,
    )
    ref = UploadRef.parse(answer.json()["ref"])
    assert wait_for(stack, path_of(ref), lambda status: status["completedAt"] is not None)["status"] == "complete"
    return ref


@contextmanager
def each_sheet_there(stack: Stack, bucket: Bucket, ref: UploadRef) -> Iterator[None]:
    """Looks all the time at every sheet: it is committed, and the API serves its ``.dzi`` and its tiles as before.

    A look at the bucket is two requests, between which a conversion may end, so that only a second look tells.
    """
    store, stopped, wrong = UploadStore(bucket), threading.Event(), list[str]()
    paths = [
        f"sheets/sheet-{n}/tiles/sheet-{n}{end}" for n in range(1, SHEETS + 1) for end in (".dzi", "_files/0/0_0.jpeg", "_files/9/0_0.jpeg")
    ]

    with httpx2.Client(base_url=f"{address(stack, ref)}/", timeout=DEADLINE_S, trust_env=False) as http:
        before = {path: http.get(path).raise_for_status().content for path in paths}

        def look() -> None:
            while not stopped.is_set():
                for number in range(1, SHEETS + 1):
                    if all(store.committed(ref, number) is None for _ in range(2)):
                        wrong.append(f"sheet {number} is not committed")
                for path in paths:
                    answer = http.get(path)
                    if (answer.status_code, answer.content) != (200, before[path]):
                        wrong.append(f"{path}: {answer.status_code}")

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join(DEADLINE_S)
    assert wrong == []


class Holder:
    """Holds the PUT of one object back.

    Args:
        ending: Of the object's key.
    """

    def __init__(self, recorder: Recorder, ending: str) -> None:
        self.reached, self.free = threading.Event(), threading.Event()
        self._ending = ending
        recorder.answer = self._judge

    def _judge(self, request: Request) -> Answer | None:
        if request.method == "PUT" and request.path.endswith(self._ending):
            self.reached.set()
            assert self.free.wait(DEADLINE_S)
        return None


@pytest.mark.usefixtures("temporal_binary")
def test_killed_conversions_go_on(new_stack: Callable[..., Stack], s3_server: TestServer) -> None:
    """Packed and unpacked again, the upload is byte for byte what it would be had it been sent so; its progress tells the layout."""
    settings = s3_server.new_bucket()
    bucket = Bucket(settings)
    with recording(s3_server.endpoint) as recorder:
        stack = new_stack(**s3_server.environment(replace(settings, endpoint=recorder.url)))
        ref = stored(stack, Layout.EXPLODED)
        expected = {Layout.EXPLODED: sheets_of(bucket, ref), Layout.PACKED: sheets_of(bucket, stored(stack, Layout.PACKED))}
        version = 0
        with each_sheet_there(stack, bucket, ref):
            for verb, layout, ending in (("pack", Layout.PACKED, "sheet-4.pmtiles"), ("unpack", Layout.EXPLODED, "sheet-4.dzi")):
                holder = Holder(recorder, ending)
                assert httpx2.post(f"{address(stack, ref)}/{verb}", timeout=DEADLINE_S).status_code == 202
                assert holder.reached.wait(DEADLINE_S)
                stack.kill("worker-tile")
                holder.free.set()
                stack.start_process("worker-tile")
                command = sitelink(stack.api_url, verb, str(ref))
                assert (command.returncode, command.stderr) == (0, "")
                assert command.stdout.splitlines()[-1] == f"complete: {SHEETS} of {SHEETS} sheets are {layout}"
                until(lambda layout=layout: sheets_of(bucket, ref) == expected[layout])  # type: ignore[misc] # a dead worker's late write
                status = httpx2.get(address(stack, ref), timeout=DEADLINE_S).json()
                assert {sheet["layout"] for sheet in status["sheets"]} == {layout}
                assert (status["status"], status["completedPages"]) == ("complete", SHEETS)
                assert status["version"] > version
                version = status["version"]
                assert_whole(settings, ref, expected[layout])
        again = sitelink(stack.api_url, "unpack", str(ref))
        assert (again.returncode, again.stdout.splitlines()[-1]) == (0, f"complete: {SHEETS} of {SHEETS} sheets are exploded")


def test_sheet_that_differs_is_named_and_the_rest_is_converted(new_stack: Callable[..., Stack]) -> None:
    """The command says which, and exits with 1; a deleted upload and one that runs are refused."""
    stack = new_stack()
    ref = stored(stack, Layout.EXPLODED)
    tile = stack.data_dir / "bucket" / f"{ref.tiles_prefix(2)}0/0_0.jpeg"
    tile.write_bytes(tile.read_bytes()[:-1])
    command = sitelink(stack.api_url, "pack", str(ref))
    assert command.returncode == 1
    lines = command.stdout.splitlines()
    assert lines[-2:] == [
        f"partial: {SHEETS - 1} of {SHEETS} sheets are packed",
        "sheet-2: left as it is, SheetAltered: the tiles of sheet 2 have other bytes than its sheet.json says",
    ]
    report = httpx2.get(f"{address(stack, ref)}/verify", timeout=DEADLINE_S).json()
    assert [sheet["layout"] for sheet in report["sheets"]] == ["packed", "exploded", *["packed"] * (SHEETS - 2)]
    status = httpx2.get(address(stack, ref), timeout=DEADLINE_S).json()
    assert [sheet["layout"] for sheet in status["sheets"]] == [sheet["layout"] for sheet in report["sheets"]]
    assert httpx2.delete(address(stack, ref), timeout=DEADLINE_S).status_code == 202
    for answer in (
        httpx2.post(f"{address(stack, ref)}/unpack", timeout=DEADLINE_S),
        httpx2.get(f"{address(stack, ref)}/conversion", timeout=DEADLINE_S),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "UploadNotFound")
