"""How many threads? Models in process under several callers, with each number of run threads and pool threads.

python -m benchmarks.threads [--seconds 1] [--rounds 3]

TensorFlow's pools are a process's for life, so each choice is measured in a process of its own, in turns. Prints
Markdown: answers/s as ratios to the first line, which is the default (medians over rounds).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from embedserve.concurrency.container import usable_cpus

CALLERS = {"half": 64, "mlp": 64, "mobilenet": 8}


def choices() -> list[tuple[int, int, int]]:
    """Run threads, threads within an operation, threads between operations; the default first."""
    all = usable_cpus()
    found = [(all, all, all), (1, all, all), (2 * all, all, all), (all, 1, all), (all, all, 1), (all, 1, 1), (1, 1, 1)]
    return list(dict.fromkeys(found))


def one_choice(directory: Path, choice: tuple[int, int, int], seconds: float) -> dict[str, float]:
    """Answers per second by model; makes the process's pools."""
    run, intra, inter = choice
    import tensorflow as tf

    from benchmarks.models import examples
    from embedserve import ModelRegistry

    tf.config.threading.set_intra_op_parallelism_threads(intra)
    tf.config.threading.set_inter_op_parallelism_threads(inter)

    async def measure() -> dict[str, float]:
        rates = {}
        async with ModelRegistry(directory, num_batch_threads=run, watch=False) as registry:
            for name, callers in CALLERS.items():
                rows = examples(name)
                await rate(registry, name, rows, callers, seconds / 4)
                rates[name] = await rate(registry, name, rows, callers, seconds)
        return rates

    async def rate(registry: ModelRegistry, name: str, rows: np.ndarray, callers: int, seconds: float) -> float:
        end, answers, started = time.perf_counter() + seconds, 0, time.perf_counter()

        async def caller(row: np.ndarray) -> None:
            nonlocal answers
            while time.perf_counter() < end:
                await registry.predict(name, row)
                answers += 1

        await asyncio.gather(*(caller(rows[i % len(rows)][None]) for i in range(callers)))
        return answers / (time.perf_counter() - started)

    return asyncio.run(measure())


def main(seconds: float, rounds: int) -> None:
    found: dict[tuple[int, int, int], list[dict[str, float]]] = {choice: [] for choice in choices()}
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "benchmarks.models", directory, *CALLERS], check=True, timeout=300)
        for _ in range(rounds):
            for choice in found:
                words = [sys.executable, "-m", "benchmarks.threads", "--seconds", str(seconds)]
                words += ["--directory", directory, "--choice", *map(str, choice)]
                done = subprocess.run(words, check=True, timeout=300, capture_output=True, text=True)
                found[choice].append(json.loads(done.stdout.splitlines()[-1]))
    print("| run threads | intra-op | inter-op |", " | ".join(f"{n}, {c} callers" for n, c in CALLERS.items()), "|")
    print("| --- | --- | --- |", " | ".join("---" for _ in CALLERS), "|")
    for choice, measured in found.items():
        cells = []
        for name in CALLERS:
            ratios = [ours[name] / usual[name] for ours, usual in zip(measured, found[choices()[0]], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({statistics.median(m[name] for m in measured):,.0f}/s)")
        print("|", " | ".join(map(str, choice)), "|", " | ".join(cells), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="per model and choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--choice", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.choice:
        print(json.dumps(one_choice(arguments.directory, tuple(arguments.choice), arguments.seconds)))
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        main(arguments.seconds, arguments.rounds)
