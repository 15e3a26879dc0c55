"""Adaptive batching against the default, in process: real models over closed and open loops of rising load.

python -m benchmarks.adaptive [--models half,mlp,recurrent,mobilenet] [--seconds 0.2] [--rounds 9] [--simulated]

Two registries are entered at once, one of each kind, and measured in turns of `--seconds`, now one and now the other
first, so that what else the machine does falls on both; ratios are the medians of the rounds' ones. Callers of a closed
loop ask again after an answer, `pause` ones after up to 3 ms, as clients over a network do. An open loop asks by
itself, at a share of what 64 callers get, with a timeout; what is answered in time counts. It asks for more than there
is only where the model is slow, and not the loop that asks. `--simulated`: a sweep without model, clock and noise.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from benchmarks.queue_simulation import ClosedLoop, Load, Machine, OpenLoop, simulate
from embedserve import ModelConfig, ModelRegistry, ServingError
from embedserve.servable import Array

MODELS = ("half", "mlp", "recurrent", "mobilenet")
PAUSE = 0.003
SHARES = (0.3, 0.6)
OVERLOAD = (0.9, 1.5, 3.0)
LOOP = 2000.0  # Requests per second that an event loop can ask for and do much else.

Kind: TypeAlias = Literal["auto", "adaptive"]
KINDS: tuple[Kind, Kind] = ("auto", "adaptive")


@dataclass
class Sample:
    """One turn: seconds, those of a processor for each answer, latencies of what was answered, and what was not."""

    seconds: float = 0.0
    cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        return sorted(self.latencies)[int(share * len(self.latencies))] if self.latencies else math.nan


def example(name: str) -> Array:
    shape = {"half": (1, 1), "mlp": (1, 784), "recurrent": (1, 16), "mobilenet": (1, 224, 224, 3)}[name]
    return np.random.default_rng(1).random(shape, np.float32)


def make(name: str, root: Path) -> ModelConfig:
    from benchmarks import models

    path = root / name / "1"
    if name == "mobilenet":
        models.export_mobilenet(example(name), path)
    else:
        models.save({"half": models.Half, "mlp": models.Mlp, "recurrent": models.Recurrent}[name](), path)
    return ModelConfig(name=name, base_path=root / name)


async def turn(registry: ModelRegistry, name: str, x: Array, load: Load, seconds: float) -> Sample:
    """Put a load on one registry for so many seconds."""
    sample, dice = Sample(), random.Random(1)
    started, used = time.perf_counter(), time.process_time()
    end = started + seconds

    async def ask(timeout: float | None = None) -> None:
        asked = time.perf_counter()
        try:
            await registry.predict(name, {"x": x}, timeout=timeout)
            sample.latencies.append(time.perf_counter() - asked)
        except ServingError as error:
            sample.failures[type(error).__name__] += 1

    async def caller(pause: float) -> None:
        while time.perf_counter() < end:
            await ask()
            if pause:
                await asyncio.sleep(dice.random() * pause)

    async with asyncio.TaskGroup() as group:
        if isinstance(load, ClosedLoop):
            for _ in range(load.callers):
                group.create_task(caller(load.pause))
        else:
            due = started
            while (now := time.perf_counter()) < end:
                while due <= now:
                    group.create_task(ask(load.timeout))
                    due += dice.expovariate(load.rate)
                await asyncio.sleep(max(due - time.perf_counter(), 0))
    sample.seconds = time.perf_counter() - started
    sample.cpu = (time.process_time() - used) / max(len(sample.latencies), 1)
    return sample


def title(load: Load, share: float | None) -> str:
    if isinstance(load, ClosedLoop):
        pause = f", pause {load.pause * 1e3:g} ms" if load.pause else ""
        return f"{load.callers} caller{'s' * (load.callers > 1)}{pause}"
    timeout = f", timeout {load.timeout * 1e3:.0f} ms" if load.timeout else ""
    return f"open, {share:.0%}{timeout}"


HEADER = "| model | load | default | adaptive | ratio | p50 | p99 | CPU per answer |\n" + "| --- " * 8 + "|"


def row(name: str, load: str, default: list[Any], adaptive: list[Any]) -> str:
    """One line of the table: answers in time per second, and the medians of the rounds' ratios."""

    def ratio(of: Callable[[Any], float]) -> str:
        found = [of(b) / of(a) for a, b in zip(default, adaptive, strict=True) if of(a)]
        middle = statistics.median(found) if found else math.nan
        return f"{middle:.2f}" if 0 < middle < 100 else ""  # None in time: there is nothing to compare.

    rates = [f"{statistics.median(s.throughput for s in samples):,.0f}/s" for samples in (default, adaptive)]
    ratios = [ratio(lambda s: s.throughput), ratio(lambda s: s.quantile(0.5)), ratio(lambda s: s.quantile(0.99))]
    cpu = ratio(lambda s: s.cpu) if isinstance(default[0], Sample) else ""
    return "| " + " | ".join([name, load, *rates, *ratios, cpu]) + " |"


async def measure(config: ModelConfig, seconds: float, rounds: int) -> None:
    """Print the lines of one model."""
    name, x = config.name, example(config.name)
    async with (
        ModelRegistry(models=[config], batching="auto") as default,
        ModelRegistry(models=[config], batching="adaptive") as adaptive,
    ):

        async def compare(load: Load, share: float | None = None) -> list[Sample]:
            samples: dict[Kind, list[Sample]] = {kind: [] for kind in KINDS}
            # Long enough for a queue that grows to reach the timeout.
            long = max(seconds, 3 * load.timeout) if share and share > 1 and load.timeout else seconds
            for number in range(rounds + 1):
                for kind, registry in list(zip(KINDS, (default, adaptive), strict=True))[:: 1 if number % 2 else -1]:
                    sample = await turn(registry, name, x, load, long)
                    if number:  # The first one warms up.
                        samples[kind].append(sample)
            print(row(name, title(load, share), samples["auto"], samples["adaptive"]), flush=True)
            return samples["auto"]

        for callers in (1, 8):
            await compare(ClosedLoop(callers))
        capacity = statistics.median(sample.throughput for sample in await compare(ClosedLoop(64)))
        for callers in (8, 64):
            await compare(ClosedLoop(callers, PAUSE))
        timeout = max(0.05, 48 / capacity)
        for share in SHARES + OVERLOAD * (capacity < LOOP):
            await compare(OpenLoop(share * capacity, timeout), share)


def simulated() -> Iterator[str]:
    """The lines of the simulated sweep."""
    costs = {"fixed and rows": (1e-3, 1e-3), "mostly fixed": (10e-3, 0.1e-3), "mostly rows": (1e-3, 6e-3)}
    for name, (fixed, per_row) in costs.items():
        machine = Machine(fixed, per_row, slots=2, contention=0.5, noise=0.1, stall=0.02)
        capacity = machine.capacity(64)
        loads: list[tuple[Load, float | None]] = [(ClosedLoop(callers, PAUSE), None) for callers in (1, 8, 64)]
        loads += [(OpenLoop(share * capacity, 10 * (fixed + 8 * per_row)), share) for share in SHARES + OVERLOAD]
        for load, share in loads:
            default, adaptive = (simulate(machine, load, 10, adaptive=adaptive) for adaptive in (False, True))
            yield row(name, title(load, share), [default], [adaptive])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seconds", type=float, default=0.2, help="of one turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--simulated", action="store_true", help="the sweep of the tests instead")
    options = parser.parse_args()
    print(HEADER)
    if options.simulated:
        for line in simulated():
            print(line, flush=True)
        return
    with tempfile.TemporaryDirectory() as directory:
        for name in options.models.split(","):
            asyncio.run(measure(make(name, Path(directory)), options.seconds, options.rounds))


if __name__ == "__main__":
    main()
