"""Traces without a server: which variables switch them on, what is loaded when they are off, and the span of a request."""

import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from activities.errors import StorageUnavailable
from activities.logs import JsonFormatter
from activities.metrics import HostMetrics
from activities.threads import FairThreads
from activities.tracing.sdk import exporting
from activities.tracing.settings import MISSING, Tracing, endpoint_of, start_tracing, wants_traces
from api.http.tracing import TraceRequests
from deploy.check.table import Grade
from deploy.check.traces import check_traces
from tests.servers.collector import collecting
from tests.servers.recorder import Answer, recording
from tests.unit.api_fakes import client_of

ROOT = Path(__file__).parents[2]
ENDPOINT = "http://collector.example.com:4318"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps the spans."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    """Traces into memory."""
    return exporting(exporter, "test", SimpleSpanProcessor)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            True,
        ),
    ],
)
def test_variables_switch_traces_on(environ: Mapping[str, str], expected: bool) -> None:
    """Traces are off unless a variable names a collector or an exporter."""
    assert wants_traces(environ) is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "/no/such/file"),
    ],
)
def test_variables_that_cannot_be_used_are_told(name: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    """The process runs without traces, and one line names the variable; so does the check."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, name: value}
    assert start_tracing(environ, "api").tracer is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "there are no traces" in line
    assert name in line
    (finding,) = check_traces(environ)
    assert (finding.grade, name in finding.result) == (Grade.WRONG, True)


def test_endpoint_is_where_the_traces_go() -> None:
    """As OpenTelemetry says: the path is added to the common address only."""
    assert endpoint_of({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{ENDPOINT}/otlp/"}) == f"{ENDPOINT}/otlp/v1/traces"
    assert endpoint_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{ENDPOINT}/t"}) == f"{ENDPOINT}/t"
    assert endpoint_of({}) is None


WITHOUT_THE_EXTRA = """
import logging, sys
sys.modules["opentelemetry"] = None
from activities.tracing.settings import start_tracing
from deploy.check.traces import check_traces
logging.basicConfig(format="%(message)s")
environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
assert start_tracing(environ, "api").tracer is None
print([finding.result for finding in check_traces(environ)])
assert start_tracing({}, "api").tracer is None
"""


def test_missing_extra_is_told_in_one_line() -> None:
    """Where somebody wants traces, and OpenTelemetry's library is not installed; elsewhere nothing is said."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT_THE_EXTRA], capture_output=True, check=True, text=True, cwd=ROOT)
    assert ended.stderr == f"there are no traces: {MISSING}\n"
    assert MISSING in ended.stdout
    assert "sitelink[otel]" in MISSING


@pytest.mark.parametrize("module", ["api.__main__", "worker.__main__"])
def test_nothing_is_loaded_when_traces_are_off(module: str) -> None:
    """Neither the library nor a thread of it."""
    code = f"""
import sys, threading, {module}
from activities.tracing.settings import start_tracing
start_tracing({{}}, "x")
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")), threading.active_count())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    assert ended.stdout == "[] 1\n"


def test_check_asks_the_collector() -> None:
    """It exports nothing, and tells a collector that refuses from one that answers."""
    with collecting() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        (finding,) = check_traces(environ)
        assert (finding.grade, finding.result) == (Grade.OK, f"{collector.url}/v1/traces takes them")
        assert collector.spans == []
        assert len(collector.requests) == 1
    with recording() as recorder:
        recorder.answer = lambda _: Answer(401)
        (finding,) = check_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": recorder.url})
        assert finding.grade is Grade.WRONG
    assert check_traces({}) == []


# ------------------------------------------------------------------ the span of a request


def traced_app(tracing: Tracing) -> TraceRequests:
    """An application with a log line in each answer."""

    async def answer(request: Request) -> Response:
        line = JsonFormatter().format(logging.makeLogRecord({"msg": "at work"}))
        return PlainTextResponse(line, int(request.query_params.get("status", "200")))

    assert tracing.tracer is not None
    route = Route("/v1/{organization}/uploads", answer, methods=["GET", "POST", "DELETE"])
    return TraceRequests(Starlette(routes=[route]), tracing.tracer)


async def test_requests_that_change_something_have_a_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """Its name is that of the route, not the address; a read has none; an error of the server is one; a sender's trace goes on."""
    async with client_of(traced_app(tracing)) as client:
        await client.get("/v1/acme/uploads")
        assert exporter.get_finished_spans() == ()
        await client.post("/v1/acme/uploads?ticket=hush-hush", headers={"traceparent": PARENT, "baggage": "hush=hush-hush"})
        await client.post("/v1/acme/uploads?status=503")
        await client.delete("/v1/acme/uploads?status=404", headers={"traceparent": "00-nonsense"})
        await client.post("/no/such/route/hush-hush")
    continued, broken, missing, unknown = exporter.get_finished_spans()
    assert continued.name == "POST /v1/{organization}/uploads"
    assert continued.context
    assert continued.parent
    assert f"{continued.context.trace_id:032x}-{continued.parent.span_id:016x}" in PARENT
    assert [span.status.status_code for span in (continued, broken, missing)] == [StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET]
    assert [(span.attributes or {})["http.response.status_code"] for span in (broken, missing, unknown)] == [503, 404, 404]
    assert (broken.parent, missing.parent) == (None, None)
    assert unknown.name == "POST"
    assert "hush-hush" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_log_lines_of_a_request_show_its_trace_only(tracing: Tracing) -> None:
    """A read after it, perhaps served in the same context, shows none."""
    async with client_of(traced_app(tracing)) as client:
        changed = (await client.post("/v1/acme/uploads", headers={"traceparent": PARENT})).json()
        read = (await client.get("/v1/acme/uploads")).json()
    assert changed["trace_id"] == PARENT.split("-")[1]
    assert "trace_id" not in read


# ------------------------------------------------------------------ stages


def test_writes_of_all_threads_are_one_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """Also of a stage that fails; writes outside of a stage are nobody's."""
    metrics = HostMetrics(spans=tracing.spans)
    metrics.observe_put(0.1, "")

    def fail() -> None:
        with FairThreads(4, "test") as threads, metrics.stage("upload") as writes:
            list(threads.map(("a", "b"), lambda code: metrics.observe_put(0.1, code), ["", "SlowDown"] * 50))
            writes.bytes = 7
            raise StorageUnavailable("no room for A-101")

    with pytest.raises(StorageUnavailable):
        fail()
    (span,) = exporter.get_finished_spans()
    assert span.attributes == {"sitelink.puts": 50, "sitelink.bytes": 7, "sitelink.retries": 50}
    assert span.status.status_code is StatusCode.ERROR
    assert [event.attributes for event in span.events] == [{"exception.type": "activities.errors.StorageUnavailable"}]


def test_stages_of_a_render_process_are_where_they_were(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """Drawing comes before the cutting into tiles, which ends now."""
    HostMetrics(spans=tracing.spans).rendered(2.0, 0.5)
    draw, tile = exporter.get_finished_spans()
    assert (draw.name, tile.name) == ("draw", "tile")
    assert draw.start_time
    assert draw.end_time
    assert tile.start_time
    assert tile.end_time
    assert (draw.end_time - draw.start_time, tile.end_time - tile.start_time) == (2_000_000_000, 500_000_000)
    assert abs(tile.start_time - draw.end_time) < 10**9
