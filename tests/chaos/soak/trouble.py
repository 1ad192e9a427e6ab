"""Makes the faults of a plan happen, and undoes them."""

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from tests.temporal import lose_database

STOP_LIMIT_S = 60.0
LEAST_STRUCK, MORE_TIME = 10, 3
"""A fault of the bucket lasts up to so many times longer, until it has struck so many requests."""
JUMPS_S = (-3600, -300, 300, 3600)

BUCKET_FAULTS = {
    "slow bucket": ((delays(0.4), 0.3), (delays(3), 0.01)),
    "refusing bucket": ((answers(500, "InternalError"), 0.1), (answers(503, "SlowDown"), 0.2), (answers(429, "TooManyRequests"), 0.1)),
    "resetting bucket": ((reset_before, 0.05), (reset_in_body, 0.05), (reset_after, 0.05)),
    "lying bucket": ((lies_about_put, 0.1),),
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
        self._locks = {name: threading.Lock() for name in (*site.fleet.processes, *(step.target for step in plan))}
        self._ending = threading.Event()
        self.done: Counter[str] = Counter()
        """How many faults of each kind have happened, by kind and target."""
        self.left_out: Counter[str] = Counter()
        """The same for those that cannot be made on this machine."""
        self.struck: Counter[str] = Counter()
        """How many requests to the bucket were struck, by kind."""
        self.errors: list[str] = []
        """What went wrong with the faults themselves."""
        self.crashes: list[str] = []
        """Processes that ended by themselves, and must not."""

    def run(self) -> None:
        """Makes every fault in its time; returns when all are undone."""
        begun, threads = time.monotonic(), []
        for step in self._plan:
            time.sleep(max(0.0, begun + step.at_s - time.monotonic()))
            threads.append(threading.Thread(target=self._make, args=(step,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    @contextmanager
    def supervision(self) -> Iterator[None]:
        """Starts again what ends by itself, until the block ends: a worker ends if Temporal is away when it starts."""
        keeper = threading.Thread(target=self._keep_running, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            self._ending.set()
            keeper.join()

    def _keep_running(self) -> None:
        while not self._ending.wait(1):
            for name, process in self._site.fleet.processes.items():
                if self._locks[name].acquire(blocking=False):
                    try:
                        if not process.is_running:
                            code = process.kill()
                            process.start()
                            self.done[f"ended by itself, and started again: {name}"] += 1
                            if name.startswith("api") or (code or 0) < 0:  # no API waits for Temporal when it starts
                                self.crashes.append(f"{name} ended by itself, with exit code {code}; its log: {process.log}")
                    finally:
                        self._locks[name].release()

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
            faults = enumerate(BUCKET_FAULTS[step.kind])
            rules = [
                Rule(fault, method="PUT" if fault is lies_about_put else "", chance=chance, seed=step.seed + number)
                for number, (fault, chance) in faults
            ]
            self._site.faults.lay(*rules)
            self._wait(step)
            # Another fault may have kept all requests away meanwhile.
            deadline = time.monotonic() + MORE_TIME * step.seconds
            while sum(rule.struck for rule in rules) < LEAST_STRUCK and time.monotonic() < deadline:
                time.sleep(0.2)
            self._site.faults.lay()
            self.struck[step.kind] += sum(rule.struck for rule in rules)
        elif step.kind == "kill":
            self._kill(step.target)
            self._wait(step)
            self._start(step.target)
        elif step.kind == "stop":
            self._site.fleet.processes[step.target].stop(STOP_LIMIT_S)
            self._wait(step)
            self._start(step.target)
        elif step.kind == "freeze":
            freeze(self._process(step.target))
            self._wait(step)
            thaw(self._process(step.target))
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
            lose_database(self._site.fleet.temporal.database.parent)
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
        process = self._process(step.target)
        if process.is_running:  # and has been for some seconds, so that the library that moves its clock has mapped the file
            assert clock.name in Path(f"/proc/{process.pid}/maps").read_text(), f"nothing moves the clock of {step.target}"
        return True


def empty(directory: Path) -> None:
    """Removes everything in a directory, which may be a mount point."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
