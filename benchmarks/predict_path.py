"""The time of one predict in process, of two checkouts side by side: does a change of the path cost anything?

python -m benchmarks.predict_path --checkout DIRECTORY [--rounds 8]

Each checkout has subprocesses in turn, and the fastest block of predicts counts: other work on the machine makes blocks
slower and never faster. `tiny` is a model of one addition. `no run` has a fake in place of the model: the path alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[1]
X = np.arange(4, dtype=np.float32)[None]
BLOCK = 50
BLOCKS = 400


async def fastest(predict: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of a predict in the fastest block."""
    best = float("inf")
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(BLOCK):
            await predict()
        best = min(best, time.perf_counter() - start)
    return best / BLOCK * 1e6


async def measure() -> dict[str, float]:
    from benchmarks.models import Tiny, save
    from embedserve import ModelRegistry

    with tempfile.TemporaryDirectory() as directory:
        save(Tiny(1), Path(directory, "tiny", "1"))
        async with ModelRegistry(directory, servable="session") as registry:
            times = {"tiny": await fastest(lambda: registry.predict("tiny", {"x": X}))}
            async with registry.acquire("tiny") as handle:
                times["tiny, handle"] = await fastest(lambda: handle.predict({"x": X}))
            version = registry._here().resolve("tiny", None, None)  # type: ignore[attr-defined, unused-ignore]
            version.predictor = Answered()  # type: ignore[assignment]
            times["no run"] = await fastest(lambda: registry.predict("tiny", {"x": X}))
            async with registry.acquire("tiny") as handle:
                times["no run, handle"] = await fastest(lambda: handle.predict({"x": X}))
    return times


class Answered:
    """A predictor whose answers are there at once."""

    trouble = None

    def __init__(self) -> None:
        self._answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._answer.set_result({})

    def submit(self, *_: object) -> asyncio.Future[object]:
        return self._answer

    async def aclose(self) -> None:
        """Nothing is open."""


def run(checkout: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(other: Path, rounds: int) -> None:
    best: dict[Path, dict[str, float]] = {HERE: {}, other: {}}
    for _ in range(rounds):
        for checkout, times in best.items():
            for name, value in run(checkout).items():
                times[name] = min(value, times.get(name, value))
    print("| predict | here, µs | there, µs | here / there |\n| --- | --- | --- | --- |")
    for name, value in best[HERE].items():
        print(f"| {name} | {value:.2f} | {best[other][name]:.2f} | {value / best[other][name]:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, default=HERE)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(asyncio.run(measure())))
    else:
        main(given.checkout.resolve(), given.rounds)
