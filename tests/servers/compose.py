"""``deploy/compose.yaml`` on this machine's loopback, in containers of images that are built here.

``python -m tests.servers.compose`` builds these images before a test run, in which each test has a time limit.

The file is taken as it is, but for what a test must change (``on_loopback``):

1. All containers share this machine's network. So each server has a port of its own on the loopback, and is told the ports of the others.
2. The images are SiteLink's own, and one with all other servers: those of Temporal and the S3 server built by Go in the versions that the
   file names, Postgres and nginx as Debian has them.
3. Tile workers that share one network have no fixed port for their metrics, and therefore no health check.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container

from activities.bucket.location import BucketSettings
from deploy.process import free_port
from deploy.programs import CACHE, go_install
from deploy.temporal import NoTemporal, temporal_binary
from tests.servers.docker import Engine, NoEngine, running_engine
from tests.servers.versitygw import NoS3Server, s3_server_binary
from tests.waiting import ASK_S, until

FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
OWN_FILES = Path(__file__).parent / "containers"
HERE = "127.0.0.1"
SECRETS = {"postgres_password": "p" * 32, "s3_secret_key": "s" * 32, "jwt_secret": "j" * 32, "codec_key": "ab" * 32}
TEMPORAL_PARTS = ("FRONTEND", "MATCHING", "HISTORY", "WORKER")


def document() -> dict[str, Any]:
    """The compose file, each service with all of its entries."""
    found: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(FILE.read_text())))
    return found


def version_of(image: str) -> str:
    """The tag of an image in the compose file."""
    (version,) = {service["image"].split(":")[1] for service in document()["services"].values() if service["image"].startswith(f"{image}:")}
    return str(version)


def servers_image(engine: Engine) -> str:
    """The tag of the image with all servers but SiteLink; builds what is missing.

    Raises:
        NoEngine: The image or one of its programs cannot be built here.
    """
    temporal, ui = version_of("temporalio/server"), version_of("temporalio/ui")
    try:
        programs = {
            "temporal": temporal_binary(CACHE, say=engine.say),
            "versitygw": s3_server_binary(CACHE, say=engine.say),
            "temporal-server": _built(f"go.temporal.io/server/cmd/server@v{temporal}", engine.say),
            "temporal-sql-tool": _built(f"go.temporal.io/server/cmd/tools/sql@v{temporal}", engine.say),
            "ui-server": _built(f"github.com/temporalio/ui-server/v2/cmd/server@v{ui}", engine.say),
            "postgres": OWN_FILES / "postgres",
        }
    except (NoTemporal, NoS3Server) as error:
        raise NoEngine(str(error)) from error
    modules = Path(_go("env", "GOMODCACHE"))
    files = {f"programs/{name}": path for name, path in programs.items()} | {
        "Dockerfile": OWN_FILES / "Dockerfile",
        "etc/temporal/entrypoint.sh": OWN_FILES / "temporal",
        "etc/temporal/config/docker.yaml": modules / f"go.temporal.io/server@v{temporal}" / "config" / "docker.yaml",
        "etc/temporal-ui/docker.yaml": OWN_FILES / "temporal-ui.yaml",
    }
    base, digest = engine.debian_image(), hashlib.sha256()
    for text in (base, *(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in sorted(files.items()))):
        digest.update(f"{text}\n".encode())
    tag = f"sitelink-test-servers:{digest.hexdigest()[:12]}"
    try:
        engine.client.images.get(tag)
    except ImageNotFound:
        engine.say("building an image of the servers (a minute)")
        with tempfile.TemporaryDirectory() as directory:
            for name, path in files.items():
                (target := Path(directory, name)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                target.chmod(0o644 if name.endswith(".yaml") else 0o755)
            engine.build(Path(directory), Path(directory, "Dockerfile"), tag, DEBIAN=base)
    return tag


def _built(module: str, say: Callable[[str], None]) -> Path:
    """A program that Go has built, from the cache or new."""
    path, version = module.rsplit("@", 1)
    directory = CACHE / f"{path.replace('/', '-')}-{version}"
    if not (programs := [*directory.glob("*")]):
        say(f"building {module} (up to 3 minutes the first time)")
        failure = go_install(_go_program(), module, say=say, environ={"CGO_ENABLED": "0", "GOBIN": str(directory)})
        if failure is not None:
            msg = f"building {module} failed:\n{failure}"
            raise NoEngine(msg)
        programs = [*directory.glob("*")]
    return programs[0]


def _go(*arguments: str) -> str:
    return subprocess.run([_go_program(), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _go_program() -> str:
    if go := shutil.which("go"):
        return go
    msg = "there is no Go (https://go.dev/dl) to build the servers of deploy/compose.yaml"
    raise NoEngine(msg)


@dataclass(frozen=True)
class Ports:
    """Where the servers listen on the loopback.

    Args:
        nginx: The port of the site.
        ui: Temporal's UI.
        s3: The S3 server.
        of: Every further port, by the name of a variable of its server.
    """

    nginx: int
    ui: int
    s3: int
    of: Mapping[str, int]

    @classmethod
    def free(cls) -> "Ports":
        """Free ports."""
        temporal = [f"{part}_{kind}_PORT" for part in TEMPORAL_PARTS for kind in ("GRPC", "MEMBERSHIP")]
        others = ["FRONTEND_HTTP_PORT", "POSTGRES", "TEMPORAL_UI", "API_1", "API_2", "METRICS_1", "METRICS_2", "METRICS_3"]
        return cls(free_port(), free_port(), free_port(), {name: free_port() for name in (*temporal, *others)})


def on_loopback(found: dict[str, Any], ports: Ports, sitelink: str, servers: str) -> dict[str, Any]:
    """The compose file for containers on this machine's network.

    Args:
        found: The compose file, as from ``document``.
        ports: Where the servers listen.
        sitelink: The image of SiteLink.
        servers: The image of the other servers.
    """
    of, s3 = ports.of, f"http://{HERE}:{ports.s3}"
    temporal = f"{HERE}:{of['FRONTEND_GRPC_PORT']}"
    changed: dict[str, dict[str, str]] = {
        "nginx": {
            "API_SERVERS": f"server {HERE}:{of['API_1']}; server {HERE}:{of['API_2']}",
            "NGINX_LISTEN": f"{HERE}:{ports.nginx}",
            "HEALTH_URL": f"http://{HERE}:{ports.nginx}/livez",
        },
        "api-1": {"SITELINK_PORT": str(of["API_1"]), "SITELINK_METRICS_PORT": str(of["METRICS_1"])},
        "api-2": {"SITELINK_PORT": str(of["API_2"]), "SITELINK_METRICS_PORT": str(of["METRICS_2"])},
        "workflow": {"SITELINK_METRICS_PORT": str(of["METRICS_3"])},
        "tile": {"SITELINK_METRICS_PORT": "0"},
        "s3": {"S3_PORT": str(ports.s3)},
        "ui": {"HEALTH_ADDRESS": f"{HERE}:{ports.ui}"},
        "temporal-ui": {"TEMPORAL_UI_PORT": str(of["TEMPORAL_UI"])},
        "temporal": {
            **{name: str(port) for name, port in of.items() if name.endswith("_PORT")},
            "BIND_ON_IP": HERE,
            "POSTGRES_SEEDS": HERE,
            "DB_PORT": str(of["POSTGRES"]),
            "VISIBILITY_DB_PORT": str(of["POSTGRES"]),
        },
        "temporal-schema": {"SQL_HOST": HERE, "SQL_PORT": str(of["POSTGRES"])},
        "postgres": {"PGPORT": str(of["POSTGRES"])},
    }
    everywhere = {"TEMPORAL_ADDRESS": temporal, "SITELINK_S3_ENDPOINT": s3, "SITELINK_HOST": HERE, "SITELINK_METRICS_HOST": HERE}
    commands = {
        "s3": {":7070": f"{HERE}:{ports.s3}"},
        "ui": {"0.0.0.0": HERE, "8233": str(ports.ui), "http://temporal-ui:8080": f"http://{HERE}:{of['TEMPORAL_UI']}"},  # noqa: S104
    }
    for name, service in found["services"].items():
        service.pop("ports", None)
        service.pop("build", None)
        service["network_mode"] = "host"
        service["image"] = sitelink if service["image"].startswith("sitelink:") else servers
        environ = service.setdefault("environment", {})
        environ |= {key: value for key, value in everywhere.items() if key in environ} | changed.get(name, {})
        if replaced := commands.get(name):
            assert replaced.keys() <= set(service["command"])
            service["command"] = [replaced.get(argument, argument) for argument in service["command"]]
        if "test" in service.get("healthcheck", {}):
            # Soon, and on a busy machine with patience.
            service["healthcheck"] |= {"interval": "3s", "timeout": "60s", "retries": 20}
    found["services"]["tile"]["healthcheck"] = {"disable": True}
    found["services"]["temporal-ui"]["command"] = ["ui-server", "--root", "/etc", "--config", "temporal-ui", "--env", "docker", "start"]
    return found


class Site:
    """SiteLink by ``docker-compose``, with two tile workers.

    Args:
        engine: The engine that runs the containers.
        directory: For the changed file and the secrets.
        sitelink: The image of SiteLink.
        servers: The image of the other servers.
    """

    TILES = 2

    def __init__(self, engine: Engine, directory: Path, sitelink: str, servers: str) -> None:
        self._engine = engine
        self._file = directory / "compose.json"
        self._project = f"sitelink-test-{os.getpid()}"
        self._ports = Ports.free()
        self._file.write_text(json.dumps(on_loopback(document(), self._ports, sitelink, servers), indent=1))
        (directory / "secrets").mkdir(mode=0o700)
        for name, text in SECRETS.items():
            (directory / "secrets" / name).write_text(f"{text}\n")
        # The variables of whoever runs the tests are not for this file.
        own = {name: value for name, value in engine.environ.items() if not name.startswith(("SITELINK_", "COMPOSE_"))}
        patience = {"COMPOSE_HTTP_TIMEOUT": "600"}  # of docker-compose 1.29.2 with an engine on a busy machine
        self._environ = {**own, **patience, "SECRETS": str(directory / "secrets"), "SITELINK_RENDER_SLOTS": "1"}
        self.url = f"http://{HERE}:{self._ports.nginx}"
        self.ui_url = f"http://{HERE}:{self._ports.ui}"
        self.bucket = BucketSettings("s3://plans", f"http://{HERE}:{self._ports.s3}", "sitelink", SECRETS["s3_secret_key"], "us-east-1")

    def compose(self, *arguments: str) -> str:
        """Runs ``docker-compose`` with these arguments; returns its output.

        Raises:
            AssertionError: Its exit code is not 0; the message has its output.
        """
        command = [*program(), "--project-directory", str(FILE.parent), "--file", str(self._file), "--project-name", self._project]
        done = subprocess.run(
            [*command, *arguments],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode("utf-8", "replace")
        assert done.returncode == 0, f"{arguments}: {output[-3000:]}\n{self._logs()}"
        return output

    def up(self, *services: str) -> None:
        """Starts all services, or makes new containers of these services only."""
        anew = ("--no-deps", "--force-recreate") if services else ()
        # Docker Compose v2 refuses to scale a service that is not among those named: https://github.com/docker/compose/issues/8752
        scale = ("--scale", f"tile={self.TILES}") if not services or "tile" in services else ()
        self.compose("up", "--detach", *anew, *scale, *services)

    def set_environment(self, service: str, variables: Mapping[str, str]) -> None:
        """Gives the next container of a service further variables."""
        found = json.loads(self._file.read_text())
        found["services"][service]["environment"] |= variables
        self._file.write_text(json.dumps(found, indent=1))

    def down(self) -> None:
        """Removes all containers and volumes."""
        volumes = self.volumes()
        self.compose("down", "--volumes", "--remove-orphans")
        # Compose 1 takes the nameless volume of a container that it has made anew for one with a name, and leaves it.
        for volume in self._engine.client.volumes.list():
            if volume.name in volumes:
                volume.remove()

    def containers(self, service: str | None = None) -> list[Container]:
        """The containers of a service, or all, also those that have ended."""
        labels = [f"com.docker.compose.project={self._project}"]
        labels += [f"com.docker.compose.service={service}"] if service else []
        found: list[Container] = self._engine.client.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda container: str(container.name))

    def volumes(self) -> set[str]:
        """The names of the volumes in which the site's containers write."""
        mounts = [mount for container in self.containers() for mount in container.attrs["Mounts"]]
        return {mount["Name"] for mount in mounts if mount["Type"] == "volume"}

    def kill(self, container: Container) -> None:
        """Kills the processes of a container by SIGKILL, as a crash does; returns when the engine has it running again."""
        self.wait_until_well(container)
        pid = _state(container)["Pid"]
        assert pid > 0  # 0 is a container that does not run; as a signal's target, it is the process group of the tests
        os.kill(pid, signal.SIGKILL)
        until(lambda: _state(container)["Pid"] not in (0, pid), ASK_S)
        self.wait_until_well(container)

    def wait_until_well(self, container: Container) -> None:
        """Returns when the container runs and its health check says so."""
        until(lambda: _state(container).get("Health", {}).get("Status", _state(container)["Status"]) in ("healthy", "running"), ASK_S)

    def _logs(self) -> str:
        """The end of each container's log, for the message of a failed test."""
        return "\n".join(f"== {each.name}: {each.status}\n{each.logs(tail=8).decode('utf-8', 'replace')}" for each in self.containers())


def _state(container: Container) -> dict[str, Any]:
    container.reload()
    state: dict[str, Any] = container.attrs["State"]
    return state


def program() -> list[str]:
    """The command of Docker Compose.

    Raises:
        NoEngine: It is not installed.
    """
    if found := shutil.which("docker-compose"):
        return [found]
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    msg = "there is no Docker Compose here; on Debian: apt-get install docker-compose"
    raise NoEngine(msg)


@contextmanager
def running(engine: Engine, directory: Path, sitelink: str) -> Iterator[Site]:
    """Runs SiteLink by ``docker-compose``. At the end no container and no volume is left, also of a site that did not start.

    Raises:
        NoEngine: An image cannot be built here, or there is no Docker Compose.
    """
    program()
    site = Site(engine, directory, sitelink, servers_image(engine))
    try:
        site.up()
        yield site
    finally:
        site.down()


def main() -> int:
    """Builds the images, and says their names. Returns the exit code."""

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        program()
        with running_engine(say=say) as engine:
            say(f"SiteLink's image: {engine.sitelink_image()}")
            say(f"the servers' image: {servers_image(engine)}")
    except (NoEngine, DockerException) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
