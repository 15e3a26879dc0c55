"""What the registry costs in process: requests/s of 1 and 64 callers beside plain signature calls, in one run.

python -m benchmarks.in_process [--seconds 2] [--rounds 5]

Bars: one caller waits no longer than a plain signature call; 64 callers get at least 8 times the answers per second.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.models import Tiny, save
from embedserve import ModelRegistry

X = np.arange(4, dtype=np.float32)[None]


def plain(signature: Any, seconds: float, *, numpy: bool) -> float:
    """Signature calls per second in one thread; `numpy` adds the conversions that every server has to do."""
    x = tf.constant(X)
    end = time.perf_counter() + seconds
    start, calls = time.perf_counter(), 0
    while time.perf_counter() < end:
        if numpy:
            out = signature(x=tf.constant(X))
            out["y"].numpy(), out["version"].numpy()
        else:
            signature(x=x)
        calls += 1
    return calls / (time.perf_counter() - start)


async def served(registry: ModelRegistry, callers: int, seconds: float) -> float:
    """Answers per second to `callers` concurrent callers of `registry.predict`."""
    end = time.perf_counter() + seconds

    async def caller() -> int:
        answers = 0
        while time.perf_counter() < end:
            await registry.predict("tiny", {"x": X})
            answers += 1
        return answers

    start = time.perf_counter()
    answers = await asyncio.gather(*(caller() for _ in range(callers)))
    return sum(answers) / (time.perf_counter() - start)


async def main(seconds: float, rounds: int) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        save(Tiny(1), Path(directory, "tiny", "1"))
        signature = tf.saved_model.load(f"{directory}/tiny/1").signatures["serving_default"]
        rates: dict[str, list[float]] = {}
        async with ModelRegistry(directory) as registry:
            for round_number in range(rounds + 1):
                # In turns, so that whatever else the machine does falls on all of them alike.
                measured = {
                    "plain signature calls, tensor to tensor": plain(signature, seconds, numpy=False),
                    "plain signature calls, numpy to numpy": plain(signature, seconds, numpy=True),
                    "registry.predict, 1 caller": await served(registry, 1, seconds),
                    "registry.predict, 64 callers": await served(registry, 64, seconds),
                }
                if round_number:  # The first one warms up.
                    for name, rate in measured.items():
                        rates.setdefault(name, []).append(rate)

    medians = {name: statistics.median(found) for name, found in rates.items()}
    base = medians["plain signature calls, tensor to tensor"]
    for name, rate in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{name:42} {rate:9,.0f}/s  {1e6 / rate:7.1f} us each  x{rate / base:.2f}   ({low:,.0f} to {high:,.0f})")
    one, many = medians["registry.predict, 1 caller"] / base, medians["registry.predict, 64 callers"] / base
    print(f"1 caller: {one:.2f} of a plain call's rate (bar 1.00); 64 callers: {many:.1f} times (bar 8.0)")
    return one >= 1 and many >= 8


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    raise SystemExit(not asyncio.run(main(arguments.seconds, arguments.rounds)))
