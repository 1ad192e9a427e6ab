"""CPU and memory of the processes of a stack, by what they are."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.stack import Stack

IDLE_CPU_S = 0.1
"""CPU seconds that the processes of an idle stack take in one second at most."""
TICKS = os.sysconf("SC_CLK_TCK")
CHILDREN = "render children"
MARKS = {
    "activities.render.forkserver": CHILDREN,
    "-m api events": "r2-events",
    "-m api": "api",
    "-m worker workflow": "worker-workflow",
    "-m worker tile": "worker-tile",
    "-m worker webhook": "worker-webhook",
    "temporal server": "temporal",
    "temporal-server": "temporal",
    "postgres": "postgres",
    "versitygw": "S3 server",
    "nginx": "nginx",
}
"""What a command line has, and which process that is; the first that fits counts."""

KindOf = Callable[[int, str], str | None]


def kind_on_this_machine(_group: int, command: str) -> str | None:
    """The kind of a process by its command line, whichever stack it belongs to."""
    return next((kind for mark, kind in MARKS.items() if mark in command), None)


def kind_in(stack: Stack) -> KindOf:
    """Tells the kind of a process of this stack, by its process group."""

    def kind(group: int, command: str) -> str | None:
        names = {process.pid: name for name, process in stack.processes.items()}
        return CHILDREN if group in names and "activities.render.forkserver" in command else names.get(group)

    return kind


@dataclass
class Usage:
    """What processes take, looked at all the time: a render child that has ended is no longer there to be asked.

    Args:
        kind_of: The kind of a process, by its process group and its command line; None for one that does not count.
        cpu_s: CPU seconds of each process, by what it is and its number.
        peak_bytes: The most resident memory that one process of each kind has had.
    """

    kind_of: KindOf
    cpu_s: dict[tuple[str, int], float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def watching(self, every_s: float = 0.05) -> Iterator[None]:
        """Looks again and again while the block runs, and once at its end."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(every_s):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look()

    def wait_until_idle(self) -> None:
        """Returns when the processes have started and wait for work."""
        before = -1.0
        while self.total_s - before > IDLE_CPU_S:
            before = self.total_s
            time.sleep(1)
            self.look()

    @property
    def total_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.cpu_s.values())

    def by_kind(self) -> dict[str, float]:
        """CPU seconds of each kind of process."""
        sums: dict[str, float] = {}
        for (kind, _), seconds in self.cpu_s.items():
            sums[kind] = sums.get(kind, 0) + seconds
        return sums

    def look(self) -> None:
        """Takes one look at every process."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
                command = (stat.parent / "cmdline").read_text().replace("\0", " ").strip()
                kind = self.kind_of(int(fields[2]), command) if command else None  # a process that has ended has no command
                if kind is None:
                    continue
                status = (stat.parent / "status").read_text()
            except OSError:
                continue
            self.cpu_s[kind, int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / TICKS
            if "VmHWM" in status:
                self.peak_bytes[kind] = max(self.peak_bytes.get(kind, 0), int(status.split("VmHWM:")[1].split()[0]) * 1024)
