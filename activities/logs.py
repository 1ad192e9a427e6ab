"""How log lines look, in every process that logs. Only a ``__main__`` sets it up.

A line shows its message, then its extras, the upload's ref and the sheet first. Each extra comes from the first of these that has it:

1. the ``extra`` of the call,
2. ``about``: the request or the activity that the line is written for,
3. the fields that Temporal's library adds for the workflow it logs for; only the fields that an operator needs are shown.

Text is one line, and a traceback below it; JSON is one line always.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import temporalio.activity
import temporalio.workflow
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from activities.environment import choice

FORMATS = ("text", "json")

_STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes of every record; the others are its ``extra``."""

_TEMPORAL_FIELDS = {"activity_type": "activity", "attempt": "attempt", "update_name": "update", "error": "error"}

_UPLOAD_WORKFLOW_ID = re.compile(r"\w+/([\w-]+/[\w-]+/[\w-]+/[\w-]+)", re.ASCII)

_SECRET = re.compile(r"(X-Amz-(?:Credential|Signature|Security-Token)=|\bBearer\s+)[^\s&\"'<>\\]+", re.IGNORECASE)
"""Our own lines hold no secret; a library's line may."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_log_context: ContextVar[Mapping[str, object] | None] = ContextVar("about", default=None)


def set_log_context(ref: str | None, sheet: int | None = None) -> None:
    """Names the upload, and the sheet, of all lines that this task, or a thread that it waits for, will log."""
    facts = {"ref": ref, "sheet": sheet}
    _log_context.set({name: value for name, value in facts.items() if value is not None})


def log_format(environ: Mapping[str, str]) -> str:
    """Reads ``SITELINK_LOG_FORMAT``.

    Raises:
        ValueError: It is not one of ``FORMATS``.
    """
    return choice(environ, "SITELINK_LOG_FORMAT", FORMATS)


def set_up(environ: Mapping[str, str]) -> None:
    """Sends all log lines of this process to stderr in the form that the environment asks for, those of Temporal's native library too.

    Raises:
        ValueError: As from ``log_format``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format(environ) == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    for name in ("httpx2", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below it, they log each request, and the start
    # The line shows these facts as extras already.
    temporalio.activity.logger.activity_info_on_message = False
    temporalio.workflow.logger.workflow_info_on_message = False
    core = LogForwardingConfig(
        logging.getLogger("temporalio.core"),
        append_target_to_name=False,
        prepend_target_on_message=False,
        append_log_fields_to_message=False,
    )
    logs = LoggingConfig(TelemetryFilter(core_level="WARN", other_level="ERROR"), forwarding=core)
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=logs)))
    sys.excepthook = _log_crash
    threading.excepthook = lambda crash: _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)


def _log_crash(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    logging.getLogger("sitelink").critical("crashed", exc_info=(kind, error or kind(), traceback))


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """The facts of a line besides its message, ``ref`` and ``sheet`` first."""
    given = {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD_ATTRIBUTES and not name.startswith(("temporal_", "_"))
    }
    of_library: dict[str, Any] = {}
    for source in ("temporal_workflow", "temporal_activity"):
        of_library |= getattr(record, source, {})
    of_library |= getattr(getattr(record, "temporal_log", None), "fields", {})
    facts = {**(_log_context.get() or {}), **given}
    if "ref" not in facts and (found := _UPLOAD_WORKFLOW_ID.fullmatch(str(of_library.get("workflow_id", "")))):
        facts["ref"] = found[1]
    facts |= {ours: of_library[theirs] for theirs, ours in _TEMPORAL_FIELDS.items() if theirs in of_library}
    return {name: facts.pop(name) for name in ("ref", "sheet") if name in facts} | facts


class TextFormatter(logging.Formatter):
    """``2026-01-31T09:30:05.123Z INFO api.uploads: accepted an upload ref=local/demo/plan/… size_bytes=1234``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it."""
        words = [f"{_time(record)} {record.levelname} {record.name}: {_one_line(record.getMessage().strip())}"]
        words += [f"{name}={_quoted(value)}" for name, value in extras(record).items()]
        trace = _traceback(self, record)
        return _without_secrets(" ".join(words) + (f"\n{trace}" if trace else ""))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` ``level`` ``logger`` ``message``, the extras, and ``exception``, the text of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        head = {"time": _time(record), "level": record.levelname, "logger": record.name, "message": record.getMessage().strip()}
        trace = _traceback(self, record)
        document = {**extras(record), **({"exception": trace} if trace else {})}
        return json.dumps(_json_value(head | {name: value for name, value in document.items() if name not in head}))


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = (record.exc_info and formatter.formatException(record.exc_info), record.stack_info)
    return "\n".join(part for part in parts if part)


def _quoted(value: object) -> str:
    """The value's text: as it is when it is one plain word, else quoted."""
    text = str(value)
    return text if re.fullmatch(r"[!#-~]+", text) else _one_line(json.dumps(text, ensure_ascii=False))


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _without_secrets(text: str) -> str:
    return _SECRET.sub(r"\1…", text)


def _json_value(value: object) -> object:
    """The value as JSON can hold it, without secrets."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(name): _json_value(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_json_value(entry) for entry in value]
        case _:
            return _without_secrets(str(value))
