"""A real S3 server for the tests: versitygw in a container when a Docker engine answers, else as a process of this machine."""

import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import boto3
import docker
from botocore.config import Config
from docker.errors import DockerException
from docker.utils import parse_host
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage

from activities.bucket.location import BucketSettings
from activities.bucket.setup import BucketSetup
from tests.servers.versitygw import NoS3Server, S3Server, options, wait_until_healthy

DOCKERFILE = """\
FROM scratch
COPY versitygw /versitygw
WORKDIR /data
ENTRYPOINT ["/versitygw"]
"""
PORT = 7070
PING_LIMIT_S = 30

_numbers = count(1)


@dataclass(frozen=True)
class TestServer:
    """A running server.

    Args:
        endpoint: The server's address.
        access_key_id: The access key of its one user.
        secret_access_key: The secret key of that user.
        how: ``container``, or ``process`` and the reason.
    """

    __test__ = False

    endpoint: str
    access_key_id: str
    secret_access_key: str
    how: str

    def settings(self, bucket: str, prefix: str = "", *, endpoint: str | None = None) -> BucketSettings:
        """The settings of a bucket, which need not exist.

        Args:
            bucket: The bucket's name.
            prefix: The prefix of every key.
            endpoint: The address of a proxy before the server.
        """
        url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        return BucketSettings(url, endpoint or self.endpoint, self.access_key_id, self.secret_access_key, "us-east-1")

    def new_bucket(self, prefix: str = "") -> BucketSettings:
        """Makes an empty bucket with a new name; returns its settings."""
        settings = self.settings(f"bucket-{next(_numbers)}", prefix)
        BucketSetup(settings).create()
        return settings

    def environment(self, settings: BucketSettings) -> dict[str, str]:
        """The environment of a process that uses the bucket."""
        return {
            "SITELINK_BUCKET": settings.url,
            "SITELINK_S3_ENDPOINT": settings.endpoint,
            "AWS_ACCESS_KEY_ID": settings.access_key_id,
            "AWS_SECRET_ACCESS_KEY": settings.secret_access_key,
            "AWS_REGION": settings.region,
        }


def count_parts(settings: BucketSettings) -> int:
    """How many parts the server has of multipart uploads that are neither completed nor aborted."""
    setup = BucketSetup(settings)
    return sum(len(setup.parts(upload.key, upload.upload_id)) for upload in setup.unfinished_uploads())


def presigned(settings: BucketSettings, key: str, expires_s: int = 600) -> str:
    """A URL by which anybody may read an object for so many seconds."""
    client = boto3.client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    return str(client.generate_presigned_url("get_object", {"Bucket": settings.url.removeprefix("s3://"), "Key": key}, expires_s))


@contextmanager
def running(binary: Path, directory: Path) -> Iterator[TestServer]:
    """Runs the server.

    Args:
        binary: The server's program.
        directory: For the server's buckets, or for the files of a container image.
    """
    key, secret, how = "tests", secrets.token_urlsafe(24), "process"
    with ExitStack() as stack:
        if docker_answers():
            try:
                endpoint = stack.enter_context(_container(binary, directory / "image", key, secret))
            except (DockerException, NoS3Server) as error:
                # An engine may answer where no container can run.
                how = f"process, for a container did not start: {error}"
            else:
                yield TestServer(endpoint, key, secret, "container")
                return
    server = S3Server(binary, directory / "buckets", access_key_id=key, secret_access_key=secret)
    server.start()
    try:
        yield TestServer(server.endpoint, key, secret, how)
    finally:
        server.stop()


def docker_answers(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a Docker engine answers this process.

    Args:
        environ: Its ``DOCKER_HOST`` may name the engine's address.
    """
    try:
        address = parse_host(environ.get("DOCKER_HOST"))
        # Where nobody listens docker-py leaves its socket open: UnixHTTPConnection.connect in
        # https://github.com/docker/docker-py/blob/7.1.0/docker/transport/unixconn.py
        if address.startswith("http+unix://"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(PING_LIMIT_S)
                probe.connect(address.removeprefix("http+unix://"))
        client = docker.from_env(timeout=PING_LIMIT_S, environment=dict(environ))
    except (DockerException, OSError):
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


@contextmanager
def _container(binary: Path, directory: Path, key: str, secret: str) -> Iterator[str]:
    # Testcontainers' reaper would be an image from a registry, and the tests use none. All addresses are on this machine's loopback.
    testcontainers_config.ryuk_disabled = True
    os.environ.setdefault("TC_HOST", "127.0.0.1")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    directory.mkdir(parents=True)
    shutil.copy2(binary, directory / "versitygw")
    (directory / "Dockerfile").write_text(DOCKERFILE)
    with DockerImage(directory, tag="sitelink-test-s3:latest", clean_up=False) as image:
        container = (
            DockerContainer(str(image))
            .with_env("ROOT_ACCESS_KEY", key)
            .with_env("ROOT_SECRET_KEY", secret)
            .with_command([*options(f":{PORT}"), "posix", "/data"])
        )
        container.ports[f"{PORT}/tcp"] = ("127.0.0.1",)  # type: ignore[assignment] # a free port of this address only: docker-py's own form
        with container:
            endpoint = f"http://127.0.0.1:{container.get_exposed_port(PORT)}"

            def is_running() -> bool:
                wrapped = container.get_wrapped_container()
                wrapped.reload()
                return bool(wrapped.status == "running")

            wait_until_healthy(endpoint, is_running, lambda: b"\n".join(container.get_logs()).decode("utf-8", "replace"))
            yield endpoint
