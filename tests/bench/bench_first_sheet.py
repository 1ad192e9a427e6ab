"""How soon a client sees something of an upload.

``python -m tests.bench.bench_first_sheet [--rounds 3] [--delay MS] [--layout LAYOUT] FILE.pdf``

Each round has a new stack, which has processed a small plan before: once onto a directory, once onto an S3 server. Prints medians of the
milliseconds since the last byte of the upload was sent: when each step towards sheet 1 ended, by the run's history in Temporal, and
when a client that watches saw the first thumbnail and the first ready sheets. Everything is written below ``/dev/shm``.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout
from deploy.stack import Stack
from tests.bench.bench_bucket import environment, logging_server
from tests.bench.bench_jobs import use_memory
from tests.resources.make_pdfs import plan_set
from tests.servers.far import far_away

UPLOADS = "/v1/organizations/local/projects/demo/plans/bench/uploads"
CHUNK_BYTES = 1 << 16

Times = dict[str, float]
"""The end of each step, in seconds since 1970."""


async def history_times(address: str, ref: UploadRef) -> Times:
    """When the run began, and when each activity up to the upload of sheet 1 was scheduled, began and ended."""
    client = await Client.connect(address)
    history = await client.get_workflow_handle(ref.workflow_id).fetch_history()
    times: Times = {"run began": history.events[0].event_time.ToMilliseconds() / 1000}
    names: dict[int, str] = {}
    for event in history.events:
        at = event.event_time.ToMilliseconds() / 1000
        if event.HasField("activity_task_scheduled_event_attributes"):
            name = event.activity_task_scheduled_event_attributes.activity_type.name
            if f"{name} scheduled" not in times:  # of each kind, the first one is sheet 1's
                names[event.event_id] = name
                times[f"{name} scheduled"] = at
        elif event.HasField("activity_task_started_event_attributes"):
            if name := names.get(event.activity_task_started_event_attributes.scheduled_event_id, ""):
                times[f"{name} began"] = at
        elif event.HasField("activity_task_completed_event_attributes") and (
            name := names.get(event.activity_task_completed_event_attributes.scheduled_event_id, "")
        ):
            times[f"{name} ended"] = at
    return {name: at for name, at in times.items() if not name.startswith(("write_manifest", "discard_scratch"))}


def send(stack: Stack, pdf: Path, *, until_end: bool, layout: Layout) -> tuple[UploadRef, Times]:
    """Sends a PDF and watches it until the end, or until sheet 1 is ready; returns what was seen when."""
    times: Times = {}

    def body() -> Iterator[bytes]:
        with pdf.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        times["last byte"] = time.time()

    with httpx2.Client(base_url=stack.api_url, timeout=300, trust_env=False) as client:
        headers = {"Content-Type": "application/pdf", "Content-Length": str(pdf.stat().st_size)}
        answer = client.post(UPLOADS, params={"layout": layout}, content=body(), headers=headers).raise_for_status()
        times["accepted"] = time.time()
        with client.stream("GET", answer.json()["links"]["events"]) as events:
            for line in events.iter_lines():
                if line == "event: end":
                    break
                if not line.startswith("data:"):
                    continue
                snapshot = json.loads(line.removeprefix("data:"))
                if snapshot["totalPages"]:
                    times.setdefault("client: pages counted", time.time())
                for sheet in snapshot["sheets"]:
                    if sheet["thumbnail"]:
                        times.setdefault("client: first thumbnail", time.time())
                    if sheet["status"] == "ready":
                        times.setdefault("client: first sheet ready", time.time())
                        if sheet["number"] == 1:
                            times.setdefault("client: sheet 1 ready", time.time())
                if not until_end and "client: sheet 1 ready" in times:
                    break
    return UploadRef.parse(answer.json()["ref"]), times


def one_round(pdf: Path, warm_up: Path, *, is_s3: bool, delay_ms: int, layout: Layout) -> Times:
    """Milliseconds from the last byte to each step's end, in a new stack."""
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_"))}
        if is_s3:
            settings, _ = opened.enter_context(logging_server(directory))
            if delay_ms:
                far = opened.enter_context(far_away(settings.endpoint, f"-delay={delay_ms}ms"))
                settings = replace(settings, endpoint=far.endpoint)
            environ = environment(settings)
        stack = Stack(directory / "data", environ=environ, port=0, temporal_ports=(0, 0))
        stack.start()
        opened.callback(stack.stop)
        send(stack, warm_up, until_end=True, layout=layout)
        use_memory()
        ref, times = send(stack, pdf, until_end=False, layout=layout)
        times |= asyncio.run(history_times(stack.temporal_address, ref))
        return {name: 1000 * (at - times["last byte"]) for name, at in sorted(times.items(), key=lambda item: item[1])}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pdf", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=int, default=0, help="milliseconds by which each answer of the S3 server is late")
    parser.add_argument("--layout", type=Layout, default=Layout.EXPLODED, help=f"of the sheets: {', '.join(Layout)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        warm_up = Path(name) / "plan.pdf"
        warm_up.write_bytes(plan_set(2, 600, 400))
        kinds = {"directory": False, f"S3 server, {arguments.delay} ms away": True}
        rows: dict[str, list[Times]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind, is_s3 in kinds.items():
                rows[kind].append(one_round(arguments.pdf, warm_up, is_s3=is_s3, delay_ms=arguments.delay, layout=arguments.layout))
    medians = {kind: {step: statistics.median(times[step] for times in found) for step in found[0]} for kind, found in rows.items()}
    print(f"| step | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    first, *_ = medians.values()
    for step in sorted(first, key=first.__getitem__):
        print(f"| {step} | {' | '.join(f'{found[step]:,.0f}' for found in medians.values())} |")
    print(f"\nOne-minute load of the machine at the end: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
