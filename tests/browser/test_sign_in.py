"""The page of a server with access control: signing in and out, a session that expires, and what a token does not allow."""

import io
import random
import re
import time

import pikepdf
from playwright.async_api import Page, expect

from tests.browser.conftest import PUBLIC_HOST, Guarded
from tests.browser.test_page import PROCESSING_MS, WatchedPage, chromium_page, plan_pdf, wait_until_drawn
from tests.waiting import DEADLINE_S

PLAN = "acme/tower/architectural"
SIZE_BYTES = 400_000
UPLOADS = "/v1/organizations/acme/projects/tower/plans/architectural/uploads"


async def sign_in(page: Page, token: str) -> None:
    """Pastes a token into the dialog, which must be open."""
    await page.locator("#token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#sign-in")).to_be_hidden()


async def send(watched: WatchedPage, token: str, name: str, pages: int = 2, query: str = "") -> str:
    """Sends a plan past the page; returns its REF."""
    answer = await watched.page.request.post(
        f"{watched.api_url}{UPLOADS}?filename={name}{query}",
        data=plan_pdf(pages, 30, 22) if query else plan_pdf(pages),
        headers={"Content-Type": "application/pdf", "Authorization": f"Bearer {token}"},
    )
    assert answer.status == 202
    return str((await answer.json())["ref"])


def check_refusals(watched: WatchedPage) -> None:
    """The console has only the browser's lines about refused credentials."""
    assert [complaint for complaint in watched.complaints if "401" not in complaint] == []


async def test_sign_in_shows_a_plan_and_sign_out_leaves_nothing(guarded: Guarded) -> None:
    """A token becomes a cookie that no script can read, also by http on this machine; with it a plan is chosen, uploaded, drawn."""
    async with chromium_page(guarded.url) as watched:
        page = watched.page
        await page.goto(f"{guarded.url}/")
        dialog = page.get_by_role("dialog", name="Sign in")
        await expect(dialog).to_be_visible()
        await expect(page.locator("#token")).to_be_focused()
        await page.keyboard.press("Escape")
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_visible()
        for text, said in (
            ("", "Paste a token first."),
            ("no token", "This is not a token"),
            ("x.y.z", "The token is not valid."),
            (guarded.token(left_s=-60), "The token has expired."),
        ):
            await page.locator("#token").fill(text)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("alert")).to_contain_text(said)

        await sign_in(page, f"  Bearer {guarded.token()}\n")
        (cookie,) = await page.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == ("__Host-sitelink", True, True, "Strict")
        assert await page.evaluate("document.cookie + Object.values(localStorage) + Object.values(sessionStorage)") == ""
        await expect(page.locator("#who-name")).to_have_text("jo · acme")
        await page.get_by_label("Project").fill("tower")
        await page.get_by_label("Plan", exact=True).fill("architectural")
        await page.get_by_role("button", name="Open").click()
        await expect(page).to_have_url(f"{guarded.url}/?plan={PLAN}")

        await page.set_input_files("#file", {"name": "tower.pdf", "mimeType": "application/pdf", "buffer": plan_pdf(2)})
        await page.click("#submit")
        await expect(page).to_have_url(re.compile(rf"\?ref={PLAN}/"))
        await watched.wait_until_complete()
        await expect(page.get_by_role("button", name="Delete")).to_be_visible()
        await page.reload()
        await page.get_by_role("button", name="A-101").click()
        await wait_until_drawn(page)
        await page.keyboard.press("Escape")
        await expect(page).to_have_url(re.compile(rf"\?ref={PLAN}/[^#]+$"))
        check_refusals(watched)

        address = page.url
        await page.get_by_role("button", name="Sign out").click()
        await expect(dialog).to_be_visible()
        assert await page.context.cookies() == []
        await page.go_back()
        await expect(dialog).to_be_visible()
        await expect(page.locator("#file-name")).to_be_hidden()
        assert page.url == address
        await sign_in(page, guarded.token())
        await expect(page.locator("#file-name")).to_have_text("tower.pdf")
        await page.goto(f"{guarded.url}/")
        await expect(page.locator("#plan")).to_have_text(PLAN)  # the last one of this organization


async def test_page_says_that_a_session_needs_https(guarded: Guarded) -> None:
    """By http under another name than this machine's, a browser keeps no such cookie, and tells nobody."""
    address = guarded.url.replace("127.0.0.1", PUBLIC_HOST)
    async with chromium_page(address, arguments=[f"--host-resolver-rules=MAP {PUBLIC_HOST} 127.0.0.1"]) as watched:
        page = watched.page
        await page.goto(address)
        await page.locator("#token").fill(guarded.token())
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("Open this page by https")
        assert await page.context.cookies() == []


async def test_expired_session_asks_again_and_goes_on(guarded: Guarded) -> None:
    """The event stream ends with the session. After signing in it goes on at the version that is known, in the same page."""
    async with chromium_page(guarded.url) as watched:
        page = watched.page
        ref = await send(watched, guarded.token(), "slow.pdf", 40, "&window=1")
        for left_s in (4, 30, 120):  # a slow machine gets a longer session
            await page.context.add_cookies([guarded.session_cookie(left_s=left_s)])
            asked = time.monotonic()
            await page.goto(f"{guarded.url}/?ref={ref}")
            await expect(page.locator("#file-name")).to_have_text("slow.pdf")
            if time.monotonic() - asked < left_s - 2:
                break
        await page.evaluate("window.isSamePage = true")
        dialog = page.get_by_role("dialog", name="Your session has ended")
        await expect(dialog).to_be_visible(timeout=PROCESSING_MS)
        await expect(page.locator("#file-name")).to_have_text("slow.pdf")
        await sign_in(page, guarded.token())
        page.once("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
        assert await page.evaluate("window.isSamePage")
        check_refusals(watched)


async def test_file_is_sent_after_signing_in_again(guarded: Guarded) -> None:
    """A session that expired while a person chose a file loses neither the file nor the click."""
    async with chromium_page(guarded.url) as watched:
        page = watched.page
        await page.goto(f"{guarded.url}/?plan={PLAN}")
        await sign_in(page, guarded.token())
        await page.set_input_files("#file", {"name": "late.pdf", "mimeType": "application/pdf", "buffer": plan_pdf(1)})
        await page.context.clear_cookies()
        await page.click("#submit")
        await expect(page.get_by_role("dialog", name="Your session has ended")).to_be_visible()
        await sign_in(page, guarded.token())
        await expect(page.locator("#file-name")).to_have_text("late.pdf")
        await watched.wait_until_complete()
        check_refusals(watched)


async def test_file_that_is_being_sent_outlasts_the_session(guarded: Guarded) -> None:
    """The session counts when the sending begins. The page asks again when it shows the upload, and nothing is sent twice."""
    with pikepdf.open(io.BytesIO(plan_pdf(1))) as pdf, io.BytesIO() as out:
        pdf.Root.Padding = pdf.make_stream(random.Random(7).randbytes(SIZE_BYTES))  # noqa: S311 - a repeatable test
        pdf.save(out)
        body = out.getvalue()
    async with chromium_page(guarded.url) as watched:
        page = watched.page
        await page.goto(f"{guarded.url}/?plan={PLAN}")
        await sign_in(page, guarded.token())
        network = await page.context.new_cdp_session(page)
        await network.send("Network.enable")
        slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": SIZE_BYTES / 4}
        await network.send("Network.emulateNetworkConditions", slow)
        await page.set_input_files("#file", {"name": "long.pdf", "mimeType": "application/pdf", "buffer": body})
        async with page.expect_request(lambda request: request.method == "POST"):
            await page.click("#submit")
        await expect(page.locator("#sending-percent")).not_to_have_text("0 %")
        await page.context.clear_cookies()
        await expect(page.get_by_role("dialog", name="Your session has ended")).to_be_visible()
        await expect(page).to_have_url(re.compile(rf"\?ref={PLAN}/"))
        await sign_in(page, guarded.token())
        await watched.wait_until_complete()
        sent = [response.status for response in watched.responses if response.url.endswith("filename=long.pdf")]
        assert sent == [202]
        check_refusals(watched)


async def test_page_offers_only_what_the_token_allows(guarded: Guarded) -> None:
    """A reader of one plan sees it at once, without the form, with the reason, and without buttons that change something."""
    async with chromium_page(guarded.url) as watched:
        page = watched.page
        ref = await send(watched, guarded.token(), "seen.pdf")
        await page.goto(f"{guarded.url}/")
        await sign_in(page, guarded.token("read", project="tower", plan="architectural"))
        await expect(page.get_by_role("heading", level=1)).to_have_text("View a plan set")
        await expect(page.get_by_text("your token lacks the scope “write”")).to_be_visible()
        await expect(page.locator("#file")).to_be_hidden()
        await expect(page.get_by_role("link", name="Other plan")).to_be_hidden()
        await page.get_by_role("link", name="seen.pdf").first.click()
        await watched.wait_until_complete()
        for button in ("#cancel", "#delete"):
            await expect(page.locator(button)).to_be_hidden()
        await page.goto(f"{guarded.url}/?ref={ref.replace('tower', 'bridge')}")
        await expect(page.locator("#verdict-title")).to_have_text("The server has nothing at this address")

        await page.get_by_role("button", name="Sign out").click()
        await sign_in(page, guarded.token("read write"))
        await page.goto(f"{guarded.url}/?ref={await send(watched, guarded.token(), 'slow.pdf', 40, '&window=1')}")
        await expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        page.once("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
        await expect(page.locator("#delete")).to_be_hidden()

        await page.get_by_role("button", name="Sign out").click()
        await sign_in(page, guarded.token("write", project="tower", plan="architectural"))
        await expect(page.locator("#file")).to_be_visible()
        await expect(page.get_by_text("your token lacks the scope “read”")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await page.locator("#token").fill(guarded.token(system=True, org=None))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text(re.compile("belongs to no organization"))


async def test_tabs_sign_in_and_out_together(guarded: Guarded) -> None:
    """What a person does in one tab counts in all of them; a stream that tabs share is opened again by one of them."""
    async with chromium_page(guarded.url) as watched:
        ref = await send(watched, guarded.token(), "tabs.pdf", 40, "&window=1")
        tabs = [watched.page, await watched.page.context.new_page()]
        for tab in tabs:
            await tab.goto(f"{guarded.url}/?ref={ref}")
            await expect(tab.get_by_role("dialog", name="Sign in")).to_be_visible()
        await sign_in(tabs[0], guarded.token())
        for tab in tabs:
            await expect(tab.locator("#file-name")).to_have_text("tabs.pdf")
            await expect(tab.locator("#who-name")).to_have_text("jo · acme")
        await watched.page.context.clear_cookies()
        for tab in tabs:
            await tab.reload()
            await expect(tab.get_by_role("dialog", name="Sign in")).to_be_visible()
        await watched.page.context.add_cookies([guarded.session_cookie(left_s=10)])
        for tab in tabs:
            await tab.reload()
        for tab in tabs:
            await expect(tab.locator("#sign-in")).to_be_visible(timeout=DEADLINE_S * 1000)
        await sign_in(tabs[1], guarded.token())
        await expect(tabs[0].locator("#sign-in")).to_be_hidden()
        tabs[1].once("dialog", lambda dialog: dialog.accept())
        await tabs[1].get_by_role("button", name="Cancel").click()
        for tab in tabs:
            await expect(tab.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
        await tabs[0].get_by_role("button", name="Sign out").click()
        for tab in tabs:
            await expect(tab.get_by_role("dialog", name="Sign in")).to_be_visible()
