"""The thread that writes a prefix's files, with a bounded queue.

The loop puts exchanges into the queue and never waits. Exchanges beyond the bound are dropped and counted, with a
warning now and then. Knows no model.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from embedserve.errors import Code
from embedserve.request_log.files import RecordTooLargeError, RotatingFiles
from embedserve.request_log.records import Exchange, record_of

__all__ = ["LogWriter", "Report"]

logger = logging.getLogger("embedserve")

# Bytes of the exchanges that wait for the disk, at most.
MAX_QUEUED_BYTES = 64 * 2**20
# Bytes of an exchange besides the messages; bounds the number of exchanges with empty messages.
_OVERHEAD = 1024
# Seconds between two warnings of the same kind.
_WARNING_INTERVAL = 10.0
# Seconds for which the disk is left alone after a failure; doubled after each further failure, up to the bound.
_RETRY_AFTER = 1.0
_RETRY_AFTER_AT_MOST = 60.0
# Exchanges after which outcomes are reported, even with more exchanges in the queue.
_REPORT_EVERY = 100

Report = Callable[[Counter[tuple[str, Code]]], None]
"""Takes the number of records by model and code; called in the writer's thread."""


class _Taken(NamedTuple):
    exchange: Exchange
    sampling_rate: float
    tags: tuple[str, ...]
    seconds: int


class LogWriter:
    """Writes exchanges in order of arrival, from construction to `close`.

    Args:
        files: The files, used by the writer alone.
        report: Hears the outcome of every taken exchange.
    """

    def __init__(self, files: RotatingFiles, report: Report, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._files = files
        self._report = report
        self._max_queued_bytes = max_queued_bytes
        self._queue: queue.SimpleQueue[_Taken | None] = queue.SimpleQueue()
        # Each count has a single writing thread, so the difference needs no lock.
        self._taken_bytes = 0
        self._written_bytes = 0
        self._closed = False
        self._retry_at = 0.0
        self._retry_after = _RETRY_AFTER
        self._dropped = _Warnings(f"exchanges for {files.prefix} were not logged: the disk does not keep up")
        self._failed = _Warnings(f"records could not be written to {files.prefix}")
        self._thread = threading.Thread(target=self._work, name="embedserve-request-log", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<LogWriter {self._files.prefix}, {self._taken_bytes - self._written_bytes} bytes queued>"

    def put(self, exchange: Exchange, sampling_rate: float, tags: tuple[str, ...]) -> bool:
        """Queue an exchange, unless the queue is full; loop only."""
        size = exchange.size + _OVERHEAD
        if self._closed or self._taken_bytes - self._written_bytes + size > self._max_queued_bytes:
            self._dropped.add()
            return False
        self._taken_bytes += size
        self._queue.put(_Taken(exchange, sampling_rate, tags, int(time.time())))
        return True

    def close(self) -> None:
        """Write the queued exchanges, then end; returns at once."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the end after `close`; False if the disk takes longer than `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._files.prepare()
        except OSError as error:
            self._failed.add(error)
        ended = Counter[tuple[str, Code]]()
        while (taken := self._queue.get()) is not None:
            ended[taken.exchange.model_name, self._write(taken)] += 1
            self._written_bytes += taken.exchange.size + _OVERHEAD
            del taken
            if self._queue.empty() or ended.total() >= _REPORT_EVERY:
                wrote = any(code is Code.OK for _, code in ended)
                if self._attempt(self._files.flush) and wrote:
                    self._retry_after = _RETRY_AFTER
                self._report(ended)
                ended = Counter()
        self._attempt(self._files.close)
        self._report(ended)

    def _write(self, taken: _Taken) -> Code:
        if time.monotonic() < self._retry_at:
            self._failed.add()
            return Code.UNAVAILABLE
        try:
            record = record_of(*taken)
        except Exception:
            logger.exception("an exchange with %s cannot be written as a record", taken.exchange.model_name)
            return Code.INTERNAL
        try:
            self._files.write(record)
        except RecordTooLargeError as error:
            self._failed.add(error)
            return Code.RESOURCE_EXHAUSTED
        except Exception as error:
            self._leave_alone(error)
            return Code.UNAVAILABLE
        return Code.OK

    def _attempt(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:
            self._leave_alone(error)
            return False
        return True

    def _leave_alone(self, error: Exception) -> None:
        self._failed.add(error)
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(2 * self._retry_after, _RETRY_AFTER_AT_MOST)


class _Warnings:
    """Counts events that are too frequent to log each time."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._next = 0.0

    def add(self, error: Exception | None = None) -> None:
        """Count an event; now and then a warning reports the count."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _WARNING_INTERVAL
            why = "" if error is None else f": {type(error).__name__}: {error}"
            logger.warning("%d %s%s", self._count, self._what, why)
