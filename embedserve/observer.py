"""Hooks for events of the runtime; metrics and request logging are observers.

Methods of the base class are empty. `Observers` fans a call out and drops, with a log line, an observer's failure: an
observer cannot fail a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import perf_counter
from typing import Any, ClassVar, TypeVar

from embedserve.call_record import NO_HEADERS, CallHeaders, CallRecord, CallTiming, current_call
from embedserve.errors import Code, ServingError
from embedserve.events import Event, EventKind, EventLog
from embedserve.forwarded import TrustedProxies
from embedserve.servable import ServableId, State

__all__ = ["CallObserver", "Observer", "Observers", "running_api"]

logger = logging.getLogger("embedserve")

T = TypeVar("T", bound="Observer")

running_api: ContextVar[str] = ContextVar("embedserve_running_api", default="Predict")
"""The API of a run: `Predict`, `Classify`, `Regress` or `MultiInference`; readable in `run_finished`."""


class Observer:
    """Base class: override the methods of interesting events. All calls come on the registry's loop; do not block.

    Events of a request come in the request's context: context variables of the caller hold there. Events of a batch, a
    run or a version come in a context of no request.

    Attributes:
        reads_context: Whether `queue_wait` looks at context variables; False spares a copy of each request's context.
    """

    reads_context: ClassVar[bool] = True

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        """A version entered `state`; `error` is set for an end by failure."""

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        """A load attempt ended after `seconds`."""

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        """The recorded warm-up requests were all read, or a request failed."""

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        """A request's stay in the predictor ended: queue wait and run together."""

    def graph_run_finished(self, id: ServableId, seconds: float, in_session: bool) -> None:
        """A run of a request or batch ended with an answer, after `seconds` in the run thread.

        `in_session` tells runs of a graph session from runs of functions and interpreters. Runs of a load are not
        reported.
        """

    def run_stuck(self, id: ServableId, signature_name: str, seconds: float) -> None:
        """A run exceeded the time limit and was left behind in the thread; the name is empty for a SessionRun."""

    def run_returned(self, id: ServableId, signature_name: str) -> None:
        """A stuck run has ended after all."""

    def batch_formed(
        self, id: ServableId, signature_name: str, rows: int, padded_rows: int, requests: int, reason: str
    ) -> None:
        """A batch left the queue; `reason` is `full`, `slot`, `timeout` or `closing`."""

    def queue_wait(self, id: ServableId, signature_name: str, seconds: float) -> None:
        """A task waited `seconds` before the batch left the queue."""

    def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
        """A request of `rows` rows and `inputs` input tensors joined a batch queue."""

    def queue_waits(self, id: ServableId, signature_name: str, seconds: Sequence[float]) -> None:
        """As `queue_wait` for each task of a batch; override for a single call per batch."""
        for each in seconds:
            self.queue_wait(id, signature_name, each)

    def requests_enqueued(self, id: ServableId, signature_name: str, rows: Sequence[int], inputs: int) -> None:
        """As `request_enqueued` for each request since the call before; override for a single call per batch."""
        for each in rows:
            self.request_enqueued(id, signature_name, each, inputs)

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """An adapter answered a request with `code`.

        `model_name` is the name sent by the client, known or not. `api` is `predict`... on REST, `Predict`... on gRPC
        and "" for requests without a model's run. `entrypoint` is `REST` or `GRPC`.
        """

    def listener_refused(self, reason: str) -> None:
        """The HTTP listener refused a connection or a request: a status, an error of HTTP/2, or the exceeded limit."""

    def examples_counted(self, model_name: str, examples: int) -> None:
        """A MultiInference request of `examples` examples ran."""

    def request_logged(self, model_name: str, code: Code, requests: int) -> None:
        """A number of sampled requests was logged (OK) or dropped (RESOURCE_EXHAUSTED, or the code of the failure)."""

    def threads_warmed(self, id: ServableId, seconds: float) -> None:
        """Made-up requests have run in the run threads, within `seconds`."""

    def happened(self, event: Event) -> None:
        """An event was added to the registry's history."""

    def call_finished(self, record: CallRecord) -> None:
        """A recorded call ended; calls without a record are not reported. The call's context is current."""

    def lines_dropped(self, log: str, lines: int) -> None:
        """A log of the name had no room for `lines` lines."""


class CallObserver(Observer):
    """Base class of observers that want a record of all or some calls."""

    def wants(self, transport: str, headers: CallHeaders) -> Any:
        """Decide at the entry of a call whether to record the call; in the call's context. The hot path.

        Args:
            transport: `REST`, `GRPC`, or empty for a call in the process.
            headers: The client's headers.

        Returns:
            The observer's note on the call, for `CallRecord.marks`; None for a call that needs no record.
        """

    def call_began(self, record: CallRecord) -> None:
        """A call that the observer wants has a record."""

    def joined(self, observers: Observers) -> None:
        """The observer now belongs to a registry, whose observers take the observer's own reports."""


_OF_EACH = {"queue_waits": "queue_wait", "requests_enqueued": "request_enqueued"}
"""Events of a batch, with the events that their methods tell of each request."""

_HOOKS = tuple(name for name in vars(Observer) if not name.startswith("_") and callable(getattr(Observer, name)))


class Observers(Observer):
    """Fans each call out to the observers with a method of their own for the event; falsy without any observer.

    Args:
        observers: The first observers.
        proxies: As the option `trusted_proxies`.
        always_timed: As the option `timing_headers`.

    Attributes:
        events: The history of changes.
        keep_contexts: Whether an observer reads the context of a wait in a queue.
        present: As the truth of the object, for hot paths: whether there is an observer.
        recording: The observers that may want a record of a call.
    """

    def __init__(
        self, observers: Iterable[Observer] = (), proxies: Iterable[str] = (), *, always_timed: bool = False
    ) -> None:
        self._observers: list[Observer] = []
        self._proxies = TrustedProxies(proxies)
        self._always_timed = always_timed
        self.events = EventLog()
        self.keep_contexts = False
        self.recording: tuple[CallObserver, ...] = ()
        self._sort()
        for observer in observers:
            self.add(observer)

    def __bool__(self) -> bool:
        return self.present

    def __contains__(self, observer: Observer) -> bool:
        return observer in self._observers

    def add(self, observer: Observer) -> None:
        """Start calling `observer`."""
        self._observers.append(observer)
        self._sort()
        if isinstance(observer, CallObserver):
            observer.joined(self)

    def _sort(self) -> None:
        self._find_hooks()
        self.recording = tuple(each for each in self._observers if isinstance(each, CallObserver))
        self.keep_contexts = any(
            each.reads_context and type(each).queue_wait is not Observer.queue_wait for each in self._observers
        )

    def remove(self, observer: Observer) -> None:
        """Stop calling `observer`; unknown observers are ignored."""
        if observer in self._observers:
            self._observers.remove(observer)
            self._sort()

    @property
    def may_record(self) -> bool:
        """Whether `begin_call` may want a record of a client's call, even if the client does not ask for the times."""
        return self._always_timed or bool(self.recording)

    def begin_call(
        self, transport: str, headers: CallHeaders = NO_HEADERS, peer: str = "", *, timing: bool = False
    ) -> CallRecord | None:
        """Return a record for a call that begins now; None for a call that nobody wants to see.

        Args:
            transport: `REST`, `GRPC`, or empty for a call in the process.
            headers: The client's headers.
            peer: The address at the other end of the connection.
            timing: Whether the caller of a call in the process asks for the times.
        """
        timing = timing or headers.timing or (self._always_timed and transport != "")
        marks: dict[object, Any] = {}
        for each in self.recording:
            try:
                mark = each.wants(transport, headers)
            except Exception:
                logger.exception("observer %r failed in wants; it does not see the call", each)
                continue
            if mark is not None:
                marks[each] = mark
        if not marks and not timing:
            return None
        record = CallRecord(transport, headers, timing)
        record.marks = marks
        record.peer = record.client = peer
        if self._proxies:
            record.client = self._proxies.client(peer, headers.all(b"x-forwarded-for"))
        for each in self.recording:
            if each in marks:
                try:
                    each.call_began(record)
                except Exception:
                    logger.exception("observer %r failed in call_began", each)
        return record

    @contextmanager
    def recorded(self, record: CallRecord, timing: CallTiming | None = None) -> Iterator[None]:
        """Make the record current for the call inside; at the end note the error, if any, and report the call.

        Args:
            record: Of a call that begins.
            timing: Takes the times of the call.
        """
        token = current_call.set(record)
        try:
            yield
        except BaseException as error:
            if record.code is Code.OK:
                record.code = _code_of(error)
            raise
        finally:
            with suppress(ValueError):  # A call that is thrown away ends in another context.
                current_call.reset(token)
            self.end_call(record)
            if timing is not None:
                record.fill(timing)

    def end_call(self, record: CallRecord) -> None:
        """Note the end of a recorded call, and report the call."""
        record.ended = perf_counter()
        self.call_finished(record)
        record.headers, record.marks = NO_HEADERS, {}  # Observers may keep the record for a while.

    def changed(self, kind: EventKind, model: str = "", version: int | None = None, detail: str = "") -> None:
        """Add a change on demand, by the present actor, to the history."""
        self.happened(self.events.add(kind, model, version, detail))

    def _find_hooks(self) -> None:
        """Find the methods to call for each event; a method of `Observer` itself is empty, and needs no call."""
        self.present = bool(self._observers)
        self._hooks: dict[str, tuple[Callable[..., None], ...]] = {
            name: tuple(
                getattr(each, name)
                for each in self._observers
                if _hears(each, name) or (name in _OF_EACH and _hears(each, _OF_EACH[name]))
            )
            for name in _HOOKS
        }
        # The events of every request: a look-up less for each.
        self._run_finished = self._hooks["run_finished"]
        self._request_finished = self._hooks["request_finished"]

    def first(self, kind: type[T]) -> T | None:
        """Return the first observer of a class, or None."""
        for observer in self._observers:
            if isinstance(observer, kind):
                return observer
        return None

    def _each(self, method: str, *args: object) -> None:
        for tell in self._hooks[method]:
            try:
                tell(*args)
            except Exception:
                _dropped(tell, method)

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        event = self.events.version_state(id, state, error)
        self._each("version_state", id, state, error)
        if event is not None:
            self.happened(event)

    def happened(self, event: Event) -> None:
        self._each("happened", event)

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        self._each("load_finished", id, path, seconds, error)

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        self._each("warmup_finished", id, path, seconds, records, error)

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        for tell in self._run_finished:
            try:
                tell(id, signature_name, seconds, error)
            except Exception:
                _dropped(tell, "run_finished")

    def graph_run_finished(self, id: ServableId, seconds: float, in_session: bool) -> None:
        self._each("graph_run_finished", id, seconds, in_session)

    def run_stuck(self, id: ServableId, signature_name: str, seconds: float) -> None:
        self._each("run_stuck", id, signature_name, seconds)

    def run_returned(self, id: ServableId, signature_name: str) -> None:
        self._each("run_returned", id, signature_name)

    def batch_formed(
        self, id: ServableId, signature_name: str, rows: int, padded_rows: int, requests: int, reason: str
    ) -> None:
        self._each("batch_formed", id, signature_name, rows, padded_rows, requests, reason)

    def queue_wait(self, id: ServableId, signature_name: str, seconds: float) -> None:
        self._each("queue_wait", id, signature_name, seconds)

    def queue_waits(self, id: ServableId, signature_name: str, seconds: Sequence[float]) -> None:
        self._each("queue_waits", id, signature_name, seconds)

    def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
        self._each("request_enqueued", id, signature_name, rows, inputs)

    def requests_enqueued(self, id: ServableId, signature_name: str, rows: Sequence[int], inputs: int) -> None:
        self._each("requests_enqueued", id, signature_name, rows, inputs)

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        for tell in self._request_finished:
            try:
                tell(model_name, api, entrypoint, code, seconds)
            except Exception:
                _dropped(tell, "request_finished")

    def listener_refused(self, reason: str) -> None:
        self._each("listener_refused", reason)

    def examples_counted(self, model_name: str, examples: int) -> None:
        self._each("examples_counted", model_name, examples)

    def request_logged(self, model_name: str, code: Code, requests: int) -> None:
        self._each("request_logged", model_name, code, requests)

    def threads_warmed(self, id: ServableId, seconds: float) -> None:
        self._each("threads_warmed", id, seconds)

    def call_finished(self, record: CallRecord) -> None:
        self._each("call_finished", record)

    def lines_dropped(self, log: str, lines: int) -> None:
        self._each("lines_dropped", log, lines)


def _code_of(error: BaseException) -> Code:
    if isinstance(error, asyncio.CancelledError):
        return Code.CANCELLED
    return Code(error.code) if isinstance(error, ServingError) else Code.UNKNOWN


def _hears(observer: Observer, method: str) -> bool:
    """Whether the observer has a method of its own; a method of `Observer` does nothing."""
    return method in vars(observer) or getattr(type(observer), method) is not getattr(Observer, method)


def _dropped(tell: Callable[..., None], method: str) -> None:
    observer = getattr(tell, "__self__", tell)
    logger.exception("observer %r failed in %s; the call is dropped", observer, method)
