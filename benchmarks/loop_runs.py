"""What runs on the event loop gain over runs in threads: two registries of one process, in short windows in turns.

python -m benchmarks.loop_runs [--models half,mlp] [--callers 1,4,16,64] [--windows 40]

`loop` has the default `loop_run_limit`, `threads` has 0. Each figure is the median of the windows, and its ratio the
median of the ratios of neighbouring windows: further load on the machine falls on both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from benchmarks.models import Half, Mlp, save
from embedserve import ModelRegistry
from embedserve.batching.direct import PredictorStatistics
from embedserve.servable import Array

MODELS = {"half": (Half, 1), "mlp": (Mlp, 784)}
WINDOW = 0.05  # Seconds.


class Window(NamedTuple):
    """Median µs of an answer, and µs of processor time per answer."""

    latency: float
    processor: float


async def window(registry: ModelRegistry, name: str, x: Array, callers: int) -> Window:
    """The figures of `callers` concurrent callers of `registry.predict`."""
    waits: list[float] = []
    end = time.perf_counter() + WINDOW

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            await registry.predict(name, {"x": x})
            waits.append(time.perf_counter() - began)

    used = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Window(statistics.median(waits) * 1e6, (time.process_time() - used) / len(waits) * 1e6)


def on_loop(registry: ModelRegistry, name: str) -> tuple[int, int]:
    """Runs on the loop and all runs so far."""
    found = registry.statistics().queues[name, 1]
    assert isinstance(found, PredictorStatistics)
    return found.on_loop, found.runs


def ratio(loop: list[float], threads: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(loop, threads, strict=True))


async def main(models: list[str], callers: list[int], windows: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name in models:
            save(MODELS[name][0](), Path(directory, name, "1"))
        async with ModelRegistry(directory) as loop, ModelRegistry(directory, loop_run_limit=0) as threads:
            print("model  callers   latency µs loop / threads        processor µs loop / threads      runs on the loop")
            for name in models:
                x = np.ones((1, MODELS[name][1]), np.float32)
                for count in callers:
                    before = on_loop(loop, name)
                    found = [
                        (await window(loop, name, x, count), await window(threads, name, x, count))
                        for _ in range(windows)
                    ]
                    here, there = zip(*found, strict=True)
                    line = f"{name:6} {count:7}"
                    for field in Window._fields:
                        a, b = ([getattr(one, field) for one in side] for side in (here, there))
                        line += f"   {statistics.median(a):7.1f} / {statistics.median(b):7.1f} = {ratio(a, b):5.2f}   "
                    runs, total = (now - then for now, then in zip(on_loop(loop, name), before, strict=True))
                    print(f"{line} {runs / total:7.0%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="half,mlp")
    parser.add_argument("--callers", default="1,4,16,64")
    parser.add_argument("--windows", type=int, default=40)
    arguments = parser.parse_args()
    uvloop.run(main(arguments.models.split(","), [*map(int, arguments.callers.split(","))], arguments.windows))
