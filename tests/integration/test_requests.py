"""Requests to real models in process: what may be given, what comes back, who shares a run and who is given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from embedserve import (
    BatchingOptions,
    Code,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    ModelConfig,
    ModelRegistry,
    Observer,
    State,
)
from embedserve.batching.direct import PredictorStatistics
from embedserve.saved_model.run.function import FunctionServable
from embedserve.servable import ServableId
from tests.integration.conftest import QUICK, SavedModel, deploy
from tests.integration.waiting import until_state

pytestmark = pytest.mark.slow

Line = Callable[[int], Path]


def serving(*paths: Path, **options: Any) -> ModelRegistry:
    """A registry over saved models where they lie, each named as it was saved."""
    configs = [ModelConfig(name=path.parent.name, base_path=path.parent) for path in paths]
    return ModelRegistry(models=configs, **{**QUICK, "watch": False, **options})


def queue_of(registry: ModelRegistry, name: str) -> PredictorStatistics:
    statistics = registry.statistics().queues[name, 1]
    assert isinstance(statistics, PredictorStatistics)
    return statistics


async def test_inputs_of_every_kind_take_the_declared_dtype_or_are_refused(saved: SavedModel) -> None:
    async with serving(*map(saved, ("several", "strings", "dense", "half_plus_two"))) as registry:

        async def y(given: Any) -> list[Any]:
            return list((await registry.predict("half_plus_two", given))["y"].ravel())

        for given in (
            [[1], [2.0]],
            [(1, ), (2, )],
            np.array([[1.0], [2.0]]),
            np.array([[1], [2]], np.int64),
            np.array([[1], [2]], np.float16),
            [[np.float64(1)], [np.int8(2)]],
            tf.constant([[1.0], [2.0]]),
            tf.constant([[1], [2]]),
            {"x": [[1], [2]]},
            pd.DataFrame({"x": [1, 2]}),
            {"x": pd.DataFrame({"x": [1.0, 2.0]})[["x"]]},
        ):  # fmt: skip
            assert await y(given) == [2.5, 3.0], given
        with pytest.raises(InvalidInputError, match=r"row 0 of input 'x' is missing \(None\)"):
            await y([[None]])
        for refused in ([["1"]], np.array([[1j]]), [[1, 2], [3]]):
            with pytest.raises(InvalidInputError, match="signature 'serving_default' is float"):
                await y(refused)

        frame = pd.DataFrame({"left": [1.0, 2.0], "right": [3, 4]})
        columns = {name: np.repeat(frame[name].to_numpy()[:, None], 3, 1) for name in frame}
        out = await registry.predict("several", columns)
        assert out["row_sum"].tolist() == [12.0, 18.0]
        assert [out[name].dtype.name for name in ("doubled", "total")] == ["int32", "float32"]
        with pytest.raises(InvalidInputError, match="to be int32 but double"):
            await registry.predict("several", {"left": columns["left"], "right": columns["right"] * 1.5})
        with pytest.raises(InvalidInputError, match="2147483648 is out of range for int32"):
            await registry.predict("several", {"left": columns["left"], "right": [[0, 0, 2**31]] * 2})
        only = await registry.predict("several", columns, output_filter=["row_sum"])
        assert list(only) == ["row_sum"]
        scalars = await registry.predict("several", {"a": 2, "b": np.float32(4.5)}, signature_name="scalars")
        assert (scalars["product"].shape, scalars["product"].item(), scalars["larger"].item()) == ((), 9.0, False)
        with pytest.raises(InvalidInputError, match="must be a mapping by input name"):
            await registry.predict("several", [[1.0, 2.0, 3.0]])
        with pytest.raises(InvalidInputError, match=r"has shape \[1,5\], expected \[\?,4\]"):
            await registry.predict("dense", [[1.0] * 5])


async def test_text_goes_in_as_utf_8_and_comes_back_as_an_object_array_of_bytes(saved: SavedModel) -> None:
    async with serving(saved("strings")) as registry:
        for given in (
            ["äb", "c"],
            ["äb".encode(), b"c"],
            np.array(["äb", "c"]),
            np.array(["äb", b"c"], object),
            tf.constant(["äb", "c"]),
            pd.Series(["äb", "c"]),
        ):
            out = await registry.predict("strings", given)
            assert out["upper"].dtype == object
            assert out["upper"].tolist() == ["äB".encode(), b"C"]
            assert all(type(value) is bytes for value in out["upper"])
            assert out["length"].tolist() == [3, 1]
        trailing = (await registry.predict("strings", [b"a\0\0"]))["upper"]
        assert trailing.tolist() == [b"A\0\0"]  # numpy's own `S` would drop the zeros.
        with pytest.raises(InvalidInputError, match="to be string but int64"):
            await registry.predict("strings", [1])


async def test_requests_that_come_together_share_runs_and_answer_as_alone(saved: SavedModel) -> None:
    names = ("dense", "integer_matmul", "strings")
    random = np.random.default_rng(0)
    given: dict[str, list[Any]] = {
        "dense": [random.normal(size=(1 + i % 3, 4)).astype(np.float32) for i in range(60)],
        "integer_matmul": [random.integers(-99, 99, (1 + i % 3, 4)) for i in range(60)],
        "strings": [[f"text {i}"] * (1 + i % 3) for i in range(60)],
    }
    options = BatchingOptions(max_batch_size=32, allowed_batch_sizes=(8, 32))
    async with serving(*map(saved, names), num_batch_threads=1, batching_options=options) as registry:
        for name in names:
            alone = [await registry.predict(name, value) for value in given[name]]
            before = queue_of(registry, name)
            together = await asyncio.gather(*(registry.predict(name, value) for value in given[name]))
            after = queue_of(registry, name)
            assert after.requests - before.requests == 60
            assert after.runs - before.runs <= 8
            assert after.padding_rows > before.padding_rows
            for a, b in zip(alone, together, strict=True):
                for output in a:
                    if a[output].dtype == np.float32:
                        np.testing.assert_allclose(a[output], b[output], rtol=1e-5, atol=1e-6)
                    else:
                        assert a[output].tolist() == b[output].tolist()


async def test_what_is_not_safe_to_batch_runs_alone_and_once(saved: SavedModel) -> None:
    names = ("counter", "across_rows", "random_noise")
    async with serving(*map(saved, names), num_batch_threads=2) as registry:
        counted = await asyncio.gather(*(registry.predict("counter", [0.0]) for _ in range(40)))
        # Two runs at once may both read what the later one has added to: TensorFlow adds first, and reads then.
        assert all(1 <= float(out["y"][0]) <= 40 for out in counted)
        rows = [[[float(i), 1.0]] for i in range(10)]
        for out in await asyncio.gather(*(registry.predict("across_rows", row) for row in rows)):
            assert out["y"].tolist() == [[0.0, 0.0]]
        noise = await asyncio.gather(*(registry.predict("random_noise", [[0.0, 0.0]]) for _ in range(10)))
        assert len({float(out["y"][0, 0]) for out in noise}) == 10
        assert all(queue_of(registry, name).rows == 0 for name in names)  # Rows count batched runs only.
        assert float((await registry.predict("counter", [0.0], signature_name="read"))["y"][0]) == 40


async def test_a_row_that_fails_fails_its_own_request_only(saved: SavedModel) -> None:
    async with serving(saved("positive_only"), num_batch_threads=1) as registry:
        given = [[float(i)] if i % 7 else [-1.0] for i in range(30)]
        calls = (registry.predict("positive_only", x) for x in given)
        for x, out in zip(given, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if x[0] < 0:
                assert isinstance(out, InferenceError)
                assert out.code is Code.INVALID_ARGUMENT
                assert "x must be positive" in str(out)
            else:
                assert not isinstance(out, BaseException)
                assert out["y"].tolist() == [x[0] * 2]
        assert queue_of(registry, "positive_only").rerun >= 25


STEPS = 10**12


@pytest.mark.parametrize("batching", [True, False])
async def test_an_endless_run_is_stopped_when_its_callers_are_gone(saved: SavedModel, batching: bool) -> None:
    async with serving(*map(saved, ("endless", "dense")), num_batch_threads=1, batching=batching) as registry:
        endless = [asyncio.create_task(registry.predict("endless", [STEPS])) for _ in range(3)]
        while not queue_of(registry, "endless").running:
            await asyncio.sleep(0)
        other = asyncio.create_task(registry.predict("dense", [[1.0] * 4]))
        short = asyncio.create_task(registry.predict("endless", [5]))
        for caller in endless:
            assert not other.done()
            caller.cancel()
        assert (await other)["scores"].shape == (1, 3)
        assert (await short)["done"].tolist() == [30]
        assert queue_of(registry, "endless").cancelled >= 1
        assert all(result.cancelled() for result in endless)


@pytest.mark.parametrize("batching", [True, False])
async def test_an_endless_run_is_stopped_at_its_deadline(saved: SavedModel, batching: bool) -> None:
    async with serving(*map(saved, ("endless", "dense")), num_batch_threads=1, batching=batching) as registry:
        endless = asyncio.create_task(registry.predict("endless", [STEPS], timeout=0.3))
        while not queue_of(registry, "endless").running:
            await asyncio.sleep(0)
        other = asyncio.create_task(registry.predict("dense", [[1.0] * 4]))
        with pytest.raises(DeadlineExceededError):
            await registry.predict("dense", [[1.0] * 4], timeout=0.05)  # Never got a slot.
        with pytest.raises(DeadlineExceededError, match=r"^Timed out waiting for notification$"):
            await endless
        assert (await other)["scores"].shape == (1, 3)
        assert queue_of(registry, "dense").dropped == 1


@pytest.mark.parametrize("servable", ["function", "session"])
async def test_an_endless_run_without_a_deadline_is_stopped_after_run_timeout(saved: SavedModel, servable: str) -> None:
    options = {"num_batch_threads": 1, "servable": servable, "run_timeout": 0.5}
    async with serving(*map(saved, ("endless", "dense")), **options) as registry:
        assert registry.status("endless")["endless"][0].kind == servable
        with pytest.raises(DeadlineExceededError):
            await registry.predict("endless", [STEPS])
        while queue_of(registry, "endless").running:
            await asyncio.sleep(0.001)
        assert not registry.statistics().stuck_runs
        assert (await registry.predict("endless", [3]))["done"].shape == (1,)


async def test_others_are_served_while_an_endless_run_keeps_its_thread(saved: SavedModel) -> None:
    async with serving(*map(saved, ("endless", "dense")), num_batch_threads=2) as registry:
        endless = asyncio.create_task(registry.predict("endless", [STEPS]))
        while not queue_of(registry, "endless").running:
            await asyncio.sleep(0)
        for _ in range(20):
            await registry.predict("dense", [[1.0] * 4])
        assert not endless.done()
        endless.cancel()


async def test_leaving_stops_an_endless_run_at_the_drain_timeout(saved: SavedModel) -> None:
    registry = serving(saved("endless"), num_batch_threads=1, drain_timeout=0.1)
    await registry.start()
    endless = asyncio.create_task(registry.predict("endless", [STEPS]))
    while not queue_of(registry, "endless").running:
        await asyncio.sleep(0)
    await registry.aclose()
    with pytest.raises(Exception, match="the registry was left while servable"):
        await endless
    for thread in threading.enumerate():
        if thread.name.startswith("embedserve-run"):
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()


async def test_a_handle_keeps_its_version_and_its_requests_across_a_swap(models: Path, line: Line) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        async with registry.acquire("m") as handle:
            deploy(line(2), models / "m" / "2")
            await until_state(registry, "m", 2, State.AVAILABLE)
            await until_state(registry, "m", 1, State.UNLOADING)
            assert (await registry.predict("m", [[0.0]]))["y"].item() == 2.0
            answers = await asyncio.gather(*(handle.predict([[0.0]]) for _ in range(20)))
            assert {float(out["y"].item()) for out in answers} == {1.0}
            assert (handle.version, list(handle.signatures)) == (1, ["serving_default"])
            assert str(handle.signature()) == "serving_default(x: float [?,1]) -> y: float [?,1]"
        await until_state(registry, "m", 1, State.END)


async def test_every_run_thread_is_warm_in_every_batch_size_before_the_version_is_available(
    models: Path, saved: SavedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, int]] = []
    run = FunctionServable.run

    def recorded(self: FunctionServable, name: str, inputs: Any, *rest: Any, **how: Any) -> Any:
        runs.append((threading.current_thread().name, len(inputs["features"])))
        return run(self, name, inputs, *rest, **how)

    class AtAvailable(Observer):
        def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
            if state is State.AVAILABLE:
                warmed.append([run for run in runs if run[0].startswith("embedserve-run")])

    warmed: list[list[tuple[str, int]]] = []
    monkeypatch.setattr(FunctionServable, "run", recorded)
    options = BatchingOptions(max_batch_size=16, allowed_batch_sizes=(4, 16))
    deploy(saved("dense"), models / "m" / "1")
    async with ModelRegistry(
        *(models,),
        observers=[AtAvailable()],
        num_batch_threads=3,
        batching_options=options,
        servable="function",
        **QUICK,
    ) as registry:
        expected = {(f"embedserve-run-{thread}", rows) for thread in range(3) for rows in (1, 4, 16)}
        assert set(warmed[0]) == expected
        assert len(warmed[0]) == len(expected)
        runs.clear()
        await registry.reconfigure([ModelConfig(name="cold", base_path=models / "m", warmup="none", batching=False)])
        assert not runs
