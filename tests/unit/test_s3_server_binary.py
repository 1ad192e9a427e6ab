"""Where the program of the S3 server comes from, and whether it can run in a container."""

import gc
from pathlib import Path

import pytest

from tests.servers.s3 import docker_answers
from tests.servers.versitygw import MODULE, NoS3Server, s3_server_binary


def program(path: Path, *lines: str) -> Path:
    """Writes a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on the PATH but ``path/``, and an empty home."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_path_comes_before_the_cache(bare: Path) -> None:
    """What the machine has is used; a program that does not run is passed over."""
    on_path = program(bare / "path" / "versitygw", "exit 0")
    cached = program(bare / "cache" / "versitygw", "exit 0")
    assert s3_server_binary(bare / "cache", say=lambda _: None) == on_path
    program(on_path, "exit 1")
    assert s3_server_binary(bare / "cache", say=lambda _: None) == cached


def test_go_builds_it_as_one_static_file(bare: Path) -> None:
    """The pinned version, without C, to where Go installs; that is said, for it takes minutes."""
    template = program(bare / "template", "exit 0")
    built = bare / "home" / "go" / "bin" / "versitygw"
    program(
        bare / "path" / "go",
        f"[ $1 = env ] && echo && echo {bare}/home/go && exit",
        f'[ "$* $CGO_ENABLED" = "install {MODULE} 0" ] || exit 1',
        f"/bin/mkdir -p {built.parent} && /bin/cp {template} {built}",
    )
    said: list[str] = []
    assert s3_server_binary(bare / "cache", say=said.append) == built
    assert [sentence.split(":")[0] for sentence in said] == ["building the S3 server"]


def test_what_cannot_be_had_says_what_to_do(bare: Path) -> None:
    """Without Go, and when its build fails, with the end of its output."""
    with pytest.raises(NoS3Server, match=r"No S3 server here.* Install Go"):
        s3_server_binary(bare / "cache", say=lambda _: None)
    program(bare / "path" / "go", "[ $1 = env ] && exit", "echo no space left on device", "exit 1")
    with pytest.raises(NoS3Server, match=r"(?s)failed:\nno space left on device\nInstall Go"):
        s3_server_binary(bare / "cache", say=lambda _: None)


def test_missing_docker_engine_leaves_nothing_open() -> None:
    """Where no engine listens, asking for one leaves no socket that a later test would be blamed for."""
    assert not docker_answers({"DOCKER_HOST": "unix:///nowhere/docker.sock"})
    gc.collect()  # a socket that is left open warns now, and warnings are errors
