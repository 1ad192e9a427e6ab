"""A real Prometheus with the rules and the configuration of ``deploy/prometheus`` asks a real stack over a real S3 server."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest
import yaml

from activities.bucket.keys import UploadRef
from activities.bucket.storage import Bucket
from deploy.process import Process, free_port
from deploy.stack import Stack
from tests.chaos.guarantees import accepted, address
from tests.integration.test_metrics import ROOT
from tests.monitoring import ALERTS, DASHBOARD, PROMETHEUS, panels, program, rules, runbook_commands
from tests.resources.make_pdfs import bad_pages_among_good, plan_set
from tests.servers.faults import Rule, answers, faulty, held_until
from tests.servers.queue import push_events
from tests.servers.recorder import Answer, recording
from tests.servers.s3 import TestServer
from tests.waiting import ASK_S, DEADLINE_S, until

pytestmark = pytest.mark.usefixtures("temporal_binary")

WINDOW = "1h"
"""The window of the dashboard's rates: longer than the fixture and the tests take on any machine."""

SECRET = "e" * 32

QUIET = frozenset({"Updates that fail"})
"""Panels whose value is rightly zero all the time here: no upload of a tiled sheet fails for good."""


@dataclass(frozen=True)
class Monitored:
    """A stack in which something happens, and the Prometheus that asks it.

    Args:
        stack: The stack.
        url: The address of Prometheus.
        ended: An upload that has ended, with failed sheets.
    """

    stack: Stack
    url: str
    ended: UploadRef

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        answer = httpx2.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=60, trust_env=False)
        assert answer.status_code == 200, (expression, answer.text)
        return list(answer.json()["data"]["result"])

    def value(self, expression: str) -> float:
        """The sum of the values of all series."""
        return sum(float(series["value"][1]) for series in self.ask(expression))

    def until(self, expression: str) -> None:
        """Waits until the query answers something that is not zero."""
        until(lambda: self.value(expression), ASK_S)


def configuration(stack: Stack, directory: Path) -> Path:
    """The configuration of ``deploy/prometheus``, with the addresses of this stack, and faster."""
    config = yaml.safe_load(PROMETHEUS.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ALERTS)]
    (job,) = config["scrape_configs"]
    (targets,) = job["static_configs"]
    targets["targets"] = [url.removeprefix("http://").removesuffix("/metrics") for url in stack.metrics_urls.values()]
    path = directory / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def watching(url: str) -> Iterator[Iterator[str]]:
    """The lines of an event stream that is open."""
    with httpx2.stream("GET", f"{url}/events", timeout=DEADLINE_S, trust_env=False) as events:
        yield events.iter_lines()


@pytest.fixture(scope="module")
def monitored(
    new_stack_of_module: Callable[..., Stack], s3_server: TestServer, temporal_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Monitored]:
    """Two uploads have ended, with bad pages, webhooks, events, a faulty bucket, a lost sheet and a lost Temporal; a third is held."""
    prometheus = program("prometheus")
    with recording() as receiver, faulty(s3_server.endpoint) as faults:
        first = iter([Answer(410)])
        receiver.answer = lambda _: next(first, Answer(204))
        settings = replace(s3_server.new_bucket(), endpoint=faults.url)
        senders = {"SITELINK_WEBHOOK_SECRET": "w" * 32, "SITELINK_WEBHOOK_NETWORKS": "127.0.0.1/32", "SITELINK_EVENTS_SECRET": SECRET}
        stack = new_stack_of_module(SITELINK_METRICS_PORT="0", **senders, **s3_server.environment(settings))
        directory = tmp_path_factory.mktemp("prometheus")
        config, port = configuration(stack, directory), free_port()
        options = [f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        server = Process([prometheus, *options], log=directory / "prometheus.log", environ={"PATH": os.environ["PATH"]})
        server.start()
        try:
            until(lambda: server.is_running and answers_at(f"http://127.0.0.1:{port}/-/ready"), ASK_S)
            seen = Monitored(stack, f"http://127.0.0.1:{port}", UploadRef("o", "p", "p", "u"))
            seen.until(f"sum(up) == {len(stack.metrics_urls)}")
            spoil_a_run(stack, temporal_binary)
            for number in (1, 2):
                faults.lay(
                    Rule(answers(503, "SlowDown"), "PUT", "_files/", every=3, times=4),
                    Rule(answers(403, "AccessDenied"), "PUT", "sheet-1/sheet.json", times=2),
                )
                ref = accept_with_webhook(stack, f"{receiver.url}/hook")
                with watching(address(stack, ref)) as lines:
                    assert "event: end" in lines
                Bucket(settings).delete([ref.descriptor(1)])
                httpx2.post(f"{address(stack, ref)}/reconcile", timeout=60).raise_for_status()
                until(lambda ref=ref: httpx2.get(address(stack, ref), timeout=60).json()["reconciled"], ASK_S)  # type: ignore[misc]
                assert push_events(stack.api_url, SECRET, [ref.descriptor(1)]).status_code == 200
                seen.until(f"sum(sitelink_webhooks_total) >= {2 * number}")
                seen.until(f"sum(progress_reconciliation_discrepancy_total) >= {number} and sum(sheets_pending) == 0")
                lose_temporal(stack, ref)
                seen.until(f"sum(temporal_request_failure_total{{status_code='TRANSPORT_ERROR'}}) >= {number}")
            hold = Event()
            faults.lay(Rule(held_until(hold), "PUT", "_files/"))
            held = accepted(stack, plan_set(3))
            with watching(address(stack, held)):
                seen.until("sum(sse_connected) * sum(sheets_pending) * sum(sitelink_bucket_in_flight) * sum(sitelink_scratch_bytes)")
                try:
                    yield replace(seen, ended=ref)
                finally:
                    hold.set()
        finally:
            server.kill()


def answers_at(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def accept_with_webhook(stack: Stack, url: str) -> UploadRef:
    """Sends a document with bad pages, and asks for webhooks about it."""
    headers = {"Content-Type": "application/pdf", "SiteLink-Webhook": url}
    plan = f"{stack.api_url}/v1/organizations/acme/projects/tower/plans/a1/uploads"
    answer = httpx2.post(plan, content=bad_pages_among_good(), headers=headers, timeout=DEADLINE_S)
    return UploadRef.parse(answer.raise_for_status().json()["ref"])


def lose_temporal(stack: Stack, ref: UploadRef) -> None:
    """Kills the Temporal server, asks the API for something that needs it, and starts the server again."""
    stack.kill("temporal")
    answer = httpx2.post(f"{address(stack, ref)}/reconcile", timeout=DEADLINE_S)
    assert answer.status_code == 503, answer.text
    stack.start_process("temporal")


def spoil_a_run(stack: Stack, temporal: Path) -> None:
    """Starts a run whose every step fails, as those of a release that cannot replay its histories."""
    words = [
        "workflow",
        "start",
        "--type",
        "ProcessUpload",
        "--task-queue",
        "sitelink",
        "--workflow-id",
        "spoiled",
        "--input",
        '{"ref":""}',
    ]
    subprocess.run([temporal, *words, "--address", stack.temporal_address], check=True, capture_output=True, timeout=DEADLINE_S)


def expanded(expression: str) -> str:
    """The query as Grafana sends it."""
    return expression.replace("$__rate_interval", WINDOW).replace("$job", "sitelink")


def test_every_query_of_the_dashboard_answers(monitored: Monitored) -> None:
    """With a number and with the labels of its legend; each panel, but those that are rightly quiet, shows something that is not zero."""
    table, wrong = [], []
    for row, panel in panels(json.loads(DASHBOARD.read_text())):
        is_alive = False
        for target in panel["targets"]:
            series = monitored.ask(expanded(target["expr"]))
            numbers = [(found["metric"], float(found["value"][1])) for found in series]
            finite = [(labels, number) for labels, number in numbers if isfinite(number)]
            is_alive = is_alive or any(number for _, number in finite)
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            if not finite or any(not legend <= labels.keys() for labels, _ in numbers):
                wrong.append((panel["title"], target["expr"], series))
            for labels, number in finite[:4]:
                name = re.sub(r"{{(\w+)}}", lambda found, labels=labels: labels.get(found[1], "?"), target["legendFormat"])  # type: ignore[misc]
                table.append(f"{row:32} | {panel['title']:44} | {name:52} | {number:.6g}")
        if is_alive == (panel["title"] in QUIET):
            wrong.append((panel["title"], "is not as quiet as it should be", []))
    sys.stdout.write("\n".join(["", *table, ""]))
    assert not wrong
    assert len(table) > 48


def test_every_series_of_an_alert_exists(monitored: Monitored) -> None:
    """Prometheus evaluates every rule without an error. A name or a label that the processes do not have would never fire."""
    until(lambda: all(rule["health"] == "ok" for rule in loaded_rules(monitored)), ASK_S)
    assert {rule["name"] for rule in loaded_rules(monitored)} == {rule["alert"] for rule in rules()}
    expressions = [re.sub(r"\bby \([^)]*\)", "", rule["expr"]) for rule in rules()]
    selectors = {found for text in expressions for found in re.findall(r"\b(?:[a-z]+_[a-z0-9_]+|up)(?:{[^}]*})?(?=[\[ )]|$)", text)}
    assert len(selectors) > 20
    assert [selector for selector in sorted(selectors) if not monitored.ask(selector)] == []


def loaded_rules(monitored: Monitored) -> list[dict[str, Any]]:
    """The rules in Prometheus."""
    answer = httpx2.get(f"{monitored.url}/api/v1/rules", timeout=60, trust_env=False).json()
    return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


def test_every_command_of_the_runbook_works(monitored: Monitored, temporal_binary: Path) -> None:
    """Each is run as it stands there, with this stack's addresses, and succeeds: ``sitelink`` exits with 1 if sheets have failed."""
    stack, python = monitored.stack, Path(sys.executable)
    directories = {str(temporal_binary.parent), str(Path(program("promtool")).parent)}
    environ = {
        "PATH": os.pathsep.join([*directories, os.environ["PATH"]]),
        "HOME": os.environ.get("HOME", "/"),
        **stack_environment(stack),
    }
    failed = []
    for command in dict.fromkeys(runbook_commands()):
        words = shlex.split(
            command.replace("REF", str(monitored.ended))
            .replace("http://127.0.0.1:9090", monitored.url)
            .replace("http://127.0.0.1:8000", stack.api_url)
            .replace("var/", f"{stack.data_dir}/")
        )
        if words[:2] == ["uv", "run"]:
            words = [str(python.parent / words[2]), *words[3:]]
        done = subprocess.run(words, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        sys.stdout.write(f"\n$ {command}\n{done.stdout[:1500]}{done.stderr[:500]}")
        if done.returncode not in ((0, 1) if "sitelink" in command.split()[:3] else (0,)) or not done.stdout.strip():
            failed.append((command, done.returncode, done.stdout, done.stderr))
    assert not failed


def stack_environment(stack: Stack) -> Mapping[str, str]:
    """What a person on the machine of the stack has set."""
    environ = {name: value for name, value in stack.processes["worker-tile"]._environ.items() if name.startswith(("SITELINK_", "AWS_"))}
    return {**environ, "SITELINK_URL": stack.api_url, "TEMPORAL_ADDRESS": stack.temporal_address}
