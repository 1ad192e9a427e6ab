"""``deploy/compose.yaml`` as it runs: every container is killed, and all are made anew, while uploads run. Nothing is lost."""

import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout
from activities.bucket.report import Proof, UploadReport
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.bucket.verify import verify_upload
from api.paths import upload_path, uploads_path
from tests.missing import miss
from tests.monitoring import RUNBOOK
from tests.resources.make_pdfs import plan_set
from tests.servers import compose
from tests.servers.compose import Site
from tests.servers.docker import Engine, NoEngine
from tests.waiting import ASK_S, DEADLINE_S, until

logger = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(3600)

SHEETS = 4
PDF = plan_set(SHEETS, 1100, 850)
UPLOADS_AT_ONCE = 2
LAYOUTS = (Layout.EXPLODED, Layout.PACKED)
ONCE = ("bucket", "temporal-schema", "temporal-namespace")
SERVICES = tuple(name for name in compose.document()["services"] if name not in ONCE)
UPGRADING = compose.FILE.with_name("UPGRADING.md")
PLAN = UploadRef("acme", "tower", "a1", "none")


class Client:
    """A patient client of the site: it tries again what a proxy could not pass on.

    Args:
        composed: The site.
    """

    def __init__(self, composed: Site) -> None:
        arguments = ("sitelink", "token", "--org", "acme", "--scope", "read write operate")
        token = composed.compose("exec", "-T", "api-1", *arguments).split()[-1]
        self.http = httpx2.Client(base_url=composed.url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)

    def send(self, layout: Layout) -> UploadRef:
        """Sends the PDF until it is accepted, each time with the same Idempotency-Key."""
        headers = {"Idempotency-Key": str(uuid.uuid4()), "Content-Type": "application/pdf"}
        answer = self._ask(
            "POST", uploads_path(PLAN.plan_ref), params={"layout": layout, "filename": "plan.pdf"}, content=PDF, headers=headers
        )
        return UploadRef.parse(answer["ref"])

    def wait(self, ref: UploadRef) -> dict[str, Any]:
        """Asks for the progress until it is final. Meanwhile the version never falls.

        While Temporal is away, each API process answers the last state that it knows, with a warning: such answers are not compared.
        """
        deadline, version = time.monotonic() + DEADLINE_S * 2, 0
        while True:
            status = self._ask("GET", upload_path(ref))
            if status["warning"] is None:
                assert status["version"] >= version, (status, version)
                version = status["version"]
            if status["status"] in ("complete", "partial", "failed", "cancelled"):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(ASK_S)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                answer = self.http.request(method, path, **request)
                if answer.status_code < 300:
                    found: dict[str, Any] = answer.json()
                    return found
                trouble = answer.text
                assert answer.status_code in (429, 502, 503, 504), trouble
            except httpx2.TransportError as error:
                trouble = repr(error)
            assert time.monotonic() < deadline, trouble
            time.sleep(ASK_S)


class Uploads:
    """Keeps some uploads in work, and remembers how all of them ended."""

    def __init__(self, client: Client) -> None:
        self.refs: list[tuple[UploadRef, Layout]] = []
        self.ended: list[dict[str, Any]] = []
        self.wrong: list[BaseException] = []
        self._client = client
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._layouts = cycle(LAYOUTS)

    def run(self) -> None:
        """Sends one upload after the other, and waits for the end of each."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    layout = next(self._layouts)
                ref = self._client.send(layout)
                self.refs.append((ref, layout))
                self.ended.append(self._client.wait(ref))
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            self.wrong.append(error)

    def wait_for_one_in_work(self) -> None:
        """Returns while an accepted upload is unfinished."""
        until(lambda: self.wrong or len(self.refs) > len(self.ended))
        assert not self.wrong, self.wrong

    def wait_for_one_more(self) -> None:
        """Returns when an upload has ended that was accepted after this call."""
        enough = len(self.refs) + UPLOADS_AT_ONCE + 1
        until(lambda: self.wrong or len(self.ended) >= enough, ASK_S)
        assert not self.wrong, self.wrong

    def stop(self) -> None:
        """Sends no more uploads."""
        self._stop.set()


@contextmanager
def uploads_in_work(client: Client) -> Iterator[Uploads]:
    """Keeps uploads in work; at the end each of them has ended."""
    uploads = Uploads(client)
    threads = [threading.Thread(target=uploads.run) for _ in range(UPLOADS_AT_ONCE)]
    for thread in threads:
        thread.start()
    try:
        yield uploads
    finally:
        uploads.stop()
        for thread in threads:
            thread.join()
    assert not uploads.wrong, uploads.wrong


@pytest.fixture(scope="module")
def composed(engine: Engine, sitelink_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The whole site. Afterwards no container and no volume of it is left."""
    composed, volumes = None, set[str]()
    try:
        with compose.running(engine, tmp_path_factory.mktemp("compose"), sitelink_image) as composed:
            yield composed
            volumes = composed.volumes()
    except NoEngine as error:
        miss(str(error))
    assert composed is not None
    assert composed.containers() == []
    assert volumes
    assert volumes.isdisjoint(volume.name for volume in engine.client.volumes.list())


@pytest.fixture(scope="module")
def client(composed: Site) -> Iterator[Client]:
    """A client with a token that the site has signed."""
    client = Client(composed)
    with client.http:
        yield client


@pytest.fixture(scope="module")
def expected(composed: Site, client: Client) -> dict[Layout, list[bytes]]:
    """The sheets of an undisturbed upload, for each layout."""
    found = {}
    for layout in LAYOUTS:
        ref = client.send(layout)
        assert client.wait(ref)["status"] == "complete"
        found[layout] = digests(Bucket(composed.bucket), ref)
    return found


def assert_nothing_is_lost(composed: Site, uploads: Uploads, expected: dict[Layout, list[bytes]]) -> None:
    """Every accepted upload is complete, and its sheets are those of an undisturbed upload, as the server's MD5 of each tile proves."""
    assert [(status["status"], status["completedPages"]) for status in uploads.ended] == [("complete", SHEETS)] * len(uploads.refs)
    bucket = Bucket(composed.bucket)
    for ref, layout in uploads.refs:
        *_, whole = verify_upload(bucket, ref)
        assert isinstance(whole, UploadReport)
        assert whole.verified, ref
        assert whole.proof is Proof.DIGEST
        assert digests(bucket, ref) == expected[layout]
    assert BucketSetup(composed.bucket).unfinished_uploads() == []
    logger.info("%d uploads are complete and verified", len(uploads.refs))


def ui_lists_the_namespace(composed: Site) -> bool:
    """Whether the guard, Temporal's UI behind it and Temporal answer together."""
    answer = httpx2.get(f"{composed.ui_url}/api/v1/namespaces", timeout=DEADLINE_S, trust_env=False)
    return answer.is_success and "default" in answer.text


def temporal(composed: Site, *words: str) -> str:
    """Runs Temporal's command line in the way that the runbook names; returns its output."""
    (command,) = re.findall(r"`docker compose (run [^`]*)`", RUNBOOK.read_text())
    return composed.compose(*command.split(), *words)


def digests(bucket: Bucket, ref: UploadRef) -> list[bytes]:
    """The record of each sheet, which has the digest of its tiles."""
    return [bucket.get(ref.sheet_record(number)).body for number in range(1, SHEETS + 1)]


def test_an_upload_becomes_complete(composed: Site, client: Client, expected: dict[Layout, list[bytes]]) -> None:
    """Through nginx, with a token that the README's command signs; without one nobody is let in. The UI answers its own page only."""
    assert all(expected.values())
    assert ui_lists_the_namespace(composed)
    with httpx2.Client(timeout=DEADLINE_S, trust_env=False) as stranger:
        assert stranger.get(composed.url + upload_path(PLAN)).status_code == 401
        assert stranger.get(f"{composed.ui_url}/", headers={"Host": "evil.example"}).status_code == 421
    for service in ONCE:
        (container,) = composed.containers(service)
        assert container.attrs["State"] | {"ExitCode": 0, "Status": "exited"} == container.attrs["State"]
    assert len(composed.containers("tile")) == Site.TILES
    for container in composed.containers("tile"):
        log = container.logs().decode()
        assert "render children are confined by: Landlock, seccomp" in log
        assert "Read-only file system" not in log


def test_deploy_check_finds_nothing_wrong(composed: Site) -> None:
    """In the containers of the compose file, with their settings and secrets."""
    assert "WRONG" not in composed.compose("exec", "-T", "api-1", "python", "-m", "deploy.check")


def test_temporals_command_line_runs_as_the_runbook_says(composed: Site) -> None:
    """It reaches the server, which has no port on the machine."""
    assert "SERVING" in temporal(composed, "operator", "cluster", "health")


def test_up_again_changes_nothing(composed: Site) -> None:
    """The tables, the namespace and the bucket are there; no container is made anew."""
    before = {container.id for container in composed.containers()}
    composed.up()
    assert {container.id for container in composed.containers()} == before


def test_each_container_is_killed(composed: Site, client: Client, expected: dict[Layout, list[bytes]]) -> None:
    """By SIGKILL, one after the other, while uploads run: it comes back by itself, and every upload becomes complete."""
    with uploads_in_work(client) as uploads:
        for service in SERVICES:
            for container in composed.containers(service):
                uploads.wait_for_one_in_work()
                begun = time.monotonic()
                composed.kill(container)
                seconds = time.monotonic() - begun
                logger.info("%s: killed, well again after %.1f s; %d uploads have ended", container.name, seconds, len(uploads.ended))
        uploads.wait_for_one_more()
    assert_nothing_is_lost(composed, uploads, expected)
    until(lambda: ui_lists_the_namespace(composed), ASK_S)


def test_rolling_restart(composed: Site, client: Client, expected: dict[Layout, list[bytes]]) -> None:
    """Every container is made anew, as for an upgrade, while uploads run. The scratch and the database outlast it."""
    before = {container.id for service in SERVICES for container in composed.containers(service)}
    with uploads_in_work(client) as uploads:
        for service in SERVICES:
            uploads.wait_for_one_in_work()
            begun = time.monotonic()
            composed.up(service)
            for container in composed.containers(service):
                composed.wait_until_well(container)
            logger.info("%s: made anew in %.1f s; %d uploads have ended", service, time.monotonic() - begun, len(uploads.ended))
        uploads.wait_for_one_more()
    assert before.isdisjoint(container.id for service in SERVICES for container in composed.containers(service))
    assert_nothing_is_lost(composed, uploads, expected)
    until(lambda: ui_lists_the_namespace(composed), ASK_S)


def test_an_upload_stays_on_its_version(composed: Site, client: Client, expected: dict[Layout, list[bytes]]) -> None:
    """A workflow worker with a version, by the commands of UPGRADING.md: the server on Postgres pins an upload to it."""
    version = {"TEMPORAL_DEPLOYMENT_NAME": "sitelink", "TEMPORAL_WORKER_BUILD_ID": "0.2.0"}
    composed.set_environment("workflow", version)
    composed.up("workflow")
    (api,) = composed.containers("api-1")

    def findings() -> str:
        output: bytes = api.exec_run(["python", "-m", "deploy.check"], environment=version).output
        return output.decode()

    words = "worker deployment set-current-version --deployment-name sitelink --build-id 0.2.0"
    assert f"temporal {words}\n" in UPGRADING.read_text()
    until(lambda: f"| temporal {words}" in findings(), ASK_S)
    temporal(composed, *words.split(), "--yes")
    until(lambda: "version 0.2.0 of sitelink: new uploads" in findings(), ASK_S)
    ref = client.send(Layout.EXPLODED)
    assert client.wait(ref)["status"] == "complete"
    assert digests(Bucket(composed.bucket), ref) == expected[Layout.EXPLODED]
    pinned = "TemporalWorkerDeploymentVersion='sitelink:0.2.0' AND TemporalWorkflowVersioningBehavior='Pinned'"
    until(lambda: ref.workflow_id in temporal(composed, "workflow", "list", "--query", pinned), ASK_S)
