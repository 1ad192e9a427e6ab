"""The span of a request. Only ``create_app`` imports this module, where traces are wanted."""

from opentelemetry.context import Context
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE, HTTP_ROUTE
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activities.logs import current_request_id, set_log_trace
from activities.tracing.sdk import show_in_log

TRACE_PARENT = "traceparent"
CHANGING = ("POST", "PUT", "PATCH", "DELETE")


class TraceRequests:
    """Makes a span of each request that may change something. Reads make none: whoever looks at a sheet asks for hundreds of tiles.

    The span goes on with the trace of the sender, if the sender names one (https://www.w3.org/TR/trace-context/). It holds neither the
    address of the request, which may have a ticket in it, nor a header.

    Args:
        app: The traced application.
        tracer: Makes the spans.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        set_log_trace()  # the server may serve a request in the context of the previous request
        if scope["method"] not in CHANGING:
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(TRACE_PARENT)
        parent = self._propagator.extract({TRACE_PARENT: sent} if sent else {}, Context())
        facts = {HTTP_REQUEST_METHOD: scope["method"], "sitelink.request_id": current_request_id() or ""}
        with self._tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER, facts) as span:
            show_in_log()

            async def send_observed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute(HTTP_RESPONSE_STATUS_CODE, message["status"])
                    if message["status"] >= 500:
                        span.set_attribute(ERROR_TYPE, str(message["status"]))
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self._app(scope, receive, send_observed)
            finally:
                if route := getattr(scope.get("route"), "path", ""):
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute(HTTP_ROUTE, route)
