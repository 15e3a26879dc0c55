"""The access log: a record of `logging` for each answered call, written by a thread, with a bound and never contents.

The loop puts the records of ended calls into a queue. The thread makes fields and message, and hands the log record to
`logging`, where the host's handlers or the standalone server's take the record.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
from collections import deque
from typing import Any
from uuid import UUID
from weakref import WeakSet

from embedserve.call_record import CallHeaders, CallRecord, CallTiming
from embedserve.errors import Code, ConfigError, one_line
from embedserve.observer import CallObserver, Observers

__all__ = ["AccessLog", "flush_access_logs"]

failures = logging.getLogger("embedserve")

# Seconds between two looks of the thread at a queue that fills: a wake per line would cost the loop more than the line.
_PAUSE = 0.05
# Seconds without a line after which the thread ends.
_IDLE = 5.0
_MAX_WAITING = 4096
"""Calls that wait for the thread; about 2 kB each."""


_open: WeakSet[AccessLog] = WeakSet()
"""The logs with a thread, whose last lines would be lost with the process."""


@atexit.register
def flush_access_logs() -> None:
    """Wait until the queued lines of every log are written, for a process at its end."""
    for each in list(_open):
        each.flush()


class AccessLog(CallObserver):
    """Logs answered calls at INFO to the logger `embedserve.access`, the fields as attributes of the log record.

    The call's fields have the names of OpenTelemetry's semantic conventions, and `embedserve.` before names without a
    convention. Each logged call has a request id, sent in `x-request-id` by the client or made, and given back there.

    Args:
        sampling: Share of the calls to log, from 0 to 1.
        slow: Seconds from which on a call is logged in any case; None for no such rule.
        failed: Whether calls with an error are logged in any case.
        max_waiting: Bound of calls that wait for the writing thread; calls beyond are dropped, and counted by
            `Observer.lines_dropped`.
        logger: The logger, in place of `embedserve.access`.

    Raises:
        ConfigError: `sampling` is no share.
    """

    def __init__(
        self,
        *,
        sampling: float = 1.0,
        slow: float | None = 1.0,
        failed: bool = True,
        max_waiting: int = _MAX_WAITING,
        logger: logging.Logger | None = None,
    ) -> None:
        if not 0 <= sampling <= 1:
            raise ConfigError(f"sampling is {sampling!r}, expected a share from 0 to 1")
        self._sampling = sampling
        self._slow = slow
        self._failed = failed
        self._late = slow is not None or failed  # Whether the end of a call may still ask for a line.
        self._max_waiting = max_waiting
        self._logger = logger or logging.getLogger("embedserve.access")
        self._random = random.random
        self._observers: Observers | None = None
        self._waiting: deque[CallRecord] = deque()
        self._taken = self._done = 0
        self._start_anew()
        self.dropped = 0

    def _start_anew(self) -> None:
        """Forget the thread; a forked child has the object without the thread."""
        self._pid = os.getpid()
        self._running = False
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._written = threading.Condition()
        self._done = self._taken - len(self._waiting)

    def __repr__(self) -> str:
        return f"<AccessLog {len(self._waiting)} waiting, {self._done} written, {self.dropped} dropped>"

    def joined(self, observers: Observers) -> None:
        """Report dropped lines to the registry's observers."""
        self._observers = observers

    def wants(self, transport: str, headers: CallHeaders) -> bool | None:
        """Return whether the call is in the sample; None for a call that no rule can log."""
        if self._sampling >= 1 or self._random() < self._sampling:
            return True
        return False if self._late else None

    def call_began(self, record: CallRecord) -> None:
        """Name the request."""
        if not record.request_id:
            record.request_id = record.headers.request_id or str(UUID(int=random.getrandbits(128), version=4))

    def call_finished(self, record: CallRecord) -> None:
        """Queue a call of the sample, a slow call or a failed call."""
        sampled = record.marks.get(self)
        if sampled is None:
            return
        failed = self._failed and record.code is not Code.OK
        if not sampled and not failed and (self._slow is None or record.ended - record.began < self._slow):
            return
        if len(self._waiting) >= self._max_waiting:
            self.dropped += 1
            if self._observers is not None:
                self._observers.lines_dropped("access", 1)
            return
        if self._pid != os.getpid():
            self._start_anew()
        with self._lock:
            self._taken += 1
            self._waiting.append(record)
            begins, self._running = not self._running, True
        if begins:
            _open.add(self)
            threading.Thread(target=self._write, name="embedserve-access-log", daemon=True).start()
        if not self._work.is_set():
            self._work.set()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait, on any thread but a loop's, until the queued calls are written; return False if time is over."""
        if self._pid != os.getpid():
            return True
        wanted = self._taken
        self._work.set()
        with self._written:
            return self._written.wait_for(lambda: self._done >= wanted or not self._running, timeout)

    def _write(self) -> None:
        """Write until there is nothing to write for a while; the thread's whole life."""
        while True:
            idle = not self._work.wait(_IDLE)
            self._work.clear()
            while self._waiting:
                self._log(self._waiting.popleft())
                self._done += 1
            with self._written:
                self._written.notify_all()
            with self._lock:
                if idle and not self._waiting:
                    self._running = False
                    return
            time.sleep(_PAUSE)

    def _log(self, call: CallRecord) -> None:
        logger = self._logger
        try:
            if logger.isEnabledFor(logging.INFO):
                made = logger.makeRecord(
                    logger.name, logging.INFO, __file__, 0, _message_of(call), (), None, "access", fields_of(call)
                )
                made.created = call.nanoseconds(call.ended) / 1e9
                made.msecs = made.created % 1 * 1e3
                logger.handle(made)
        except Exception:
            failures.exception("a line of the access log could not be written")


def _message_of(call: CallRecord) -> str:
    """The call in a line: what came, what was answered and how long the call took."""
    timing = call.fill(CallTiming())
    asked = f"{call.method} {call.target}" if call.transport == "REST" else call.target or f"{call.api} {call.model}"
    answered = f"{call.status} {call.code.name}" if call.status else call.code.name
    parts = [f"{call.client or '-'} {asked} {answered} {timing.total * 1e3:.2f} ms"]
    if call.version is not None:
        parts.append(f"version {call.version}")
    if timing.rows:
        times = f"queue {timing.queue * 1e3:.2f} ms, run {timing.run * 1e3:.2f} ms"
        parts.append(f"{times}, {timing.rows} of {timing.batch_rows} rows")
    if call.received or call.sent:
        parts.append(f"{call.received} bytes in, {call.sent} out")
    return one_line(", ".join([*parts, f"id {call.request_id}"]))


def fields_of(call: CallRecord) -> dict[str, Any]:
    """The fields of a call's line, without those that the call does not have."""
    timing = call.fill(CallTiming())
    found: dict[str, Any] = {
        "event_name": "embedserve.access",
        "embedserve.request.id": call.request_id,
        "trace_id": call.trace_id,
        "span_id": call.span_id,
        "client.address": call.client,
        "network.peer.address": call.peer if call.peer != call.client else "",
        "embedserve.model.name": call.model,
        "embedserve.model.version": call.version,
        "embedserve.model.signature": call.signature,
        "embedserve.outcome": call.code.name,
        "error.type": call.code.name if call.code is not Code.OK else "",
        "embedserve.duration": round(timing.total, 7),
    }
    if timing.rows:
        found |= {
            "embedserve.queue.duration": round(timing.queue, 7),
            "embedserve.run.duration": round(timing.run, 7),
            "embedserve.rows": timing.rows,
            "embedserve.batch.rows": timing.batch_rows,
            "embedserve.batch.padding_rows": timing.padding_rows,
        }
    if call.transport == "REST":
        found |= {
            "http.request.method": call.method,
            "url.path": call.target,
            "http.response.status_code": call.status,
            "http.request.body.size": call.received,
            "http.response.body.size": call.sent,
        }
    elif call.transport == "GRPC":
        found |= {
            "rpc.system.name": "grpc",
            "rpc.method": call.target.removeprefix("/"),
            "rpc.response.status_code": call.code.name,
            "embedserve.request.size": call.received,
            "embedserve.response.size": call.sent,
        }
    return {name: value for name, value in found.items() if value not in ("", None)}
