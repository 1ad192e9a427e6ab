"""The image's recipe: for both kinds of machine, from files under version control, with nothing of the machine that builds it."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PYTHON, GLIBC = (3, 11), 36
"""Of Debian bookworm: https://packages.debian.org/bookworm/python3 and https://packages.debian.org/bookworm/libc6 (2.36)."""
MACHINES = ("x86_64", "aarch64")

Package = dict[str, Any]
LOCK: list[Package] = tomllib.loads((ROOT / "uv.lock").read_text())["package"]


def of_the_image(machine: str) -> list[Package]:
    """The locked packages that the image has, with all extras of SiteLink and without its groups."""
    environment = {"python_full_version": "3.11.2", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    found: dict[tuple[str, str], Package] = {}
    (sitelink,) = (package for package in LOCK if package["name"] == "sitelink")
    waiting = [(sitelink, tuple(sitelink["optional-dependencies"]))]
    while waiting:
        package, extras = waiting.pop()
        for wanted in (*package.get("dependencies", ()), *(each for extra in extras for each in package["optional-dependencies"][extra])):
            if "marker" in wanted and not Marker(wanted["marker"]).evaluate(environment):
                continue
            (next_package,) = (
                each for each in LOCK if each["name"] == wanted["name"] and wanted.get("version", each["version"]) == each["version"]
            )
            key = (wanted["name"], str(wanted.get("extra")))
            if key not in found:
                found[key] = next_package
                waiting.append((next_package, tuple(wanted.get("extra", ()))))
    return list({package["name"]: package for package in found.values()}.values())


def tags_of(machine: str) -> Iterator[Tag]:
    """The tags of wheels that run on Debian bookworm."""
    platforms = [*(f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)), f"manylinux2014_{machine}", f"linux_{machine}"]
    yield from cpython_tags(PYTHON, platforms=platforms)
    yield from compatible_tags(PYTHON, interpreter="cp311", platforms=platforms)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_locked_package_has_a_wheel_for_the_image(machine: str) -> None:
    """No package is compiled when the image is built, on either kind of machine. Of pyvips there is no wheel: it is Python only."""
    packages, tags = of_the_image(machine), set(tags_of(machine))
    assert {"temporalio", "pypdfium2", "pyvips-binary", "redis", "cryptography", "typing-extensions"} <= {each["name"] for each in packages}
    without = [
        package["name"]
        for package in packages
        if not any(tags & parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] for wheel in package.get("wheels", ()))
    ]
    assert without == ["pyvips"]


def test_no_line_is_for_one_kind_of_machine() -> None:
    """The same recipe makes the image for amd64 and arm64."""
    assert not re.findall(r"(?i)amd64|x86|arm64|aarch64|--platform|TARGETARCH", DOCKERFILE)


def test_the_recipe_names_no_server_and_no_secret() -> None:
    """Debian's packages and Python's come from where the base image and uv.lock say. What a builder passes ends up in labels only."""
    code = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    assert not re.findall(r"https?://|(?i:secret|token|password|proxy|index|find-links|certif\w*\.crt|/root|/work)", code)
    assert re.findall(r"^ARG (\w+)", code, re.MULTILINE) == ["DEBIAN", "UV_VERSION", "VERSION", "REVISION", "CREATED"]


def test_only_listed_files_reach_the_builder() -> None:
    """A secret or data that lies in the checkout gets into no layer: the list of files begins with none."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        *("LICENSE", "README.md", "pyproject.toml", "uv.lock", "activities", "api", "deploy", "worker", "workflows")
    }


def test_the_image_has_the_version_of_the_package() -> None:
    """A build without arguments has the right label."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nARG VERSION={version}\n" in DOCKERFILE
