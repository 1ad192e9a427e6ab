"""Many tabs of one browser share one stream, for the browser has only six connections to a server; hidden tabs have none."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from playwright.async_api import Page, expect

from deploy.stack import Stack
from tests.browser.test_page import PROCESSING_MS, WatchedPage, chromium_page, plan_pdf
from tests.waiting import DEADLINE_S

PLAN = "/v1/organizations/local/projects/demo/plans/tabs/uploads"
TABS = 8

COUNT_STREAMS = """
    window.streams = 0;
    const load = window.fetch;
    window.fetch = (url, options) => {
        if (String(url).includes("/events?")) {
            window.streams += 1;
            options.signal.addEventListener("abort", () => { window.streams -= 1; }, { once: true });
        }
        return load(url, options);
    };
    let hidden = false;
    Object.defineProperty(document, "hidden", { get: () => hidden });
    window.hide = (value) => { hidden = value; document.dispatchEvent(new Event("visibilitychange")); };
"""
"""Counts a tab's open streams, which it aborts in the end, and lets the test hide it: to a headless browser every tab is visible."""


async def streams(tabs: Sequence[Page]) -> list[int]:
    """The number of open streams of each tab."""
    return [await tab.evaluate("window.streams") for tab in tabs]


async def wait_until_one_streams(tabs: Sequence[Page]) -> int:
    """Waits until one tab has the stream; returns its index."""
    deadline = time.monotonic() + DEADLINE_S
    while 1 not in (counts := await streams(tabs)):
        assert time.monotonic() < deadline, f"no tab has a stream: {counts}"
        await asyncio.sleep(0.1)
    assert sum(counts) == 1, f"more than one stream: {counts}"
    return counts.index(1)


@asynccontextmanager
async def browser_on(stack: Stack) -> AsyncIterator[WatchedPage]:
    """A browser whose tabs count their streams."""
    async with chromium_page(stack.api_url) as watched:
        await watched.page.context.add_init_script(COUNT_STREAMS)
        yield watched


async def slow_upload(watched: WatchedPage, pages: int = 60) -> str:
    """Sends a plan whose large sheets are made one by one; returns its REF."""
    answer = await watched.page.request.post(
        f"{watched.api_url}{PLAN}?filename=slow.pdf&window=1",
        data=plan_pdf(pages, 30, 22),
        headers={"Content-Type": "application/pdf"},
    )
    assert answer.status == 202
    return str((await answer.json())["ref"])


async def cancel(watched: WatchedPage, *refs: str) -> None:
    """Cancels the uploads."""
    for ref in refs:
        await watched.page.request.post(f"{watched.api_url}{PLAN}/{ref.split('/')[-1]}/cancel")


async def open_tabs(watched: WatchedPage, refs: Sequence[str]) -> list[Page]:
    """Opens one tab for each REF and waits until it shows its upload. Without a free connection the seventh would never do so."""
    tabs = []
    for ref in refs:
        tab = await watched.page.context.new_page()
        await tab.goto(f"{watched.api_url}/?ref={ref}")
        await expect(tab.locator("#file-name")).to_have_text("slow.pdf", timeout=DEADLINE_S * 1000)
        tabs.append(tab)
    return tabs


async def test_eight_tabs_on_a_running_upload_share_one_stream(stack: Stack) -> None:
    """Every tab follows the upload, and only one has a stream; when that tab is closed or hidden, another tab gets the stream."""
    async with browser_on(stack) as watched:
        ref = await slow_upload(watched)
        tabs = await open_tabs(watched, [ref] * TABS)
        leader = await wait_until_one_streams(tabs)

        for tab in tabs:  # each shows a sheet that becomes ready only now
            ready = await tab.locator(".sheet[data-status=ready]").count()
            await tab.wait_for_function(
                """(before) => {
                    const { shadowRoot } = document.querySelector("sitelink-progress");
                    return shadowRoot.querySelectorAll(".sheet[data-status=ready]").length > before;
                }""",
                arg=ready,
                timeout=PROCESSING_MS,
            )
        assert sum(await streams(tabs)) == 1

        await tabs.pop(leader).close()
        leader = await wait_until_one_streams(tabs)
        await tabs[leader].evaluate("window.hide(true)")
        hidden = tabs.pop(leader)
        await wait_until_one_streams(tabs)
        assert await streams([hidden]) == [0]

        await cancel(watched, ref)
        for tab in (*tabs, hidden):
            await expect(tab.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
        deadline = time.monotonic() + DEADLINE_S
        while sum(await streams([*tabs, hidden])) > 0:  # the event `end` comes a moment later
            assert time.monotonic() < deadline, "a stream stays open after the end"
            await asyncio.sleep(0.1)
        await expect(hidden).to_have_title("Cancelled · slow.pdf")


async def test_tabs_on_different_uploads_all_follow_with_one_stream(stack: Stack) -> None:
    """A tab follows its upload even when another tab, on another upload, has the stream: it polls the status."""
    async with browser_on(stack) as watched:
        refs = [await slow_upload(watched, 8) for _ in range(TABS)]
        tabs = await open_tabs(watched, refs)
        await wait_until_one_streams(tabs)
        await cancel(watched, *refs)
        for tab in tabs:
            await expect(tab.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)


async def test_hidden_tab_has_no_stream_and_catches_up_when_it_is_shown(stack: Stack) -> None:
    """Shown again, the tab shows the upload's new state."""
    async with browser_on(stack) as watched:
        ref = await slow_upload(watched)
        (tab,) = await open_tabs(watched, [ref])
        await wait_until_one_streams([tab])
        await tab.evaluate("window.hide(true)")
        assert await streams([tab]) == [0]
        await cancel(watched, ref)
        await tab.evaluate("window.hide(false)")
        await expect(tab.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
