"""How log lines look in every process. Only a ``__main__`` sets the log up.

A line shows its message, then its extras, the upload's ref and the sheet first. Each extra comes from the first of these that has it:

1. the ``extra`` of the call,
2. ``set_log_context``, which names the upload of the request or the activity, and the request,
3. the fields that Temporal's library adds about a workflow, an activity or an error; only those that an operator needs are shown.

As text, a line may have a traceback below it. As JSON, it is always one line.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import temporalio.activity
import temporalio.workflow
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from activities.environment import choice, unknown_settings

FORMATS = ("text", "json")

_STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes that every record has. All others come from ``extra``."""

_TEMPORAL_FIELDS = {"activity_type": "activity", "attempt": "attempt", "update_name": "update", "error": "error"}

_UPLOAD_WORKFLOW_ID = re.compile(r"\w+/([\w-]+/[\w-]+/[\w-]+/[\w-]+)", re.ASCII)

_SECRET = re.compile(
    r"(X-Amz-(?:Credential|Signature|Security-Token)=|\bticket=|__Host-sitelink=|\bBearer\s+)[^\s&\"'<>\\;]+", re.IGNORECASE
)
"""SiteLink logs no secret, but a library may."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_log_context: ContextVar[Mapping[str, object] | None] = ContextVar("about", default=None)
_log_trace: ContextVar[Mapping[str, object] | None] = ContextVar("trace", default=None)


def set_log_context(ref: str | None, sheet: int | None = None, request_id: str | None = None) -> None:
    """Sets what the next log lines show: those of this task, of the tasks that it creates, and of the threads that work for it.

    Args:
        ref: The upload.
        sheet: The sheet, 1-based.
        request_id: The ``X-Request-ID`` of the request.
    """
    facts = {"ref": ref, "sheet": sheet, "request_id": request_id}
    _log_context.set({name: value for name, value in facts.items() if value is not None})


def subject_of(arguments: Sequence[object]) -> tuple[str | None, int | None]:
    """The upload and the sheet that the first argument of an activity names."""
    argument = arguments[0] if arguments else None
    return getattr(argument, "ref", None), getattr(getattr(argument, "page", argument), "number", None)


def set_log_trace(trace_id: str = "", span_id: str = "") -> None:
    """Sets the ids of the trace and its span that the next log lines show, of the same tasks and threads as ``set_log_context``.

    Their names are OpenTelemetry's: https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/
    """
    _log_trace.set({"trace_id": trace_id, "span_id": span_id} if trace_id else None)


def current_request_id() -> str | None:
    """The request id that ``set_log_context`` has set for this task; None outside of a request."""
    request_id = (_log_context.get() or {}).get("request_id")
    return None if request_id is None else str(request_id)


def log_format(environ: Mapping[str, str]) -> str:
    """Reads ``SITELINK_LOG_FORMAT``.

    Raises:
        ValueError: It is not one of ``FORMATS``.
    """
    return choice(environ, "SITELINK_LOG_FORMAT", FORMATS)


def set_up(environ: Mapping[str, str]) -> None:
    """Sends all log lines of this process, also those of Temporal's native library, to stderr, in the format of ``SITELINK_LOG_FORMAT``.

    The first line names the unknown variables that look like settings.

    Raises:
        ValueError: As from ``log_format``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format(environ) == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    for name in ("httpx2", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)  # at INFO they log each request, and each start
    # The extras show this information already.
    temporalio.activity.logger.activity_info_on_message = False
    temporalio.workflow.logger.workflow_info_on_message = False
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=temporal_logging())))
    sys.excepthook = _log_crash
    threading.excepthook = lambda crash: _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)
    if unknown := unknown_settings(environ):
        logging.getLogger("sitelink").warning("unknown settings are ignored", extra={"unknown": ", ".join(unknown)})


def temporal_logging() -> LoggingConfig:
    """For each runtime of Temporal's library: it logs by our loggers, not by lines of its own."""
    core = LogForwardingConfig(
        logging.getLogger("temporalio.core"),
        append_target_to_name=False,
        prepend_target_on_message=False,
        append_log_fields_to_message=False,
    )
    return LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding=core)


def _log_crash(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    logging.getLogger("sitelink").critical("crashed", exc_info=(kind, error or kind(), traceback))


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """The extras of a line, ``ref`` and ``sheet`` first."""
    own_extras = {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD_ATTRIBUTES and not name.startswith(("temporal_", "_"))
    }
    library_fields: dict[str, Any] = {}
    for source in ("temporal_workflow", "temporal_activity"):
        library_fields |= getattr(record, source, {})
    library_fields |= getattr(getattr(record, "temporal_log", None), "fields", {})
    fields = {**(_log_context.get() or {}), **(_log_trace.get() or {}), **own_extras}
    if "ref" not in fields and (found := _UPLOAD_WORKFLOW_ID.fullmatch(str(library_fields.get("workflow_id", "")))):
        fields["ref"] = found[1]
    fields |= {ours: library_fields[theirs] for theirs, ours in _TEMPORAL_FIELDS.items() if theirs in library_fields}
    return {name: fields.pop(name) for name in ("ref", "sheet") if name in fields} | fields


class TextFormatter(logging.Formatter):
    """``2026-01-31T09:30:05.123Z INFO api.uploads: accepted an upload ref=local/demo/plan/… size_bytes=1234``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it the traceback if there is one."""
        words = [f"{_time(record)} {record.levelname} {record.name}: {_one_line(record.getMessage().strip())}"]
        words += [f"{name}={_quoted(value)}" for name, value in extras(record).items()]
        trace = _traceback(self, record)
        return _without_secrets(" ".join(words) + (f"\n{trace}" if trace else ""))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, the extras, and ``exception``, the traceback's text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        head = {"time": _time(record), "level": record.levelname, "logger": record.name, "message": record.getMessage().strip()}
        trace = _traceback(self, record)
        document = {**extras(record), **({"exception": trace} if trace else {})}
        return json.dumps(_json_value(head | {name: value for name, value in document.items() if name not in head}))


def _time(record: logging.LogRecord) -> str:
    """The time of the record: RFC 3339, UTC."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = (record.exc_info and formatter.formatException(record.exc_info), record.stack_info)
    return "\n".join(part for part in parts if part)


def _quoted(value: object) -> str:
    """The value as text; in quotes, unless it is one plain word."""
    text = str(value)
    return text if re.fullmatch(r"[!#-~]+", text) else _one_line(json.dumps(text, ensure_ascii=False))


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _without_secrets(text: str) -> str:
    return _SECRET.sub(r"\1…", text)


def _json_value(value: object) -> object:
    """The value as JSON can hold it, with secrets cut out."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(name): _json_value(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_json_value(entry) for entry in value]
        case _:
            return _without_secrets(str(value))
