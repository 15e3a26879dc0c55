"""A request's context is its own: no event, run or thread of a request sees the context of another request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from embedserve import Metrics
from embedserve.errors import Code
from embedserve.observer import Observer, Observers
from embedserve.servable import ServableId
from embedserve.testing import FakeLoader, FakeRegistry, Gate, times_ten
from tests.batching.fakes import rig
from tests.batching.test_loop_runs import inline

caller: ContextVar[str] = ContextVar("caller", default="nobody")


class Seen(Observer):
    """The callers in whose contexts events came, by event."""

    def __init__(self) -> None:
        self.by: dict[str, list[str]] = {}

    def _note(self, event: str) -> None:
        self.by.setdefault(event, []).append(caller.get())

    def request_enqueued(self, id: ServableId, signature_name: str, rows: int, inputs: int) -> None:
        self._note("request_enqueued")

    def queue_wait(self, id: ServableId, signature_name: str, seconds: float) -> None:
        self._note("queue_wait")

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        self._note("run_finished")

    def batch_formed(self, *event: Any) -> None:
        self._note("batch_formed")

    def graph_run_finished(self, id: ServableId, seconds: float, in_session: bool) -> None:
        self._note("graph_run_finished")


def seeing(callers: list[str]) -> Callable[..., Any]:
    def model(version: int, inputs: Any) -> Any:
        callers.append(caller.get())
        return times_ten(version, inputs)

    return model


async def ask(registry: FakeRegistry, name: str) -> None:
    caller.set(name)
    await registry.predict("m", {"x": [1]})


async def batch_of_three(registry: FakeRegistry, gate: Gate) -> None:
    """A run of `first` alone, and then a batch of `a`, `b` and `c`."""
    first = asyncio.create_task(ask(registry, "first"))
    async with asyncio.timeout(60):
        while not gate.waiting:
            await asyncio.sleep(0.005)
    rest = [asyncio.create_task(ask(registry, name)) for name in "abc"]
    async with asyncio.timeout(60):
        while registry.statistics().queues["m", 1].waiting < 3:
            await asyncio.sleep(0.005)
    gate.open()
    await asyncio.gather(first, *rest)


async def test_each_event_of_a_request_comes_in_the_context_of_the_request() -> None:
    seen, gate, ran = Seen(), Gate(), list[str]()
    caller.set("the start")
    options: dict[str, Any] = {"batching": True, "num_batch_threads": 1, "loop_run_limit": 0, "warmup": "none"}
    registry = FakeRegistry({"m": {1: FakeLoader(seeing(ran), gate=gate)}}, observers=[seen], **options)
    async with registry:
        await batch_of_three(registry, gate)
    for event in ("request_enqueued", "queue_wait", "run_finished"):
        assert sorted(seen.by[event]) == ["a", "b", "c", "first"], event
    # A batch and a run belong to no request.
    assert seen.by["batch_formed"] == ["nobody"] * 2
    assert seen.by["graph_run_finished"] == ["nobody"] * 2
    assert ran == ["nobody"] * 2


async def test_a_run_on_the_loop_sees_no_caller() -> None:
    ran: list[tuple[str, bool]] = []
    loops_thread = threading.get_ident()

    def model(inputs: Any) -> Any:
        ran.append((caller.get(), threading.get_ident() == loops_thread))
        return {"y": inputs["x"]}

    async with rig(inline(model), loop_run_limit=0.01) as made, asyncio.timeout(60):
        caller.set("a")
        while not any(on_loop for _, on_loop in ran):
            await made.submit(1)
    assert {seen for seen, _ in ran} == {"nobody"}


@pytest.mark.parametrize(("observers", "kept"), [([], False), ([Metrics()], False), ([Seen()], True)])
def test_contexts_are_kept_for_observers_that_read_them(observers: list[Observer], kept: bool) -> None:
    assert Observers(observers).keep_contexts is kept


def test_an_observer_that_leaves_no_longer_costs() -> None:
    seen = Seen()
    observers = Observers([seen])
    observers.remove(seen)
    assert not observers.keep_contexts
    assert not observers
    observers.request_finished("m", "predict", "REST", Code.OK, 0.1)
    assert not seen.by


def test_a_call_from_a_thread_keeps_its_context() -> None:
    seen = Seen()
    with FakeRegistry({"m": {1: FakeLoader()}}, observers=[seen], warmup="none") as registry:
        caller.set("a thread")
        registry.predict_sync("m", {"x": [1]})
    assert seen.by["run_finished"] == ["a thread"]
