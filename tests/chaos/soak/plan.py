"""The plan of a soak: which fault comes when, and for how long. The same seed and length make the same plan."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

LONG_RUN_S = 600
PERIOD_S = 12.0
"""On average, the next fault comes within this time. Two faults may be twice as far apart."""

TILES = ("tile-1", "tile-2", "tile-3")
WORKFLOWS = ("workflow-1", "workflow-2")
APIS = ("api-1", "api-2")
BUCKET, TEMPORAL, S3 = ("bucket",), ("temporal",), ("s3",)
DISK = ("tile-2",)
"""The tile worker whose scratch is a small disk."""
CLOCKS = ("api-2", "workflow-2", "tile-3")
"""The processes whose clocks can be set."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Args:
        name: What happens.
        targets: The processes, of which one is struck.
        seconds: How long it lasts; for a kill, until the next start. The plan takes up to this time.
    """

    name: str
    targets: Sequence[str]
    seconds: float = 5.0


FREEZE_S = 60.0
CUT_S = 60.0

KINDS = (
    Kind("kill", TILES),
    Kind("kill", TILES),
    Kind("kill", WORKFLOWS),
    Kind("kill", APIS),
    Kind("kill", TEMPORAL),
    Kind("kill", S3),
    Kind("stop", TILES, 1),
    Kind("stop", WORKFLOWS, 1),
    Kind("stop", APIS, 1),
    Kind("freeze", TILES, FREEZE_S),
    Kind("freeze", WORKFLOWS, FREEZE_S),
    Kind("freeze", APIS, FREEZE_S),
    Kind("freeze", TEMPORAL, FREEZE_S / 2),
    Kind("freeze", S3, FREEZE_S / 2),
    Kind("cut from Temporal", (*TILES, *WORKFLOWS, *APIS), CUT_S),
    Kind("lose the host", TILES),
    Kind("lose Temporal's file", TEMPORAL),
    Kind("fill the disk", DISK, 30),
    Kind("set the clock", CLOCKS, 30),
    Kind("slow bucket", BUCKET, 20),
    Kind("refusing bucket", BUCKET, 20),
    Kind("resetting bucket", BUCKET, 20),
    Kind("lying bucket", BUCKET, 20),
    Kind("bucket that cuts answers short", BUCKET, 20),
)
LASTING = ("freeze", "cut from Temporal", *(kind.name for kind in KINDS if kind.targets is BUCKET))
"""These last for as long as they can: they must be longer than the timeouts that notice them, or strike enough requests."""
SHORT_FREEZE_S = 25.0


@dataclass(frozen=True)
class Step:
    """One fault.

    Args:
        at_s: When it begins, in seconds since the beginning of the faults.
        kind: The name of its kind.
        target: What it strikes.
        seconds: How long it lasts.
        seed: For what the fault itself leaves to chance.
    """

    at_s: float
    kind: str
    target: str
    seconds: float
    seed: int

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.kind}: {self.target}, {self.seconds:.1f} s"


def make_plan(seed: int, seconds: float) -> list[Step]:
    """The faults of a run, by time.

    Every kind comes once before any comes a second time, however short the run is.

    Args:
        seed: Decides about order, targets and times.
        seconds: How long faults begin.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    kinds: list[Kind] = []
    while not kinds or len(kinds) * PERIOD_S < seconds:
        kinds += rng.sample(KINDS, len(KINDS))
    period = seconds / len(kinds)
    steps = []
    for number, kind in enumerate(kinds):
        lasting = min(kind.seconds, SHORT_FREEZE_S) if seconds < LONG_RUN_S else kind.seconds
        duration = lasting if kind.name in LASTING else lasting * rng.uniform(0.1, 1)
        at_s = period * (number + rng.random())
        steps.append(Step(round(at_s, 1), kind.name, rng.choice(kind.targets), round(duration, 1), rng.randrange(1 << 30)))
    return sorted(steps, key=lambda step: step.at_s)
