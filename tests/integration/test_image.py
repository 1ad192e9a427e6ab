"""The image of ``deploy/Dockerfile``: every process as an operator runs it, with a real Temporal server and a real S3 server.

Every container runs as the image's user on a read-only root file system, without capabilities, and by the engine's own seccomp profile.
"""

import io
import json
import re
import signal
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from docker.models.containers import Container

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from activities.render import confine, memorylimit
from deploy.process import free_port
from deploy.temporal import TemporalServer
from tests.chaos.guarantees import sheets_of
from tests.one_upload import one_host
from tests.resources import make_pdfs
from tests.servers.docker import Engine
from tests.servers.queue import FakeQueue, serving
from tests.servers.s3 import TestServer
from tests.waiting import until

ROOT = Path(__file__).parents[2]
DATA = "/var/lib/sitelink"
DRAIN_S = 300
"""Longer than any drain: for a hang."""
SECOND_NS = 1_000_000_000
ROLES = {
    "api": ["api"],
    "workflow": ["worker", "workflow"],
    "tile": ["worker", "tile"],
    "webhook": ["worker", "webhook"],
    "events": ["api", "events"],
}

SIGNAL = """
import os, pathlib, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    if pathlib.Path("/proc", pid, "cmdline").read_text().startswith("python\\0-m\\0worker"):
        os.kill(int(pid), int(sys.argv[1]))
"""
"""Sends a signal to the worker of the container in which it runs."""


@dataclass
class Containers:
    """SiteLink's processes, each in a container.

    Args:
        start: Starts a container of the image, with these arguments and further options of docker-py.
        by_role: The running containers.
        bucket: Their bucket.
    """

    start: Callable[..., Container]
    by_role: dict[str, Container]
    bucket: BucketSettings

    def run(self, *command: str, **options: Any) -> str:
        """Runs a command in a container of its own to its end; returns its output.

        Raises:
            AssertionError: Its exit code is not 0.
        """
        container = self.start(list(command), **options)
        code = container.wait()["StatusCode"]
        output = str(container.logs().decode())
        assert code == 0, output
        return output

    def upload(self, directory: Path, data: bytes, *options: str) -> UploadRef:
        """Sends a PDF by the command line, which waits for the end of the upload; the end must be ``complete``.

        Args:
            directory: Gets the PDF.
            data: The PDF.
            *options: Further options of the command.
        """
        (directory / "plan.pdf").write_bytes(data)
        pdf = {str(directory / "plan.pdf"): {"bind": "/plan.pdf", "mode": "ro"}}
        output = self.run("api.cli", "upload", "/plan.pdf", "--to", "acme/tower/a1", *options, volumes=pdf)
        (ref,) = set(re.findall(r"acme/tower/a1/[0-9a-f-]{36}", output))
        return UploadRef.parse(ref)


@pytest.fixture(scope="module")
def containers(
    engine: Engine, sitelink_image: str, temporal_binary: Path, s3_server: TestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containers]:
    """A process of each role."""
    bucket = s3_server.new_bucket()
    with ExitStack() as stack:
        temporal = TemporalServer(temporal_binary, tmp_path_factory.mktemp("temporal") / "temporal.db")
        temporal.start()
        stack.callback(temporal.stop)
        queue, port = stack.enter_context(serving(FakeQueue())), free_port()
        environ = {
            **s3_server.environment(bucket),
            **queue.environment,
            "TEMPORAL_ADDRESS": temporal.address,
            "SITELINK_ACCESS": "jwt",
            "SITELINK_JWT_SECRET": "j" * 40,
            "SITELINK_WEBHOOK_SECRET": "w" * 40,
            "SITELINK_HOST": "127.0.0.1",
            "SITELINK_PORT": str(port),
            "SITELINK_URL": f"http://127.0.0.1:{port}",
            "SITELINK_RENDER_SLOTS": "1",
        }

        def start(command: list[str], *, more: Mapping[str, str] | None = None, **options: Any) -> Container:
            container = engine.client.containers.run(
                sitelink_image,
                command,
                detach=True,
                network_mode="host",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                environment={**environ, **(more or {})},
                **options,
            )
            stack.callback(container.remove, v=True, force=True)
            return container

        found = Containers(start, {}, bucket)
        token = found.run("api.cli", "token", "--org", "acme", "--scope", "read write operate").split()[-1]
        environ["SITELINK_TOKEN"] = token
        patient = {"interval": 1 * SECOND_NS, "timeout": 60 * SECOND_NS, "retries": 1}
        for role, command in ROLES.items():
            found.by_role[role] = start(command, more={"SITELINK_METRICS_PORT": str(free_port())}, healthcheck=patient)
        for container in found.by_role.values():
            until(lambda container=container: health(container) == "healthy")  # type: ignore[misc]
        yield found


def log(container: Container) -> str:
    """All that a container has written."""
    return str(container.logs().decode())


def health(container: Container) -> str:
    """What the image's health check says of a container: ``starting``, ``healthy`` or ``unhealthy``."""
    container.reload()
    assert container.status == "running", log(container)
    return str(container.attrs["State"]["Health"]["Status"])


def plan_in_many_fonts() -> bytes:
    """Pages whose fonts the file does not embed: Latin, and of each East Asian character set; and a sheet of a plan set."""
    latin = [make_pdfs.text_by_names(name, "Plan 1:100 \u2300 Stra\u00dfe") for name in ("ArialMT", "TimesNewRomanPSMT", "CourierNewPSMT")]
    asian = [
        make_pdfs.text_by_cmap("MS-Gothic", "Japan1", "UniJIS-UCS2-H", "平面図"),
        make_pdfs.text_by_cmap("SimSun", "GB1", "UniGB-UCS2-H", "总平面图"),
        make_pdfs.text_by_cmap("PMingLiU", "CNS1", "UniCNS-UCS2-H", "總平面圖"),
        make_pdfs.text_by_cmap("Dotum", "Korea1", "UniKS-UCS2-H", "평면도"),
    ]
    whole, file = pikepdf.Pdf.new(), io.BytesIO()
    for data in (*latin, *asian, make_pdfs.plan_set(1)):
        with pikepdf.Pdf.open(io.BytesIO(data)) as pdf:
            whole.pages.extend(pdf.pages)
    whole.save(file, deterministic_id=True)
    return file.getvalue()


async def test_a_job_in_containers_makes_the_same_sheets_as_on_the_host(containers: Containers, tmp_path: Path) -> None:
    """The command line of one container has the others make a whole job. Every tile is as on this machine, also of text in our fonts."""
    ref = containers.upload(tmp_path, plan_in_many_fonts())
    async with one_host(tmp_path) as host:
        outcome = await host.run(tmp_path / "plan.pdf")
        assert outcome.sheets == dict.fromkeys(range(1, 9), "ready")
        expected = {key.partition("/sheets/")[2]: body for key, body in host.sheets(tmp_path / "plan.pdf").items()}
    bucket = Bucket(containers.bucket)
    assert sheets_of(bucket, ref).keys() == expected.keys()
    for name, body in expected.items():
        found = bucket.get(ref.sheets_prefix + name).body
        # Temporal hands names of engines over in another order.
        assert (json.loads(found) == json.loads(body)) if name.endswith(".json") else (found == body), name


def test_render_children_are_confined_by_the_engines_default_profile(containers: Containers) -> None:
    """These layers hold without root, capabilities or an own profile. With access control no worker runs without the first two."""
    until(lambda: "render children are confined by" in log(containers.by_role["tile"]))
    (held,) = re.findall(r"render children are confined by: (.*?);", log(containers.by_role["tile"]))
    assert {confine.LANDLOCK, confine.SECCOMP, memorylimit.LAYER} <= set(held.split(", "))


def test_a_process_that_hangs_is_not_healthy(containers: Containers) -> None:
    """The image's health check has found each process at work; it finds that one stands still, and that it works again."""
    webhook = containers.by_role["webhook"]
    assert webhook.exec_run(["python", "-c", SIGNAL, str(signal.SIGSTOP.value)]).exit_code == 0
    until(lambda: health(webhook) == "unhealthy")
    assert webhook.exec_run(["python", "-c", SIGNAL, str(signal.SIGCONT.value)]).exit_code == 0
    until(lambda: health(webhook) == "healthy")


def test_the_check_finds_nothing_wrong_in_a_container(containers: Containers) -> None:
    """Exit code 0 of ``deploy.check`` where the processes run: bucket, Temporal, scratch, fonts, cutter and confinement are right."""
    table = containers.run("deploy.check")
    assert "WRONG" not in table
    assert "cutter" in table


def test_sigterm_drains_a_tile_worker_and_ends_every_role(containers: Containers, tmp_path: Path) -> None:
    """Each ends by itself with exit code 0. Before, a tile worker uploads what it has tiled; another one goes on with the rest."""
    tile = containers.by_role["tile"]
    before = len(log(tile))
    output = containers.upload(tmp_path, make_pdfs.plan_set(12), "--no-watch")
    until(lambda: "activity=tile_page" in log(tile)[before:])
    assert stopped(tile) == 0
    finished = re.findall(r"finished .*activity=(tile_page|upload_page)", log(tile)[before:])
    assert finished.count("tile_page") == finished.count("upload_page") > 0
    containers.by_role["tile"] = containers.start(ROLES["tile"], more={"SITELINK_METRICS_PORT": str(free_port())})
    containers.run("api.cli", "watch", str(output))
    assert {role: stopped(container) for role, container in containers.by_role.items()} == dict.fromkeys(ROLES, 0)


def stopped(container: Container) -> int:
    """Stops a container as ``docker stop`` does; returns its exit code, which is 137 if it did not end by itself."""
    container.stop(timeout=DRAIN_S)
    return int(container.wait()["StatusCode"])


def test_the_image_tells_what_is_in_it(engine: Engine, sitelink_image: str, containers: Containers) -> None:
    """User, size, labels, and two CycloneDX lists: Debian's packages, and Python's with the versions of this checkout."""
    image = engine.client.images.get(sitelink_image)
    own_bytes = image.attrs["Size"] - engine.client.images.get(engine.debian_image()).attrs["Size"]
    assert own_bytes < 400_000_000  # as deploy/README.md says, and some room for newer packages
    config = image.attrs["Config"]
    assert config["User"] == "10001:10001"
    assert set(config["Volumes"]) == {DATA}
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert (labels["title"], labels["licenses"], labels["version"]) == ("SiteLink", "Apache-2.0", metadata.version("sitelink"))
    python, debian = (bill_of_materials(containers, name) for name in ("python.cdx.json", "debian.cdx.json"))
    assert python["metadata"]["component"]["name"] == "sitelink"
    versions = {each["name"]: each["version"] for each in python["components"]}
    for name in ("temporalio", "pypdfium2", "pyvips-binary", "redis"):
        assert versions[name] == metadata.version(name)
    packages = {each["name"] for each in debian["components"]}
    assert {"libc6", "python3.11-minimal", "ca-certificates", "tini"} <= packages
    assert "gcc" not in packages


def bill_of_materials(containers: Containers, name: str) -> dict[str, Any]:
    """A list in the image."""
    chunks, _ = containers.by_role["api"].get_archive(f"/opt/sbom/{name}")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        file = archive.extractfile(name)
        assert file is not None
        found: dict[str, Any] = json.load(file)
        return found
