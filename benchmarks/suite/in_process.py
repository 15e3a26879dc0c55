"""Callers in the model's own process: of embedserve's registry, or of TensorFlow alone.

python -m benchmarks.suite.in_process embedserve|tensorflow MODELS

Reads a measurement as a line of JSON (workload, concurrency, seconds) and answers with another, until its input ends;
`measure` starts it beside the servers and asks it when its turn comes.

embedserve: as many callers of `registry.predict` as asked for. TensorFlow: with one caller, a plain signature call per
row; with more, the signature's function in a loop with as many rows at a time as give the most rows per second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.load import percentile
from benchmarks.suite.workloads import examples_of

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TRIAL = 0.3
Measure = Callable[[str, int, float], Awaitable[dict[str, float]]]


def summary(latencies: list[float], rows: int, seconds: float, cpu: float) -> dict[str, float]:
    latencies.sort()
    answered = len(latencies) * rows
    return {
        "answered": answered,
        "rate": answered / seconds,
        "p50": percentile(latencies, 0.50),
        "p99": percentile(latencies, 0.99),
        "cpu": cpu / answered,
    }


async def callers(ask: Callable[[], Awaitable[object]], concurrency: int, seconds: float) -> dict[str, float]:
    """`concurrency` callers, each asking again as soon as it has its answer."""
    latencies: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    stop = started + seconds

    async def caller() -> None:
        now = time.perf_counter()
        while now < stop:
            await ask()
            before, now = now, time.perf_counter()
            latencies.append(now - before)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return summary(latencies, 1, time.perf_counter() - started, time.process_time() - cpu)


async def embedserve(models: Path, serve: Callable[[Measure], Awaitable[None]]) -> None:
    from embedserve import ModelRegistry

    async with ModelRegistry(models, gc_freeze=True) as registry:

        async def measure(workload: str, concurrency: int, seconds: float) -> dict[str, float]:
            examples = examples_of(models, workload)
            x = examples.x[:1]

            async def ask() -> object:
                return await registry.predict(workload, {"x": x})

            for row in range(len(examples.x)):
                out = await registry.predict(workload, {"x": examples.x[row : row + 1]})
                assert examples.right(row, out["y"]), "a wrong answer"
            return await callers(ask, concurrency, seconds)

        await serve(measure)


def calls(function: Any, x: Any, seconds: float) -> dict[str, float]:
    """The function called in a loop, tensor to tensor."""
    latencies: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    now, stop = started, started + seconds
    while now < stop:
        function(x=x)
        before, now = now, time.perf_counter()
        latencies.append(now - before)
    return summary(latencies, x.shape[0], now - started, time.process_time() - cpu)


async def tensorflow(models: Path, serve: Callable[[Measure], Awaitable[None]]) -> None:
    import tensorflow as tf

    loaded: dict[str, Any] = {}
    best: dict[str, int] = {}

    async def measure(workload: str, concurrency: int, seconds: float) -> dict[str, float]:
        examples = examples_of(models, workload)
        if workload not in loaded:
            loaded[workload] = tf.saved_model.load(str(models / workload / "1"))
        function = loaded[workload].signatures["serving_default"]

        def rows(count: int) -> Any:
            return tf.constant(np.resize(examples.x, (count, *examples.x.shape[1:])))

        assert examples.right(0, function(x=rows(1))["y"].numpy()), "a wrong answer"
        if concurrency == 1:
            return calls(function, rows(1), seconds)
        if workload not in best:
            for count in BATCHES:
                function(x=rows(count))
            trials = {count: calls(function, rows(count), TRIAL)["rate"] for count in BATCHES}
            best[workload] = max(trials, key=lambda count: trials[count])
        return calls(function, rows(best[workload]), seconds) | {"batch": best[workload]}

    await serve(measure)


async def answer(measure: Measure) -> None:
    """One line for each line of the input, which is read without keeping the loop: the registry lives on it."""
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        print(json.dumps(await measure(asked["workload"], asked["concurrency"], asked["seconds"])), flush=True)


if __name__ == "__main__":
    kinds = {"embedserve": embedserve, "tensorflow": tensorflow}
    asyncio.run(kinds[sys.argv[1]](Path(sys.argv[2]), answer))
