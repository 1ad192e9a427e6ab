"""Where the program of the Temporal server comes from."""

from pathlib import Path

import pytest

from deploy.temporal import NoTemporal, temporal_binary

NEW, OLD = "temporal version 1.5.1 (Server 1.29.1, UI 2.42.1)", "temporal version 1.1.0 (Server 1.24.2, UI 2.30.3)"


def program(path: Path, *lines: str) -> Path:
    """Writes a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on the PATH but ``path/``, an empty home, and no network for the SDK's download."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return tmp_path


def test_path_comes_before_the_cache(bare: Path) -> None:
    """What the machine has is used, and nothing is said about it."""
    on_path = program(bare / "path" / "temporal", f"echo '{NEW}'")
    program(bare / "cache" / "temporal", f"echo '{NEW}'")
    said: list[str] = []
    assert temporal_binary(bare / "cache", say=said.append) == on_path
    assert said == []


def test_old_program_is_passed_over(bare: Path) -> None:
    """A server without fairness is not used; the sentence gives both versions."""
    old = program(bare / "path" / "temporal", f"echo '{OLD}'")
    cached = program(bare / "cache" / "temporal", f"echo '{NEW}'")
    said: list[str] = []
    assert temporal_binary(bare / "cache", say=said.append) == cached
    assert said == [f"{old} is Temporal server 1.24.2, which is too old: SiteLink needs 1.29.0 or newer. Looking for another one."]


def test_program_that_go_installed_is_found(bare: Path) -> None:
    """Go installs to a directory that is often not on the PATH."""
    program(bare / "path" / "go", f"echo; echo {bare}/gopath")
    installed = program(bare / "gopath" / "bin" / "temporal", f"echo '{NEW}'")
    assert temporal_binary(bare / "cache", say=lambda _: None) == installed


def test_go_builds_it_when_the_download_fails(bare: Path) -> None:
    """Without a server and without its download, Go builds the pinned version, and that is said."""
    template = program(bare / "template", f"echo '{NEW}'")
    built = bare / "home" / "go" / "bin" / "temporal"
    program(
        bare / "path" / "go",
        f"[ $1 = env ] && echo && echo {bare}/home/go && exit",
        '[ "$*" = "install github.com/temporalio/cli/cmd/temporal@v1.5.1" ] || exit 1',
        f"/bin/mkdir -p {built.parent} && /bin/cp {template} {built}",
    )
    said: list[str] = []
    assert temporal_binary(bare / "cache", say=said.append) == built
    assert [sentence.split(":")[0] for sentence in said] == [
        "downloading a Temporal server",
        "the download did not work",
        "building the Temporal server",
    ]


def test_failed_build_says_why_and_what_to_do(bare: Path) -> None:
    """The end of the build's output and a next step."""
    program(bare / "path" / "go", "[ $1 = env ] && exit", "echo no space left on device", "exit 1")
    with pytest.raises(NoTemporal, match=r"(?s)failed:\nno space left on device\nInstall the Temporal CLI"):
        temporal_binary(bare / "cache", say=lambda _: None)


def test_nothing_works_says_what_to_do(bare: Path) -> None:
    """Without a download and without Go there is a clear sentence and a next step."""
    with pytest.raises(NoTemporal, match=r"No Temporal server here.* Install the Temporal CLI"):
        temporal_binary(bare / "cache", say=lambda _: None)
