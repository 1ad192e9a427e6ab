"""The forecast against the truth: real plans through the real stack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.bucket.records import Layout
from deploy.sample import write_sample
from deploy.stack import Stack
from tests.chaos.guarantees import send, wait_for
from tests.resources.make_pdfs import plan_set

pytestmark = pytest.mark.usefixtures("temporal_binary")

PLANS = Path(__file__).parents[3] / "shared" / "corpus" / "plans"
"""Real plans, where a checkout has them beside it; the shortest three."""
SHORT = ("04_", "08_", "19_")


def ended(stack: Stack, upload: str) -> dict[str, Any]:
    """The last state of a complete upload."""
    status = wait_for(stack, upload, lambda status: status["completedAt"] is not None)
    assert status["status"] == "complete"
    return status


def check(status: dict[str, Any]) -> None:
    """Exact where it must be, within the range where it is one."""
    forecast, receipt, sheets = status["forecast"], status["receipt"], status["sheets"]
    assert forecast["tiles"] == receipt["tiles"] == sum(sheet["tiles"] for sheet in sheets)
    assert receipt["bytes"] == sum(sheet["bytes"] for sheet in sheets)
    assert forecast["bytesLow"] <= receipt["bytes"] <= forecast["bytesHigh"]
    assert forecast["puts"] == receipt["puts"]
    assert forecast["dollars"] == receipt["dollars"] > 0
    assert forecast["seconds"] > 0
    assert receipt["seconds"] > 0


@pytest.mark.parametrize("layout", list(Layout))
def test_forecast_of_the_sample_plan_holds(stack: Stack, tmp_path: Path, layout: Layout) -> None:
    """Tiles, PUTs and dollars are what they were said to be, and the bytes lie in the range. Each sheet says how it lies in the bucket."""
    write_sample(tmp_path / "sample.pdf")
    status = ended(stack, send(stack, (tmp_path / "sample.pdf").read_bytes(), layout))
    check(status)
    assert {sheet["layout"] for sheet in status["sheets"]} == {layout}


@pytest.mark.parametrize("path", [path for path in sorted(PLANS.glob("*.pdf")) if path.name.startswith(SHORT)], ids=lambda path: path.stem)
def test_forecast_of_a_real_plan_holds(stack: Stack, path: Path) -> None:
    """The same for plans that somebody builds from, at half the resolution."""
    answer = httpx2.post(
        f"{stack.api_url}/v1/organizations/acme/projects/tower/plans/a1/uploads?dpi=150",
        content=path.read_bytes(),
        headers={"Content-Type": "application/pdf"},
        timeout=240,
    )
    assert answer.status_code == 202, answer.text
    check(ended(stack, answer.headers["Location"]))


def test_prices_are_those_of_the_tile_worker(new_stack: Callable[..., Stack]) -> None:
    """Its settings are what the forecast and the receipt are made with."""
    stack = new_stack(SITELINK_PRICE_CLASS_A="1000", SITELINK_PRICE_CLASS_B="0")
    status = ended(stack, send(stack, plan_set(1, 300, 200)))
    forecast = status["forecast"]
    assert (forecast["priceClassA"], forecast["priceClassB"]) == (1000, 0)
    assert status["receipt"]["dollars"] == forecast["dollars"] == pytest.approx(forecast["classA"] / 1000)
