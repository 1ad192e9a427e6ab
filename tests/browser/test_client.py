"""The client's elements and the README's examples in a page of another origin; the real stack is behind a backend with tickets."""

import asyncio
import json
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from deploy.stack import Stack
from tests.browser.test_page import PROCESSING_MS, WatchedPage, chromium_page, plan_pdf, wait_until_drawn
from tests.integration.test_client_module import node_path
from tests.servers.gateway import Gateway, serving, serving_gateway
from tests.servers.npm_packages import NoPackages, installed_packages

ROOT = Path(__file__).parents[2]
README = (ROOT / "api" / "README.md").read_text()
PLAN = "/v1/organizations/acme/projects/tower/plans/architectural/uploads"
SERVER, REF = "https://plans.example.com", "acme/tower/architectural/UPLOAD"
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>Site</title><body>{}</body></html>"
)


def example(heading: str) -> str:
    """The code below a heading of the README."""
    found = re.search(rf"^### {heading}\n.*?^```\w+\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


class Site:
    """Somebody's own web site, whose backend makes tickets and stands before SiteLink."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, str]] = {}
        """The body and the media type of each path."""
        self.tickets: list[str] = []
        """For what each ticket was asked."""
        self.url = ""

    @property
    def app(self) -> Starlette:
        """The site's server."""
        return Starlette(routes=[Route("/tickets/{ref:path}", self._ticket), Route("/{path:path}", self._page)])

    async def _ticket(self, request: Request) -> Response:
        self.tickets.append(request.path_params["ref"])
        return PlainTextResponse(f"ticket-{len(self.tickets)}")

    async def _page(self, request: Request) -> Response:
        if request.path_params["path"] == "favicon.ico":
            return Response(status_code=204)
        body, media_type = self.pages[request.path_params["path"]]
        return Response(body, media_type=media_type)

    def show(self, body: str, script: str = "") -> None:
        """Sets the page, and a script that it may load as ``/main.js``."""
        self.pages = {"": (PAGE.format(body), "text/html"), "main.js": (script, "text/javascript")}


@asynccontextmanager
async def embedding(stack: Stack, **context: Any) -> AsyncIterator[tuple[Site, Gateway, WatchedPage]]:
    """The site and the gateway on two origins, and a browser on the site. The site's first ticket is refused."""
    site = Site()
    async with serving(site.app) as site.url, serving_gateway(Gateway(stack.api_url, origins=[site.url])) as gateway:
        gateway.tickets = {"ticket-2"}
        async with chromium_page(site.url, **context) as watched:
            yield site, gateway, watched


async def send(stack: Stack, pages: int = 2) -> str:
    """Sends a plan; returns its REF."""
    async with httpx2.AsyncClient(trust_env=False, timeout=120) as http:
        headers = {"Content-Type": "application/pdf"}
        answer = await http.post(f"{stack.api_url}{PLAN}?filename=tower.pdf", content=plan_pdf(pages), headers=headers)
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
async def test_elements_work_in_a_page_of_another_origin(stack: Stack, width: int, tmp_path: Path) -> None:
    """The README's page, on a screen and on a phone: a ticket is replaced when it is refused, a sheet is drawn, thumbnails are shown."""
    phone = {"has_touch": True, "is_mobile": True} if width < 1000 else {}
    async with embedding(stack, viewport={"width": width, "height": 800}, **phone) as (site, gateway, watched):
        page, ref = watched.page, await send(stack)
        site.show(example("In a page of any origin").replace(SERVER, gateway.url).replace(REF, ref))
        await page.goto(site.url)
        await check_embedded(page)
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        await expect(page.get_by_role("heading", level=2, name="tower.pdf")).to_be_visible()
        await page.locator(".sheet .paper img").first.scroll_into_view_if_needed()
        await page.wait_for_function("document.querySelector('sitelink-progress').shadowRoot.querySelector('.paper img').naturalWidth > 0")
        for button in ("#cancel", "#delete"):
            await expect(page.locator(button)).to_be_hidden()  # nobody asked for controls

        gateway.tickets = {f"ticket-{len(site.tickets) + 1}"}  # what was given has expired
        await page.get_by_role("button", name="A-102").click()
        await expect(page.locator("#viewer-title")).to_have_text("A-102 - Floor <b>2</b>")
        await wait_until_drawn(page)
        assert set(site.tickets) == {ref}
        assert all(passed.ticket not in passed.query for passed in gateway.passed if passed.ticket and "thumbnail" not in passed.path)
        assert [complaint for complaint in watched.complaints if not is_refusal(complaint)] == []
        await page.screenshot(path=tmp_path / f"embedded-{width}.png", full_page=True)


async def test_elements_take_styles_and_work_alone(stack: Stack) -> None:
    """A page sets colours and parts, leaves sheets out, and shows a viewer without a progress; an element comes and goes."""
    async with embedding(stack) as (site, gateway, watched):
        page, ref = watched.page, await send(stack)
        site.show(
            f"""<style>
              sitelink-progress {{ --sitelink-accent: rgb(1, 2, 3); }}
              sitelink-progress::part(heading) {{ display: none; }}
            </style>
            <sitelink-progress compact server="{gateway.url}" upload="{ref}"></sitelink-progress>
            <sitelink-viewer sheet="1" server="{gateway.url}" upload="{ref}"></sitelink-viewer>
            <script type="module">
              for (const element of document.querySelectorAll("sitelink-progress, sitelink-viewer")) element.ticket = "ticket-2";
            </script>
            <script type="module" src="{gateway.url}/client/elements.js"></script>"""
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


async def test_javascript_example_uploads_watches_and_draws(stack: Stack) -> None:
    """The README's module code, in a page of another origin, with the progress of the bytes."""
    async with embedding(stack) as (site, gateway, watched):
        gateway.tickets = None  # a ticket only reads: the upload needs a token, which this gateway does not know
        code = example("In JavaScript").replace(SERVER, gateway.url)
        imports, rest = code.split("\n", 1)
        site.show(
            f"""<div id="osd" style="height: 400px"></div><input type="file">
            <script src="{gateway.url}/client/openseadragon/openseadragon.min.js"></script>
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
import { tileSource, upload, watch, type Connection, type Progress, type Sheet } from "sitelink-client";
import type { ProgressElement } from "sitelink-client/elements";
import "sitelink-client/elements";

const seen: Progress[] = [];
const options = { ticket: async (ref: string) => `for ${ref}`, onConnection: (now: Connection) => console.log(now === "live") };
for await (const progress of watch("a/b/c/d", options)) {
  seen.push(progress);
  const sheet: Sheet | undefined = progress.changed[0];
  if (progress.status === "complete" && progress.ended) console.log(sheet?.title);
}
const { ref } = await upload(new File([], "a.pdf"), { to: "a/b/c", onProgress: (sent, total) => console.log(sent / total) });
const source = await tileSource(ref, 1);
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
async def test_react_hook_follows_an_upload(stack: Stack, project: Path, heading: str) -> None:
    """The README's hook, bundled with the packed client: the state follows to the end, and a refusal is shown."""
    place = project / heading.replace(" ", "-").lower()
    place.mkdir()
    hook = example(heading)
    assert len(hook[hook.index("export function") :].splitlines()) <= 20
    for name, text in (("hook.jsx", hook), ("main.js", REACT), ("native.js", NATIVE)):
        (place / name).write_text(text)
    bundle(project, place)
    async with embedding(stack) as (site, gateway, watched):
        page, ref = watched.page, await send(stack)
        site.show(
            f'<div id="root"></div><script>window.server = "{gateway.url}"</script><script type="module" src="/main.js"></script>',
            (place / "out.js").read_text(),
        )
        await page.goto(site.url)
        await page.evaluate("ref => window.render(ref)", ref)
        await expect(page.locator("p")).to_have_text("complete 2 true", timeout=PROCESSING_MS)
        gateway.tickets = None  # the ticket of another upload is another one
        await page.evaluate("ref => window.render(ref)", ref[:-4] + "0000")
        await expect(page.locator("p")).to_have_text("UploadNotFound", timeout=PROCESSING_MS)
        if heading == "In React Native":
            assert gateway.asked("/events") == []


async def test_python_example_follows_an_upload(stack: Stack) -> None:
    """The README's function gives every event to the end."""
    ref = await send(stack)
    names: dict[str, Any] = {}
    exec(compile(example("In Python"), "api/README.md", "exec"), names)  # noqa: S102 - our own README

    def follow() -> list[tuple[str, dict[str, Any]]]:
        with httpx2.Client(trust_env=False) as client:
            return list(names["follow"](client, f"{stack.api_url}{PLAN}/{ref.split('/')[-1]}"))

    events = await asyncio.to_thread(follow)
    assert [name for name, _ in events][-1] == "end"
    assert events[-1][1]["status"] == "complete"
