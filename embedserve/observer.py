"""Hooks for events of the runtime; metrics and request logging are observers.

Methods of the base class are empty. `Observers` fans a call out and drops, with a log line, an observer's failure: an
observer cannot fail a request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TypeVar

from embedserve.errors import Code
from embedserve.servable import ServableId, State

__all__ = ["Observer", "Observers", "running_api"]

logger = logging.getLogger("embedserve")

T = TypeVar("T", bound="Observer")

running_api: ContextVar[str] = ContextVar("embedserve_running_api", default="Predict")
"""The API of a run: `Predict`, `Classify`, `Regress` or `MultiInference`; readable in `run_finished`."""


class Observer:
    """Base class: override the methods of interesting events. All calls come on the registry's loop; do not block."""

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


class Observers(Observer):
    """Fans each call out to several observers; falsy when there are none, so a hot path may skip the call."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def __contains__(self, observer: Observer) -> bool:
        return observer in self._observers

    def add(self, observer: Observer) -> None:
        """Start calling `observer`."""
        self._observers.append(observer)

    def remove(self, observer: Observer) -> None:
        """Stop calling `observer`; unknown observers are ignored."""
        if observer in self._observers:
            self._observers.remove(observer)

    def first(self, kind: type[T]) -> T | None:
        """Return the first observer of a class, or None."""
        for observer in self._observers:
            if isinstance(observer, kind):
                return observer
        return None

    def _each(self, method: str, *args: object) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, method)(*args)
            except Exception:
                logger.exception("observer %r failed in %s; the call is dropped", observer, method)

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        self._each("version_state", id, state, error)

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        self._each("load_finished", id, path, seconds, error)

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        self._each("warmup_finished", id, path, seconds, records, error)

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        self._each("run_finished", id, signature_name, seconds, error)

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

    def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
        self._each("request_enqueued", id, signature_name, rows, inputs)

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        self._each("request_finished", model_name, api, entrypoint, code, seconds)

    def listener_refused(self, reason: str) -> None:
        self._each("listener_refused", reason)

    def examples_counted(self, model_name: str, examples: int) -> None:
        self._each("examples_counted", model_name, examples)

    def request_logged(self, model_name: str, code: Code, requests: int) -> None:
        self._each("request_logged", model_name, code, requests)
