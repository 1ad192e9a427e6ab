"""The dashboard, the rules and the runbook of ``deploy``, read for the tests; and Debian's programs of Prometheus."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "sitelink.json"
PROMETHEUS, ALERTS = DEPLOY / "prometheus" / "prometheus.yaml", DEPLOY / "prometheus" / "alerts.yaml"
RUNBOOK = DEPLOY / "RUNBOOK.md"


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``. Without one a test fails on CI; elsewhere it is skipped, with the reason."""
    if found := shutil.which(name):
        return found
    reason = f"No {name} here; on Debian: apt-get install --no-install-recommends prometheus."
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def panels(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each panel that asks something, with the title of its row."""
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel


def rules() -> list[dict[str, Any]]:
    """The rules of all groups."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def runbook_commands() -> list[str]:
    """The commands in the runbook's blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    return [command for block in blocks for line in block.splitlines() if (command := re.sub(r"\s{2,}#.*|^#.*", "", line).strip())]
