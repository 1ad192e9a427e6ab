"""Whether a process makes traces, by OpenTelemetry's own variables. Its library is loaded only if it does.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from temporalio.client import Interceptor

from activities.environment import choice
from activities.tracing.spans import Spans

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

MISSING = "OpenTelemetry's library is not installed; pip install 'sitelink[otel]' installs it"


@dataclass(frozen=True)
class Tracing:
    """How a process makes traces. The default makes none.

    Args:
        tracer: Makes spans; None where there are no traces.
        interceptors: For Temporal's client. They go around its calls, and around what its workers do.
        spans: The stages of a host's work.
        stop: Exports the spans that wait, for at most some seconds.
    """

    tracer: "Tracer | None" = None
    interceptors: Sequence[Interceptor] = ()
    spans: Spans = field(default_factory=Spans)
    stop: Callable[[], None] = lambda: None


def wants_traces(environ: Mapping[str, str]) -> bool:
    """Whether the variables name a collector, or ask for the export of traces.

    Raises:
        ValueError: They ask for an exporter or a protocol that SiteLink does not have.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER") or ""
    is_disabled = (environ.get("OTEL_SDK_DISABLED") or "").lower() == "true" or exporter == "none"
    if is_disabled or not (exporter or endpoint_of(environ)):
        return False
    choice(environ, "OTEL_TRACES_EXPORTER", ("otlp",))
    own_protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    choice(environ, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" if own_protocol else "OTEL_EXPORTER_OTLP_PROTOCOL", ("http/protobuf",))
    return True


def endpoint_of(environ: Mapping[str, str]) -> str | None:
    """The address that takes the traces; None where the variables name none, and the exporter has a default of its own."""
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (f"{base.rstrip('/')}/v1/traces" if base else None)


def start_tracing(environ: Mapping[str, str], role: str) -> Tracing:
    """Exports traces from now on, if the variables ask for them. If it cannot, one line of the log says why, and there are no traces.

    Args:
        environ: The variables.
        role: The process's part in SiteLink, such as ``api``.
    """
    try:
        if not wants_traces(environ):
            return Tracing()
        from activities.tracing.sdk import exporting, otlp_exporter

        return exporting(otlp_exporter(environ), role)
    except ValueError as error:
        logger.warning("there are no traces: %s", error)
    except ImportError:
        logger.warning("there are no traces: %s", MISSING)
    return Tracing()
