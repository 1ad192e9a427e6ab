"""A packed sheet in OpenSeadragon, read by ranges from an S3 server of another origin or from a file, looks like the exploded one."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from tests.browser.conftest import Guarded
from tests.browser.test_client import PLAN, README, SERVER, bearer, embedding, is_refusal
from tests.browser.test_page import WatchedPage
from tests.browser.test_tiles import two_colours_pdf
from tests.servers.npm_packages import installed_packages
from tests.servers.s3 import TestServer, presigned
from tests.waiting import until_async

ROOT = Path(__file__).parents[2]
OPENSEADRAGON = "openseadragon/openseadragon.min.js"
BODY = (
    '<link rel="icon" href="data:,"><div id="osd" style="width: 600px; height: 400px"></div><script type="module" src="/main.js"></script>'
)
SCRIPT = f"""
import {{ packedTileSource }} from "{SERVER}/client/packed.js";
import {{ tileSource }} from "{SERVER}/client/sitelink.js";
Object.assign(window, {{ packedTileSource, tileSource }});
"""
OPEN = """async (source) => {
  window.viewer?.destroy();
  window.viewer = OpenSeadragon({
    element: document.getElementById("osd"), drawer: "canvas", showNavigationControl: false, animationTime: 0, imageLoaderLimit: 4,
    tileSources: await source(),
  });
  window.lost = [];
  viewer.addHandler("tile-load-failed", ({ message }) => window.lost.push(message));
}"""
PICTURE = """async (zoom) => {
  const drawn = () => new Promise((resolve) => {
    viewer.addOnceHandler("update-viewport", resolve);
    viewer.forceRedraw();
  });
  viewer.viewport.zoomTo(viewer.viewport.getHomeZoom() * zoom, null, true);
  viewer.viewport.panTo(new OpenSeadragon.Point(0.5, 0.34), true);
  do await drawn();
  while (!viewer.world.getItemAt(0).getFullyLoaded());
  await drawn();
  return document.querySelector(".openseadragon-canvas canvas").toDataURL();
}"""
"""At a zoom, where tiles of both colours meet, when all of them are drawn."""


@dataclass(frozen=True)
class Sheet:
    """A sheet in both layouts.

    Args:
        ref: The upload of the exploded one.
        address: The presigned URL of the packed one.
    """

    ref: str
    address: str


@pytest.fixture(scope="module")
def sheet(guarded: Guarded, s3_server: TestServer) -> Sheet:
    """Lies in both layouts in the stack, and packed in a bucket that the site's origin may read."""
    return asyncio.run(in_both_layouts(guarded, s3_server))


async def in_both_layouts(guarded: Guarded, s3_server: TestServer) -> Sheet:
    """Sends a plan, and copies its ``.pmtiles`` into a bucket on the S3 server."""
    async with httpx2.AsyncClient(trust_env=False, base_url=guarded.url, headers=bearer(guarded)) as http:
        headers = {"Content-Type": "application/pdf"}
        sent = await http.post(f"{PLAN}?filename=t.pdf&layout=both", content=two_colours_pdf(), headers=headers)
        ref = str(sent.json()["ref"])
        upload = f"{PLAN}/{ref.split('/')[-1]}"

        async def is_complete() -> bool:
            return bool((await http.get(upload)).json()["status"] == "complete")

        await until_async(is_complete)
        body = (await http.get(f"{upload}/sheets/sheet-1/tiles/sheet-1.pmtiles")).content
    settings = s3_server.new_bucket()
    BucketSetup(settings).allow_origins([guarded.site_url])
    Bucket(settings).put("sheet-1.pmtiles", body)
    return Sheet(ref, presigned(settings, "sheet-1.pmtiles"))


@asynccontextmanager
async def viewing(guarded: Guarded, version: int) -> AsyncIterator[WatchedPage]:
    """A page of the site with OpenSeadragon."""
    engine = (
        ROOT / "api" / "client" / OPENSEADRAGON
        if version == 6
        else installed_packages(ROOT / "tests" / "servers" / "npm-client", "client") / "node_modules/openseadragon-5/build" / OPENSEADRAGON
    )
    async with embedding(guarded) as (site, watched):
        site.show(BODY, SCRIPT.replace(SERVER, guarded.url))
        await watched.page.goto(site.url)
        await watched.page.add_script_tag(path=engine)
        await watched.page.wait_for_function("Boolean(window.tileSource)")
        assert (await watched.page.evaluate("OpenSeadragon.version.major")) == version
        yield watched


ZOOMS = (1, 2.5, 6)


@pytest.mark.parametrize("version", [5, 6])
async def test_packed_sheet_looks_like_the_exploded_one(guarded: Guarded, sheet: Sheet, version: int) -> None:
    """At each zoom, from SiteLink, from the bucket, and from a file on the device, which needs no request."""
    tickets = [guarded.ticket(sheet.ref, left_s=-60), guarded.ticket(sheet.ref)]
    access = f"server: {guarded.url!r}, ticket: () => tickets.shift()"
    sources = {
        "exploded": f"() => tileSource({sheet.ref!r}, 1, {{ server: {guarded.url!r}, ticket: {tickets[-1]!r} }})",
        "server": f"(tickets = {tickets}) => tileSource({sheet.ref!r}, 1, {{ {access}, packed: true }})",
        "bucket": f"() => packedTileSource({sheet.address!r})",
        "file": f"async () => packedTileSource(await (await fetch({sheet.address!r})).blob())",
    }
    async with viewing(guarded, version) as watched:
        page = watched.page
        pictures: dict[str, list[str]] = {}
        for name, source in sources.items():
            await page.evaluate(f"({OPEN})({source})")
            await page.wait_for_function("viewer.world.getItemCount() === 1")
            begun = len(watched.responses)
            pictures[name] = [await page.evaluate(PICTURE, zoom) for zoom in ZOOMS]
            assert await page.evaluate("lost") == []
            statuses = {response.status for response in watched.responses[begun:] if not response.url.startswith("blob:")}
            assert statuses == {"exploded": {200}, "server": {206}, "bucket": {206}, "file": set()}[name]
        assert len(set(pictures["exploded"])) == len(ZOOMS)
        for name in sources:
            assert pictures[name] == pictures["exploded"], name
        assert [response.status for response in watched.responses].count(401) == 1
        assert [complaint for complaint in watched.complaints if not is_refusal(complaint)] == []


async def test_readmes_examples_show_a_packed_sheet(guarded: Guarded, sheet: Sheet) -> None:
    """With a network, and then from the page's own cache without one."""
    section = README.partition("### A packed sheet as one file")[2].partition("\n### ")[0]
    online, keep, offline = re.findall(r"^```js\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    imported, _, rest = online.replace(SERVER, guarded.url).partition("\n")
    async with embedding(guarded) as (site, watched):
        site.show(
            f'<script src="{guarded.url}/client/{OPENSEADRAGON}"></script>{BODY}',
            f"""{imported}
            const viewer = OpenSeadragon({{ element: document.getElementById("osd"), drawer: "canvas", showNavigationControl: false }});
            window.viewer = viewer;
            window.online = async () => {{ {rest} {keep} }};
            window.offline = async () => {{ {offline} }};""",
        )
        site.pages["signed/sheet-1"] = (sheet.address, "text/plain")
        page = watched.page
        await page.goto(site.url)
        await page.wait_for_function("Boolean(window.offline)")
        pictures = []
        for kind in ("online", "offline"):
            await page.context.set_offline(kind == "offline")
            await page.evaluate(f"{kind}()")
            await page.wait_for_function("viewer.world.getItemCount() === 1")
            pictures.append(await page.evaluate(PICTURE, 2.5))
        assert pictures[0] == pictures[1]
        assert watched.complaints == []


@pytest.mark.parametrize("is_signed", [True, False])
async def test_viewer_reads_packed_sheets(guarded: Guarded, sheet: Sheet, is_signed: bool) -> None:
    """The element, by its attribute from SiteLink, or by its property at signed addresses of the bucket."""
    async with embedding(guarded) as (site, watched):
        site.show(
            f"""<sitelink-viewer sheet="1" server="{guarded.url}" upload="{sheet.ref}" {"" if is_signed else "packed"}></sitelink-viewer>
            <script>
              const viewer = document.querySelector("sitelink-viewer");
              viewer.ticket = "{guarded.ticket(sheet.ref)}";
              if ({str(is_signed).lower()}) viewer.packed = async (upload, number) => number === 1 && "{sheet.address}";
            </script>
            <script type="module" src="{guarded.url}/client/elements.js"></script>"""
        )
        page = watched.page
        await page.goto(site.url)
        await page.wait_for_function(
            """() => {
              const canvas = document.querySelector("sitelink-viewer").shadowRoot?.querySelector("#stage .openseadragon-canvas canvas");
              return canvas?.width && canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[3] === 255;
            }"""
        )
        read = {response.url.split("?")[0].split("/")[2] for response in watched.responses if response.status == 206}
        assert read == {(sheet.address if is_signed else guarded.url).split("/")[2]}
        assert watched.complaints == []
