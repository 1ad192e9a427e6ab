"""How cost grows: ``python -m tests.bench.bench_growth [--stored 1,10,100,1000,10000] [--pages 1,10,100,500,1000,2000] [--png FILE]``.

First table: what requests and housekeeping take while so many uploads are stored in one plan. They are copies of one real upload with the
ids of older uploads, each with the record of an ``Idempotency-Key``. ``--runs`` of them also have an ended run in Temporal.
Second table: what one upload of so many small pages takes.

Each cell has seconds, and CPU seconds of all processes of the stack. The last lines of a table tell how the cost grew in its last step,
as the power of the size: 0 is constant, 1 is proportional. ``--png`` draws both tables. Everything is written below ``--directory``.
"""

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image, ImageDraw
from temporalio.client import Client

from activities.bucket.keys import PlanRef, UploadRef
from activities.bucket.records import KeyRecord, to_json
from activities.interface import WORKFLOW_QUEUE, ReconcileFinished, SweepBucket
from api.paths import plan_path, upload_path, uploads_path
from api.uploads import new_upload_id
from deploy.stack import Stack
from tests.bench.load import OWN_SETTINGS
from tests.bench.usage import Usage, kind_in
from tests.resources.make_pdfs import plan_set
from tests.waiting import until_async
from workflows.starting import start_upload
from workflows.sweep import NightlyReconcile, Sweep
from workflows.upload import ProcessUpload

PLAN, LIVE = PlanRef("local", "growth", "stored"), PlanRef("local", "growth", "live")
"""The plan with the stored uploads, and the plan of the uploads that are measured."""
AGE = timedelta(days=60)
"""The copies are so old, and older: beyond what the hourly sweep looks at."""
STARTS_AT_ONCE = 32
Save = Callable[[], None]
"""Called after each size, so that a run that is ended early has not measured for nothing."""
PDF = {"Content-Type": "application/pdf"}


@dataclass
class Table:
    """The costs by size, for each thing that was measured.

    Args:
        sizes: The sizes so far.
        costs: By what was measured, for each size, seconds and CPU seconds.
        facts: By name, for each size, another number.
    """

    sizes: list[int] = field(default_factory=list)
    costs: dict[str, list[Sequence[float]]] = field(default_factory=dict)
    facts: dict[str, list[float]] = field(default_factory=dict)

    def print(self, size: str) -> None:
        """Prints the table, and for each row how it grew in the last step."""
        print(f"\n| {size} | {' | '.join(f'{each:,}' for each in self.sizes)} | power |\n|---|{'---|' * (len(self.sizes) + 1)}")
        for name, row in self.costs.items():
            cells = " | ".join(f"{seconds:.3g} s, {cpu_s:.3g} CPU" for seconds, cpu_s in row)
            print(f"| {name} | {cells} | {self._power([cpu_s for _, cpu_s in row])} |")
        for name, values in self.facts.items():
            print(f"| {name} | {' | '.join(f'{value:,.6g}' for value in values)} | {self._power(values)} |", flush=True)

    def _power(self, values: Sequence[float]) -> str:
        if len(values) < 2 or min(values[-2:]) <= 0:
            return "-"
        return f"{math.log(values[-1] / values[-2]) / math.log(self.sizes[-1] / self.sizes[-2]):.2f}"


class Measured:
    """A stack whose costs are measured.

    Args:
        stack: It runs.
        table: Gets the costs.
    """

    def __init__(self, stack: Stack, table: Table) -> None:
        self.stack, self.table = stack, table
        self.http = httpx2.AsyncClient(base_url=stack.api_url, timeout=900)
        self._usage = Usage(kind_in(stack))

    async def cost(self, name: str, work: Callable[[], Awaitable[object]], times: int = 1) -> None:
        """Measures some work, and adds one time's cost to the table."""
        self._usage.look()
        cpu_s, began = self._usage.total_s, time.monotonic()
        with self._usage.watching(0.25):
            for _ in range(times):
                await work()
            seconds = time.monotonic() - began
        self.table.costs.setdefault(name, []).append((seconds / times, (self._usage.total_s - cpu_s) / times))

    async def send(self, pdf: bytes, key: str | None = None, plan: PlanRef = LIVE) -> UploadRef:
        """Sends a PDF; returns when it is accepted."""
        answer = await self.http.post(uploads_path(plan), content=pdf, headers=PDF | ({"Idempotency-Key": key} if key else {}))
        return UploadRef.parse(answer.raise_for_status().json()["ref"])

    async def watch(self, ref: UploadRef) -> None:
        """Reads the events of an upload to their end."""
        async with self.http.stream("GET", f"{upload_path(ref)}/events") as events:
            async for line in events.aiter_lines():
                if line == "event: end":
                    return
        msg = f"the events of {ref} ended too early"
        raise AssertionError(msg)

    @property
    def database_bytes(self) -> int:
        """Size of Temporal's database, with what is not merged into it yet."""
        return sum(path.stat().st_size for path in self.stack.data_dir.glob("temporal.db*"))

    async def complete(self, pdf: bytes, key: str | None = None, plan: PlanRef = LIVE) -> UploadRef:
        """Sends a PDF and watches it to its end."""
        ref = await self.send(pdf, key, plan)
        await self.watch(ref)
        return ref


@contextmanager
def measured(directory: Path, table: Table) -> Iterator[Measured]:
    """A stack of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SITELINK_")} | OWN_SETTINGS
    with tempfile.TemporaryDirectory(dir=directory) as name:
        stack = Stack(Path(name), environ=environ, port=0, temporal_ports=(0, 0))
        stack.start()
        try:
            yield Measured(stack, table)
        finally:
            stack.stop()


def copy_upload(bucket: Path, model: UploadRef, number: int) -> UploadRef:
    """Makes an older copy of an upload, and of the record of its ``Idempotency-Key``. Files are links: SiteLink replaces whole files."""
    made = datetime.now(UTC) - AGE - timedelta(seconds=number)
    milliseconds = f"{int(made.timestamp() * 1000):012x}"
    ref = replace(model, upload=f"{milliseconds[:8]}-{milliseconds[8:]}{new_upload_id()[13:]}")
    for directory, _, names in os.walk(bucket / model.prefix):
        target = bucket / ref.prefix / Path(directory).relative_to(bucket / model.prefix)
        target.mkdir(parents=True)
        for name in names:
            if name == "manifest.json":
                (target / name).write_bytes(Path(directory, name).read_bytes())
                os.utime(target / name, (made.timestamp(), made.timestamp()))
            else:
                (target / name).hardlink_to(Path(directory, name))
    record = bucket / PLAN.idempotency_key(f"copy-{number}")
    record.write_bytes(to_json(KeyRecord(ref.upload, "0" * 64)))
    os.utime(record, (made.timestamp(), made.timestamp()))
    return ref


async def run_again(client: Client, refs: Sequence[UploadRef]) -> None:
    """Gives stored uploads a run, and waits for the ends."""
    turns = asyncio.Semaphore(STARTS_AT_ONCE)

    async def run(ref: UploadRef) -> None:
        async with turns:
            await start_upload(client, ref)
            await client.get_workflow_handle_for(ProcessUpload.run, ref.workflow_id).result()

    await asyncio.gather(*map(run, refs))


async def start_again(stack: Stack) -> None:
    """Kills the API and starts it again; returns when it is ready."""
    stack.kill("api")
    stack.start_process("api")
    async with httpx2.AsyncClient(base_url=stack.api_url, timeout=60) as http:

        async def is_ready() -> bool:
            with suppress(httpx2.TransportError):
                return (await http.get("/readyz")).is_success
            return False

        await until_async(is_ready)


async def measure_stored(table: Table, sizes: Sequence[int], runs: int, watched_s: float, directory: Path, save: Save) -> None:
    """Measures with so many stored uploads."""
    small = plan_set(1, 72, 48)
    with measured(directory, table) as on:
        bucket, client = on.stack.data_dir / "bucket", await Client.connect(on.stack.temporal_address)
        for _ in range(2):
            await on.complete(small)  # loads what a first upload loads
        model = await on.complete(small, "copy", PLAN)
        stored, with_run = 1, 1
        for size in sizes:
            copies = [copy_upload(bucket, model, number) for number in range(stored, size)]
            stored = max(stored, size)
            again = copies[: max(0, min(size, runs) - with_run)]
            began = time.monotonic()
            await run_again(client, again)
            with_run += len(again)
            print(
                f"{stored:,} stored, {with_run:,} runs in Temporal; {len(again):,} runs took {time.monotonic() - began:.1f} s", flush=True
            )
            table.sizes.append(size)
            await measure_all(on, client, model, small, watched_s)
            table.facts.setdefault("runs in Temporal", []).append(with_run)
            table.facts.setdefault("Temporal's database, bytes", []).append(on.database_bytes)
            table.facts.setdefault("memory of the API, bytes", []).append(memory_bytes(on.stack.processes["api"].pid or 0))
            save()


async def measure_all(on: Measured, client: Client, model: UploadRef, small: bytes, watched_s: float) -> None:
    """Measures everything that may grow with the number of stored uploads."""
    accepted: list[UploadRef] = []

    async def get(path: str, **options: Any) -> None:
        (await on.http.get(path, **options)).raise_for_status()

    async def watch_plan() -> None:
        async with on.http.stream("GET", f"{plan_path(PLAN)}/events") as events:
            await anext(events.aiter_lines())

    async def hold_plan() -> None:
        async with on.http.stream("GET", f"{plan_path(PLAN)}/events") as events:
            await anext(events.aiter_lines())
            await asyncio.sleep(watched_s)

    async def accept() -> None:
        accepted.append(await on.send(small))

    def workflow(run: Any, args: object) -> Callable[[], Awaitable[object]]:
        return lambda: client.execute_workflow(run, args, id=f"growth-{time.time_ns()}", task_queue=WORKFLOW_QUEUE)

    await on.cost("API start, until ready", lambda: start_again(on.stack))
    await get(uploads_path(PLAN))
    await on.cost("list: 50 newest", lambda: get(uploads_path(PLAN)), times=20)
    await on.cost("read a stored upload", lambda: get(upload_path(model)), times=20)
    await on.cost("watch a stored upload", lambda: on.watch(model), times=20)
    await on.cost("watch the plan: first event", watch_plan)
    await on.cost(f"watch the plan: {watched_s:g} s", hold_plan)
    await on.cost(f"nothing to do: {watched_s:g} s", lambda: asyncio.sleep(watched_s))
    await on.cost("accept an upload", accept, times=10)
    for ref in accepted:
        await on.watch(ref)
    await on.cost("one upload, to its end", lambda: on.complete(small), times=10)
    await on.cost("hourly sweep", workflow(Sweep.run, SweepBucket(days=7)))
    await on.cost("nightly sweep", workflow(Sweep.run, SweepBucket()))
    await on.cost("nightly reconcile, none finished lately", workflow(NightlyReconcile.run, ReconcileFinished(days=-1)))
    doomed = await on.complete(small, f"doomed-{time.time_ns()}", PLAN)
    await on.cost("delete an upload", lambda: _deleted(on, doomed))


async def _deleted(on: Measured, ref: UploadRef) -> None:
    """Deletes an upload; returns when its objects are gone. Its workflow then waits for 65 minutes."""
    (await on.http.delete(upload_path(ref))).raise_for_status()
    await until_async(lambda: not (on.stack.data_dir / "bucket" / ref.manifest).exists())


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure_pages(table: Table, sizes: Sequence[int], directory: Path, save: Save) -> None:
    """Measures one upload of so many pages."""
    with measured(directory, table) as on:
        client = await Client.connect(on.stack.temporal_address)
        await on.complete(plan_set(2, 200, 150))
        for size in sizes:
            pdf = plan_set(size, 200, 150)
            table.sizes.append(size)

            database_bytes = on.database_bytes
            await on.cost("one upload, to its end", partial(on.complete, pdf))
            ref = UploadRef.parse((await on.http.get(f"{uploads_path(LIVE)}?limit=1")).json()["uploads"][0]["ref"])
            runs = [run async for run in client.list_workflows(f"WorkflowId = '{ref.workflow_id}'")]
            infos = [
                (await client.get_workflow_handle(run.id, run_id=run.run_id).describe()).raw_description.workflow_execution_info
                for run in runs
            ]
            facts = {
                "runs (continued as new)": len(runs),
                "events in their histories": sum(info.history_length for info in infos),
                "bytes of their histories": sum(info.history_size_bytes for info in infos),
                "growth of Temporal's database, bytes": on.database_bytes - database_bytes,
                "bytes of the snapshot": len((await on.http.get(upload_path(ref))).content),
                "bytes of manifest.json": (on.stack.data_dir / "bucket" / ref.manifest).stat().st_size,
            }
            seconds, cpu_s = table.costs["one upload, to its end"][-1]
            for name, value in facts.items():
                table.facts.setdefault(name, []).append(value)
            table.facts.setdefault("ms a page", []).append(seconds / size * 1000)
            table.facts.setdefault("CPU ms a page", []).append(cpu_s / size * 1000)
            table.facts.setdefault("history bytes a page", []).append(facts["bytes of their histories"] / size)
            await on.cost("read its progress", partial(on.http.get, upload_path(ref)), times=10)
            await on.cost("watch it again", partial(on.watch, ref), times=10)
            save()


COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
    "#444444",
    "#aa8800",
)
WIDTH, HEIGHT, LEFT, MARGIN, LEGEND = 560, 420, 60, 40, 300
LEAST_CPU_S = 1e-3
"""Less cannot be drawn on a logarithmic axis."""


class Chart:
    """A table on logarithmic axes: CPU seconds by size.

    Args:
        pen: Draws.
        top: Where the chart begins.
        table: At least one size.
    """

    def __init__(self, pen: ImageDraw.ImageDraw, top: int, table: Table) -> None:
        self._pen, self._top, self._table = pen, top, table
        logarithms = [math.log10(max(cpu_s, LEAST_CPU_S)) for row in table.costs.values() for _, cpu_s in row]
        self._low, self._high = math.floor(min(logarithms)), max(math.ceil(max(logarithms)), math.floor(min(logarithms)) + 1)

    def _place(self, size: float, cpu_s: float) -> tuple[float, float]:
        first, last = (math.log10(self._table.sizes[index]) for index in (0, -1))
        across = (math.log10(size) - first) / ((last - first) or 1)
        up = (math.log10(max(cpu_s, LEAST_CPU_S)) - self._low) / (self._high - self._low)
        return LEFT + across * (WIDTH - LEFT - 30), self._top + HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    def draw(self, title: str) -> None:
        """Draws the grid, the lines and their names."""
        self._pen.text((LEFT, self._top + 10), title, fill="black")
        for decade in range(self._low, self._high + 1):
            (left, y), (right, _) = (self._place(self._table.sizes[index], 10.0**decade) for index in (0, -1))
            self._pen.line([(left, y), (right, y)], fill="#dddddd")
            self._pen.text((5, y - 6), f"{10.0**decade:g} s", fill="black")
        for size in self._table.sizes:
            (x, bottom), (_, top) = (self._place(size, 10.0**decade) for decade in (self._low, self._high))
            self._pen.line([(x, bottom), (x, top)], fill="#dddddd")
            self._pen.text((x - 10, bottom + 4), f"{size:,}", fill="black")
        for turn, (name, row) in enumerate(self._table.costs.items()):
            colour = COLOURS[turn % len(COLOURS)]
            points = [self._place(size, cpu_s) for size, (_, cpu_s) in zip(self._table.sizes, row, strict=True)]
            self._pen.line(points, fill=colour, width=2)
            for x, y in points:
                self._pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
            self._pen.text((WIDTH, self._top + MARGIN + 18 * turn), name, fill=colour)


def draw(tables: Mapping[str, Table], target: Path) -> None:
    """Draws the tables, one below the other."""
    drawn = {size: table for size, table in tables.items() if table.sizes}
    image = Image.new("RGB", (WIDTH + LEGEND, HEIGHT * len(drawn)), "white")
    for index, (size, table) in enumerate(drawn.items()):
        Chart(ImageDraw.Draw(image), index * HEIGHT, table).draw(f"CPU seconds by {size}")
    image.save(target)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default="1,10,100,1000,10000", help="numbers of stored uploads; empty for no such table")
    parser.add_argument("--runs", type=int, default=10_000, help="stored uploads that have a run in Temporal, at most")
    parser.add_argument("--watched", type=float, default=20, help="seconds for which a plan is watched")
    parser.add_argument("--pages", default="1,10,100,500,1000,2000", help="numbers of pages; empty for no such table")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where everything is written")  # noqa: S108
    parser.add_argument("--png", type=Path, help="draws the tables into this file")
    parser.add_argument("--json", type=Path, help="keeps the numbers in this file, and adds them to those of earlier calls")
    arguments = parser.parse_args()
    earlier = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    tables = {size: Table(**earlier.get(size, {})) for size in ("uploads stored", "pages")}
    stored, pages = (sorted(map(int, filter(None, text.split(",")))) for text in (arguments.stored, arguments.pages))

    def save() -> None:
        for size, table in tables.items():
            if table.sizes:
                table.print(size)
        if arguments.json:
            arguments.json.write_text(json.dumps({size: vars(table) for size, table in tables.items()}))
        if arguments.png:
            draw(tables, arguments.png)

    if stored:
        asyncio.run(measure_stored(tables["uploads stored"], stored, arguments.runs, arguments.watched, arguments.directory, save))
    if pages:
        asyncio.run(measure_pages(tables["pages"], pages, arguments.directory, save))


if __name__ == "__main__":
    main()
