"""A run that does not end is left behind and named, its callers are answered, and the other models go on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from embedserve.batching import watchdog
from embedserve.batching.direct import DirectPredictor
from embedserve.batching.watchdog import grace
from embedserve.config import ModelConfig
from embedserve.errors import Code, DeadlineExceededError, QueueFullError, ServingError
from embedserve.grpc.services.health import Health
from embedserve.metrics import Metrics
from embedserve.rest import create_app
from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, times_ten

TIMED_OUT = "Timed out waiting for notification"


class Hang:
    """A model whose runs on a negative number end only when the test lets them."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def __call__(self, version: int, inputs: Tensors) -> dict[str, Array]:
        if (inputs["x"] < 0).any():
            assert self.let.wait(60)
        return times_ten(version, inputs)


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.let.set()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "SHORTEST_GRACE", 0.05)


@asynccontextmanager
async def serving(hang: Hang, **options: Any) -> AsyncIterator[FakeRegistry]:
    """Models `bad`, which hangs on negative numbers, and `good`, on two threads."""
    options = {"num_batch_threads": 2, "drain_timeout": 20, **options}
    registry = FakeRegistry({"bad": {1: FakeLoader(hang)}, "good": {1: FakeLoader()}}, **options)
    async with registry:
        try:
            yield registry
        finally:
            hang.let.set()


async def stuck(registry: FakeRegistry, runs: int = 1) -> None:
    while len(registry.statistics().stuck_runs) != runs:
        await asyncio.sleep(0.001)


async def refused(registry: FakeRegistry, model: str = "bad") -> str:
    with pytest.raises(ServingError) as caught:
        await registry.predict(model, {"x": [1.0]})
    assert caught.value.code is Code.UNAVAILABLE
    assert not isinstance(caught.value, QueueFullError)
    return caught.value.message


@pytest.mark.parametrize(
    ("allowed", "longest", "seconds"),
    [
        (0.001, 0.0, 5.0),  # An impatient client makes no model stuck.
        (30.0, 0.0, 30.0),  # A factor of two.
        (600.0, 0.0, 60.0),
        (1.0, 40.0, 79.0),  # A version whose runs take 40 s has 80 s, whatever a client has time for.
        (600.0, 40.0, 60.0),
    ],
)
def test_how_long_past_its_time_a_run_is_stuck(
    allowed: float, longest: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert grace(allowed, longest) == pytest.approx(seconds)


@pytest.mark.parametrize("batching", [False, True])
async def test_a_stuck_run_is_named_once_and_its_model_refused_until_it_returns(
    hang: Hang, batching: bool, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    async with serving(hang, batching=batching, observers=[metrics]) as registry:
        secret = -1234567.0
        with pytest.raises(DeadlineExceededError, match=TIMED_OUT):
            await registry.predict("bad", {"x": [secret, 2.0]}, timeout=0.05)
        await stuck(registry)
        (run,) = registry.statistics().stuck_runs
        assert (run.model, run.version, run.signature, dict(run.shapes)) == ("bad", 1, "serving_default", {"x": "[2]"})
        assert run.rows == (2 if batching else 0)
        assert run.seconds > 0.05
        message = await refused(registry)
        assert "'serving_default' (x [2]" in message
        assert "Servable {name: bad version: 1} is refused until its stuck runs return" in message
        assert "refused: 1 of its runs is stuck" in registry.status("bad")["bad"][0].note
        assert "version 1 is refused: 1 of its runs is stuck" in (registry.readiness()["bad"] or "")
        assert registry.readiness()["good"] is None
        assert registry.statistics().queues["bad", 1].stuck == 1
        labels = '{model="bad",version="1",signature="serving_default"}'
        assert f"embedserve_stuck_runs_total{labels} 1" in metrics.exposition().decode()
        # The other model has both threads again.
        await asyncio.gather(*(registry.predict("good", {"x": [1.0]}) for _ in range(8)))
        hang.let.set()
        await stuck(registry, 0)
        assert (await registry.predict("bad", {"x": [1.0]}))["y"].tolist() == [11.0]
        assert registry.status("bad")["bad"][0].note == ""
        assert registry.readiness()["bad"] is None
        assert f"embedserve_stuck_runs_returned_total{labels} 1" in metrics.exposition().decode()
        named = [r for r in caplog.records if "has a stuck run" in r.getMessage()]
        assert len(named) == 1
        assert named[0].levelno == logging.ERROR
        assert "1234567" not in caplog.text


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("timeout", [None, 3600.0])
async def test_without_a_deadline_or_with_a_late_one_run_timeout_answers_the_caller(
    hang: Hang, batching: bool, timeout: float | None
) -> None:
    async with serving(hang, batching=batching, run_timeout=0.05) as registry:
        with pytest.raises(DeadlineExceededError, match=r"longer than run_timeout, 0\.05 s"):
            await registry.predict("bad", {"x": [-1.0]}, timeout=timeout)
        await stuck(registry)
        await refused(registry)


async def test_a_models_own_run_timeout_counts_and_a_long_run_within_it_is_left_alone(hang: Hang) -> None:
    models = [
        ModelConfig(name="bad", base_path="/fake/bad", run_timeout=3600.0),
        ModelConfig(name="good", base_path="/fake/good"),
    ]
    registry = FakeRegistry(
        {"bad": {1: FakeLoader(hang)}, "good": {1: FakeLoader(hang)}}, models=models, run_timeout=0.05
    )
    async with registry:
        long = asyncio.ensure_future(registry.predict("bad", {"x": [-1.0]}))
        with pytest.raises(DeadlineExceededError):
            await registry.predict("good", {"x": [-1.0]})
        await stuck(registry)
        assert [run.model for run in registry.statistics().stuck_runs] == ["good"]
        assert not long.done()
        hang.let.set()
        assert (await long)["y"].tolist() == [-9.0]


@pytest.mark.parametrize("batching", [False, True])
async def test_what_waits_behind_stuck_runs_is_answered_with_unavailable(hang: Hang, batching: bool) -> None:
    async with serving(hang, batching=batching, num_batch_threads=1) as registry:
        first = asyncio.ensure_future(registry.predict("bad", {"x": [-1.0]}, timeout=0.05))
        while registry.statistics().busy_threads == 0:
            await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(registry.predict("bad", {"x": [1.0]})) for _ in range(3)]
        with pytest.raises(DeadlineExceededError):
            await first
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(answer, "code", None) for answer in answers] == [Code.UNAVAILABLE] * 3
        assert len({id(answer) for answer in answers}) == 3


async def test_while_every_thread_hangs_and_nobody_knows_yet_the_other_model_is_lent_one(hang: Hang) -> None:
    async with serving(hang, batching=False) as registry:
        hanging = [asyncio.ensure_future(registry.predict("bad", {"x": [-1.0]})) for _ in range(3)]
        while registry.statistics().busy_threads < 2:
            await asyncio.sleep(0)
        for _ in range(5):
            assert (await registry.predict("good", {"x": [1.0]}, timeout=20))["y"].tolist() == [11.0]
        assert not registry.statistics().stuck_runs
        hang.let.set()
        await asyncio.gather(*hanging)


async def test_stuck_threads_are_replaced_up_to_the_bound_and_then_nobody_waits_for_one(hang: Hang) -> None:
    loaders = {f"m{i}": {1: FakeLoader(hang)} for i in range(4)}
    async with FakeRegistry(loaders, num_batch_threads=1, max_stuck_runs=2) as registry:

        async def hang_one(model: str) -> None:
            with pytest.raises(DeadlineExceededError):
                await registry.predict(model, {"x": [-1.0]}, timeout=0.05)

        try:
            await hang_one("m0")
            await stuck(registry, 1)
            assert registry.liveness() is None
            await hang_one("m1")
            await stuck(registry, 2)
            assert "stuck runs: 2, as many as may be replaced (max_stuck_runs is 2)" in (registry.liveness() or "")
            assert (await registry.predict("m2", {"x": [1.0]}))["y"].tolist() == [11.0]
            hanging = asyncio.create_task(hang_one("m2"))
            await asyncio.sleep(0)
            waiting = asyncio.ensure_future(registry.predict("m3", {"x": [1.0]}))
            await hanging
            await stuck(registry, 3)
            with pytest.raises(ServingError, match="no run thread is left, stuck runs: 3"):
                await waiting
            assert await refused(registry, "m3") == registry.liveness() == "no run thread is left, stuck runs: 3"
            assert repr(registry._runtime._run_pool) == "<RunPool 0/1 busy, 0 waiting, 3 stuck>"  # type: ignore[union-attr]
        finally:
            hang.let.set()
        await stuck(registry, 0)
        assert registry.liveness() is None
        for model in loaders:
            assert (await registry.predict(model, {"x": [1.0]}))["y"].tolist() == [11.0]


async def test_the_longest_run_of_a_version_that_returned_by_itself_is_learnt(hang: Hang) -> None:
    async with serving(hang, batching=False) as registry:
        assert registry._runtime is not None
        version = registry._runtime.manager.latest("bad")
        assert isinstance(version.predictor, DirectPredictor)
        with pytest.raises(DeadlineExceededError):
            await registry.predict("bad", {"x": [-1.0]}, timeout=0.05)
        await stuck(registry)
        (run,) = registry.statistics().stuck_runs
        passed = time.monotonic() - run.left_behind  # The thread may have begun long after the dispatch.
        hang.let.set()
        await stuck(registry, 0)
        assert version.predictor.runs.longest >= passed


async def test_health_tells_over_rest_and_grpc(hang: Hang) -> None:
    async with serving(hang, max_stuck_runs=1) as registry:
        health = Health(registry)
        transport = httpx.ASGITransport(create_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:

            async def statuses() -> list[int]:
                paths = ("/-/live", "/-/ready", "/-/ready/bad", "/-/ready/good")
                return [(await client.get(path)).status_code for path in paths]

            assert await statuses() == [200] * 4
            with pytest.raises(DeadlineExceededError):
                await registry.predict("bad", {"x": [-1.0]}, timeout=0.05)
            await stuck(registry)
            assert await statuses() == [503, 503, 503, 200]
            live = (await client.get("/-/live")).json()
            assert live["status"] == "not live"
            assert "max_stuck_runs is 1" in live["reason"]
            assert "is stuck" in (await client.get("/-/ready/bad")).json()["models"]["bad"]
            response = await client.post("/v1/models/bad:predict", content=b'{"instances": [1]}')
            assert response.status_code == 503
            assert "is refused until its stuck runs return" in response.json()["error"]
            assert [health.status(name) for name in ("bad", "good", "")] == [2, 1, 2]
            hang.let.set()
            await stuck(registry, 0)
            assert await statuses() == [200] * 4
            assert health.status("bad") == 1


async def test_leaving_and_unloading_do_not_wait_for_a_stuck_run(hang: Hang, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(hang) as registry:
        with pytest.raises(DeadlineExceededError):
            await registry.predict("bad", {"x": [-1.0]}, timeout=0.05)
        await stuck(registry)
        old = registry._found["bad"][1]
        await registry.put("bad", 2, FakeLoader())
        while registry.status("bad")["bad"][1].state.name != "END":
            await asyncio.sleep(0.001)
        assert (await registry.predict("bad", {"x": [1.0]}))["y"].tolist() == [12.0]
        assert "{name: bad version: 1} is left loaded: 1 of its runs is stuck" in caplog.text
        assert old.unloads == 0
        assert registry.readiness()["bad"] is None
        async with asyncio.timeout(15):  # Less than `drain_timeout`.
            await registry.aclose()
        assert not hang.let.is_set()


async def test_a_version_that_was_left_loaded_is_unloaded_when_its_run_returns(hang: Hang) -> None:
    async with serving(hang) as registry:
        with pytest.raises(DeadlineExceededError):
            await registry.predict("bad", {"x": [-1.0]}, timeout=0.05)
        await stuck(registry)
        old = registry._found["bad"][1]
        await registry.put("bad", 2, FakeLoader())
        while registry.status("bad")["bad"][1].state.name != "END":
            await asyncio.sleep(0.001)
        hang.let.set()
        while not old.unloads:
            await asyncio.sleep(0.001)
        assert not registry.statistics().stuck_runs


@pytest.mark.parametrize("batching", [False, True])
async def test_shapes_are_of_any_rank_and_never_values(hang: Hang, batching: bool) -> None:
    async with serving(hang, batching=batching) as registry:
        with pytest.raises(DeadlineExceededError):
            await registry.predict("bad", {"x": np.full([3], -7.5, np.float32)}, timeout=0.05)
        await stuck(registry)
        assert "x [3]" in await refused(registry)
        assert "7.5" not in await refused(registry)
