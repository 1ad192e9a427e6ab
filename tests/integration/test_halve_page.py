"""A page that needs more memory than a render child has, through the whole stack: made at half its resolution, and true everywhere."""

from collections.abc import Callable

import httpx2
import pytest

from activities.bucket.dzi import sheet_size
from deploy.stack import Stack
from tests.chaos.guarantees import send, sheets_in, wait_for
from tests.resources.make_pdfs import nested_groups

pytestmark = pytest.mark.usefixtures("temporal_binary")

WIDTH_PT, HEIGHT_PT, USER_UNIT = 612.37, 395.81, 2.0
MEMORY_BYTES = 256 << 20
"""The groups take 340 MB at 300 dpi and 85 MB at 150."""


def test_page_without_memory_is_made_at_half_its_resolution(new_stack: Callable[..., Stack]) -> None:
    """Complete, with the size that a count at 150 dpi gives and a note; verified; and the same bytes though every worker was killed."""
    stack = new_stack(SITELINK_RENDER_MEMORY_BYTES=str(MEMORY_BYTES))
    body = nested_groups(WIDTH_PT, HEIGHT_PT, user_unit=USER_UNIT)
    undisturbed = send(stack, body)
    done = wait_for(stack, undisturbed, lambda status: status["completedAt"] is not None)
    assert done["status"] == "complete", done
    (sheet,) = done["sheets"]
    expected = sheet_size(WIDTH_PT, HEIGHT_PT, USER_UNIT, 150, 1 << 30)
    assert expected is not None
    assert (sheet["width"], sheet["height"], sheet["dpi"], sheet["scaled"]) == (expected.width, expected.height, 150, True)
    assert [note["type"] for note in sheet["notes"]] == ["Scaled"]
    assert "150 dpi instead of 300" in sheet["notes"][0]["message"]

    report = httpx2.get(stack.api_url + undisturbed + "/verify", params={"deep": "true"}, timeout=240).json()
    assert report["verified"], report

    disturbed = send(stack, body)
    wait_for(stack, disturbed, lambda status: any(sheet["scaled"] for sheet in status["sheets"]))
    for name in ("worker-workflow", "worker-tile"):
        stack.kill(name)
        stack.start_process(name)
    done = wait_for(stack, disturbed, lambda status: status["completedAt"] is not None)
    assert done["status"] == "complete", done
    bucket = stack.data_dir / "bucket"
    assert sheets_in(bucket, disturbed) == sheets_in(bucket, undisturbed)
