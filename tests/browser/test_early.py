"""What a person sees and can do while sheets are being made, in a real Chromium against the real stack."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from playwright.async_api import expect

from activities.bucket.records import UploadOptions
from deploy.stack import Stack
from tests.browser.test_page import PROCESSING_MS, WatchedPage, chromium_page, plan_pdf
from tests.servers.faults import Faults, Rule, faulty, held_until
from tests.servers.s3 import TestServer

WINDOW = UploadOptions().window
TILES = r"_files/"


@dataclass(frozen=True)
class Held:
    """A stack with one render slot, whose bucket takes tiles only once ``gate`` is set."""

    stack: Stack
    faults: Faults

    def hold_tiles(self) -> threading.Event:
        """Holds every tile from now on; returns the gate."""
        gate = threading.Event()
        self.faults.lay(Rule(held_until(gate), method="PUT", target=TILES))
        return gate


@pytest.fixture(scope="module")
def held(new_stack_of_module: Callable[..., Stack], s3_server: TestServer) -> Iterator[Held]:
    """One for all tests: nothing is killed."""
    with ExitStack() as opened:
        faults = opened.enter_context(faulty(s3_server.endpoint))
        settings = replace(s3_server.new_bucket("early"), endpoint=faults.url)
        yield Held(new_stack_of_module(**s3_server.environment(settings), SITELINK_RENDER_SLOTS="1"), faults)


async def status_of(watched: WatchedPage) -> dict[str, Any]:
    """The progress of the upload that the page shows, as the API tells it."""
    organization, project, plan, upload = watched.page.url.partition("?ref=")[2].partition("#")[0].split("/")
    path = f"/v1/organizations/{organization}/projects/{project}/plans/{plan}/uploads/{upload}"
    status: dict[str, Any] = await (await watched.page.request.get(watched.api_url + path)).json()
    return status


async def test_page_shows_a_thumbnail_before_the_tiles_are_sent(held: Held) -> None:
    """The picture comes while the sheet is being uploaded, and stays as it is when the sheet is ready: it is loaded once."""
    gate = held.hold_tiles()
    async with chromium_page(held.stack.api_url) as watched:
        page = watched.page
        try:
            await watched.upload("early.pdf", plan_pdf(2))
            card = page.locator(".sheet:nth-child(1)")
            await expect(card.locator("img")).to_be_visible(timeout=PROCESSING_MS)
            await page.wait_for_function(
                "document.querySelector('sitelink-progress').shadowRoot.querySelector('.paper img').naturalWidth > 0"
            )
            await expect(card).to_have_attribute("data-status", "uploading")
            sheet = (await status_of(watched))["sheets"][0]
            assert (sheet["status"], sheet["thumbnail"], sheet["tiles"]) == ("uploading", True, None)
            await card.locator("img").evaluate("image => { image.id = 'first'; }")
        finally:
            gate.set()
        await watched.wait_until_complete()
        await expect(card.locator("img")).to_have_id("first")
        loaded = [response.url for response in watched.responses if response.url.endswith("/sheet-1/thumbnail.jpeg")]
        assert len(loaded) == 1
        assert [sheet["thumbnail"] for sheet in (await status_of(watched))["sheets"]] == [True, True]
        watched.check_quiet()


async def test_page_sheet_that_a_person_opens_is_made_next(held: Held) -> None:
    """While a large upload runs, a click on a late sheet has it made before the others that wait, and the page says so."""
    gate = held.hold_tiles()
    async with chromium_page(held.stack.api_url) as watched:
        page, last = watched.page, WINDOW + 12
        try:
            await watched.upload("large.pdf", plan_pdf(last))
            await expect(page.locator(".sheet[data-status=uploading]")).to_have_count(WINDOW, timeout=PROCESSING_MS)
            card = page.locator(f".sheet:nth-child({last})")
            await expect(card).to_have_attribute("data-status", "pending")
            async with page.expect_response(re.compile(rf"/sheets/{last}/prioritize$")) as answer:
                await card.locator(".open").click()
            assert (await answer.value).status == 202
            await expect(card.locator(".state")).to_have_text("Pending, comes next")
            await expect(page.locator("#announcer")).to_have_text(f"Sheet {last} comes next.")
        finally:
            gate.set()
        await watched.wait_until_complete()
        await expect(card.locator(".state")).to_have_text("Ready")
        sheets = (await status_of(watched))["sheets"]
        earlier = [sheet["number"] for sheet in sheets[WINDOW:-1] if sheet["version"] < sheets[-1]["version"]]
        assert len(earlier) <= 1  # the next sheet is drawn while this one's tiles are sent
        watched.check_quiet()


async def test_page_tells_how_long_it_will_take(held: Held) -> None:
    """While sheets are made, the page says a range of time; at the end it says none."""
    gate = held.hold_tiles()
    async with chromium_page(held.stack.api_url) as watched:
        try:
            await watched.upload("time.pdf", plan_pdf(2))
            await expect(watched.page.locator("#left")).to_have_text(re.compile(r"^(about|[\d.]+( s| min)? to) [\d.]+ (s|min) left$"))
            left = (await status_of(watched))["secondsLeft"]
            assert 0 <= left["low"] < left["high"]
        finally:
            gate.set()
        await watched.wait_until_complete()
        await expect(watched.page.locator("#left")).to_have_text("")
        assert (await status_of(watched))["secondsLeft"] is None
