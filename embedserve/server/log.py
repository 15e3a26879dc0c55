"""Logging of a standalone server: to stderr, in the form of TensorFlow's C++ code, known to log collectors.

A record is a single line, even with texts of clients; a traceback follows indented. An embedded registry never sets
logging up.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from embedserve.errors import one_line
from embedserve.logs.json_lines import JsonFormatter

__all__ = ["configure_logging"]


class _LogFormatter(logging.Formatter):
    """`2026-07-01 12:00:00.000000: I embedserve/rest/app.py:12] message`, as TensorFlow's C++ code logs."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        record.letter = record.levelname[0]
        record.micros = int(record.created % 1 * 1e6)
        _, package, inside = record.pathname.rpartition("/embedserve/")
        record.place = package[1:] + inside if package else record.filename
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Format the message as a single line."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Indent a traceback, so that no line looks like a record: a client may have chosen the text of the error."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """As `formatException`."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"    {one_line(line)}" for line in text.split("\n"))


def configure_logging(worker: int | None = None, level: int = logging.INFO, *, json: bool = False) -> None:
    """Log to stderr from `level` on.

    Args:
        worker: Number of the worker, where several processes log to the same place.
        level: Lowest level of the records.
        json: Write JSON objects in place of lines of text.
    """
    handler = logging.StreamHandler(sys.stderr)
    if json:
        handler.setFormatter(JsonFormatter(**({} if worker is None else {"embedserve.worker": worker})))
    else:
        who = "" if worker is None else f"worker {worker}: "
        line = f"%(asctime)s.%(micros)06d: %(letter)s %(place)s:%(lineno)d] {who}%(message)s"
        handler.setFormatter(_LogFormatter(line, "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("uvicorn", "watchfiles", "asyncio", "absl", "tensorflow", "opentelemetry"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
