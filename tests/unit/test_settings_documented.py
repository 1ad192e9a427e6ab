"""``deploy/env.example`` and the table in ``deploy/README.md`` have every setting."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.environment import PREFIX, SECRETS, SETTINGS
from deploy.stack import SECRETS as SECRETS_OF_PROCESSES

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "env.example"
README = ROOT / "deploy" / "README.md"
PACKAGES = ("api", "worker", "activities", "workflows", "deploy")
SETTING = re.compile(r"(SITELINK|TEMPORAL|AWS|OTEL)_[A-Z0-9_]+")
OF_THE_SYSTEM = {"HOME", "TERM", "XDG_STATE_HOME"}
"""Variables of the system, which we read and do not document."""
READERS = ("get", "getenv", "pop", "setdefault")


def settings_in(source: str) -> Iterator[str]:
    """The names of settings in a module, and all names that it reads from a mapping called ``environ``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)) if SETTING.fullmatch(text):
                yield text
            case ast.Subscript(value=value, slice=ast.Constant(value=str(text))) if _is_environment(value):
                yield text
            case ast.Call(func=ast.Attribute(value=value, attr=attribute), args=[ast.Constant(value=str(text)), *_]):
                if attribute in READERS and (_is_environment(value) or attribute == "getenv"):
                    yield text


def _is_environment(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_") == "environ"


def documented_settings() -> set[str]:
    """The names of the settings in the example."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE.read_text(), flags=re.MULTILINE))


def settings_in_code() -> set[str]:
    """The names of the settings in the code of all packages."""
    return {name for path in modules() for name in settings_in(path.read_text())}


def modules() -> Iterator[Path]:
    """The files of all packages."""
    return (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_every_setting_read_is_documented() -> None:
    """No process reads a setting that the example does not explain."""
    assert settings_in_code() - documented_settings() - OF_THE_SYSTEM == set()


def test_every_documented_setting_is_read() -> None:
    """The example has no setting that no code reads."""
    assert documented_settings() - settings_in_code() == set()


def test_example_has_every_setting_once() -> None:
    """A person who copies the example changes each setting in one place."""
    names = re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert sorted(names) == sorted(documented_settings())


def test_readme_has_every_setting_once() -> None:
    """The first column of the README's table and the example name the same settings."""
    rows = re.findall(r"^\| (`[A-Z][^|]*)\|", README.read_text(), flags=re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row)) == sorted(documented_settings())


def test_every_documented_setting_is_known() -> None:
    """A process takes no documented setting for a typo, and no setting that is not there for one."""
    assert {name for name in documented_settings() if name.startswith(PREFIX)} == SETTINGS


def test_every_secret_may_be_in_a_file() -> None:
    """What is read as a secret, and what only some processes get, is a known secret; and the README's sentence is true of each."""
    calls = {name for path in modules() for name in secrets_in(path.read_text())}
    assert set(SECRETS_OF_PROCESSES) | {"TEMPORAL_API_KEY"} == SECRETS
    # The events' token is read from a list of names.
    assert calls | {"SITELINK_EVENTS_TOKEN"} == SECRETS


def secrets_in(source: str) -> Iterator[str]:
    """The names that a module reads by ``secret``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="secret"), args=[_, ast.Constant(value=str(name))]):
                yield name


@pytest.mark.parametrize(
    "source",
    ["environ.get('X')", "os.environ['X']", "os.getenv('X', '1')", "self._environ.get('X') or 'y'", "os.environ.setdefault('X', '')"],
)
def test_every_way_of_reading_is_seen(source: str) -> None:
    """The check finds a variable however it is read."""
    assert set(settings_in(source)) == {"X"}
