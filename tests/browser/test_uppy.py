"""The README's Uppy in a page of another site: a plan goes into the bucket in parts, is cut off, and goes on after a reload."""

import asyncio
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pikepdf
import pytest
from playwright.async_api import Page, Route

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadRecord, from_json
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from deploy.process import free_port
from deploy.stack import Stack
from tests.browser.conftest import PUBLIC_HOST, SECRET, Guarded
from tests.browser.test_client import PLAN, bearer, embedding, example
from tests.browser.test_page import plan_pdf
from tests.integration.test_client_module import node_path
from tests.servers.npm_packages import NoPackages, installed_packages
from tests.servers.s3 import TestServer
from tests.waiting import until_async

SOURCE = Path(__file__).parents[1] / "servers" / "npm-uppy"
MAIN = """
const call = async (method, url, body) => {
  const token = await (await fetch("/token")).text();
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const answer = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.status === 204 ? null : answer.json();
};
const uppy = planUppy(window.uploads, call);
window.ended = new Promise((resolve) => {
  uppy.on("upload-success", (file, answer) => resolve(answer.body?.location ?? answer.uploadURL));
  uppy.on("upload-error", (file, error) => resolve(`error: ${error.message}`));
});
document.querySelector("input").onchange = ({ target }) => {
  const [file] = target.files;
  uppy.addFile({ name: file.name, type: file.type, data: file });
  uppy.upload();
};
window.forget = () => uppy.cancelAll();
"""


BODY = '<input type="file"><script>window.uploads = "{}"</script><script type="module" src="/main.js"></script>'


def large_plan() -> bytes:
    """A plan of 20 MiB: three parts."""
    with pikepdf.open(io.BytesIO(plan_pdf(2))) as pdf, io.BytesIO() as out:
        pdf.Root.Padding = pdf.make_stream(os.urandom(20 << 20))
        pdf.save(out, compress_streams=False)
        return out.getvalue()


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The README's code and ``MAIN``, with all that they import."""
    node_path()
    try:
        packages = installed_packages(SOURCE, "uppy")
    except NoPackages as error:
        pytest.fail(str(error))
    place = tmp_path_factory.mktemp("uppy")
    (place / "node_modules").symlink_to(packages / "node_modules")
    (place / "main.js").write_text(example("With Uppy", "js") + MAIN)
    esbuild = packages / "node_modules" / "esbuild" / "bin" / "esbuild"
    build = subprocess.run(
        [str(esbuild), "main.js", "--bundle", "--format=esm", "--outfile=out.js"], cwd=place, capture_output=True, text=True, check=False
    )
    assert build.returncode == 0, build.stderr
    return (place / "out.js").read_text()


@pytest.fixture(scope="module")
def over_s3(new_stack_of_module: Callable[..., Stack], s3_server: TestServer) -> tuple[Guarded, BucketSettings]:
    """A stack with access control over an S3 server, whose bucket a page of one other site may use."""
    port, settings = free_port(), s3_server.new_bucket()
    origin = f"http://localhost:{port}"
    BucketSetup(settings).allow_origins([origin])
    access = {
        "SITELINK_ACCESS": "jwt",
        "SITELINK_JWT_SECRET": SECRET,
        "SITELINK_PUBLIC_HOSTS": PUBLIC_HOST,
        "SITELINK_CORS_ORIGINS": origin,
    }
    return Guarded(new_stack_of_module(**s3_server.environment(settings), **access).api_url, port), settings


def part_of(request: Any) -> int:
    """The number of the part that a request sends; 0 for any other request."""
    if request.method != "PUT":
        return 0
    path, _, query = request.url.partition("?")
    return int(httpx2.QueryParams(query).get("partNumber") or path.rpartition("/")[2])


async def check_cut_and_resumed(guarded: Guarded, bucket: Bucket, script: str, directory: Path) -> None:
    """The page is closed when two of three parts are there; the next one sends the third, and the plan is processed."""
    plan = directory / "plan.pdf"
    plan.write_bytes(large_plan())
    async with embedding(guarded) as (site, watched), httpx2.AsyncClient(trust_env=False, headers=bearer(guarded)) as http:
        site.show(BODY.format(f"{guarded.url}{PLAN}"), script)

        async def begin_upload(page: Page, hold: int) -> list[int]:
            sent: list[int] = []
            held = asyncio.Event()

            async def judge(route: Route) -> None:
                request = route.request
                sent.extend(filter(None, [part_of(request)]))
                # The part itself may still be sent when its page is closed; without its address it is not.
                if (
                    hold
                    and request.url.endswith("/parts/sign")
                    and request.method == "POST"
                    and request.post_data_json == {"numbers": [hold]}
                ):
                    held.set()
                else:
                    await route.continue_()

            await page.route("**", judge)
            await page.goto(site.url)
            await page.set_input_files("input", plan)
            if hold:
                await held.wait()
            return sent

        await begin_upload(watched.page, 2)
        upload = await watched.page.evaluate("Object.entries(localStorage).find(([name]) => name.startsWith('uppy-'))[1]")

        async def stored() -> list[int]:
            return [part["number"] for part in (await http.get(f"{guarded.url}{PLAN}/{upload}/parts")).json()["stored"]]

        await until_async(lambda: is_equal(stored, [1, 3]))
        second = await watched.page.context.new_page()
        await watched.page.close()
        sent = await begin_upload(second, 0)
        location = await second.evaluate("window.ended")
        assert location == f"{PLAN}/{upload}"
        assert sent == [2]
        assert await second.evaluate("localStorage.length") == 0

        ref = UploadRef.parse((await http.get(f"{guarded.url}{location}")).json()["ref"])
        assert bucket.get(ref.source).body == plan.read_bytes()
        record = from_json(UploadRecord, bucket.get(ref.record).body)
        assert (record.file_name, record.size_bytes, record.sha256) == ("plan.pdf", plan.stat().st_size, None)

        async def is_complete() -> bool:
            return bool((await http.get(f"{guarded.url}{location}")).json()["status"] == "complete")

        await until_async(is_complete)


async def is_equal(found: Callable[[], Any], expected: object) -> bool:
    """Whether an answer is the expected one."""
    return bool(await found() == expected)


async def test_uppy_goes_on_over_an_s3_server(over_s3: tuple[Guarded, BucketSettings], script: str, tmp_path: Path) -> None:
    """The parts go to the server itself, which the bucket's CORS rules allow."""
    guarded, settings = over_s3
    await check_cut_and_resumed(guarded, Bucket(settings), script, tmp_path)
    assert BucketSetup(settings).unfinished_uploads() == []


async def test_uppy_goes_on_over_a_directory(guarded: Guarded, script: str, tmp_path: Path) -> None:
    """The same page; the parts go to the API."""
    await check_cut_and_resumed(guarded, Bucket(BucketSettings(guarded.bucket)), script, tmp_path)


async def test_uppy_that_gives_up_leaves_nothing(over_s3: tuple[Guarded, BucketSettings], script: str, tmp_path: Path) -> None:
    """Neither parts nor a record."""
    guarded, settings = over_s3
    (tmp_path / "plan.pdf").write_bytes(large_plan())
    async with embedding(guarded) as (site, watched):
        site.show(BODY.format(f"{guarded.url}{PLAN}"), script)
        await watched.page.route("**", hold_parts)
        await watched.page.goto(site.url)
        await watched.page.set_input_files("input", tmp_path / "plan.pdf")
        await until_async(lambda: has_begun(settings))
        await watched.page.evaluate("window.forget()")
        await until_async(lambda: is_equal(lambda: asyncio.to_thread(BucketSetup(settings).unfinished_uploads), []))


async def has_begun(settings: BucketSettings) -> bool:
    """Whether there is a multipart upload."""
    return bool(await asyncio.to_thread(BucketSetup(settings).unfinished_uploads))


async def hold_parts(route: Route) -> None:
    """Lets all but the parts pass."""
    if not part_of(route.request):
        await route.continue_()
