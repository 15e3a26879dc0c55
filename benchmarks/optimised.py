"""What optimised execution gains: one model served plain, frozen and compiled by XLA, in one process and in turns.

python -m benchmarks.optimised [--seconds 0.5] [--rounds 7]

Two models: MobileNet, and a chain of many small operations, which is what XLA is good at. Prints Markdown: requests/s
through the registry as ratios to the plain one (medians over rounds), and how far the answers are apart.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.models import Spec, examples, export_mobilenet, save
from embedserve import ModelRegistry
from embedserve.config import BatchingOptions, ModelConfig, Optimize
from embedserve.saved_model.judge.compare import difference
from embedserve.servable import Array

MODES: tuple[Optimize, ...] = ("none", "freeze", "xla")
BATCHING = BatchingOptions(max_batch_size=8, allowed_batch_sizes=(1, 2, 4, 8))
BAR = 1.2


class SmallOperations(tf.Module):
    """Four hundred operations on [rows, 16]: what each costs to call is more than what it computes."""

    @tf.function(input_signature=[Spec([None, 16], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        y = x
        for step in range(100):
            y = tf.maximum(y * 0.9 + x, 0.1 * y) - 0.01 * step
        return {"y": y}


async def rate(registry: ModelRegistry, name: str, rows: Array, callers: int, seconds: float) -> float:
    """Answers per second to `callers` concurrent callers of one row each."""
    end = time.perf_counter() + seconds

    async def caller(row: Array) -> int:
        answers = 0
        while time.perf_counter() < end:
            await registry.predict(name, row)
            answers += 1
        return answers

    started = time.perf_counter()
    answers = await asyncio.gather(*(caller(rows[i % len(rows)][None]) for i in range(callers)))
    return sum(answers) / (time.perf_counter() - started)


async def apart(registry: ModelRegistry, names: Mapping[Optimize, str], rows: Array) -> dict[str, float]:
    """By mode: the largest difference of an answer from the plain one, relative to the answer's size."""
    found: dict[str, float] = {}
    for mode, name in names.items():
        pairs = [
            (await registry.predict(name, row[None]), await registry.predict(names["none"], row[None])) for row in rows
        ]
        found[mode] = max(difference(ours[key], plain[key]) for ours, plain in pairs for key in plain)
    return found


async def measure(title: str, path: Path, rows: Array, seconds: float, rounds: int) -> dict[tuple[str, int], float]:
    """Print a model's part of the table; ratios to the plain one by mode and number of callers."""
    names = {mode: f"{title}-{mode}" for mode in MODES}
    models = [
        ModelConfig(name=name, base_path=path.parent, optimize=mode, batching_options=BATCHING)
        for mode, name in names.items()
    ]
    ratios: dict[tuple[str, int], float] = {}
    async with ModelRegistry(models=models, watch=False) as registry:
        status = {mode: registry.status()[name][0] for mode, name in names.items()}
        differences = await apart(registry, names, rows)
        for callers in (1, 8):
            rates: dict[str, list[float]] = {mode: [] for mode in MODES}
            for _ in range(rounds + 1):  # In turns; the first round warms up.
                for mode, name in names.items():
                    rates[mode].append(await rate(registry, name, rows, callers, seconds))
            for mode in MODES:
                found = [ours / plain for ours, plain in zip(rates[mode][1:], rates["none"][1:], strict=True)]
                ratios[mode, callers] = statistics.median(found)
                cells = (title, mode, status[mode].kind, callers, f"{statistics.median(rates[mode][1:]):,.0f}")
                spread = f"{ratios[mode, callers]:.2f} ({min(found):.2f} to {max(found):.2f})"
                print("|", " | ".join(map(str, cells)), "|", spread, "|", f"{differences[mode]:.1e} |", flush=True)
    for mode, version in status.items():
        if version.note:
            print(f"| {title} | {mode} | {version.note} | | | | |")
    return ratios


async def main(seconds: float, rounds: int) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        images = examples("mobilenet")
        export_mobilenet(images, Path(directory, "mobilenet", "1"))
        save(SmallOperations(), Path(directory, "small", "1"))
        rows = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
        print("| model | optimize | runs as | callers | requests/s | of plain | answers differ by |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        ratios = await measure("mobilenet", Path(directory, "mobilenet", "1"), images, seconds, rounds)
        await measure("small", Path(directory, "small", "1"), rows, seconds, rounds)
    print(f"\nmobilenet frozen, 8 callers: {ratios['freeze', 8]:.2f} times the plain server's rate (bar {BAR})")
    return ratios["freeze", 8] >= BAR


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    raise SystemExit(not asyncio.run(main(arguments.seconds, arguments.rounds)))
