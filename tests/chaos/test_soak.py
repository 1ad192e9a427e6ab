"""The soak, for three minutes; and the plans that seeds make."""

from pathlib import Path

import pytest

from tests.chaos.soak.__main__ import soak
from tests.chaos.soak.plan import KINDS, make_plan

MINUTES, SEED = 3, 1


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("temporal_binary", "s3_server_binary")
def test_every_guarantee_holds_after_three_minutes_of_faults(tmp_path: Path) -> None:
    """``python -m tests.chaos.soak`` finds nothing."""
    findings, report = soak(tmp_path, MINUTES, SEED)
    assert findings == [], report


def test_plan_follows_from_its_seed() -> None:
    """The same seed makes the same plan, another seed another one. The shortest plan has every kind of fault, with every role."""
    assert make_plan(7, 180) == make_plan(7, 180)
    assert make_plan(7, 180) != make_plan(8, 180)
    for seconds in (30, 180, 1200):
        steps = make_plan(7, seconds)
        assert all(0 <= step.at_s <= seconds for step in steps)
        assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
        for kind in KINDS:
            assert any(step.kind == kind.name and step.target in kind.targets for step in steps)
    assert len(make_plan(7, 1200)) >= 100
