"""The page in a real Chromium against the real stack: upload, watch, zoom, reload, refusals, keyboard, phone, dark mode."""

import io
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, Response, Route, async_playwright, expect

from deploy.stack import Stack
from tests.resources import make_pdfs
from tests.waiting import until_async

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PROCESSING_MS = 240_000
EXPECT_MS = 120_000
POINTS = 72


class WatchedPage:
    """A page, the errors on its console, and the responses to its requests.

    Args:
        page: The Playwright page.
        api_url: The address of the page's server.
    """

    def __init__(self, page: Page, api_url: str) -> None:
        self.page = page
        self.api_url = api_url
        self.complaints: list[str] = []
        self.responses: list[Response] = []
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", lambda response: self.responses.append(response))

    async def upload(self, name: str, body: bytes) -> None:
        """Opens the page, chooses a file and sends it."""
        await self.page.goto(f"{self.api_url}/")
        await self.page.set_input_files("#file", {"name": name, "mimeType": "application/pdf", "buffer": body})
        await self.page.click("#submit")

    async def cards(self) -> list[list[str]]:
        """Number, title and state of every sheet, as the page shows them."""
        cards: list[list[str]] = await self.page.eval_on_selector_all(
            ".sheet", "all => all.map(card => ['number', 'title', 'state'].map(name => card.querySelector('.' + name).textContent.trim()))"
        )
        return cards

    async def wait_until_complete(self) -> None:
        """Returns when the page says that the upload is complete."""
        await expect(self.page.locator("#status")).to_have_text("Complete", timeout=PROCESSING_MS)

    async def wait_until_the_api_says(self, status: str) -> None:
        """Returns when the API gives this status to the upload that the page shows, whatever the page says."""
        organization, project, plan, upload = self.page.url.partition("?ref=")[2].split("/")
        url = f"{self.api_url}/v1/organizations/{organization}/projects/{project}/plans/{plan}/uploads/{upload}"

        async def says_so() -> bool:
            return bool((await (await self.page.request.get(url)).json())["status"] == status)

        await until_async(says_so)

    def check_quiet(self) -> None:
        """The console has no error, and every request went to the page's own server."""
        assert self.complaints == []
        assert {
            url for url in (response.url for response in self.responses) if not url.startswith((self.api_url, "blob:", "data:"))
        } == set()


def chromium_path() -> str:
    """The browser's program. Without one a test run on CI fails; elsewhere its tests are skipped, with the reason."""
    path = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on this machine: install it, the page's tests must run on CI")
        pytest.skip("no chromium on this machine: install it to test the page")
    return path


@asynccontextmanager
async def chromium_page(api_url: str, *, arguments: Sequence[str] = (), **context: Any) -> AsyncIterator[WatchedPage]:
    """A fresh browser with one page; further arguments are the browser's own."""
    expect.set_options(timeout=EXPECT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=[*CHROMIUM_ARGUMENTS, *arguments])
        try:
            settings = {"viewport": {"width": 1280, "height": 800}, **context}
            tabs = await browser.new_context(**settings)
            said: list[str] = []
            tabs.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            tabs.on("weberror", lambda error: said.append(f"error: {error.error}"))
            tabs.on("requestfailed", lambda request: said.append(f"{request.failure}: {request.url}"))
            page = await tabs.new_page()
            page.set_default_timeout(EXPECT_MS)
            try:
                yield WatchedPage(page, api_url)
            except BaseException as error:
                error.add_note("\n".join(["The browser said:", *said]))
                raise
        finally:
            await browser.close()


def plan_pdf(pages: int, width_in: float = 11, height_in: float = 8.5, title: str = "A-10{number} - Floor <b>{number}</b>") -> bytes:
    """A plan set: every page has walls, a dimension grid and a bookmark."""
    width, height = width_in * POINTS, height_in * POINTS
    with pikepdf.new() as pdf, io.BytesIO() as out:
        for number in range(1, pages + 1):
            pdf.add_blank_page(page_size=(width, height))
            lines = "".join(f"{x} 20 m {x} {height - 20:.1f} l S\n" for x in range(20, int(width) - 20, 12))
            walls = f"8 w 40 40 {width - 80:.1f} {height - 80:.1f} re S {80 + 10 * number} 80 120 90 re f\n"
            pdf.pages[-1].Contents = pdf.make_stream(f"0.5 w\n{lines}{walls}".encode())
        with pdf.open_outline() as outline:
            outline.root.extend(pikepdf.OutlineItem(title.format(number=number), number - 1) for number in range(1, pages + 1))
        pdf.save(out)
        return out.getvalue()


async def wait_until_drawn(page: Page) -> None:
    """Returns when the open drawing shows lines: some dark pixels on its canvas, and not all of them."""
    await page.wait_for_function(
        """() => {
            const viewer = document.querySelector("sitelink-viewer").shadowRoot;
            const canvas = viewer.querySelector("#stage .openseadragon-canvas canvas");
            if (!canvas || !canvas.width) return false;
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let dark = 0;
            for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255 && data[i] < 100) dark++;
            return dark > 0 && dark < 0.9 * (data.length / 4);
        }"""
    )


async def test_page_upload_shows_sheets_and_zooms_to_the_deepest_level(stack: Stack) -> None:
    """A PDF chosen on the page becomes cards with titles and thumbnails; a sheet opens and zooms down to real full-size tiles."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("Plan <i>set & more #1 %20.pdf", plan_pdf(3))
        await expect(page).to_have_url(re.compile(r"\?ref=local/demo/plan/[0-9a-zA-Z-]+$"))
        await expect(page.locator("#file-name")).to_have_text("Plan <i>set & more #1 %20.pdf")
        await watched.wait_until_complete()
        assert await watched.cards() == [[str(n), f"A-10{n} - Floor <b>{n}</b>", "Ready"] for n in (1, 2, 3)]
        await expect(page.locator("#count")).to_have_text("3 of 3 sheets")
        await expect(page.get_by_role("progressbar", name="3 of 3 sheets")).to_have_attribute("aria-valuenow", "100")
        await page.wait_for_function("document.querySelector('sitelink-progress').shadowRoot.querySelector('.paper img').naturalWidth > 0")

        await page.click(".sheet:nth-child(2) .open")
        await expect(page.locator("#viewer-title")).to_have_text("A-102 - Floor <b>2</b>")
        assert page.url.endswith("#sheet=2")
        await wait_until_drawn(page)
        deepest = re.compile(r"/sheets/sheet-2/tiles/sheet-2_files/12/\d+_\d+\.jpeg$")  # 3300 x 2550 px: levels 0 to 12
        async with page.expect_response(lambda response: bool(deepest.search(response.url)) and response.status == 200) as deep_tile:
            for _ in range(6):
                await page.keyboard.press("+")
        tile = await page.request.get((await deep_tile.value).url)
        assert (await tile.body()).startswith(b"\xff\xd8")
        await wait_until_drawn(page)
        watched.check_quiet()


async def test_page_reload_shows_the_same_state(stack: Stack) -> None:
    """A reload in the middle loses nothing that was ready; a reload at the end, and of an open sheet, shows the same."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("reload.pdf", plan_pdf(8, 30, 22))
        await page.wait_for_selector(".sheet[data-status=ready]", timeout=PROCESSING_MS)
        await expect(page.locator("#status")).to_have_text("Processing")
        before = await watched.cards()
        await page.reload()
        await page.wait_for_selector(".sheet")
        after = await watched.cards()
        assert [card[:2] for card in after] == [card[:2] for card in before]
        assert {card[0] for card in before if card[2] == "Ready"} <= {card[0] for card in after if card[2] == "Ready"}

        await watched.wait_until_complete()
        final = await shown_text(page)
        await page.reload()
        await watched.wait_until_complete()
        assert await shown_text(page) == final

        await page.goto(f"{page.url}#sheet=5")
        await page.reload()
        await expect(page.locator("#viewer-title")).to_have_text("A-105 - Floor <b>5</b>")
        await page.keyboard.press("Escape")
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(page).to_have_url(re.compile(r"^[^#]+$"))
        await expect(page.locator(".sheet:nth-child(5) .open")).to_be_focused()

        await page.goto(f"{stack.api_url}/")
        row = page.locator(".uploads a", has_text="reload.pdf").first
        await expect(row).to_contain_text("Complete")
        await expect(row).to_contain_text("8 sheets")
        watched.check_quiet()


async def test_page_shows_forecast_and_receipt(stack: Stack) -> None:
    """While sheets are made the page shows a forecast of tiles, size, time and cost; at the end the true values, beside the forecast."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("forecast.pdf", plan_pdf(6, 30, 22))
        measures = page.get_by_role("group", name="Forecast")
        await expect(measures).to_be_visible(timeout=PROCESSING_MS)
        assert (await measures.inner_text()).split("\n")[:3] == ["Forecast", "Tiles", "7,620"]
        await expect(measures).to_contain_text("MB")
        await expect(measures).to_contain_text(re.compile(r"(about|\d+ to) \d+ s"))
        await watched.wait_until_complete()
        took = page.get_by_role("group", name="What it took")
        for name, text in (
            ("tiles", r"^Tiles\s*7,620\s*forecast 7,620$"),
            ("size", r"^Size of the tiles\s*[\d.]+ MB\s*forecast \d+ to \d+ MB$"),
            ("time", r"^Time\s*\d+ s\s*forecast (about|\d+ to) \d+ s$"),
            ("cost", r"^Storage requests\s*\$0\.03\s*forecast \$0\.03$"),
        ):
            await expect(took.locator(f"#measure-{name}")).to_have_text(re.compile(text), use_inner_text=True)
        watched.check_quiet()


async def test_page_file_that_is_no_pdf_is_refused_by_name(stack: Stack) -> None:
    """A refusal of the POST is shown beside the form by name and with a sentence, gets the focus, and the file stays chosen."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("page.pdf", b"<html><body>502 Bad Gateway</body></html>")
        await expect(page.locator("#form-error-type")).to_have_text("NotAPdf")
        await expect(page.locator("#form-error-title")).to_have_text("This file is not a PDF")
        await expect(page.locator("#form-error-detail")).to_have_text(re.compile(r"%PDF-.+\.$"))
        await expect(page.locator("#form-error")).to_be_focused()
        assert await page.evaluate("document.getElementById('file').files[0].name") == "page.pdf"
        await expect(page.locator("#submit")).to_be_visible()


async def test_page_document_that_needs_a_password_says_so(stack: Stack) -> None:
    """A refusal found after acceptance is shown large, by name and with what to do: the form takes the password, and forgets it."""
    with pikepdf.open(io.BytesIO(plan_pdf(1))) as pdf, io.BytesIO() as out:
        pdf.save(out, encryption=pikepdf.Encryption(user="secret", owner="secret", R=6))
        locked = out.getvalue()
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("locked.pdf", locked)
        await expect(page.locator("#verdict-type, #form-error-type").filter(visible=True)).to_have_text(
            "PasswordRequired", timeout=PROCESSING_MS
        )
        await expect(page.locator("#verdict-title, #form-error-title").filter(visible=True)).to_have_text("This PDF needs a password")
        await page.goto(f"{watched.api_url}/")
        await expect(page.locator("#password")).to_be_hidden()
        await page.set_input_files("#file", {"name": "locked.pdf", "mimeType": "application/pdf", "buffer": locked})
        await page.get_by_label("Password of the PDF").fill("secret")
        await page.click("#submit")
        await watched.wait_until_complete()
        assert await page.input_value("#password") == ""


async def test_page_works_with_the_keyboard_alone(stack: Stack, tmp_path: Path) -> None:
    """Choose, upload, open, zoom, step to the next sheet and close: no pointer is needed, and the focus comes back."""
    file = tmp_path / "keys.pdf"
    file.write_bytes(plan_pdf(2))
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        # Playwright tells the browser only now to report file choosers, and does not wait for it: at the key press it can be too late.
        page.on("filechooser", lambda _: None)
        await page.goto(f"{stack.api_url}/")
        await tab_to(page, "#file")
        async with page.expect_file_chooser() as chooser:
            await page.keyboard.press("Enter")
        await (await chooser.value).set_files(file)
        await tab_to(page, "#submit")
        await page.keyboard.press("Enter")
        await watched.wait_until_complete()
        await tab_to(page, ".sheet:nth-child(1) .open")
        await page.keyboard.press("Enter")
        await expect(page.locator("#viewer-title")).to_have_text("A-101 - Floor <b>1</b>")
        await wait_until_drawn(page)
        async with page.expect_response(re.compile(r"/sheet-1_files/12/")):
            for _ in range(6):
                await page.keyboard.press("+")
        await page.keyboard.press("]")
        await expect(page.locator("#viewer-title")).to_have_text("A-102 - Floor <b>2</b>")
        await page.keyboard.press("Escape")
        await expect(page.locator(".sheet:nth-child(2) .open")).to_be_focused()
        watched.check_quiet()


async def tab_to(page: Page, selector: str) -> None:
    """Presses Tab until the element has the focus."""
    for _ in range(20):
        if await page.evaluate(
            """selector => {
                let focused = document.activeElement;
                while (focused.shadowRoot?.activeElement) focused = focused.shadowRoot.activeElement;
                return focused.matches(selector);
            }""",
            selector,
        ):
            return
        await page.keyboard.press("Tab")
    pytest.fail(f"{selector} is not reached by Tab")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_fits_a_phone_in_light_and_dark(stack: Stack, scheme: str) -> None:
    """At 360 px nothing scrolls sideways, every touch target is at least 44 px high, and the colours follow the system."""
    async with chromium_page(
        stack.api_url, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True, is_mobile=True
    ) as watched:
        page = watched.page
        await page.goto(f"{stack.api_url}/")
        await check_phone(page)
        await watched.upload(f"{'A-very-long-file-name-without-a-space-' * 3}.pdf", plan_pdf(2, title=f"{'W' * 70} {{number}}"))
        await watched.wait_until_complete()
        await check_phone(page)
        background = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(background) < 3 * 128) == (scheme == "dark")
        await page.tap(".sheet:nth-child(1) .open")
        await wait_until_drawn(page)
        await check_phone(page)
        watched.check_quiet()


async def shown_text(page: Page) -> str:
    """What a person can read on the page of an upload."""
    text: str = await page.locator("sitelink-progress").evaluate(
        "(element) => [...element.shadowRoot.children].filter((child) => child.id !== 'announcer').map((child) => child.innerText).join()"
    )
    return text


async def check_phone(page: Page) -> None:
    """No sideways scrolling and no small target."""
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    small = await page.evaluate(
        """() => [document, ...[...document.querySelectorAll("sitelink-progress, sitelink-viewer")].map((element) => element.shadowRoot)]
            .flatMap((root) => [...root.querySelectorAll("button, a, input")])
            .filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 44)
            .map((element) => element.outerHTML)"""
    )
    assert small == []


async def test_page_asks_the_status_when_the_stream_is_silent(stack: Stack) -> None:
    """A stream that brings no byte is noticed: the page says that it asks the server, shows the answer, and polls from then on."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        streams: list[Route] = []
        await page.route("**/events*", lambda route: streams.append(route))  # never answered: a stream that is dead without an error
        await page.clock.install()
        async with page.expect_request("**/events*"):
            await watched.upload("silent.pdf", plan_pdf(2))
        asked: list[Route] = []
        of_status = re.compile(r"/uploads/[^/]+$")
        await page.route(of_status, lambda route: asked.append(route))
        await page.clock.fast_forward(61_000)
        await expect(page.locator("#news")).to_have_text("The server has sent nothing for a while. Asking it…")
        await watched.wait_until_the_api_says("complete")
        assert await page.inner_text("#status") != "Complete"
        await page.unroute(of_status)
        with suppress(PlaywrightError):  # the page gives a question up that takes a minute, and asks again
            await asked[0].continue_()
        await watched.wait_until_complete()
        assert await watched.cards() == [["1", "A-101 - Floor <b>1</b>", "Ready"], ["2", "A-102 - Floor <b>2</b>", "Ready"]]


async def test_page_failed_sheet_shows_its_reason_and_can_be_retried(stack: Stack) -> None:
    """A sheet that failed says why beside a Retry button; the retry reaches the workflow and its outcome is shown."""
    with pikepdf.open(io.BytesIO(plan_pdf(2))) as pdf, io.BytesIO() as out:
        pdf.pages[1].CropBox = [5000, 5000, 6000, 6000]  # lies outside the page: it has no area
        pdf.save(out)
        broken = out.getvalue()
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("broken.pdf", broken)
        await expect(page.locator("#status")).to_have_text("Partly complete", timeout=PROCESSING_MS)
        await expect(page.locator("#verdict")).to_contain_text("1 sheet failed")
        failed = page.locator(".sheet:nth-child(2)")
        await expect(failed.locator(".state")).to_have_text("Failed")
        await expect(failed.locator("code")).to_have_text("PageUnreadable")
        await expect(failed.locator(".detail")).to_have_text(re.compile(r"^[A-Z].+\.$"))
        async with page.expect_response(re.compile(r"/sheets/2/retry$")) as answer:
            await failed.get_by_role("button", name="Retry sheet 2").click()
        assert (await answer.value).status == 202
        await expect(failed.get_by_role("button", name="Retry sheet 2")).to_have_text("Retry", timeout=PROCESSING_MS)
        await expect(page.locator("#status")).to_have_text("Partly complete", timeout=PROCESSING_MS)
        watched.check_quiet()


async def test_page_takes_a_dropped_file(stack: Stack) -> None:
    """A PDF that is dropped anywhere on the page becomes the chosen file, and the browser stays on the page."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await page.goto(f"{stack.api_url}/")
        await expect(page.locator("#drop")).to_be_visible()  # the form takes a file as soon as the page has asked who may use it
        await page.evaluate(
            """() => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File(["%PDF-1.7"], "dropped.pdf", { type: "application/pdf" }));
                document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
            }"""
        )
        await expect(page.locator("#chosen")).to_have_text("dropped.pdf (8 bytes)")
        await expect(page.locator("#submit")).to_be_focused()
        watched.check_quiet()


async def test_page_warns_before_it_leaves_a_running_upload(stack: Stack) -> None:
    """While bytes are being sent, leaving asks first; Stop ends the upload and keeps the file chosen."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        held: list[Route] = []
        await page.route(re.compile(r"/uploads\?filename="), lambda route: held.append(route))
        await watched.upload("held.pdf", plan_pdf(1))
        await expect(page.get_by_role("progressbar", name="Upload of the file")).to_be_visible()
        async with page.expect_event("dialog") as asked:
            await page.close(run_before_unload=True)
        dialog = await asked.value
        assert dialog.type == "beforeunload"
        await dialog.dismiss()
        await page.click("#abort")
        await expect(page.locator("#chosen")).to_contain_text("held.pdf")
        await expect(page.locator("#submit")).to_be_focused()
        watched.check_quiet()


async def test_page_cancel_ends_the_upload(stack: Stack) -> None:
    """Cancel asks first; then the upload ends as cancelled, and the page says that ready sheets stay usable."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        page.on("dialog", lambda dialog: dialog.accept())
        await watched.upload("cancel.pdf", plan_pdf(12, 30, 22))
        await page.wait_for_selector(".sheet[data-status=tiling]", timeout=PROCESSING_MS)
        await page.click("#cancel")
        await expect(page.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
        await expect(page.locator("#verdict")).to_contain_text("stay usable")
        await expect(page.locator("#cancel")).to_be_hidden()
        await expect(page.locator("#file-name")).to_be_focused()
        watched.check_quiet()


async def test_page_delete_removes_the_upload_for_good(stack: Stack) -> None:
    """Delete asks first; then the plan's list is shown without the upload, and its address says that there is none."""
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        page.on("dialog", lambda dialog: dialog.accept())
        await watched.upload("delete.pdf", plan_pdf(1, 3, 2))
        await expect(page.locator("#status")).to_have_text("Complete", timeout=PROCESSING_MS)
        address = page.url
        await page.click("#delete")
        await expect(page.locator("#upload")).to_be_hidden(timeout=PROCESSING_MS)
        await expect(page.get_by_text("delete.pdf")).to_have_count(0)
        await page.goto(address)
        await expect(page.locator("#verdict")).to_contain_text("UploadNotFound")


async def test_page_says_which_sheets_may_differ_from_the_pdf(stack: Stack) -> None:
    """A sheet with notes shows them on its card and in the viewer, and can be filtered for; others show nothing."""
    data = make_pdfs.portfolio("model.dwg", pages=2)
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("noted.pdf", data)
        await watched.wait_until_complete()
        noted, plain = page.locator(".sheet:nth-child(1)"), page.locator(".sheet:nth-child(2)")
        await expect(plain.locator(".notes")).to_be_hidden()
        await noted.get_by_text("May differ from the PDF").click()
        await expect(noted.locator(".notes li")).to_have_text(re.compile(r"not drawn: model\.dwg"))
        await page.get_by_role("radio", name="With notes 1").check()
        await expect(plain).to_be_hidden()
        await noted.locator(".open").click()
        await expect(page.locator("#viewer-notes")).to_have_text(re.compile(r"^May differ from the PDF\. .*model\.dwg"))
        await page.keyboard.press("Escape")
        watched.check_quiet()
