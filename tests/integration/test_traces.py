"""Traces of the whole stack: real processes export them to a collector, as OpenTelemetry's variables say."""

import json
import secrets
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from deploy.stack import Stack
from tests.browser.test_page import plan_pdf
from tests.chaos.guarantees import stop
from tests.integration.test_passwords import KEY, PASSWORD, forms, given
from tests.resources.make_pdfs import encrypted
from tests.servers.collector import Collector, Span, collecting, paths
from tests.servers.faults import Rule, answers, faulty
from tests.servers.s3 import TestServer
from tests.unit.api_fakes import BASE
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("temporal_binary")

HEADERS_SECRET = "key-of-the-collector"  # noqa: S105 - of a test
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
UPLOADS = "/v1/organizations/{organization}/projects/{project}/plans/{plan}/uploads"


def upload(stack: Stack, body: bytes, **headers: str) -> tuple[str, str]:
    """Sends a PDF as a client that traces; returns the path of the upload and the id of the trace."""
    trace_id = secrets.token_hex(16)
    sent = {"Content-Type": "application/pdf", "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", **headers}
    answer = httpx2.post(stack.api_url + BASE, content=body, headers=sent, timeout=60, trust_env=False)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"], trace_id


def whole_trace(collector: Collector, trace_id: str) -> list[Span]:
    """The spans of an upload, once every process has exported its part."""

    def has_ended() -> bool:
        names = [span.name for span in collector.of_trace(trace_id)]
        return {"CompleteWorkflow:ProcessUpload", "RunActivity:write_manifest", f"POST {UPLOADS}"} <= set(names) and names.count(
            "RunActivity:discard_scratch"
        ) == names.count("StartActivity:discard_scratch")

    until(has_ended)
    return collector.of_trace(trace_id)


def test_an_upload_is_one_trace_without_a_secret(new_stack: Callable[..., Stack]) -> None:
    """From the client's own span over three processes to the writes of each sheet. No span has the password, a title or a file name."""
    with collecting() as collector:
        stack = new_stack(
            SITELINK_CODEC_KEY=KEY,
            SITELINK_LOG_FORMAT="json",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"api-key={HEADERS_SECRET}",
            **SOON,
        )
        locked = encrypted(PASSWORD, data=plan_pdf(2))
        named = {"Content-Disposition": 'attachment; filename="name-of-the-file.pdf"', "X-Request-ID": "mine-7"}
        path, trace_id = upload(stack, locked, **given(PASSWORD), **named)
        httpx2.get(f"{stack.api_url}{path}?ticket=hush-hush", timeout=60, trust_env=False).raise_for_status()
        spans = whole_trace(collector, trace_id)
        stack.stop()
    root = f"POST {UPLOADS}"
    start = f"{root} > StartWorkflow:ProcessUpload"
    activity = "{start} > StartActivity:{name} > RunActivity:{name}".format
    tree = paths(spans)
    assert tree[activity(start=start, name="count_pages") + " > fetch"] == 1
    for stage in ("draw", "tile"):
        assert tree[activity(start=start, name="tile_page") + f" > {stage}"] == 2
    for stage in ("upload", "commit"):
        assert tree[activity(start=start, name="upload_page") + f" > {stage}"] == 2
    for name, count in {"list_sheets": 1, "count_pages": 1, "tile_page": 2, "upload_page": 2, "write_manifest": 1}.items():
        assert tree[activity(start=start, name=name)] == count
    assert [tree[f"{start} > {step}Workflow:ProcessUpload"] for step in ("Run", "Complete")] == [1, 1]
    assert all(name.startswith(root) for name in tree)

    by_service: dict[str, set[str]] = {}
    for span in spans:
        by_service.setdefault(span.service, set()).add(span.name)
    assert set(by_service) == {"sitelink-api", "sitelink-workflow", "sitelink-tile"}
    request = next(span for span in spans if span.name == root)
    assert request.facts == {
        "http.request.method": "POST",
        "http.route": UPLOADS,
        "http.response.status_code": 202,
        "sitelink.request_id": "mine-7",
    }
    for span in spans:
        if span.name == "upload":
            assert span.facts["sitelink.puts"] > 2
            assert span.facts["sitelink.bytes"] > 1000
            assert span.facts["sitelink.retries"] == 0
            assert span.seconds > 0

    exported = b"".join(request.body for request in collector.requests)
    for word in (b"A-10", b"name-of-the-file", b"hush-hush", HEADERS_SECRET.encode(), KEY.encode(), *forms(PASSWORD)):
        assert word not in exported
    assert {request.headers["api-key"] for request in collector.requests} == {HEADERS_SECRET}
    assert not [span for span in collector.spans if span.name.startswith(("GET", "Query"))]
    lines = [line for process in ("api", "worker-workflow", "worker-tile") for line in json_lines(stack, process)]
    shown = {(line["logger"], line["message"]) for line in lines if line.get("trace_id") == trace_id}
    assert {("api.uploads", "accepted an upload"), ("worker.interceptor", "finished")} <= shown
    assert "an upload has ended" in {message for _, message in shown}
    assert all(len(line["span_id"]) == 16 for line in lines if "trace_id" in line)


def json_lines(stack: Stack, process: str) -> list[dict[str, Any]]:
    """The log of a process."""
    return [json.loads(line) for line in stack.processes[process].log.read_text().splitlines()]


def test_writes_that_were_refused_are_counted(new_stack: Callable[..., Stack], s3_server: TestServer) -> None:
    """The one span of a sheet's writes says how many tries failed. Each object has no span of its own."""
    made = s3_server.new_bucket()
    with collecting() as collector, faulty(made.endpoint) as faults:
        settings = s3_server.settings(made.url.removeprefix("s3://"), endpoint=faults.url)
        faults.lay(Rule(answers(503, "SlowDown"), "PUT", r"sheet-1_files/", times=3))
        stack = new_stack(**s3_server.environment(settings), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON)
        _, trace_id = upload(stack, plan_pdf(1))
        spans = whole_trace(collector, trace_id)
    (writes,) = [span for span in spans if span.name == "upload"]
    assert writes.facts["sitelink.retries"] == 3
    assert writes.facts["sitelink.puts"] == len(faults.sent("PUT", r"sheets/sheet-1/")) - 3 - 2  # without thumbnail and marker
    assert len(spans) < 30


def test_a_collector_that_is_away_disturbs_nothing(new_stack: Callable[..., Stack], free_port: int) -> None:
    """Uploads are made as ever, the log says that the export fails, and each process ends when it is asked to."""
    stack = new_stack(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port}", **SOON)
    path, _ = upload(stack, plan_pdf(1))
    until(lambda: httpx2.get(stack.api_url + path, timeout=60, trust_env=False).json()["status"] == "complete")
    until(lambda: "opentelemetry" in stack.processes["worker-tile"].log.read_text())
    for name in ("worker-tile", "worker-workflow", "api"):
        stop(stack, name)
    for role in ("tile", "workflow"):
        assert f"{role} worker stopped" in stack.processes[f"worker-{role}"].log.read_text()
