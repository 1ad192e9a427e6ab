"""Whether the collector of traces takes them."""

from collections.abc import Mapping

from activities.tracing.settings import MISSING, endpoint_of, wants_traces
from deploy.check.table import Finding, Grade

TIMEOUT_S = 5.0
ADVICE = "correct it: deploy/README.md, Traces"


def check_traces(environ: Mapping[str, str]) -> list[Finding]:
    """A finding where traces are wanted: processes run without them, but somebody expects them. Exports no span."""
    try:
        if not wants_traces(environ):
            return []
        from opentelemetry.sdk.trace.export import SpanExportResult

        from activities.tracing.sdk import otlp_exporter

        taken = otlp_exporter(environ, TIMEOUT_S).export([]) is SpanExportResult.SUCCESS
    except ValueError as error:
        return [Finding("traces", Grade.WRONG, f"there are none: {error}", ADVICE)]
    except ImportError:
        return [Finding("traces", Grade.WRONG, f"there are none: {MISSING}", "pip install 'sitelink[otel]'")]
    where = endpoint_of(environ) or "the collector"
    if taken:
        return [Finding("traces", Grade.OK, f"{where} takes them")]
    return [Finding("traces", Grade.WRONG, f"{where} does not take them; the log line above says why", ADVICE)]
