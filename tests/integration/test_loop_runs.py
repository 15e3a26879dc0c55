"""Real models on the event loop: short bounded runs stay there; a model that may take any time never comes there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest

from embedserve import DeadlineExceededError, ModelConfig, ModelRegistry
from embedserve.batching.direct import PredictorStatistics
from tests.integration.conftest import QUICK, SavedModel

pytestmark = pytest.mark.slow

# The longest limit that may be configured, as a busy machine holds up runs.
LIMIT = 0.01


def serving(saved: SavedModel, *names: str, **options: Any) -> ModelRegistry:
    configs = [ModelConfig(name=name, base_path=saved(name).parent) for name in names]
    return ModelRegistry(models=configs, **{**QUICK, "watch": False, "loop_run_limit": LIMIT, **options})


def runs_of(registry: ModelRegistry, name: str) -> PredictorStatistics:
    statistics = registry.statistics().queues[name, 1]
    assert isinstance(statistics, PredictorStatistics)
    return statistics


async def until_on_loop(registry: ModelRegistry, name: str, inputs: dict[str, Any]) -> None:
    """Ask until a further run is on the loop."""
    before = runs_of(registry, name).on_loop
    async with asyncio.timeout(60):
        while runs_of(registry, name).on_loop == before:
            await registry.predict(name, inputs)


@pytest.mark.parametrize("servable", ["session", "function"])
@pytest.mark.parametrize("batching", ["auto", False])
async def test_short_runs_stay_on_the_loop_with_the_same_answers(
    saved: SavedModel, servable: str, batching: bool | str
) -> None:
    features = np.arange(8, dtype=np.float32).reshape(2, 4)
    async with serving(saved, "dense", servable=servable, batching=batching, loop_run_limit=0.0) as registry:
        expected = await registry.predict("dense", {"features": features})
        for _ in range(20):
            await registry.predict("dense", {"features": features})
        assert runs_of(registry, "dense").on_loop == 0
    async with serving(saved, "dense", servable=servable, batching=batching) as registry:
        await until_on_loop(registry, "dense", {"features": features})
        assert runs_of(registry, "dense").loop_signatures == ("serving_default",)
        found = await registry.predict("dense", {"features": features})
        np.testing.assert_array_equal(found["scores"], expected["scores"])
        again = await registry.predict("dense", {"features": features}, timeout=30)
        np.testing.assert_array_equal(again["scores"], expected["scores"])


@pytest.mark.parametrize("servable", ["session", "function"])
@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        ("endless", {"steps": np.array([1], np.int64)}, {"steps": np.array([10**9], np.int64)}),
        ("sized_by_value", {"size": np.array(1, np.int32)}, {"size": np.array(3000, np.int32)}),
    ],
)
async def test_a_model_whose_values_choose_the_time_never_comes_to_the_loop(
    saved: SavedModel, name: str, short: dict[str, Any], long: dict[str, Any], servable: str
) -> None:
    async with serving(saved, name, servable=servable, batching=name == "endless") as registry:
        for _ in range(30):
            await registry.predict(name, short)
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        with contextlib.suppress(DeadlineExceededError):
            await registry.predict(name, long, timeout=0.2)
        turning.cancel()
        assert turns > 1  # The loop turned during the run.
        assert runs_of(registry, name).on_loop == 0


async def test_a_model_whose_shapes_choose_the_time_is_measured_in_a_thread_for_each_shape(saved: SavedModel) -> None:
    async with serving(saved, "sized_by_shape") as registry:
        small = {"x": np.ones((2, 3), np.float32)}
        await until_on_loop(registry, "sized_by_shape", small)
        before = runs_of(registry, "sized_by_shape").on_loop
        for size in (400, 800, 1200):
            found = await registry.predict("sized_by_shape", {"x": np.ones((size, 2), np.float32)})
            assert found["sums"][0] == 2 * size
        assert runs_of(registry, "sized_by_shape").on_loop == before


async def test_two_models_on_the_loop_take_turns_and_both_answer(saved: SavedModel) -> None:
    async with serving(saved, "dense", "half_plus_two") as registry:
        inputs = {
            "dense": {"features": np.ones((1, 4), np.float32)},
            "half_plus_two": {"x": np.ones((1, 1), np.float32)},
        }
        for name, given in inputs.items():
            await until_on_loop(registry, name, given)
        counts = dict.fromkeys(inputs, 0)

        async def ask(name: str) -> None:
            for _ in range(50):
                await registry.predict(name, inputs[name])
                counts[name] += 1

        await asyncio.gather(*(ask(name) for name in inputs for _ in range(4)))
        assert counts == {"dense": 200, "half_plus_two": 200}
