"""``deploy/compose.yaml`` keeps the rules that a run on one machine does not show."""

import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from activities.environment import SECRETS, unknown_settings
from deploy.check.settings import READERS
from deploy.temporal import DYNAMIC_CONFIG
from tests.servers.compose import FILE, document
from worker.app import LONGEST_STOP
from workflows.messages import SEARCH_ATTRIBUTES

DEPLOY = FILE.parent
SERVICES: dict[str, dict[str, Any]] = document()["services"]
SITELINK = {name: service for name, service in SERVICES.items() if service["image"].startswith("sitelink:")}
ONCE = {"bucket", "temporal-schema", "temporal-namespace"}
"""Services that do something at the start and end."""


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits(name: str) -> None:
    """Of memory; and one that goes on is started again, with a limit on its processes."""
    service = SERVICES[name]
    assert service["mem_limit"]
    if name in ONCE:
        assert service.get("restart", "no") == "no"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["pids_limit"]


def test_every_service_that_goes_on_has_a_health_check() -> None:
    """That of ``ui`` asks ``temporal-ui``, too."""
    without = {name for name, service in SERVICES.items() if not service.get("healthcheck", {}).get("test")}
    assert without - ONCE == {"temporal-ui"}


@pytest.mark.parametrize("name", SITELINK)
def test_sitelink_runs_with_few_rights(name: str) -> None:
    """Read-only, without capabilities, with settings that exist, and with exactly the secrets that these name."""
    service = SITELINK[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    environ = {key: str(value) for key, value in service["environment"].items()}
    assert unknown_settings(environ) == []
    files = {key: value for key, value in environ.items() if key.endswith("_FILE")}
    assert {key.removesuffix("_FILE") for key in files} <= SECRETS
    assert {f"/run/secrets/{secret}" for secret in service["secrets"]} == set(files.values())
    assert not SECRETS & environ.keys()


@pytest.mark.parametrize("name", ["api-1", "api-2", "workflow", "tile"])
def test_a_process_accepts_its_settings(name: str, tmp_path: Path) -> None:
    """Also where the operator has set none: each reads its environment as in its container, with the defaults of the file."""
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    environ = {key: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)) for key, value in SITELINK[name]["environment"].items()}
    assert not [value for value in environ.values() if "$" in value]
    READERS[name[:3] if name.startswith("api") else f"worker {name}"](
        {key: str(tmp_path / "secret") if key.endswith("_FILE") else value for key, value in environ.items()}
    )


def test_a_worker_may_drain() -> None:
    """Compose waits longer than a worker takes: the tile worker finishes its pages, then uploads its tiles."""

    def grace(service: str) -> timedelta:
        return timedelta(seconds=int(SERVICES[service]["stop_grace_period"].removesuffix("s")))

    assert grace("workflow") > LONGEST_STOP["workflow"]
    assert grace("tile") > LONGEST_STOP["tile"]


def test_temporal_is_tuned_as_the_embedded_one() -> None:
    """The server's dynamic configuration has the same values."""
    found = yaml.safe_load((DEPLOY / "compose" / "dynamicconfig.yaml").read_text())
    assert found == {name: [{"value": yaml.safe_load(text)}] for name, text in DYNAMIC_CONFIG.items()}


def test_the_namespace_knows_the_search_attributes() -> None:
    """Each one that an upload's run has is made."""
    (script,) = SERVICES["temporal-namespace"]["command"]
    (names,) = re.findall(r"for name in (.*); do", script)
    assert {f"SiteLink{name}" for name in shlex.split(names)} == set(SEARCH_ATTRIBUTES)


def test_nginx_runs_with_its_own_configuration() -> None:
    """What the command replaces is in ``sitelink.conf``, once."""
    text = (DEPLOY / "nginx" / "sitelink.conf").read_text()
    replaced = re.findall(r'-e "s\|(.*?)\|', SERVICES["nginx"]["command"][2])
    assert len(replaced) == 3
    assert [text.count(line) for line in replaced] == [1, 1, 1]


def test_the_readme_names_what_is_there() -> None:
    """Its commands make every secret of the file, and name its services; each variable that may be set is told."""
    found, section = document(), (DEPLOY / "README.md").read_text().split("## One machine, for others: Compose\n")[1].split("\n## ")[0]
    (names,) = re.findall(r"^for name in (.*?);", section, re.MULTILINE)
    assert set(names.split()) == found["secrets"].keys()
    services = [name for names in re.findall(r"^for service in (.*?);", section, re.MULTILINE) for name in names.split()]
    services += re.findall(r"^docker compose exec -T (\S+)", section, re.MULTILINE)
    services += re.findall(r"^docker compose up .* ([a-z][\w-]*)$", section, re.MULTILINE)
    assert services
    assert set(services) <= SERVICES.keys()
    # Docker Compose v2 knows no service but those that a command names, so it can scale no other.
    for line in re.findall(r"docker compose up [^`;\n]*", section):
        named, scaled = shlex.split(line)[3:], re.findall(r"--scale (\w+)=", line)
        assert not ("$service" in named or SERVICES.keys() & set(named)) or set(scaled) <= set(named), line
    variables = set(re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text()))
    assert {name for name in variables if f"`{name}`" not in section and f"`{name}=" not in section} == set()


def test_prometheus_asks_every_process() -> None:
    """The names in its configuration are those of the services that run SiteLink's processes."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "compose.yaml").read_text())["scrape_configs"]
    (lookup,) = job["dns_sd_configs"]
    processes = {name for name, service in SITELINK.items() if service["command"][0] in ("api", "worker")}
    assert set(lookup["names"]) == processes
    assert {SITELINK[name]["environment"]["SITELINK_METRICS_PORT"] for name in processes} == {lookup["port"]}


def test_secrets_stay_on_the_machine() -> None:
    """Neither Git nor the build of the image takes the directory of the secrets, or the settings."""
    root = Path(DEPLOY).parent
    for file in (".gitignore", ".dockerignore"):
        lines = (root / file).read_text().splitlines()
        assert {"deploy/secrets", "deploy/.env"} <= {line.strip("/") for line in lines}
