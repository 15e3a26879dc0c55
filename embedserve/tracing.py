"""OpenTelemetry spans of calls, batches and versions, as an observer: `ModelRegistry(observers=[Tracing()])`.

The decision about a call comes first, and costs a look at the parent's flag or a random number. The spans of a chosen
call are built after its end, from the record's times. Needs `opentelemetry-api` alone: the host has the SDK.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from embedserve.call_record import CallHeaders, CallRecord, CallTiming, RunRecord, Step
from embedserve.errors import Code, ConfigError
from embedserve.observer import CallObserver
from embedserve.servable import ServableId, State

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, Tracer, TracerProvider

__all__ = ["Tracing"]

# Seconds between two looks for a tracer provider of the host.
_LOOK_INTERVAL = 1.0
_MOST_MOVES = 1000
"""Versions on their way up or down with an open span, at most."""

_SERVER_ERRORS = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""The codes that make a span of a server an error, by the conventions for gRPC."""


class Tracing(CallObserver):
    """Makes spans of sampled calls and of every version's way up and down.

    A call in a host's span is sampled as the host's span. A call with a `traceparent` is sampled as the caller's span.
    A call without either is sampled with the probability `sampling`, and then by the SDK's own sampler. Without an SDK
    in the process the observer does nothing.

    Args:
        tracer_provider: Makes the spans; None is the provider that the process has set, now or later.
        sampling: Share of the calls without a parent that get spans, from 0 to 1.

    Raises:
        ConfigError: `opentelemetry-api` is not installed, or `sampling` is no share.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None, *, sampling: float = 1.0) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError:
            raise ConfigError(
                "tracing needs OpenTelemetry's API: pip install 'embedserve[otel]'", code=Code.FAILED_PRECONDITION
            ) from None
        if not 0 <= sampling <= 1:
            raise ConfigError(f"sampling is {sampling!r}, expected a share from 0 to 1")
        self._trace = trace
        self._propagate = propagate
        self._current_context = context.get_current
        self._no_context = context.Context()
        self._provider = tracer_provider
        self._sampling = sampling
        self._random = random.random
        self._tracer: Tracer | None = None
        self._look_at = 0.0
        self._fields: frozenset[str] = frozenset()
        self._moves: dict[tuple[ServableId, State], deque[_Move]] = {}

    def __repr__(self) -> str:
        return f"<Tracing of {self._sampling:.3g} of the calls{'' if self._tracer else ', without an SDK'}>"

    # The decision.

    def wants(self, transport: str, headers: CallHeaders) -> Span | None:
        """Return the span of a sampled call; None for any other call."""
        tracer = self._tracer
        if tracer is None and (perf_counter() < self._look_at or (tracer := self._look()) is None):
            return None
        trace, here = self._trace, self._current_context()
        kind = trace.SpanKind.INTERNAL
        parent: Context = self._no_context
        if here and (span := trace.get_current_span(here).get_span_context()).is_valid:
            if not span.trace_flags.sampled:
                return None
            parent = here
        else:
            kind = trace.SpanKind.SERVER if transport else kind
            if headers.traceparent:
                if _is_unsampled(headers.traceparent):
                    return None
                parent = self._extracted(headers)
            elif self._fields and headers.fields:
                parent = self._extracted(headers)
            if not parent and self._sampling < 1 and self._random() >= self._sampling:
                return None
        made = tracer.start_span("call", parent, kind, start_time=time_ns())
        return made if made.is_recording() else None

    def _look(self) -> Tracer | None:
        """Return the tracer of the process's provider; None, for a while, without an SDK."""
        trace = self._trace
        provider = trace.get_tracer_provider() if self._provider is None else self._provider
        if not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
            tracer = provider.get_tracer("embedserve")
            if not isinstance(tracer, trace.NoOpTracer):
                # The fields of other formats than W3C's, for hosts that have chosen one.
                self._fields = frozenset(self._propagate.get_global_textmap().fields) - _W3C
                self._tracer = tracer
                return tracer
        self._look_at = perf_counter() + _LOOK_INTERVAL
        return None

    def _extracted(self, headers: CallHeaders) -> Context:
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.fields}
        context = self._propagate.extract(carrier, self._no_context)
        return context if self._trace.get_current_span(context).get_span_context().is_valid else self._no_context

    def call_began(self, record: CallRecord) -> None:
        """Name the span in the record, for logs and exemplars."""
        context = record.marks[self].get_span_context()
        record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"

    # The spans of a call.

    def call_finished(self, record: CallRecord) -> None:
        """Build the spans of a sampled call from its times."""
        span: Span | None = record.marks.get(self)
        if span is None or self._tracer is None:
            return
        within = self._trace.set_span_in_context(span, self._no_context)
        for step in record.steps:
            self._waited(record, step, within)
        if record.answered and record.transport:
            self._span("encode", within, record.nanoseconds(record.answered), record.nanoseconds(record.ended))
        span.update_name(_name_of(record, self._is_server(span)))
        span.set_attributes(_attributes_of(record))
        if record.code in _SERVER_ERRORS or (record.code is not Code.OK and not self._is_server(span)):
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.end(record.nanoseconds(record.ended))

    def _is_server(self, span: Span) -> bool:
        return getattr(span, "kind", None) is self._trace.SpanKind.SERVER

    def _waited(self, record: CallRecord, step: Step, within: Context) -> None:
        """Build the spans of a wait and its run; the run of a batch once, whichever call ends first."""
        run = step.run
        began = record.ended if run is None else run.began
        links: list[Link] = []
        if run is not None:
            links.append(self._trace.Link(self._run(record, run, within)))
        rows = {"embedserve.rows": step.rows}
        self._span("queue", within, record.nanoseconds(step.entered), record.nanoseconds(began), rows, links)

    def _run(self, record: CallRecord, run: RunRecord, within: Context) -> SpanContext:
        known: SpanContext | None = run.noted.get(self)
        if known is not None:
            return known
        links = [self._trace.Link(marks[self].get_span_context()) for marks in run.marks if self in marks]
        attributes: dict[str, Any] = {
            **_model_of(record),
            "embedserve.batch.rows": run.rows,
            "embedserve.batch.padding_rows": run.padding,
            "embedserve.batch.requests": run.requests,
            "embedserve.outcome": run.error or ("ok" if run.ended else "left"),
        }
        if run.reason:
            attributes["embedserve.batch.reason"] = run.reason
        began, ended = record.nanoseconds(run.began), record.nanoseconds(run.ended or record.ended)
        made = self._span("run", within, began, ended, attributes, links, error=run.error)
        if run.ended:  # A call may end before its run; the run's true end is in the spans of other calls.
            run.noted[self] = made
        return made

    def _span(
        self,
        name: str,
        within: Context,
        began: int,
        ended: int,
        attributes: Mapping[str, Any] | None = None,
        links: list[Link] | None = None,
        error: str = "",
    ) -> SpanContext:
        assert self._tracer is not None
        span = self._tracer.start_span(name, within, attributes=attributes, links=links, start_time=began)
        if error:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.end(ended)
        return span.get_span_context()

    # The spans of a version.

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        """Begin a span of the version's way up or down, or end the span."""
        tracer = self._tracer or self._look()
        if tracer is None:
            return
        if state in (State.LOADING, State.UNLOADING):
            self._move(tracer, id, state, error)
        elif state is State.AVAILABLE and (up := self._last(id, State.LOADING)) is not None:
            if up.loaded:
                self._span("publish", up.within, up.loaded, time_ns())
            self._arrive(id, State.LOADING, None)
        elif state is State.END:
            self._arrive(id, State.UNLOADING if self._last(id, State.UNLOADING) else State.LOADING, error)

    def _move(self, tracer: Tracer, id: ServableId, state: State, error: Exception | None) -> None:
        if error is not None and self._last(id, state) is not None:
            return  # A further attempt of the same load.
        if sum(map(len, self._moves.values())) >= _MOST_MOVES:
            return
        name = "bring up" if state is State.LOADING else "unload"
        attributes: dict[str, Any] = {"embedserve.model.name": id.name, "embedserve.model.version": id.version}
        span = tracer.start_span(f"{name} {id.name}", self._no_context, attributes=attributes)
        within = self._trace.set_span_in_context(span, self._no_context)
        self._moves.setdefault((id, state), deque()).append(_Move(span, within))

    def _last(self, id: ServableId, state: State) -> _Move | None:
        moves = self._moves.get((id, state))
        return moves[-1] if moves else None

    def _arrive(self, id: ServableId, state: State, error: Exception | None) -> None:
        moves = self._moves.get((id, state))
        if not moves:
            return
        span = moves.popleft().span
        if not moves:
            del self._moves[id, state]
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(error)))
        span.end()

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        """Make the span of a load attempt, its warm-up included."""
        up = self._last(id, State.LOADING)
        if up is None:
            return
        up.loaded = now = time_ns()
        failure = "" if error is None else type(error).__name__
        self._span("load", up.within, now - int(seconds * 1e9), now, {"embedserve.model.path": path}, error=failure)

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        """Make the span of the recorded warm-up requests."""
        failure = "" if error is None else type(error).__name__
        self._warmed(id, seconds, {"embedserve.warmup.records": records}, failure)

    def threads_warmed(self, id: ServableId, seconds: float) -> None:
        """Make the span of the made-up warm-up requests."""
        self._warmed(id, seconds, {})

    def _warmed(self, id: ServableId, seconds: float, attributes: Mapping[str, Any], error: str = "") -> None:
        up = self._last(id, State.LOADING)
        if up is not None:
            now = time_ns()
            self._span("warm-up", up.within, now - int(seconds * 1e9), now, attributes, error=error)


class _Move:
    """A version's way up or down, with its open span."""

    __slots__ = ("loaded", "span", "within")

    def __init__(self, span: Span, within: Context) -> None:
        self.span = span
        self.within = within
        self.loaded = 0


_W3C = frozenset({"traceparent", "tracestate", "baggage"})


def _is_unsampled(traceparent: bytes) -> bool:
    """Whether the caller has decided against the trace; a malformed value decides nothing."""
    flags = traceparent[53:55]
    return len(flags) == 2 and traceparent[52:53] == b"-" and flags[1:] in b"02468aceACE" and flags.isalnum()


def _name_of(record: CallRecord, is_server: bool) -> str:
    if not is_server:
        return f"{record.api or 'call'} {record.model}".rstrip()
    if record.transport == "GRPC":
        return record.target[1:]
    return f"{record.method} {_route_of(record)}".rstrip()


def _route_of(record: CallRecord) -> str:
    """The template of the path: names of models are attributes, and no part of a span's name."""
    if record.target.startswith("/v2"):
        return "/v2/models/{model}/infer" if record.api == "infer" else "/v2"
    ends = {"predict": ":predict", "classify": ":classify", "regress": ":regress", "metadata": "/metadata"}
    return f"/v1/models/{{model}}{ends.get(record.api, '')}" if record.api and record.api != "list" else "/v1/models"


def _model_of(record: CallRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"embedserve.model.name": record.model}
    if record.version is not None:
        found["embedserve.model.version"] = record.version
    if record.signature:
        found["embedserve.model.signature"] = record.signature
    return found


def _attributes_of(record: CallRecord) -> dict[str, Any]:
    timing = record.fill(CallTiming())
    found: dict[str, Any] = {
        **_model_of(record),
        "embedserve.rows": timing.rows,
        "embedserve.batch.rows": timing.batch_rows,
        "embedserve.batch.padding_rows": timing.padding_rows,
        "embedserve.outcome": record.code.name,
    }
    if record.request_id:
        found["embedserve.request.id"] = record.request_id
    if record.code is not Code.OK:
        found["error.type"] = record.code.name
    if record.transport == "REST":
        found |= {"http.request.method": record.method, "http.route": _route_of(record), "url.path": record.target}
        found["http.response.status_code"] = record.status
    elif record.transport == "GRPC":
        found |= {
            "rpc.system.name": "grpc",
            "rpc.method": record.target[1:],
            "rpc.response.status_code": record.code.name,
        }
    if record.client:
        found["client.address"] = record.client
    return found
