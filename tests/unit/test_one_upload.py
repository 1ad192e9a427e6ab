"""Documents that cost time or memory, through the activities of a host with their retries: a named end, and nothing left."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from activities.render.child import ChildLimits
from tests.one_upload import one_host
from tests.resources import make_pdfs
from tests.unit.test_child import fork_servers, render_children

SMALL = ChildLimits(memory_bytes=400 << 20)
SHORT = ChildLimits(cpu_s=2)
BAD_PAGES = {1: "ready", 2: "PageUnreadable", 3: "PageUnreadable", 4: "PageTooLarge", 5: "ready"}


@pytest.mark.parametrize(
    ("make", "limits", "refusal", "sheets", "tries"),
    [
        (lambda: make_pdfs.plan_set(2), SMALL, None, {1: "ready", 2: "ready"}, 0),
        (make_pdfs.cut_off, SMALL, "UnreadablePdf", {}, 1),
        (make_pdfs.bad_pages_among_good, SMALL, None, BAD_PAGES, 0),
        (make_pdfs.nested_forms, SHORT, None, {1: "RenderTimeout"}, 1),
        (lambda: make_pdfs.inflates_to(1 << 29), SMALL, None, {1: "RenderOutOfMemory"}, 4),
    ],
    ids=["good", "cut off", "bad pages", "CPU time", "memory"],
)
async def test_document_ends_by_name(
    tmp_path: Path, make: Callable[[], bytes], limits: ChildLimits, refusal: str | None, sheets: dict[int, str], tries: int
) -> None:
    """CPU time that ran out in a fresh child, with nothing beside it, is not spent again. Memory is tried at half the resolution, too."""
    source = tmp_path / "source.pdf"
    source.write_bytes(make())
    async with one_host(tmp_path, limits=limits) as host:
        outcome = await host.run(source)
        assert (outcome.refusal and outcome.refusal[0], outcome.sheets, outcome.tries) == (refusal, sheets, tries)
        assert (host.leftovers(), render_children()) == ([], set())
    assert fork_servers() == set()


async def test_neighbours_of_hostile_documents_are_right(tmp_path: Path) -> None:
    """The sheets of a plan are the same, byte for byte, whatever the host draws at the same time."""
    plan, *hostile = (tmp_path / f"{name}.pdf" for name in ("plan", "nested", "damaged", "memory", "refused"))
    makes: list[Callable[[], bytes]] = [
        make_pdfs.nested_forms,
        make_pdfs.bad_pages_among_good,
        lambda: make_pdfs.inflates_to(1 << 29),
        make_pdfs.cut_off,
    ]
    plan.write_bytes(make_pdfs.plan_set(3))
    for path, make in zip(hostile, makes, strict=True):
        path.write_bytes(make())
    sheets = []
    for others in ([], hostile):
        async with one_host(tmp_path / str(len(others)), 2, ChildLimits(memory_bytes=400 << 20, cpu_s=20)) as host:
            outcome, *_ = await asyncio.gather(*(host.run(path) for path in (plan, *others)))
            assert outcome.sheets == {1: "ready", 2: "ready", 3: "ready"}
            assert (host.leftovers(), render_children()) == ([], set())
            sheets.append(host.sheets(plan))
    assert len(sheets[0]) > 1000
    assert sheets[0] == sheets[1]
