"""Traces by OpenTelemetry's library. Only ``activities.tracing.settings`` imports this module, where traces are wanted.

A trace goes from a request over Temporal's client to the run, to its activities and to the stages of their work. A span holds what stays
in clear also where Temporal's payloads are encrypted: ids, names of activities and errors, times and numbers.

Oddities, all on purpose:

1. A step of a run has no duration, because the run may go on in another process: its span has the length zero. A replay makes no span.
   https://python.temporal.io/temporalio.contrib.opentelemetry.TracingInterceptor.html
2. Queries and updates make no spans: they read the progress, and whoever watches an upload sends them all the time.
3. The headers that Temporal keeps hold the ids of trace and span in clear: a client's codec leaves headers as they are.
   https://python.temporal.io/temporalio.common.HeaderCodecBehavior.html
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status, Tracer, format_span_id, format_trace_id, get_current_span
from opentelemetry.util.re import parse_env_headers
from temporalio import activity
from temporalio.client import OutboundInterceptor, QueryWorkflowInput, StartWorkflowUpdateInput, WorkflowUpdateHandle
from temporalio.contrib.opentelemetry import TracingInterceptor, TracingWorkflowInboundInterceptor
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from activities.environment import secret
from activities.logs import set_log_trace, subject_of
from activities.tracing.settings import Tracing, endpoint_of
from activities.tracing.spans import Spans, Writes

STOP_S = 3.0
"""How long a process that stops waits for its last export. A collector that is away must not delay the stop."""

EXCEPTION_TYPE = "exception.type"

_writes: ContextVar[Writes | None] = ContextVar("writes", default=None)


def otlp_exporter(environ: Mapping[str, str], timeout_s: float | None = None) -> OTLPSpanExporter:
    """The exporter that OpenTelemetry's variables describe.

    Args:
        environ: The variables.
        timeout_s: How long it tries to export; default: as the variables say.

    Raises:
        ValueError: The file with the headers cannot be used.
    """
    headers = secret(environ, "OTEL_EXPORTER_OTLP_TRACES_HEADERS") or secret(environ, "OTEL_EXPORTER_OTLP_HEADERS")
    return OTLPSpanExporter(endpoint_of(environ), headers=parse_env_headers(headers, liberal=True), timeout=timeout_s)


def exporting(exporter: SpanExporter, role: str, processor: Callable[[SpanExporter], SpanProcessor] = BatchSpanProcessor) -> Tracing:
    """Makes traces, and exports them from now on.

    Args:
        exporter: Gets the spans.
        role: The process's part in SiteLink, such as ``api``.
        processor: Hands the spans to the exporter.
    """
    resource = Resource.create({"sitelink.role": role})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: f"sitelink-{role}"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor(WithoutMessages(exporter)))
    tracer = provider.get_tracer("sitelink")

    def stop() -> None:
        last_export = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        last_export.start()
        last_export.join(STOP_S)

    return Tracing(tracer, [TemporalTracing(tracer)], ExportedStages(tracer), stop)


class WithoutMessages(SpanExporter):
    """Takes the words of errors out of the spans: they may name a title or a file. The type of an error stays.

    Args:
        exporter: Gets the spans after that.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See ``SpanExporter``."""
        return self._exporter.export([_without_messages(span) for span in spans])

    def shutdown(self) -> None:
        """See ``SpanExporter``."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See ``SpanExporter``."""
        return self._exporter.force_flush(timeout_millis)


def show_in_log() -> None:
    """Lets the next log lines show the current span."""
    current = get_current_span().get_span_context()
    if current.is_valid:
        set_log_trace(format_trace_id(current.trace_id), format_span_id(current.span_id))
    else:
        set_log_trace()


def _without_messages(span: ReadableSpan) -> ReadableSpan:
    if not span.events and not span.status.description:
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=[
            Event(event.name, {EXCEPTION_TYPE: (event.attributes or {}).get(EXCEPTION_TYPE, "")}, event.timestamp) for event in span.events
        ],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


class ExportedStages(Spans):
    """The stages of a host's work as spans.

    Args:
        tracer: Makes them.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._mutex = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[Writes]:
        """See ``Spans``. The writes of all threads that work for the stage are counted in its span, also of a stage that fails."""
        writes = Writes()
        with self._tracer.start_as_current_span(name) as span:
            token = _writes.set(writes)
            try:
                yield writes
            finally:
                _writes.reset(token)
                if writes != Writes():
                    span.set_attributes({f"sitelink.{name}": count for name, count in vars(writes).items()})

    def ended(self, name: str, seconds: float, seconds_ago: float = 0.0) -> None:
        """See ``Spans``."""
        end = time.time_ns() - int(seconds_ago * 1e9)
        self._tracer.start_span(name, start_time=end - int(seconds * 1e9)).end(end)

    def count_put(self, error_code: str) -> None:
        """See ``Spans``."""
        if (writes := _writes.get()) is not None:
            with self._mutex:
                if error_code:
                    writes.retries += 1
                else:
                    writes.puts += 1


class TemporalTracing(TracingInterceptor):
    """Carries a trace over Temporal: from a client to a run, and from the run to its activities and to the next run.

    Args:
        tracer: Makes the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__(tracer)

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - Temporal's name for it
        """Wraps the calls of a client."""
        return _TracedCalls(super().intercept_client(next), next)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - likewise
        """Wraps each activity."""
        return super().intercept_activity(_TracedActivity(next))

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[TracingWorkflowInboundInterceptor]:  # noqa: A002 - likewise
        """Wraps each run."""
        super().workflow_interceptor_class(input)  # gives runs the function that makes a span outside of the sandbox
        return _TracedRun


class _TracedCalls(OutboundInterceptor):
    def __init__(self, traced: OutboundInterceptor, plain: OutboundInterceptor) -> None:
        super().__init__(traced)
        self._plain = plain

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:  # noqa: A002 - likewise
        return await self._plain.query_workflow(input)

    async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> WorkflowUpdateHandle[Any]:  # noqa: A002 - likewise
        return await self._plain.start_workflow_update(input)


class _TracedActivity(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - likewise
        show_in_log()
        ref, sheet = subject_of(input.args)
        facts = {"sitelink.ref": ref, "sitelink.sheet": sheet, "sitelink.attempt": activity.info().attempt}
        get_current_span().set_attributes({name: fact for name, fact in facts.items() if fact is not None})
        try:
            return await super().execute_activity(input)
        except ApplicationError as error:
            get_current_span().set_attribute("error.type", error.type or type(error).__name__)
            raise


class _TracedRun(TracingWorkflowInboundInterceptor):
    def __init__(self, next: WorkflowInboundInterceptor) -> None:  # noqa: A002 - likewise
        super().__init__(_RunWithLogTrace(next))

    def handle_update_validator(self, input: HandleUpdateInput) -> None:  # noqa: A002 - likewise
        self.next.handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002 - likewise
        return await self.next.handle_update_handler(input)


class _RunWithLogTrace(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002 - likewise
        show_in_log()
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002 - likewise
        show_in_log()
        await super().handle_signal(input)
