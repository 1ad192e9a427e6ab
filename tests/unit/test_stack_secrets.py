"""The embedded stack gives each process only the secrets that it needs."""

import re
from pathlib import Path

import pytest

from deploy.stack import SECRETS, secrets_for


@pytest.mark.parametrize("process", ["api", "worker-workflow", "worker-tile", "r2-events"])
def test_process_gets_only_its_secrets(process: str) -> None:
    """Neither the others nor the names of their files; everything else stays."""
    environ = dict.fromkeys(SECRETS, "secret") | {f"{name}_FILE": "/secret" for name in SECRETS} | {"SITELINK_ACCESS": "jwt"}
    left = set(secrets_for(process, environ))
    mine = {name for name, processes in SECRETS.items() if process in processes}
    assert left == mine | {f"{name}_FILE" for name in mine} | {"SITELINK_ACCESS"}


def test_every_secret_that_a_process_reads_is_known_to_the_stack() -> None:
    """Whatever may come from a file is a secret, and so is the store of the limits, whose address may hold a password."""
    packages = (Path(__file__).parents[2] / name for name in ("activities", "api", "worker"))
    sources = "".join(path.read_text() for package in packages for path in package.rglob("*.py"))
    read = set(re.findall(r'secret\(environ, "([A-Z0-9_]+)"\)', sources)) | {"SITELINK_LIMITS_STORAGE"}
    assert len(read) > 4
    assert read <= SECRETS.keys()
