"""The dashboard can be imported by any Grafana, each alert fires when it should and only then, and the runbook explains each."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.monitoring import ALERTS, DASHBOARD, DEPLOY, PROMETHEUS, RUNBOOK, panels, program, rules

CASES = Path(__file__).parents[1] / "resources" / "alerts_test.yaml"


def promtool(*words: object) -> None:
    """Runs ``promtool``, which must find nothing wrong."""
    done = subprocess.run([program("promtool"), *map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> Iterator[str]:
    """Every query of the dashboard and of the alerts."""
    for _, panel in panels(json.loads(DASHBOARD.read_text())):
        yield from (target["expr"] for target in panel["targets"])
    yield from (rule["expr"] for rule in rules())


# The dashboard


def test_dashboard_belongs_to_no_grafana() -> None:
    """Everything asks the data source that its variable names; the dashboard has no id of the Grafana that it came from."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["id"] is dashboard["uid"] is None
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["job"]["datasource"] == wanted
    for _, panel in panels(dashboard):
        assert all(part["datasource"] == wanted for part in (panel, *panel["targets"]))
    assert set(re.findall(r"\$([a-z]\w*)", " ".join(expressions()))) <= variables.keys()


def test_panels_are_whole() -> None:
    """Each has an id and a title of its own in its row, a unit, and a place that no other has."""
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(titles) == len(set(titles))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for _, panel in panels(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) > 0
        assert all(target["legendFormat"] for target in panel["targets"]) or panel["type"] == "stat"


def test_dashboard_speaks_of_alerts_that_exist() -> None:
    """A panel's description names the alert that watches it, and each alert has its panel."""
    told = set(re.findall(r"SiteLink[A-Z]\w+", DASHBOARD.read_text()))
    assert told == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("expression", list(dict.fromkeys(expressions())))
def test_query_fits_the_kind_of_its_metrics(expression: str) -> None:
    """Counters and the parts of histograms are asked for their rise; quantiles are taken of rates, by ``le``."""
    parts = re.findall(r"(\w+)?\(*(\w+_(?:total|bucket|count|sum))\b((?:{[^}]*})?\s*\S*)", expression)
    for function, name, after in parts:
        asked = re.sub(r"{[^}]*}\s*", "", after)
        assert asked.startswith(("[", "unless")), name
        assert function in ("rate", "increase", "max_over_time") or asked.startswith("unless"), name
        assert (
            not name.endswith("_bucket")
            or 'le="' in after
            or re.search(rf"histogram_quantile\(0\.\d+, sum by \(le\b[^)]*\) \(.*{name}", expression)
        )
    assert ("histogram_quantile" in expression) <= any(function == "rate" and name.endswith("_bucket") for function, name, _ in parts)


def test_queries_of_the_dashboard_ask_for_its_job() -> None:
    """Another program's metrics with the same names, such as those of Temporal's library, are not shown."""
    for _, panel in panels(json.loads(DASHBOARD.read_text())):
        for target in panel["targets"]:
            names = re.findall(r"\b(?:[a-z]+_[a-z0-9_]+|up)\b(?=[{\[])", target["expr"])
            assert names
            assert target["expr"].count('{job="$job"') == len(names), target["expr"]


# The alerts


def test_prometheus_accepts_the_rules() -> None:
    """As ``promtool`` checks them."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


@pytest.mark.parametrize("name", ["prometheus.yaml", "compose.yaml", "kubernetes.yaml"])
def test_prometheus_accepts_the_configuration(name: str, tmp_path: Path) -> None:
    """It loads the rules, and has the job that they and the dashboard know."""
    config = yaml.safe_load((PROMETHEUS.parent / name).read_text())
    assert config["rule_files"] == [ALERTS.name]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "sitelink"
    if pods := job.pop("kubernetes_sd_configs", None):  # Debian's Prometheus does not know Kubernetes
        assert pods == [{"role": "pod", "namespaces": {"names": ["sitelink"]}}]
    (tmp_path / ALERTS.name).write_text(ALERTS.read_text())
    (tmp_path / name).write_text(yaml.safe_dump(config))
    promtool("check", "config", tmp_path / name)


def test_prometheus_finds_the_pods_of_the_manifests() -> None:
    """The label and the name of the port are those of each deployment."""
    (job,) = yaml.safe_load((PROMETHEUS.parent / "kubernetes.yaml").read_text())["scrape_configs"]
    label, port = job["relabel_configs"][0]["regex"].split(";")
    for path in (DEPLOY / "kubernetes" / "base").glob("*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["kind"] in ("Deployment", "StatefulSet"):
                template = manifest["spec"]["template"]
                assert template["metadata"]["labels"]["app.kubernetes.io/name"] == label
                assert port in {found["name"] for container in template["spec"]["containers"] for found in container["ports"]}


def test_alerts_fire_when_they_should() -> None:
    """``promtool`` runs the rules over the series of the cases."""
    promtool("test", "rules", CASES)


def test_every_alert_has_cases() -> None:
    """One in which it fires, and one in which it never does."""
    cases = yaml.safe_load(CASES.read_text())["tests"]
    for rule in rules():
        asked = [[one["exp_alerts"] for one in case["alert_rule_test"] if one["alertname"] == rule["alert"]] for case in cases]
        assert any(any(found) for found in asked), rule["alert"]
        assert any(found and not any(found) for found in asked), rule["alert"]


# The runbook


def test_every_alert_leads_to_its_page_of_the_runbook() -> None:
    """Its annotation is the address of a section that says what one sees, where to look, and what to do; no section is left over."""
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in sections] == list(dict.fromkeys(name for name, _ in sections))
    assert {name for name, _ in sections} == {rule["alert"] for rule in rules()}
    for rule in rules():
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert DEPLOY.parent / path == RUNBOOK
        assert anchor == rule["alert"].lower()
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")
    for _, text in sections:
        parts = [text.find(part) for part in ("**Symptom.**", "**Look.**", "```sh", "**Do.**")]
        assert -1 not in parts
        assert parts == sorted(parts)
