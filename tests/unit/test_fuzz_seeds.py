"""Damaged PDFs end by name: a few by chance. ``tests.chaos.fuzz`` makes more; a seed that it finds is added here."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.fuzz import Fuzzer, Recipe
from tests.resources import make_pdfs
from tests.unit.test_child import render_children
from tests.waiting import until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOUND = {
    name: make_pdfs.ALL[name]()
    for name in ("annotation_on_white", "titles", "outline_loop", "form", "xfa_form", "plan_set_8", "empty_password", "user_unit_10")
}
CASES = 5
"""Of each file."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fuzzer]:
    """One for all cases."""
    async with Fuzzer.started(tmp_path_factory.mktemp("fuzz")) as fuzzer:
        yield fuzzer


@pytest.mark.parametrize("name", SOUND)
async def test_damaged_pdf_ends_by_name(fuzzer: Fuzzer, name: str) -> None:
    """Whatever a seed does to a PDF, nothing crashes, hangs, stays behind or changes another sheet."""
    for seed in range(CASES):
        data = Recipe(SOUND[name], SOUND["plan_set_8"], seed).build()
        assert await fuzzer.run(data, seed, beside=seed == 0) == [], seed
    assert fuzzer.outcomes.total() >= CASES


async def test_fuzzer_finds_a_dead_child(fuzzer: Fuzzer) -> None:
    """The cases above can fail."""
    case = asyncio.create_task(fuzzer.run(make_pdfs.nested_forms(), 0))
    await until_async(render_children)
    for pid in render_children():
        os.kill(pid, signal.SIGSEGV)
    assert await case == ["RenderCrashed: the render process ended by SIGSEGV"]
