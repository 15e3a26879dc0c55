"""A record as a JSON line: always a line, always JSON, with the names of OpenTelemetry."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import numpy as np
import pytest

from embedserve import JsonFormatter
from embedserve.call_record import NO_HEADERS, CallRecord, current_call


def made(message: str = "hello", level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("embedserve.x").makeRecord(
        "embedserve.x", level, "/a/b.py", 7, message, (), None, "f", extra
    )


def line_of(record: logging.LogRecord, **fields: Any) -> dict[str, Any]:
    text = JsonFormatter(**fields).format(record)
    assert "\n" not in text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_a_line_has_time_severity_logger_and_body() -> None:
    record = made(_of_a_library=1)
    record.created = 0.25
    assert line_of(record) == {
        "timestamp": "1970-01-01T00:00:00.250000+00:00",
        "severity_text": "INFO",
        "severity_number": 9,
        "logger": "embedserve.x",
        "body": "hello",
    }


def test_fields_of_the_record_and_of_the_process_are_fields_of_the_line() -> None:
    extra: dict[str, Any] = {"embedserve.rows": 3, "embedserve.model.name": "digits"}
    line = line_of(made(**extra), **{"embedserve.worker": 1})
    assert line["embedserve.rows"] == 3
    assert line["embedserve.model.name"] == "digits"
    assert line["embedserve.worker"] == 1


def test_a_warning_names_its_place() -> None:
    line = line_of(made(level=logging.WARNING))
    assert (line["severity_number"], line["code.file.path"], line["code.line.number"]) == (13, "/a/b.py", 7)


def test_an_exception_is_part_of_the_line() -> None:
    record = made()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = line_of(record)
    assert line["exception.type"] == "ValueError"
    assert line["exception.message"] == "two\nlines"
    assert line["exception.stacktrace"].startswith("Traceback")


def test_a_record_made_during_a_call_names_its_trace_and_request() -> None:
    call = CallRecord("REST", NO_HEADERS)
    call.trace_id, call.span_id, call.request_id = "a" * 32, "b" * 16, "r1"
    token = current_call.set(call)
    try:
        line = line_of(made())
    finally:
        current_call.reset(token)
    assert (line["trace_id"], line["span_id"], line["embedserve.request.id"]) == ("a" * 32, "b" * 16, "r1")


@pytest.mark.parametrize(
    "value",
    ["\ud800 alone", "line\u2028end", object(), {1: ("a\udcff", 2)}, float("nan"), 2**70, np.float32(1.5), b"x"],
)
def test_no_value_breaks_a_line(value: Any) -> None:
    assert line_of(made("odd \ud800", odd=value))["body"] == "odd ?"
