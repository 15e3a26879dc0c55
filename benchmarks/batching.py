"""Requests per second of the direct and the batched predictor, at 1, 8 and 64 concurrent callers.

    python benchmarks/batching.py [--seconds 2] [--saved-model DIR] [--uvloop]

The fake servable multiplies by two in numpy, so what is measured is the way to it and back. With `--saved-model` the
default signature of a real one is measured too, on one row of zeros, beside plain calls of its `run` in one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.batching.routing import make_predictor
from embedserve.batching.watchdog import VersionRuns
from embedserve.concurrency.threads import RunPool
from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions
from embedserve.observer import Observers
from embedserve.servable import Array, Cancellation, Predictor, Servable, ServableId, Tensors
from embedserve.signature import BatchingVerdict, Signature, TensorSpec
from embedserve.tensors.dtypes import by_name


class Doubler:
    """A servable whose run costs next to nothing."""

    kind = "function"
    signature_defs: Mapping[str, Any] = {}
    reads_files_at_run_time = False
    inline: Collection[str] = frozenset()

    def __init__(self) -> None:
        spec = {"x": TensorSpec("x", by_name("float"), (None, 4), "x:0")}
        verdict = BatchingVerdict(True, "element-wise")
        self.signatures = {"serving_default": Signature("serving_default", spec, spec, batching=verdict)}

    def run(
        self,
        signature_name: str,
        inputs: Tensors,
        output_names: Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        return {"x": inputs["x"] * np.float32(2)}


async def rate(predictor: Predictor, signature: Signature, inputs: Tensors, callers: int, seconds: float) -> float:
    """Answers per second with so many callers, each asking again as soon as it has its answer."""
    stop = time.perf_counter() + seconds
    answers = 0

    async def caller() -> None:
        nonlocal answers
        while time.perf_counter() < stop:
            await predictor.submit(signature, inputs)
            answers += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers / (time.perf_counter() - started)


async def measure(title: str, servable: Servable, seconds: float) -> None:
    """Print one block of rates."""
    signature = servable.signatures["serving_default"]
    inputs = {
        name: np.zeros([size or 1 for size in spec.shape or ()], spec.dtype.numpy)
        for name, spec in signature.inputs.items()
    }
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds / 4:
        servable.run("serving_default", inputs)
        calls += 1
    print(f"{title}: plain run() in this thread {calls / (time.perf_counter() - started):,.0f}/s")
    pool = RunPool(asyncio.get_running_loop(), 2)
    for name, batching in (("direct", False), ("batched", True)):
        runs = VersionRuns(ServableId("bench", 1), Observers(), RegistryOptions().run_timeout)
        predictor = make_predictor(servable, runs, pool, Observers(), BatchingOptions(), batching, 1000)
        rates = [await rate(predictor, signature, inputs, callers, seconds) for callers in (1, 8, 64)]
        print(f"  {name:8}" + "".join(f"{r:>12,.0f}/s at {n}" for r, n in zip(rates, (1, 8, 64), strict=True)))
        await predictor.aclose()
    pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure")
    parser.add_argument("--saved-model", type=Path, help="a version directory with a serving_default signature")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    servables: list[tuple[str, Servable]] = [("fake", Doubler())]
    if options.saved_model:
        from embedserve.saved_model.load.loader import SavedModelLoader

        config = ModelConfig(name="bench", base_path=options.saved_model.parent)
        loader = SavedModelLoader(ServableId("bench", 1), options.saved_model, config, RegistryOptions())
        servables.append((str(options.saved_model), loader.load()))

    async def run() -> None:
        for title, servable in servables:
            await measure(title, servable, options.seconds)

    if options.uvloop:
        import uvloop

        uvloop.run(run())
    else:
        asyncio.run(run())


if __name__ == "__main__":
    main()
