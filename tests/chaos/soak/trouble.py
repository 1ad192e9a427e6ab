"""Makes the faults of a plan happen, and undoes them."""

import os
import random
import shutil
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

from deploy.process import Process
from tests.chaos.soak.plan import Step
from tests.chaos.soak.site import Site, say, set_clock
from tests.servers.faults import (
    Rule,
    answers,
    byte_by_byte,
    cut_short,
    delays,
    lies_about_put,
    reset_after,
    reset_before,
    reset_in_body,
)
from tests.servers.link import freeze, thaw

STOP_LIMIT_S = 60.0
JUMPS_S = (-3600, -300, 300, 3600)

BUCKET_FAULTS = {
    "slow bucket": ((delays(0.4), 0.3), (delays(3), 0.01)),
    "refusing bucket": ((answers(500, "InternalError"), 0.1), (answers(503, "SlowDown"), 0.2), (answers(429, "TooManyRequests"), 0.1)),
    "resetting bucket": ((reset_before, 0.05), (reset_in_body, 0.05), (reset_after, 0.05)),
    "lying bucket": ((lies_about_put, 0.03),),
    "bucket that cuts answers short": ((cut_short, 0.05), (byte_by_byte, 0.01)),
}
"""The faults of each kind, and the probability of each."""


class Trouble:
    """Strikes a site.

    Args:
        site: The site.
        plan: The faults, by time.
    """

    def __init__(self, site: Site, plan: list[Step]) -> None:
        self._site, self._plan = site, plan
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._begun = time.monotonic()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: Counter[str] = Counter()
        """How many faults of each kind have happened, by kind and target."""
        self.left_out: Counter[str] = Counter()
        """The same for those that cannot be made on this machine."""
        self.errors: list[str] = []
        """What went wrong with the faults themselves."""
        self.temporal_losses = 0
        """How often Temporal's database was lost."""

    def run(self) -> None:
        """Makes every fault in its time; returns when all are undone."""
        self._begun = time.monotonic()
        for step in self._plan:
            self._ending.wait(max(0.0, self._begun + step.at_s - time.monotonic()))
            thread = threading.Thread(target=self._make, args=(step,), daemon=True)
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join()

    def _make(self, step: Step) -> None:
        # Two faults that strike the same come one after the other.
        with self._locks[step.target]:
            name = f"{step.kind}: {step.target}"
            try:
                if self._strike(step):
                    self.done[name] += 1
                else:
                    self.left_out[name] += 1
            except Exception as error:  # noqa: BLE001 - reported
                self.errors.append(f"{step}: {error!r}")
            say(f"ended    {step}")

    def _strike(self, step: Step) -> bool:
        """Makes a fault and undoes it; returns whether it can be made here."""
        say(f"begins   {step}")
        if step.kind in BUCKET_FAULTS:
            self._site.faults.lay(
                *(Rule(fault, chance=chance, seed=step.seed + n) for n, (fault, chance) in enumerate(BUCKET_FAULTS[step.kind]))
            )
            self._wait(step)
            self._site.faults.lay()
        elif step.kind == "kill":
            self._kill(step.target)
            self._wait(step)
            self._start(step.target)
        elif step.kind == "stop":
            self._site.fleet.processes[step.target].stop(STOP_LIMIT_S)
            self._wait(step)
            self._start(step.target)
        elif step.kind == "freeze":
            self._signal(step)
        elif step.kind == "cut from Temporal":
            self._site.fleet.links[step.target].cut()
            self._wait(step)
            self._site.fleet.links[step.target].mend()
        elif step.kind == "lose the host":
            self._kill(step.target)
            empty(self._site.fleet.scratch(step.target))
            self._wait(step)
            self._start(step.target)
        elif step.kind == "lose Temporal's file":
            self._kill("temporal")
            for path in self._site.fleet.temporal.database.parent.glob("temporal.db*"):
                path.unlink()
            self.temporal_losses += 1
            self._wait(step)
            self._start("temporal")
        elif step.kind == "fill the disk":
            return self._fill(step)
        elif step.kind == "set the clock":
            return self._set_clock(step)
        else:
            raise ValueError(step.kind)
        return True

    def _wait(self, step: Step) -> None:
        time.sleep(step.seconds)

    def _process(self, target: str) -> Process:
        if target == "temporal":
            return self._site.fleet.temporal.process
        return self._site.s3.process if target == "s3" else self._site.fleet.processes[target]

    def _kill(self, target: str) -> None:
        self._process(target).kill()

    def _start(self, target: str) -> None:
        if target == "temporal":
            self._site.fleet.temporal.start()
        elif target == "s3":
            self._site.s3.start()
        else:
            self._process(target).start()

    def _signal(self, step: Step) -> None:
        process = self._process(step.target)
        freeze(process)
        self._wait(step)
        thaw(process)

    def _fill(self, step: Step) -> bool:
        if not self._site.has_disk:
            return False
        ballast = self._site.fleet.scratch(step.target) / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        os.truncate(ballast, max(0, ballast.stat().st_size - random.Random(step.seed).choice((0, 64 << 10, 1 << 20))))  # noqa: S311 - no secret
        self._wait(step)
        ballast.unlink()
        return True

    def _set_clock(self, step: Step) -> bool:
        clock = self._site.clocks.get(step.target)
        if clock is None:
            return False
        set_clock(clock, random.Random(step.seed).choice(JUMPS_S))  # noqa: S311 - no secret
        self._wait(step)
        set_clock(clock, 0)
        return True


def empty(directory: Path) -> None:
    """Removes everything in a directory, which may be a mount point."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
