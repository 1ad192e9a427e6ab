"""A collector of traces: it takes what processes export by OTLP over HTTP, and keeps it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.servers.recorder import Answer, Recorder, Request, recording

TRACES = "/v1/traces"


@dataclass(frozen=True)
class Span:
    """One span, as it was exported.

    Args:
        service: The name of the process's service.
        name: Its name.
        trace_id: Hexadecimal.
        span_id: Hexadecimal.
        parent_id: Hexadecimal; empty for a root.
        seconds: Its length.
        facts: Its attributes.
        events: The names of its events.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ()


class Collector:
    """What was exported.

    Args:
        recorder: Has the requests.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def url(self) -> str:
        """For ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return self._recorder.url

    @property
    def requests(self) -> list[Request]:
        """The exports."""
        return self._recorder.sent("POST", TRACES)

    @property
    def spans(self) -> list[Span]:
        """Every span so far."""
        spans = []
        for request in self.requests:
            for process in ExportTraceServiceRequest.FromString(request.body).resource_spans:
                service = str(_facts(process.resource.attributes)["service.name"])
                spans += [
                    Span(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                        _facts(span.attributes),
                        tuple(event.name for event in span.events),
                    )
                    for scope in process.scope_spans
                    for span in scope.spans
                ]
        return spans

    def of_trace(self, trace_id: str) -> list[Span]:
        """The spans of one trace."""
        return [span for span in self.spans if span.trace_id == trace_id]


def _facts(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def paths(spans: list[Span]) -> Counter[str]:
    """How often each span is there, by the names from the first one whose parent is not there to it."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), "a span is there twice"

    def path(span: Span) -> str:
        return f"{path(by_id[span.parent_id])} > {span.name}" if span.parent_id in by_id else span.name

    return Counter(map(path, spans))


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector on a free port of this machine."""
    with recording() as recorder:
        recorder.answer = lambda _: Answer(200, b"", (("Content-Type", "application/x-protobuf"),))
        yield Collector(recorder)
