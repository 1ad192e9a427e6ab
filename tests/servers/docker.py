"""A Docker engine for tests, a Debian image that comes from no registry, and images built on it.

For a test, ``tests/conftest.py`` has the fixtures ``engine`` (an ``Engine``) and ``sitelink_image`` (the id of the image that
``deploy/Dockerfile`` makes of this checkout). ``engine.client`` is docker-py's client; ``engine.environ`` lets programs such as
``docker-compose`` find the engine; ``engine.build`` builds another image, on ``engine.debian_image()`` if it likes.
``python -m tests.servers.docker`` builds SiteLink's image before a test run, in which each test has a time limit.

1. An engine that answers is used. Else root starts one of its own: with its own socket, images and containers, no bridge and no
   firewall rules. So all containers take ``network_mode="host"``. The last test process that uses the engine stops it.
2. An engine keeps what it has built, so a second build of the same files takes seconds.
3. A container's user is not the test's: it reads only what is readable by all, and should write into volumes only.
"""

import fcntl
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound

from tests.servers.s3 import docker_answers

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
DATA = Path.home() / ".cache" / "sitelink" / "docker"
"""Images and containers of the engine that tests start."""
RUN = Path("/run/sitelink-test-docker")
"""Socket, lock, process id and log of that engine."""
SOCKET = RUN / "docker.sock"
START_LIMIT_S = 60
STOP_LIMIT_S = 60
ANSWER_LIMIT_S = 600

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE_FILES = {
    "etc/pip.conf": f"[global]\ncert = {CERTIFICATES}\n",
    "etc/uv/uv.toml": "system-certs = true\n",
}
"""Let a build trust the certificate authorities that this machine trusts, a proxy's among them."""


class NoEngine(Exception):
    """No Docker engine answers, and none can be started; or no Debian image can be made. The message says why."""


class BuildFailed(Exception):
    """An image could not be built. The message has the end of the output."""


@dataclass(frozen=True)
class Engine:
    """A Docker engine that runs.

    Args:
        client: Its client.
        environ: The environment in which Docker's programs reach it.
        say: Gets a sentence about each step that takes time.
    """

    client: docker.DockerClient
    environ: Mapping[str, str]
    say: Callable[[str], None]

    def debian_image(self) -> str:
        """The tag of a minimal Debian image; makes it where the engine has none.

        Raises:
            NoEngine: The image cannot be made here.
        """
        files = {name: text.encode() for name, text in BASE_FILES.items()}
        if CERTIFICATES.exists():
            # ``update-ca-certificates`` reads the second file when a build installs Debian's certificates.
            names = (str(CERTIFICATES)[1:], "usr/local/share/ca-certificates/test-machine.crt")
            files |= dict.fromkeys(names, CERTIFICATES.read_bytes())
        content = repr((SUITE, MIRROR, sorted(files.items()))).encode()
        repository, version = "sitelink-test-debian", f"{SUITE}-{hashlib.sha256(content).hexdigest()[:12]}"
        with suppress(ImageNotFound):
            self.client.images.get(f"{repository}:{version}")
            return f"{repository}:{version}"
        if os.geteuid() != 0 or not shutil.which("debootstrap"):
            msg = "the tests' Debian image is made by the program debootstrap, as root"
            raise NoEngine(msg)
        self.say(f"making a Debian image: debootstrap {SUITE} (about a minute)")
        with tempfile.TemporaryDirectory() as name:
            directory, archive = Path(name, "root"), Path(name, "root.tar")
            try:
                _run(["debootstrap", "--variant=minbase", SUITE, str(directory), MIRROR])
            except BuildFailed as error:
                raise NoEngine(str(error)) from error
            for path, content in files.items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_bytes(content)
            downloads = "--exclude=./var/cache/apt/archives/*.deb"
            _run(["tar", "--create", "--numeric-owner", downloads, f"--file={archive}", f"--directory={directory}", "."])
            self.client.api.import_image_from_file(str(archive), repository=repository, tag=version)
        return f"{repository}:{version}"

    def build(self, context: Path, dockerfile: Path, tag: str, **build_args: str) -> str:
        """Builds an image by ``docker build``, with this machine's network.

        Args:
            context: The directory whose files the Dockerfile may copy.
            dockerfile: The Dockerfile.
            tag: A tag for the image. The next build with this tag takes it away.
            **build_args: Values of the Dockerfile's ``ARG``.

        Returns:
            The image's id, which stays its own whatever else is built.

        Raises:
            BuildFailed: The build failed.
        """
        arguments = [argument for name, value in build_args.items() for argument in ("--build-arg", f"{name}={value}")]
        command = ["docker", "build", "--network", "host", "--file", str(dockerfile), "--tag", tag, *arguments]
        with tempfile.TemporaryDirectory() as directory:
            id_file = Path(directory, "id")
            _run([*command, "--iidfile", str(id_file), str(context)], self.environ)
            return id_file.read_text()

    def sitelink_image(self) -> str:
        """The id of the image that ``deploy/Dockerfile`` makes of this checkout, on ``debian_image``.

        Raises:
            NoEngine: The Debian image cannot be made here.
            BuildFailed: The build failed.
        """
        base = self.debian_image()
        self.say("building SiteLink's image (some minutes the first time)")
        return self.build(ROOT, ROOT / "deploy" / "Dockerfile", "sitelink-test:latest", DEBIAN=base)


@contextmanager
def running_engine(*, say: Callable[[str], None]) -> Iterator[Engine]:
    """A Docker engine. Starts one where none answers.

    Raises:
        NoEngine: No engine answers, and none can be started.
    """
    if docker_answers():
        with _reached(os.environ, say) as engine:
            yield engine
        return
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        msg = "no Docker engine answers, and only root can start one, by the program dockerd"
        raise NoEngine(msg)
    environ = {**os.environ, "DOCKER_HOST": f"unix://{SOCKET}"}
    RUN.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(RUN / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Whoever uses the engine holds the lock together with the others; who starts or stops it holds the lock alone.
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if docker_answers(environ):
                break
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not docker_answers(environ):
                _start(environ)
        with _reached(environ, say) as engine:
            yield engine
    finally:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if docker_answers(environ):
                _stop()
        os.close(lock)


@contextmanager
def _reached(environ: Mapping[str, str], say: Callable[[str], None]) -> Iterator[Engine]:
    client = docker.from_env(timeout=ANSWER_LIMIT_S, environment=dict(environ))
    try:
        yield Engine(client, environ, say)
    finally:
        client.close()


def _start(environ: Mapping[str, str]) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    places = (f"--host=unix://{SOCKET}", f"--data-root={DATA}", f"--exec-root={RUN / 'exec'}", f"--pidfile={RUN / 'pid'}")
    network = ("--bridge=none", "--iptables=false", "--ip6tables=false")
    with (RUN / "log").open("wb") as log:
        command = ["setsid", "--fork", "dockerd", *places, *network]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + START_LIMIT_S
    while not docker_answers(environ):
        if time.monotonic() > deadline:
            _stop()
            msg = f"the Docker engine does not answer after {START_LIMIT_S} s:\n{_tail((RUN / 'log').read_text())}"
            raise NoEngine(msg)
        time.sleep(0.2)
    with _reached(environ, lambda _: None) as engine:
        engine.client.containers.prune()  # left by test runs that were killed
        # Earlier builds. A build's later stages are made from images without a name, so the new ones of them stay.
        engine.client.images.prune({"dangling": True, "until": "168h"})


def _stop() -> None:
    try:
        pid = int((RUN / "pid").read_text())
        if Path(f"/proc/{pid}/comm").read_text() != "dockerd\n":  # an engine that was killed has left its file
            return
        process = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has ended by itself
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        ended = select.poll()
        ended.register(process, select.POLLIN)
        ended.poll(STOP_LIMIT_S * 1000)
    finally:
        os.close(process)


def _run(command: list[str], environ: Mapping[str, str] = os.environ) -> None:
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        msg = f"{' '.join(command[:2])} failed:\n{_tail(done.stdout.decode('utf-8', 'replace'))}"
        raise BuildFailed(msg)


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-30:])


def main() -> int:
    """Builds SiteLink's image, and says its id. Returns the exit code."""

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    try:
        with running_engine(say=say) as engine:
            say(f"SiteLink's image: {engine.sitelink_image()}")
    except (NoEngine, BuildFailed, DockerException) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
