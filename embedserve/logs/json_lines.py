"""Log records as JSON, one object a line: names of OpenTelemetry's log data model and semantic conventions.

A line has the trace and the request of the call that was current when the record was made. `extra` fields of a record
are fields of the line.
"""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

from embedserve.call_record import current_call

__all__ = ["JsonFormatter"]

# OpenTelemetry's numbers of the levels; a level in between takes the next lower number.
_SEVERITY = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17, logging.CRITICAL: 21}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object without line breaks.

    Args:
        fields: Fields of every line, for example the number of a worker.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "severity_text": record.levelname,
            "severity_number": _SEVERITY.get(record.levelno // 10 * 10, 9),
            "logger": record.name,
            "body": record.getMessage(),
            **self._fields,
        }
        if (call := current_call.get()) is not None:
            line |= {"trace_id": call.trace_id, "span_id": call.span_id, "embedserve.request.id": call.request_id}
        # Libraries put attributes of their own, with an underscore, on every record of the process: Ray does.
        line |= {
            name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, frames = record.exc_info
            line["exception.type"] = kind.__qualname__
            line["exception.message"] = str(error)
            line["exception.stacktrace"] = "".join(traceback.format_exception(kind, error, frames))
        if record.levelno >= logging.WARNING:
            line |= {"code.file.path": record.pathname, "code.line.number": record.lineno}
        written = {name: value for name, value in line.items() if value != ""}
        return orjson.dumps(_encodable(written), default=lambda other: _encodable(str(other)), option=_OPTIONS).decode()


def _encodable(value: Any) -> Any:
    """The value as far as JSON can hold it: a client's text may have lone surrogates, and a number any size."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, dict):
        return {_encodable(name): _encodable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(each) for each in value]
    return value
