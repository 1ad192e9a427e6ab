"""The embedded stack gives each process only the secrets that it needs."""

import pytest

from deploy.stack import SECRETS, secrets_for


@pytest.mark.parametrize("process", ["api", "worker-workflow", "worker-tile", "r2-events", "temporal-ui", "sitelink"])
def test_process_gets_only_its_secrets(process: str) -> None:
    """Neither the others nor the names of their files; everything else stays."""
    environ = dict.fromkeys(SECRETS, "secret") | {f"{name}_FILE": "/secret" for name in SECRETS} | {"SITELINK_ACCESS": "jwt"}
    left = set(secrets_for(process, environ))
    mine = {name for name, processes in SECRETS.items() if process in processes}
    assert left == mine | {f"{name}_FILE" for name in mine} | {"SITELINK_ACCESS"}
