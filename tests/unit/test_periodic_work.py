"""The periodic work of a worker, its scratch, its schedules and its counts, goes on after any error."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from temporalio.client import Client

from activities.attempt import background_task
from activities.scratch import Scratch
from worker.app import keep_scratch_clean
from worker.metrics import WorkerMetrics
from worker.schedules import keep_schedules


class Failing(Exception):
    """An error that no code expects."""


class FailingClient:
    """A client whose calls fail, and set an event when they have been made three times."""

    def __init__(self) -> None:
        self.calls = 0
        self.called_again = asyncio.Event()

    def get_workflow_handle(self, _: str) -> object:
        """Fails."""
        return self._fail()

    def list_workflows(self, *_: object, **__: object) -> object:
        """Fails."""
        return self._fail()

    async def create_schedule(self, *_: object) -> object:
        """Fails."""
        return self._fail()

    def _fail(self) -> object:
        self.calls += 1
        if self.calls == 3:
            self.called_again.set()
        raise Failing


@pytest.mark.parametrize("which", ["janitor", "schedules", "open runs"])
async def test_background_work_goes_on_after_any_error(tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str) -> None:
    """The error is logged with its traceback, and the work is done again. When the role ends, the work ends without an error."""
    failing = FailingClient()
    client = cast("Client", failing)
    with closing(Scratch(tmp_path, 1 << 30)) as scratch:
        (tmp_path / "uploads" / "0123456789abcdef").write_text("acme/tower/a1/u1")
        work: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "janitor": lambda: keep_scratch_clean(scratch, client, every_s=0),
            "schedules": lambda: keep_schedules(client, every_s=0),
            "open runs": lambda: WorkerMetrics(CollectorRegistry(), has_workflows=True).find_open_runs(client, every_s=0),
        }
        async with background_task(work[which]()):
            await asyncio.wait_for(failing.called_again.wait(), 60)
    assert [record.exc_info and record.exc_info[0] for record in caplog.records][:2] == [Failing, Failing]
