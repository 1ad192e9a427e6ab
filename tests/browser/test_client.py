"""The client's elements and the README's examples in a page of another site, with tickets and tokens of a stack with access control."""

import asyncio
import json
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.async_api import Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from api.app import CLIENT
from tests.browser.conftest import Guarded
from tests.browser.test_page import PROCESSING_MS, WatchedPage, chromium_page, plan_pdf, wait_until_drawn
from tests.integration.test_client_module import node_path
from tests.servers.gateway import serving
from tests.servers.npm_packages import NoPackages, installed_packages
from tests.waiting import until_async

ROOT = Path(__file__).parents[2]
README = (ROOT / "api" / "README.md").read_text()
PLAN = "/v1/organizations/acme/projects/tower/plans/architectural/uploads"
SERVER, REF = "https://plans.example.com", "acme/tower/architectural/UPLOAD"
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>Site</title><body>{}</body></html>"
)


def example(heading: str, language: str = r"\w+") -> str:
    """The code below a heading of the README."""
    found = re.search(rf"^### {heading}\n.*?^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


class Site:
    """Somebody's own web site, whose backend has a token and asks for tickets.

    Args:
        guarded: SiteLink.
    """

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded
        self.ready_tickets: list[str] = []
        """These tickets are given before any other."""
        self.ttl_s = 600
        self.pages: dict[str, tuple[str, str]] = {}
        """The body and the media type of each path."""
        self.tickets: list[str] = []
        """For what each ticket was asked."""
        self.url = guarded.site_url

    @property
    def app(self) -> Starlette:
        """The site's server."""
        routes = [Route("/tickets/{ref:path}", self._ticket), Route("/token", self._token), Route("/{path:path}", self._page)]
        return Starlette(routes=routes)

    async def _ticket(self, request: Request) -> Response:
        ref = request.path_params["ref"]
        self.tickets.append(ref)
        if self.ready_tickets:
            return PlainTextResponse(self.ready_tickets.pop(0))
        async with httpx2.AsyncClient(trust_env=False) as http:
            url = f"{self._guarded.url}{PLAN}/{ref.split('/')[-1]}/tickets"
            answer = await http.post(url, params={"ttl": self.ttl_s}, headers=bearer(self._guarded))
        return PlainTextResponse(answer.json().get("ticket", ""), answer.status_code)

    async def _token(self, _: Request) -> Response:
        return PlainTextResponse(self._guarded.token("write", project="tower"))

    async def _page(self, request: Request) -> Response:
        if request.path_params["path"] == "favicon.ico":
            return Response(status_code=204)
        body, media_type = self.pages[request.path_params["path"]]
        return Response(body, media_type=media_type)

    def show(self, body: str, script: str = "") -> None:
        """Sets the page, and a script that it may load as ``/main.js``."""
        self.pages = {"": (PAGE.format(body), "text/html"), "main.js": (script, "text/javascript")}


def bearer(guarded: Guarded) -> dict[str, str]:
    """The header of a request with a token for everything."""
    return {"Authorization": f"Bearer {guarded.token()}"}


@asynccontextmanager
async def embedding(guarded: Guarded, **context: Any) -> AsyncIterator[tuple[Site, WatchedPage]]:
    """The site, and a browser on it."""
    site = Site(guarded)
    async with serving(site.app, guarded.site_port), chromium_page(site.url, **context) as watched:
        yield site, watched


async def send(guarded: Guarded, pages: int = 2, query: str = "") -> str:
    """Sends a plan; returns its REF."""
    async with httpx2.AsyncClient(trust_env=False, timeout=120) as http:
        headers = {"Content-Type": "application/pdf", **bearer(guarded)}
        pdf = plan_pdf(pages, 30, 22) if query else plan_pdf(pages)
        answer = await http.post(f"{guarded.url}{PLAN}?filename=tower.pdf{query}", content=pdf, headers=headers)
    assert answer.status_code == 202
    return str(answer.json()["ref"])


def is_refusal(complaint: str) -> bool:
    """Whether a line on the console is the browser's about a refused ticket."""
    return "401" in complaint


async def check_embedded(page: Page) -> None:
    """The elements show the upload and the drawing of its first sheet."""
    await expect(page.locator("#status")).to_have_text("Complete", timeout=PROCESSING_MS)
    await expect(page.locator("#file-name")).to_have_text("tower.pdf")
    await expect(page.locator(".sheet")).to_have_count(2)
    await expect(page.locator("#viewer-title")).to_have_text("A-101 - Floor <b>1</b>")
    await wait_until_drawn(page)


@pytest.mark.parametrize("width", [1280, 360])
async def test_elements_work_in_a_page_of_another_origin(guarded: Guarded, width: int, tmp_path: Path) -> None:
    """The README's page, on a screen and on a phone: a ticket is replaced when it is refused, a sheet is drawn, thumbnails are shown."""
    phone = {"has_touch": True, "is_mobile": True} if width < 1000 else {}
    async with embedding(guarded, viewport={"width": width, "height": 800}, **phone) as (site, watched):
        page, ref = watched.page, await send(guarded)
        site.ready_tickets = [guarded.ticket(ref, left_s=-60)]
        site.show(example("In a page of any origin").replace(SERVER, guarded.url).replace(REF, ref))
        await page.goto(site.url)
        await check_embedded(page)
        assert len(site.tickets) == 2
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        await expect(page.get_by_role("heading", level=2, name="tower.pdf")).to_be_visible()
        await page.locator(".sheet .paper img").first.scroll_into_view_if_needed()
        await page.wait_for_function("document.querySelector('sitelink-progress').shadowRoot.querySelector('.paper img').naturalWidth > 0")
        for button in ("#cancel", "#delete"):
            await expect(page.locator(button)).to_be_hidden()  # nobody asked for controls
        await page.get_by_role("button", name="A-102").click()
        await expect(page.locator("#viewer-title")).to_have_text("A-102 - Floor <b>2</b>")
        await wait_until_drawn(page)
        assert set(site.tickets) == {ref}
        answered = [response for response in watched.responses if response.url.startswith(f"{guarded.url}/v1/")]
        assert all("ticket=" not in response.url for response in answered if "thumbnail" not in response.url)
        assert [response.status for response in answered].count(401) == 1
        assert [complaint for complaint in watched.complaints if not is_refusal(complaint)] == []
        await page.screenshot(path=tmp_path / f"embedded-{width}.png", full_page=True)


async def test_expired_stream_goes_on_with_a_new_ticket(guarded: Guarded) -> None:
    """The stream ends with its ticket and is opened again at the version that is known, with every sheet still there."""
    async with embedding(guarded) as (site, watched):
        page, ref = watched.page, await send(guarded, 30, "&window=1")
        site.ready_tickets = [guarded.ticket(ref, left_s=left_s) for left_s in (8, 30, 90)]  # a slow machine needs more of them
        site.show(
            f"""<sitelink-progress id="progress" server="{guarded.url}" upload="{ref}"></sitelink-progress>
            <script type="module">
              const progress = document.getElementById("progress");
              window.states = [];
              progress.addEventListener("sitelink-change", ({{ detail }}) => window.states.push([detail.version, detail.sheets.length]));
              progress.ticket = async (upload) => (await fetch(`/tickets/${{upload}}`)).text();
            </script>
            <script type="module" src="{guarded.url}/client/elements.js"></script>"""
        )
        await page.goto(site.url)
        await until_async(lambda: [answer.status for answer in watched.responses if "/events?" in answer.url].count(200) >= 2)
        async with httpx2.AsyncClient(trust_env=False) as http:
            await http.post(f"{guarded.url}{PLAN}/{ref.split('/')[-1]}/cancel", headers=bearer(guarded))
        await expect(page.locator("#status")).to_have_text("Cancelled", timeout=PROCESSING_MS)
        assert len(site.tickets) >= 2
        states = await page.evaluate("window.states")
        assert [state[0] for state in states] == sorted(state[0] for state in states)
        assert 0 not in [state[1] for state in states[states.index(next(state for state in states if state[1])) :]]  # no sheet went away
        assert [complaint for complaint in watched.complaints if not is_refusal(complaint)] == []


async def test_ticket_is_replaced_before_it_expires(guarded: Guarded) -> None:
    """No request is refused: at four fifths of its life, by its own times, a ticket is replaced while it is still good."""
    async with embedding(guarded) as (site, watched):
        site.ttl_s = 2
        page, ref = watched.page, await send(guarded)
        site.show(
            f"""<script type="module">
              import {{ status }} from "{guarded.url}/client/sitelink.js";
              const ticket = async (upload) => (await fetch(`/tickets/${{upload}}`)).text();
              window.ask = () => status("{ref}", {{ server: "{guarded.url}", ticket }}).then((answer) => answer.ref);
            </script>"""
        )
        await page.goto(site.url)
        await page.wait_for_function("window.ask")

        async def asks_for_a_third() -> bool:
            assert await page.evaluate("window.ask()") == ref
            return len(site.tickets) >= 3

        await until_async(asks_for_a_third)
        assert watched.complaints == []


async def test_plain_event_source_ends_with_its_ticket(guarded: Guarded) -> None:
    """The README's code goes on with a new ticket and misses nothing; an EventSource with the old one is refused for good."""
    async with embedding(guarded) as (site, watched):
        page, ref = watched.page, await send(guarded, 30, "&window=1")
        upload = f"{guarded.url}{PLAN}/{ref.split('/')[-1]}"
        for left_s in (6, 30, 90):  # a slow machine needs a ticket that lasts longer
            site.show(
                f"""<script>
                  window.shown = [];
                  window.tickets = {json.dumps([guarded.ticket(ref, left_s=left_s), guarded.ticket(ref)])};
                  window.first = window.tickets[0];
                  const ticket = () => window.tickets.shift();
                  const show = (name) => window.shown.push(name);
                  {example("Tickets", "js")}
                  follow("{upload}");
                </script>"""
            )
            async with page.expect_response(re.compile("/events")) as first:
                await page.goto(site.url)
            if (await first.value).ok:
                break
        await page.wait_for_function("window.tickets.length === 0", timeout=PROCESSING_MS)
        state = await page.evaluate(
            """(upload) => new Promise((resolve) => {
              const old = new EventSource(`${upload}/events?ticket=${window.first}`);
              old.onerror = () => resolve(old.readyState);
            })""",
            upload,
        )
        assert state == 2  # CLOSED
        async with httpx2.AsyncClient(trust_env=False) as http:
            await http.post(f"{upload}/cancel", headers=bearer(guarded))
        await page.wait_for_function("window.shown.at(-1) === 'end'", timeout=PROCESSING_MS)
        assert (await page.evaluate("window.shown")).count("snapshot") == 1


@pytest.mark.parametrize("is_listed", [True, False])
async def test_page_of_another_site_gets_nothing_without_a_ticket(guarded: Guarded, is_listed: bool) -> None:
    """Images, forms, links and requests are refused, also while the person is signed in; an image with a ticket is loaded.

    A form of an origin that may use the API gets through to the access layer, without the cookie of the session.
    """
    async with AsyncExitStack() as open_sites:
        site, watched = await open_sites.enter_async_context(embedding(guarded))
        if not is_listed:
            site.url = (await open_sites.enter_async_context(serving(site.app))).replace("127.0.0.1", "localhost")
        page, ref = watched.page, await send(guarded)
        upload = f"{guarded.url}{PLAN}/{ref.split('/')[-1]}"
        async with httpx2.AsyncClient(trust_env=False, headers=bearer(guarded)) as http:

            async def is_complete() -> bool:
                return bool((await http.get(upload)).json()["status"] == "complete")

            await until_async(is_complete)
            await page.goto(guarded.url)
            await page.locator("#token").fill(guarded.token())
            await page.keyboard.press("Enter")
            await expect(page.locator("#who-name")).to_have_text("jo · acme")
            site.show(
                f'<form method="post" action="{upload}/reconcile"><button>Win</button></form><a href="{upload}/verify?deep=true">Win</a>'
            )
            await page.goto(site.url)
            load = """(src) => new Promise((resolve) => {
              const image = new Image();
              image.onload = () => resolve(image.naturalWidth);
              image.onerror = () => resolve(0);
              image.src = src;
            })"""
            thumbnail = f"{upload}/sheets/sheet-1/thumbnail.jpeg"
            assert await page.evaluate(load, thumbnail) == 0
            assert await page.evaluate(load, f"{thumbnail}?ticket={guarded.ticket(ref)}") > 0
            assert await page.evaluate(load, f"{thumbnail}?ticket={guarded.ticket(ref, left_s=-60)}") == 0
            before = (await http.get(upload)).json()["version"]
            for method in ("GET", "POST"):
                await page.evaluate(
                    "([url, method]) => fetch(url, { method, mode: 'no-cors', credentials: 'include' }).then(String, String)",
                    [f"{upload}/reconcile", method],
                )
            async with page.expect_navigation():
                await page.get_by_role("button", name="Win").click()
            assert ("CredentialRequired" if is_listed else "ForeignOrigin") in await page.content()
            await page.goto(site.url)
            async with page.expect_navigation():
                await page.get_by_role("link", name="Win").click()
            assert "ForeignOrigin" in await page.content()
            assert (await http.get(upload)).json()["version"] == before
            statuses = {
                response.status for response in watched.responses if response.url.startswith(upload) and "ticket=" not in response.url
            }
            assert statuses == ({401, 403} if is_listed else {403})
        assert (await page.context.cookies(guarded.url))[0]["name"] == "__Host-sitelink"


async def test_answers_tell_a_page_of_another_origin_their_request_id(guarded: Guarded) -> None:
    """A refusal, too, so that a person can tell an operator what to look for."""
    async with embedding(guarded) as (site, watched):
        site.show("")
        await watched.page.goto(site.url)
        ask = "(url) => fetch(url).then((answer) => [answer.status, answer.headers.get('X-Request-ID')])"
        status, request_id = await watched.page.evaluate(ask, f"{guarded.url}{PLAN}")
        assert status == 401
        assert re.fullmatch("[0-9a-f]{32}", request_id)


async def test_native_viewers_template_gives_tiles(guarded: Guarded) -> None:
    """The README's address, with numbers for its placeholders and a ticket."""
    ref = await send(guarded)
    template = example("In Swift, Flutter and other native viewers").strip().replace(SERVER, guarded.url)
    url = template.replace("UPLOAD", ref.split("/")[-1]).replace("TICKET", guarded.ticket(ref))
    async with httpx2.AsyncClient(trust_env=False) as http:

        async def is_there() -> bool:
            answer = await http.get(url.format(z=0, x=0, y=0))
            assert answer.status_code in (200, 404)
            return answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"

        await until_async(is_there)


async def test_elements_take_styles_and_work_alone(guarded: Guarded) -> None:
    """A page sets colours and parts, leaves sheets out, and shows a viewer without a progress; an element comes and goes."""
    async with embedding(guarded) as (site, watched):
        page, ref = watched.page, await send(guarded)
        site.show(
            f"""<style>
              sitelink-progress {{ --sitelink-accent: rgb(1, 2, 3); }}
              sitelink-progress::part(heading) {{ display: none; }}
            </style>
            <sitelink-progress compact server="{guarded.url}" upload="{ref}"></sitelink-progress>
            <sitelink-viewer sheet="1" server="{guarded.url}" upload="{ref}"></sitelink-viewer>
            <script type="module">
              for (const element of document.querySelectorAll("[upload]")) element.ticket = "{guarded.ticket(ref)}";
            </script>
            <script type="module" src="{guarded.url}/client/elements.js"></script>"""
        )
        await page.goto(site.url)
        await expect(page.locator("#count")).to_have_text("2 of 2 sheets", timeout=PROCESSING_MS)
        await wait_until_drawn(page)
        await expect(page.locator("#file-name")).to_be_hidden()
        await expect(page.locator("#sheets")).to_be_hidden()
        accent = "getComputedStyle(document.querySelector('sitelink-progress').shadowRoot.host).getPropertyValue('--accent')"
        assert await page.evaluate(accent) == "rgb(1, 2, 3)"
        await page.locator("#viewer-next").click()
        await expect(page.locator("#viewer-title")).to_have_text("A-102 - Floor <b>2</b>")
        await page.evaluate(
            "viewer => { const { parentNode } = viewer; viewer.remove(); parentNode.prepend(viewer); }",
            await page.query_selector("sitelink-viewer"),
        )
        await expect(page.locator("#viewer-title")).to_have_text("A-102 - Floor <b>2</b>")
        await wait_until_drawn(page)


async def test_javascript_example_uploads_watches_and_draws(guarded: Guarded) -> None:
    """The README's module code, in a page of another origin: a token to upload, a ticket to read, and the progress of the bytes."""
    async with embedding(guarded) as (site, watched):
        code = example("In JavaScript").replace(SERVER, guarded.url)
        imports, rest = code.split("\n", 1)
        site.show(
            f"""<div id="osd" style="height: 400px"></div><input type="file">
            <script src="{guarded.url}/client/openseadragon/openseadragon.min.js"></script>
            <script type="module" src="/main.js"></script>""",
            f"""{imports}
            window.shares = [];
            const show = (share) => window.shares.push(share);
            const viewer = OpenSeadragon({{ element: document.getElementById("osd"), drawer: "canvas", showNavigationControl: false }});
            document.querySelector("input").onchange = async ({{ target }}) => {{
              const [file] = target.files;
              {rest}
              viewer.addOnceHandler("tile-drawn", () => {{ window.drawn = true; }});
            }};""",
        )
        page = watched.page
        await page.goto(site.url)
        await page.set_input_files("input", {"name": "t.pdf", "mimeType": "application/pdf", "buffer": plan_pdf(2)})
        await page.wait_for_function("window.drawn", timeout=PROCESSING_MS)
        shares = await page.evaluate("window.shares")
        assert shares[-1] == 1
        assert len(shares) > 2
        assert watched.complaints == []


@pytest.fixture(scope="module")
def packages() -> Path:
    """React, a bundler and TypeScript."""
    node_path()
    try:
        return installed_packages(ROOT / "tests" / "servers" / "npm-client", "client")
    except NoPackages as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def project(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed the packed client."""
    directory = tmp_path_factory.mktemp("project")
    pack = ["npm", "pack", "--json", "--pack-destination", str(directory), "--ignore-scripts"]
    packed = json.loads(subprocess.run(pack, cwd=CLIENT, check=True, capture_output=True).stdout)
    (archive,) = directory.glob("*.tgz")
    assert packed
    modules = directory / "node_modules"
    modules.mkdir()
    for package in (packages / "node_modules").iterdir():
        if not package.name.startswith("."):
            (modules / package.name).symlink_to(package)
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    (directory / "package").rename(modules / "sitelink-client")
    (directory / "package.json").write_text('{"type": "module"}')
    return directory


def test_package_holds_all_that_is_served_and_nothing_else(project: Path) -> None:
    """What npm packs is what the server serves, and Node.js finds the module by its name."""
    package = project / "node_modules" / "sitelink-client"
    served, packed = ({path.relative_to(at) for path in at.rglob("*") if path.is_file()} for at in (CLIENT, package))
    assert packed == served
    code = """
    import { watch, tileUrlTemplate } from "sitelink-client";
    const [ref, server] = process.argv.slice(1);
    console.log(typeof watch, tileUrlTemplate(ref, 1, { server }));
    """
    ref = "acme/tower/architectural/UPLOAD"
    node = subprocess.run(
        [node_path(), "--input-type=module", "--eval", code, "--", ref, SERVER], cwd=project, check=True, capture_output=True
    )
    template = example("In Swift, Flutter and other native viewers").strip()
    assert node.stdout.decode().split() == ["function", template.removesuffix("?ticket=TICKET")]


TYPED = """
import { tileSource, upload, uploads, watch, type Connection, type Progress, type Sheet } from "sitelink-client";
import { packedTileSource } from "sitelink-client/packed";
import type { ProgressElement } from "sitelink-client/elements";
import "sitelink-client/elements";

const seen: Progress[] = [];
const options = { ticket: async (ref: string) => `for ${ref}`, onConnection: (now: Connection) => console.log(now === "live") };
for await (const progress of watch("a/b/c/d", options)) {
  seen.push(progress);
  const sheet: Sheet | undefined = progress.changed[0];
  if (progress.status === "complete" && progress.ended) console.log(sheet?.title);
}
const listed = await uploads("a/b/c", { session: async () => {}, limit: 5 });
console.log(listed.uploads[0]?.fileName, listed.nextCursor);
const { ref } = await upload(new File([], "a.pdf"), { to: "a/b/c", onProgress: (sent, total) => console.log(sent / total) });
const source = await tileSource(ref, 1);
await tileSource(ref, 1, { packed: async (upload, sheet) => `https://bucket/${upload}/${sheet}` });
const packed = await packedTileSource(new Blob([]), { headers: () => ({ "X-Key": "a" }) });
console.log(packed.metadata.transform[0], packed.maxLevel);
const element: ProgressElement = document.createElement("sitelink-progress");
element.addEventListener("sitelink-open", (event) => console.log(event.detail.sheet, source.maxLevel));
// @ts-expect-error: there is no such transport
watch(ref, { transport: "pigeon" });
// @ts-expect-error: a plan is needed
upload(new File([], "a.pdf"), {});
"""


def test_types_are_right(project: Path) -> None:
    """TypeScript takes right uses and refuses wrong ones."""
    (project / "use.ts").write_text(TYPED)
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2023,dom,dom.iterable"]
    command = [node_path(), "node_modules/typescript/bin/tsc", *options, "use.ts"]
    types = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert types.stdout == ""
    assert types.returncode == 0


REACT = """
import { createElement, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { useUpload } from "./hook.jsx";

const ticket = async (ref) => (await fetch(`/tickets/${ref}`)).text();
function App({ upload }) {
  const { progress, problem } = useUpload(upload, { server: window.server, ticket });
  const text = progress ? `${progress.status} ${progress.sheets.length} ${progress.ended}` : "none";
  return createElement("p", null, problem ? problem.type : text);
}
const root = createRoot(document.getElementById("root"));
window.render = (upload) => root.render(createElement(StrictMode, null, createElement(App, { upload })));
"""

NATIVE = """
export const AppState = {
  addEventListener(_, listener) {
    window.comeBack = () => listener("active");
    return { remove() { delete window.comeBack; } };
  },
};
"""


def bundle(project: Path, place: Path) -> None:
    """Makes ``out.js`` of ``main.js`` and all that it imports."""
    esbuild = project / "node_modules" / "esbuild" / "bin" / "esbuild"
    options = [
        "--bundle",
        "--format=esm",
        "--outfile=out.js",
        "--alias:react-native=./native.js",
        '--define:process.env.NODE_ENV="development"',
    ]
    build = subprocess.run([str(esbuild), "main.js", *options], cwd=place, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr


@pytest.mark.parametrize("heading", ["In React", "In React Native"])
async def test_react_hook_follows_an_upload(guarded: Guarded, project: Path, heading: str) -> None:
    """The README's hook, bundled with the packed client: the state follows to the end, and a refusal is shown."""
    place = project / heading.replace(" ", "-").lower()
    place.mkdir()
    hook = example(heading)
    assert len(hook[hook.index("export function") :].splitlines()) <= 20
    for name, text in (("hook.jsx", hook), ("main.js", REACT), ("native.js", NATIVE)):
        (place / name).write_text(text)
    bundle(project, place)
    async with embedding(guarded) as (site, watched):
        page, ref = watched.page, await send(guarded)
        site.show(
            f'<div id="root"></div><script>window.server = "{guarded.url}"</script><script type="module" src="/main.js"></script>',
            (place / "out.js").read_text(),
        )
        await page.goto(site.url)
        await page.evaluate("ref => window.render(ref)", ref)
        await expect(page.locator("p")).to_have_text("complete 2 true", timeout=PROCESSING_MS)
        absent = ref[:-4] + "0000"
        site.ready_tickets = [guarded.ticket(absent)]
        await page.evaluate("ref => window.render(ref)", absent)
        await expect(page.locator("p")).to_have_text("UploadNotFound", timeout=PROCESSING_MS)
        if heading == "In React Native":
            assert not any("/events" in response.url for response in watched.responses)


async def test_python_example_follows_an_upload(guarded: Guarded) -> None:
    """The README's function gives every event to the end, also when the token of its first stream expires."""
    ref = await send(guarded, 8, "&window=1")
    tokens: Iterator[str] = iter(())

    def authorize(request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {next(tokens, guarded.token('read'))}"
        return request

    names: dict[str, Any] = {}
    exec(compile(example("In Python"), "api/README.md", "exec"), names)  # noqa: S102 - our own README

    def follow() -> list[tuple[str, dict[str, Any]]]:
        with httpx2.Client(trust_env=False, auth=authorize) as client:
            return list(names["follow"](client, f"{guarded.url}{PLAN}/{ref.split('/')[-1]}"))

    for left_s in (5, 30, 90):  # a slow machine needs a token that lasts longer
        tokens = iter([guarded.token("read", left_s=left_s)])
        try:
            events = await asyncio.to_thread(follow)
        except httpx2.HTTPStatusError:
            continue
        break
    assert [name for name, _ in events][-1] == "end"
    assert [name for name, _ in events].count("snapshot") == 1
    assert events[-1][1]["status"] == "complete"
