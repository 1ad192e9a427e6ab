"""``upload()`` of ``sitelink.js`` in a page of another site: a large plan goes into the bucket in parts, whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.async_api import Page, Route

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from tests.browser.conftest import Guarded
from tests.browser.test_client import PLAN, Site, bearer, embedding
from tests.browser.test_uppy import large_plan, over_s3, part_of  # noqa: F401 - a fixture
from tests.waiting import until_async

MAIN = """
import {{ abortUpload, upload }} from "{server}/client/sitelink.js";
const server = "{server}";
const token = async () => (await fetch("/token")).text();
window.abortUpload = (ref) => abortUpload(ref, {{ server, token }});
window.begin = (file = document.querySelector("input").files[0]) => {{
  window.told = [];
  window.stopping = new AbortController();
  const onProgress = (...bytes) => window.told.push(bytes);
  const onBegin = (ref) => (window.begun = ref);
  const options = {{ server, token, to: "acme/tower/architectural", inParts: true, onProgress, onBegin, signal: window.stopping.signal }};
  window.ended = upload(file, options).then(({{ ref }}) => ref, (error) => `error: ${{error.type ?? error.name}}`);
}};
document.querySelector("input").onchange = () => window.begin();
"""
PARTS = 3


class Traffic:
    """What a page sends to the bucket, and what becomes of it."""

    def __init__(self) -> None:
        self.parts: list[int] = []
        """The numbers of the parts that were sent, whatever became of them."""
        self.whole = 0
        """How often a file was sent whole."""
        self.hold: set[int] = set()
        """These parts are not sent, as their addresses are not given."""
        self.lose: list[int] = []
        """These parts are lost on their way, each as often as it is here."""

    async def judge(self, route: Route) -> None:
        """Decides about a request."""
        request = route.request
        asked: Any = request.post_data_json if request.method == "POST" and request.url.endswith("/parts/sign") else {"numbers": [0]}
        self.whole += request.method == "POST" and "/uploads?" in request.url
        if number := part_of(request):
            self.parts.append(number)
            if number in self.lose:
                self.lose.remove(number)
                await route.abort("connectionreset")
                return
        if asked["numbers"][0] in self.hold:
            return
        await route.continue_()


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, guarded: Guarded) -> tuple[Guarded, Bucket]:
    """A stack with a bucket of either kind."""
    if request.param == "directory":
        return guarded, Bucket(BucketSettings(guarded.bucket))
    stack, settings = request.getfixturevalue("over_s3")
    return stack, Bucket(settings)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of three parts."""
    path = tmp_path / "plan.pdf"
    path.write_bytes(large_plan())
    return path


@asynccontextmanager
async def sending(guarded: Guarded, traffic: Traffic) -> AsyncIterator[tuple[Site, Page]]:
    """A page that sends the file which a person chooses."""
    async with embedding(guarded) as (site, watched):
        site.show('<input type="file"><script type="module" src="/main.js"></script>', MAIN.format(server=guarded.url))
        await open_page(watched.page, site, traffic)
        yield site, watched.page


async def open_page(page: Page, site: Site, traffic: Traffic) -> None:
    """Opens the site."""
    await page.route("**", traffic.judge)
    await page.goto(site.url)
    await page.wait_for_function("Boolean(window.begin)")


def is_stored(bucket: Bucket, ref: str, plan: Path) -> bool:
    """Whether the upload has the bytes of the plan."""
    return bucket.get(UploadRef.parse(ref).source).body == plan.read_bytes()


async def stored(guarded: Guarded, ref: str) -> list[int]:
    """The numbers of the parts that the bucket has."""
    async with httpx2.AsyncClient(trust_env=False, headers=bearer(guarded)) as http:
        answer = await http.get(f"{guarded.url}{PLAN}/{ref.rsplit('/', 1)[-1]}/parts")
    return [part["number"] for part in answer.json()["stored"]]


async def until_stored(guarded: Guarded, ref: str, numbers: list[int]) -> None:
    """Waits until the bucket has exactly these parts."""

    async def has() -> bool:
        return await stored(guarded, ref) == numbers

    await until_async(has)


async def test_upload_goes_on_after_a_reload(place: tuple[Guarded, Bucket], plan: Path) -> None:
    """The same file, chosen again, is the same upload; only the part that is missing is sent."""
    (guarded, bucket), traffic = place, Traffic()
    traffic.hold = {2}
    async with sending(guarded, traffic) as (site, page):
        await page.set_input_files("input", plan)
        await page.wait_for_function("window.begun")
        ref = await page.evaluate("window.begun")
        await until_stored(guarded, ref, [1, 3])
        second, traffic = await page.context.new_page(), Traffic()
        await page.close()
        await open_page(second, site, traffic)
        await second.set_input_files("input", plan)
        await second.wait_for_function("window.ended")
        assert await second.evaluate("window.ended") == ref
        assert traffic.parts == [2]
        told: list[list[int]] = await second.evaluate("window.told")
        size_bytes = bucket.head(UploadRef.parse(ref).source).size
        assert told[0] == [size_bytes - (8 << 20), size_bytes]
        assert told[-1] == [size_bytes] * 2
        assert all(sent <= total for sent, total in told)
        assert await second.evaluate("localStorage.length") == 0
        assert is_stored(bucket, ref, plan)
        await second.evaluate("window.begin()")  # now it is another upload
        assert await second.evaluate("window.ended") != ref


async def test_upload_that_is_stopped_goes_on_or_is_forgotten(place: tuple[Guarded, Bucket], plan: Path) -> None:
    """The signal ends it at once. A second call goes on; ``abortUpload`` leaves nothing."""
    (guarded, bucket), traffic = place, Traffic()
    traffic.hold = {3}
    async with sending(guarded, traffic) as (_, page):
        await page.set_input_files("input", plan)
        await page.wait_for_function("window.begun")
        ref = await page.evaluate("window.begun")
        for _ in range(2):
            await until_stored(guarded, ref, [1, 2])
            await page.evaluate("window.stopping.abort()")
            assert await page.evaluate("window.ended") == "error: AbortError"
            await page.evaluate("delete window.begun; window.begin()")
            await page.wait_for_function("window.begun")
            assert await page.evaluate("window.begun") == ref
        assert sorted(traffic.parts) == [1, 2]
        await page.evaluate("window.stopping.abort()")
        await page.evaluate("(ref) => window.abortUpload(ref)", ref)
        await until_async(lambda: asyncio.to_thread(lambda: not list(bucket.objects(UploadRef.parse(ref).prefix))))
        traffic.hold = set()
        await page.evaluate("window.begin()")
        second = await page.evaluate("window.ended")
        assert second != ref
        assert is_stored(bucket, second, plan)


async def test_part_that_is_lost_is_sent_again(place: tuple[Guarded, Bucket], plan: Path) -> None:
    """The others go on meanwhile."""
    (guarded, bucket), traffic = place, Traffic()
    traffic.lose = [2, 2, 3]
    async with sending(guarded, traffic) as (_, page):
        await page.set_input_files("input", plan)
        await page.wait_for_function("window.ended")
        ref = await page.evaluate("window.ended")
    assert sorted(traffic.parts) == [1, 2, 2, 2, 3, 3]
    assert is_stored(bucket, ref, plan)


async def test_bucket_that_the_page_does_not_reach_is_passed_by(place: tuple[Guarded, Bucket], plan: Path) -> None:
    """As without CORS rules: the file is sent whole, through the API, and the begun upload is forgotten."""
    (guarded, bucket), traffic = place, Traffic()
    traffic.lose = [*range(1, PARTS + 1)] * 20
    async with sending(guarded, traffic) as (_, page):
        await page.set_input_files("input", plan)
        await page.wait_for_function("window.ended")
        ref = await page.evaluate("window.ended")
        begun: Any = await page.evaluate("window.begun")
    assert traffic.whole == 1
    assert is_stored(bucket, ref, plan)
    assert list(bucket.objects(UploadRef.parse(begun).prefix)) == []
