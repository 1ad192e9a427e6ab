"""How honest the estimate of the time left is: ``python -m tests.bench.bench_eta [--slots N] [--beside FILE.pdf] FILE.pdf ...``.

Each file is an upload to the same embedded stack, watched until its end. Prints, for 10, 50 and 90 % of the time from the count of the
pages to the end, the estimate that a client had then (``low to high``) and the seconds that it really took from then on. A client counts
down since the last event. With ``--beside``, another file is uploaded over and over by another organization meanwhile.
"""

import argparse
import json
import os
import tempfile
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2

from deploy.stack import Stack
from tests.bench.bench_jobs import use_memory
from tests.resources.make_pdfs import plan_set

UPLOADS = "/v1/organizations/{}/projects/demo/plans/bench/uploads"
SHARES = (0.1, 0.5, 0.9)

State = tuple[float, tuple[float, float] | None]
"""When the progress changed, in seconds since 1970, and the estimate that it brought."""


def process(url: str, organization: str, pdf: Path) -> tuple[list[State], float, int]:
    """Uploads a file and watches it until the end; returns its states since the count of the pages, the time of the end, and its sheets."""
    states: list[State] = []
    with httpx2.Client(base_url=url, timeout=600, trust_env=False) as client:
        answer = client.post(UPLOADS.format(organization), content=pdf.read_bytes(), headers={"Content-Type": "application/pdf"})
        event = ""
        with client.stream("GET", answer.raise_for_status().json()["links"]["events"]) as events:
            for line in events.iter_lines():
                name, _, text = line.partition(": ")
                event = text if name == "event" else event
                if name != "data":
                    continue
                document: dict[str, Any] = json.loads(text)
                if event == "end":
                    assert document["status"] == "complete", document["status"]
                    return states, _seconds(document["completedAt"]), document["totalPages"]
                if document["totalPages"]:
                    left = document["secondsLeft"]
                    states.append((_seconds(document["updatedAt"]), (left["low"], left["high"]) if left else None))
    msg = "the stream ended without an end"
    raise RuntimeError(msg)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def compare(states: list[State], end: float, share: float) -> tuple[str, bool]:
    """The estimate and the truth at one moment, as text, and whether the truth lies in the range."""
    now = states[0][0] + share * (end - states[0][0])
    changed, estimate = [state for state in states if state[0] <= now][-1]
    real = end - now
    if estimate is None:
        return f"- / {real:.1f}", False
    low, high = (max(0.0, seconds - (now - changed)) for seconds in estimate)
    hit = round(low, 1) <= round(real, 1) <= round(high, 1)
    return f"{low:.1f} to {high:.1f} / {real:.1f}{'' if hit else ' (!)'}", hit


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="render slots of the stack")
    parser.add_argument("--beside", type=Path, help="a file that another organization uploads over and over")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory, stop = Path(name), threading.Event()
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SITELINK_", "AWS_"))}
        settings = {**environ, "SITELINK_RENDER_SLOTS": str(arguments.slots)}
        stack = Stack(directory / "data", environ=settings, port=0, temporal_ports=(0, 0))
        stack.start()

        def keep_busy() -> None:
            while not stop.is_set():
                process(stack.api_url, "busy", arguments.beside)

        neighbour = threading.Thread(target=keep_busy)
        try:
            (directory / "small.pdf").write_bytes(plan_set(2, 600, 400))
            process(stack.api_url, "local", directory / "small.pdf")
            use_memory()
            if arguments.beside:
                neighbour.start()
            print("| file | sheets | s | 10 %: estimate / real s | 50 % | 90 % |\n|---|---|---|---|---|---|")
            hits: list[bool] = []
            for pdf in arguments.files:
                states, end, sheets = process(stack.api_url, "local", pdf)
                cells, hit = zip(*(compare(states, end, share) for share in SHARES), strict=True)
                hits += hit
                print(f"| {pdf.name} | {sheets} | {end - states[0][0]:.1f} | {' | '.join(cells)} |", flush=True)
            print(
                f"\n{sum(hits)} of {len(hits)} in the range; one-minute load at the end {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores."
            )
        finally:
            stop.set()
            if neighbour.is_alive():
                neighbour.join()
            stack.stop()


if __name__ == "__main__":
    main()
