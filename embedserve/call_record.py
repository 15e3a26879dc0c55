"""What is noted of a call that somebody asked to see: times, sizes, the version and the batch of the answer.

A record exists only for such calls; the entry of the call decides. The parts on the call's way fill the record in, and
observers read the record after the end. `current_call` is the record of the running call. The module knows no wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import Any

from embedserve.errors import Code
from embedserve.priority import PRIORITY_KEY

__all__ = [
    "MAX_TARGET",
    "NO_HEADERS",
    "TIMING_KEY",
    "CallHeaders",
    "CallRecord",
    "CallTiming",
    "RunRecord",
    "Step",
    "current_call",
]

REQUEST_ID = b"x-request-id"
TIMING_KEY = "x-embedserve-timing"
"""The name of the REST header and the gRPC metadata key that ask for the times of a call; any value but `0` does."""

_TIMING = TIMING_KEY.encode()

_READ = frozenset({b"traceparent", _TIMING, REQUEST_ID, PRIORITY_KEY.encode()})
MAX_TARGET = 1024
"""Characters kept of a target and of a model's name: a client chooses either."""

_MAX_REQUEST_ID = 128


class CallHeaders:
    """The headers of a call that name the call or ask for its record.

    Attributes:
        fields: All headers, names in lower case.
        traceparent: W3C's trace context, as sent; empty without one.
        request_id: The client's name for the request; empty for none, and for a name that no log should hold.
        timing: Whether the client asks for the times of the call.
        priority: The client's priority, as sent; None without one.
    """

    __slots__ = ("fields", "priority", "request_id", "timing", "traceparent")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.fields: Sequence[tuple[bytes, bytes]] = fields if isinstance(fields, tuple | list) else tuple(fields)
        self.traceparent = b""
        self.request_id = ""
        self.timing = False
        self.priority: bytes | None = None
        for name, value in self.fields:
            if name in _READ:
                self._read(name, value)

    def _read(self, name: bytes, value: bytes) -> None:
        if name == b"traceparent":
            self.traceparent = value
        elif name == _TIMING:
            self.timing = value != b"0"
        elif name == REQUEST_ID:
            self.request_id = _acceptable(value)
        elif self.priority is None:
            self.priority = value

    def all(self, name: bytes) -> list[str]:
        """The values of a header, in the order of arrival."""
        return [value.decode("latin-1") for key, value in self.fields if key == name]


def _acceptable(value: bytes) -> str:
    text = value.decode("latin-1")
    return text if len(text) <= _MAX_REQUEST_ID and text.isascii() and text.isprintable() else ""


NO_HEADERS = CallHeaders()
"""The headers of a call in the process."""


class RunRecord:
    """A run and its batch; the recorded calls of the batch share the record.

    Attributes:
        began, ended: Seconds of `perf_counter`; `ended` is 0 before the end.
        rows: Rows of all requests in the run.
        padding: Rows added to reach an allowed size.
        requests: Requests, or pieces of requests, in the run.
        reason: Why the batch left the queue; empty for a run without a queue.
        error: Name of the error's class; empty for a run with an answer.
        marks: The `marks` of the recorded calls in the run.
        noted: An observer's own note on the run, by observer.
    """

    __slots__ = ("began", "ended", "error", "marks", "noted", "padding", "reason", "requests", "rows")

    def __init__(self, began: float, rows: int, padding: int = 0, requests: int = 1, reason: str = "") -> None:
        self.began = began
        self.ended = 0.0
        self.rows = rows
        self.padding = padding
        self.requests = requests
        self.reason = reason
        self.error = ""
        self.marks: list[dict[object, Any]] = []
        self.noted: dict[object, Any] = {}

    def end(self, error: Exception | None) -> None:
        """Note the end of the run, with an answer or an error."""
        self.ended = self.ended or perf_counter()
        self.error = "" if error is None else type(error).__name__

    def __repr__(self) -> str:
        return f"<RunRecord of {self.rows}+{self.padding} rows, {self.requests} requests>"


class Step:
    """A wait in a queue, and the run that ended the wait; `run` is None where no run came.

    Attributes:
        entered: Seconds of `perf_counter`.
        rows: Rows of the request in the run.
        run: The run.
    """

    __slots__ = ("entered", "rows", "run")

    def __init__(self, entered: float, rows: int) -> None:
        self.entered = entered
        self.rows = rows
        self.run: RunRecord | None = None


@dataclass(slots=True)
class CallTiming:
    """The times of a call, for `predict(..., timing=CallTiming())`, filled in at the end of the call, failed or not.

    Attributes:
        queue: Seconds of waiting for a run.
        run: Seconds of the run, which all requests of a batch share.
        total: Seconds of the whole call.
        rows: Rows of the request.
        batch_rows: Rows of the batch, padding left out.
        padding_rows: Rows added to the batch to reach an allowed size.
        version: The version of the answer; None if the call ended before a version was found.
        signature: The signature of the answer.
    """

    queue: float = 0.0
    run: float = 0.0
    total: float = 0.0
    rows: int = 0
    batch_rows: int = 0
    padding_rows: int = 0
    version: int | None = None
    signature: str = ""


class CallRecord:
    """A call from its entry to its end; filled in on the registry's loop.

    Attributes:
        api: `predict`... on REST, `Predict`... on gRPC, `predict` in the process.
        transport: `REST`, `GRPC`, or empty for a call in the process.
        headers: The client's headers.
        peer: The address at the other end of the connection; empty where there is none.
        client: The client's address, which known proxies have told; else `peer`.
        method, target: Of HTTP; the path of the method for gRPC.
        model, version, signature: The answering signature, as far as the call came.
        began, answered, ended: Seconds of `perf_counter`; `answered` is the end of the last run, and 0 before.
        wall: Nanoseconds since 1970 at `began`.
        steps: The waits and runs of the call.
        code: The canonical code of the answer.
        status: The HTTP status; 0 without one.
        received, sent: Bytes of the bodies.
        request_id: The client's or a made name of the request; empty where no observer asks for one.
        trace_id, span_id: Of the call's span, as hexadecimal digits; empty without a span.
        marks: An observer's own note on the call, by observer.
        timing: Whether the answer tells the times to the client.
    """

    __slots__ = (
        *("answered", "api", "began", "client", "code", "ended", "headers", "marks", "method", "model", "peer"),
        *("received", "request_id", "sent", "signature", "span_id", "status", "steps", "target", "timing", "trace_id"),
        *("transport", "version", "wall"),
    )

    def __init__(self, transport: str, headers: CallHeaders, timing: bool = False) -> None:
        self.transport = transport
        self.headers = headers
        self.timing = timing
        self.began = perf_counter()
        self.wall = time_ns()
        self.answered = self.ended = 0.0
        self.api = self.client = self.peer = self.method = self.target = self.model = self.signature = ""
        self.version: int | None = None
        self.steps: list[Step] = []
        self.code = Code.OK
        self.status = self.received = self.sent = 0
        self.request_id = self.trace_id = self.span_id = ""
        self.marks: dict[object, Any] = {}

    def __repr__(self) -> str:
        return f"<CallRecord {self.transport} {self.api} {self.model} {self.version}, {self.code.name}>"

    def wait(self, rows: int) -> Step:
        """Note that the request, or a piece of the request, waits for a run from now on."""
        step = Step(perf_counter(), rows)
        self.steps.append(step)
        return step

    def nanoseconds(self, at: float) -> int:
        """The time since 1970 of a `perf_counter` time."""
        return self.wall + int((at - self.began) * 1e9)

    @property
    def rows(self) -> int:
        """Rows of the request."""
        return sum(step.rows for step in self.steps)

    @property
    def runs(self) -> list[RunRecord]:
        """The different runs of the call, in the order of their beginnings."""
        runs = {id(step.run): step.run for step in self.steps if step.run is not None}
        return sorted(runs.values(), key=lambda run: run.began)

    def fill(self, timing: CallTiming) -> CallTiming:
        """Write the times of an ended call."""
        runs = self.runs
        timing.total = self.ended - self.began
        timing.rows = self.rows
        if self.steps:
            entered = min(step.entered for step in self.steps)
            timing.queue = (runs[0].began if runs else self.ended) - entered
        if runs:
            timing.run = max(run.ended or self.ended for run in runs) - runs[0].began
        timing.batch_rows = sum(run.rows for run in runs)
        timing.padding_rows = sum(run.padding for run in runs)
        timing.version, timing.signature = self.version, self.signature
        return timing

    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        """What an answer tells of an ended call: the name of the request and the times, as far as asked for."""
        told = [(REQUEST_ID, self.request_id.encode())] if self.request_id else []
        return [*told, (b"server-timing", self.server_timing())] if self.timing else told

    def server_timing(self) -> bytes:
        """The value of a `Server-Timing` header for an ended call; durations in milliseconds."""
        t = self.fill(CallTiming())
        parts = [f"queue;dur={t.queue * 1e3:.3f}", f"run;dur={t.run * 1e3:.3f}", f"total;dur={t.total * 1e3:.3f}"]
        told = {"rows": t.rows, "batch": t.batch_rows, "padding": t.padding_rows, "version": t.version}
        parts += [f'{name};desc="{value}"' for name, value in told.items() if value is not None]
        return ", ".join(parts).encode()


current_call: ContextVar[CallRecord | None] = ContextVar("embedserve_current_call", default=None)
"""The record of the call that the context belongs to; None for a call without a record."""
