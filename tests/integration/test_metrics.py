"""Metrics of the whole stack: an upload runs, and every process is asked as Prometheus asks."""

import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from activities.bucket.keys import UploadRef
from api.paths import UPLOADS
from deploy.stack import Stack
from tests.resources.make_pdfs import plan_set
from tests.servers.recorder import Answer, recording
from tests.waiting import DEADLINE_S, until

ROOT = Path(__file__).parents[2]

Families = dict[str, Metric]


def scrape(url: str) -> Families:
    """The metrics of a process by name."""
    answer = httpx2.get(url, timeout=60, trust_env=False).raise_for_status()
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families: Families, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum of the samples of this name that have at least these labels."""
    wanted = (labels or {}).items()
    return sum(
        found.value for family in families.values() for found in family.samples if found.name == name and wanted <= found.labels.items()
    )


def names_in_the_table(process: str) -> set[str]:
    """The metrics that the table in deploy/README.md promises of a process."""
    (_, text) = (ROOT / "deploy" / "README.md").read_text().split("### Metrics\n")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", text.split("\n## ")[0].split("\n### ")[0], re.MULTILINE)
    return {name for names, processes in rows if process in processes.split(", ") for name in re.findall(r"`(\w+)`", names)}


def assert_the_table_is_kept(role: str, families: Families) -> None:
    """A process of this role has shown every metric that the table promises of it."""
    shown = {sample.name for family in families.values() for sample in family.samples}
    shown |= {family.name for family in families.values()} | {family.name + "_total" for family in families.values()}
    promised = names_in_the_table(role)
    assert promised
    # These appear when they first happen. The unit tests make them happen.
    rare = {"temporal_request_failure_total"}
    assert promised - rare <= shown, promised - shown
    assert value(families, "sitelink_process", {"role": role}) == 1


def test_every_process_shows_what_the_table_promises(new_stack: Callable[..., Stack]) -> None:
    """Every name of the table is there after an upload, with a value that can be; no label names the upload, a title or the file."""
    networks = {"SITELINK_WEBHOOK_SECRET": "w" * 32, "SITELINK_WEBHOOK_NETWORKS": "127.0.0.1/32"}
    stack = new_stack(SITELINK_METRICS_PORT="0", **networks)
    assert set(stack.metrics_urls) == {"worker-workflow", "worker-tile", "worker-webhook", "api"}
    worker = stack.processes["worker-tile"].pid
    assert worker is not None

    def of(process: str) -> Families:
        return scrape(stack.metrics_urls[process])

    pages = 5
    base = f"{stack.api_url}/v1/organizations/acme-of-metrics/projects/tower/plans/a1/uploads"
    headers = {"Content-Type": "application/pdf", "Content-Disposition": 'attachment; filename="name-of-the-file.pdf"'}
    with recording() as receiver:
        receiver.answer = lambda _: Answer(204)
        headers["SiteLink-Webhook"] = f"{receiver.url}/hook"
        os.killpg(worker, signal.SIGSTOP)  # until somebody watches
        ref = UploadRef.parse(httpx2.post(base, content=plan_set(pages), headers=headers, timeout=120).json()["ref"])
        with httpx2.stream("GET", f"{base}/{ref.upload}/events", timeout=DEADLINE_S, trust_env=False) as events:
            lines = events.iter_lines()
            assert "event: snapshot" in lines
            assert value(of("api"), "sse_connected") == 1
            os.killpg(worker, signal.SIGCONT)
            assert "event: end" in lines
        until(lambda: value(of("worker-workflow"), "sitelink_webhooks_total", {"outcome": "delivered"}) >= 2)
    until(lambda: value(of("api"), "sse_connected") == 0)
    until(lambda: value(of("worker-workflow"), "processing_duration_seconds_count") == 1)
    until(lambda: value(of("worker-workflow"), "sheets_pending") == 0)
    for process, role in (("api", "api"), ("worker-workflow", "workflow"), ("worker-tile", "tile"), ("worker-webhook", "webhook")):
        families = of(process)
        assert_the_table_is_kept(role, families)
        assert value(families, "process_resident_memory_bytes") > 1 << 20
        if role != "api":
            assert httpx2.get(stack.metrics_urls[process].replace("/metrics", "/readyz"), timeout=60, trust_env=False).status_code == 200
        for word in (ref.upload, ref.organization, "Floor", "name-of-the-file"):
            assert not [sample for family in families.values() for sample in family.samples if word in str(sample.labels)]
    workflow, tile, api = of("worker-workflow"), of("worker-tile"), of("api")
    assert value(workflow, "progress_update_success_total") == pages
    assert value(workflow, "progress_update_seconds_count") == pages
    assert 0 <= value(workflow, "progress_update_seconds_sum") < 600 * pages
    assert value(workflow, "sitelink_sheets_total", {"outcome": "ready"}) == pages
    assert value(workflow, "processing_duration_seconds_count", {"status": "complete", "pages": "1-5"}) == 1
    assert value(workflow, "temporal_sticky_cache_hit_total") > 0
    assert value(tile, "sitelink_sheet_tiles_count") == pages
    assert value(tile, "sitelink_sheet_puts_sum") >= value(tile, "sitelink_sheet_tiles_sum") + 2 * pages
    assert value(tile, "sitelink_bucket_put_seconds_count") >= value(tile, "sitelink_sheet_puts_sum")
    assert value(tile, "sitelink_stage_seconds_count", {"stage": "draw"}) == pages
    assert value(tile, "sitelink_stage_seconds_count", {"stage": "fetch"}) == 1
    assert value(tile, "sitelink_activity_attempts_total", {"activity": "upload_page", "outcome": "completed"}) == pages
    assert value(tile, "sitelink_render_confinement") > 0
    assert value(api, "sitelink_progress_to_client_seconds_count") > 0
    assert 0 < value(api, "sitelink_commit_to_client_seconds_count") <= pages
    assert value(api, "sitelink_http_requests_total", {"method": "POST", "route": UPLOADS, "status": "2xx"}) == 1
    assert value(api, "temporal_request_latency_seconds_count") > 0
    assert value(scrape(f"{stack.api_url}/metrics"), "sitelink_process", {"role": "api"}) == 1


def test_ports_of_two_stacks_do_not_collide(new_stack: Callable[..., Stack]) -> None:
    """The second stack, which is to have the same ports, takes free ones; every process of both answers, and for itself."""
    first = new_stack(SITELINK_METRICS_PORT="0")
    port = first.metrics_urls["worker-workflow"].removesuffix("/metrics").rpartition(":")[2]
    second = new_stack(SITELINK_METRICS_PORT=port)
    assert not set(first.metrics_urls.values()) & set(second.metrics_urls.values())
    for stack in (first, second):
        for name, url in stack.metrics_urls.items():
            assert value(scrape(url), "sitelink_process", {"role": name.removeprefix("worker-")}) == 1
