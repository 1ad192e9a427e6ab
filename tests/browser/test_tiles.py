"""The tiles in the versions of OpenSeadragon that clients have, in a real Chromium."""

import io
from pathlib import Path

import pikepdf
import pytest
from playwright.async_api import Route

from deploy.stack import Stack
from tests.browser.test_page import chromium_page
from tests.servers.npm_packages import installed_packages

ROOT = Path(__file__).parents[2]
RED, GRAY = (200, 30, 30), (90, 90, 90)
NEAR = 6
"""By how much JPEG may change a colour of a large area."""


def two_colours_pdf() -> bytes:
    """A page of 1,500 x 1,000 pixels: its left half red, its right half gray. So it has tiles of one and of three components."""
    with pikepdf.new() as pdf, io.BytesIO() as out:
        pdf.add_blank_page(page_size=(360, 240))
        halves = ((RED, 0), (GRAY, 180))
        drawing = "".join(f"{' '.join(f'{value / 255:.5f}' for value in colour)} rg {left} 0 180 240 re f\n" for colour, left in halves)
        pdf.pages[0].Contents = pdf.make_stream(drawing.encode())
        pdf.save(out)
        return out.getvalue()


@pytest.mark.parametrize("version", [5, 6])
async def test_openseadragon_draws_gray_and_coloured_tiles(stack: Stack, version: int) -> None:
    """On its canvas, which shows the whole sheet, and then the full-size tiles, the colours are the drawn ones."""
    script = (
        ROOT / "api" / "client" / "openseadragon" / "openseadragon.min.js"
        if version == 6
        else installed_packages(ROOT / "tests" / "servers" / "npm-client", "client")
        / "node_modules/openseadragon-5/build/openseadragon/openseadragon.min.js"
    )
    async with chromium_page(stack.api_url) as watched:
        page = watched.page
        await watched.upload("two colours.pdf", two_colours_pdf())
        await watched.wait_until_complete()
        upload = page.url.partition("?ref=")[2].split("/")
        dzi = "/v1/organizations/{}/projects/{}/plans/{}/uploads/{}/sheets/sheet-1/tiles/sheet-1.dzi".format(*upload)

        async def serve(route: Route) -> None:
            await route.fulfill(
                content_type="text/html",
                body='<!doctype html><link rel="icon" href="data:,"><div id="osd" style="width: 600px; height: 400px"></div>',
            )

        await page.route("**/try.html", serve)
        await page.goto(f"{stack.api_url}/try.html")
        await page.add_script_tag(path=script)
        assert (await page.evaluate("OpenSeadragon.version.major")) == version
        await page.evaluate(
            """dzi => { window.viewer = OpenSeadragon({
                element: document.getElementById("osd"), drawer: "canvas", showNavigationControl: false, tileSources: dzi, animationTime: 0,
            }); }""",
            dzi,
        )
        for zoom in (1, 3):
            await page.wait_for_function("window.viewer.world.getItemCount() === 1")
            await page.evaluate("zoom => { viewer.viewport.zoomTo(viewer.viewport.getHomeZoom() * zoom, null, true); }", zoom)
            await page.wait_for_function("viewer.world.getItemAt(0).getFullyLoaded()")
            for share, colour in ((0.25, RED), (0.75, GRAY)):
                await page.wait_for_function(
                    """([share, colour, near]) => {
                        const canvas = document.querySelector(".openseadragon-canvas canvas");
                        const { data } = canvas.getContext("2d").getImageData(canvas.width * share, canvas.height / 2, 1, 1);
                        return data[3] === 255 && colour.every((value, part) => Math.abs(value - data[part]) <= near);
                    }""",
                    arg=[share, colour, NEAR],
                )
        assert watched.complaints == []
