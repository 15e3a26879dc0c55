"""Fifty new versions, one after the other, under 32 callers: what fails, what waits, what leaks.

python -m benchmarks.hot_swap [--model tiny|mobilenet] [--transport in-process|rest|grpc|all] [--swaps 50]

Bars: no failed request; each answer made by one version; memory after the last swap within 5 % of that after the fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.callers import Array, Ask, HttpConnection, grpc_caller, rest_caller
from benchmarks.serving import rss_megabytes, server_process

TRANSPORTS = ("in-process", "rest", "grpc")
CALLERS = 32


class Log:
    """Every answer's start and end, and what went wrong."""

    def __init__(self) -> None:
        # All there from the beginning, and nothing for the garbage collector: in process, its memory is measured too.
        self._times = np.ones((1 << 22, 2))
        self.answered = 0
        self.failed: list[str] = []
        self.mixed = 0
        self.stop = False

    def add(self, start: float, end: float) -> None:
        if self.answered == len(self._times):
            self._times = np.concatenate([self._times, self._times])
        self._times[self.answered] = start, end
        self.answered += 1

    def figures(self, windows: list[tuple[float, float]]) -> str:
        """Rate, latencies and the longest time without any answer, over the answers that ended in `windows`."""
        begun, ended = self._times[: self.answered].T
        order = np.argsort(ended)
        begun, ended = begun[order], ended[order]
        latencies, pause = [], 0.0
        for begin, finish in windows:
            inside = slice(*np.searchsorted(ended, (begin, finish)))
            latencies.append(ended[inside] - begun[inside])
            pause = max(pause, float(np.diff(np.concatenate([[begin], ended[inside], [finish]])).max()))
        seconds = sum(finish - begin for begin, finish in windows)
        found = np.concatenate(latencies)
        p50, p99, longest = (1e3 * np.percentile(found, q) for q in (50, 99, 100))
        return (
            f"{len(found) / seconds:8,.0f}/s   p50 {p50:7.1f}   p99 {p99:7.1f}   longest {longest:7.1f}   "
            f"no answer for {1e3 * pause:7.1f} ms at most"
        )


class TinyModels:
    """Version n answers x + n and n: a mixed answer shows."""

    name = "tiny"
    x: npt.NDArray[np.float32] = np.arange(16, dtype=np.float32).reshape(4, 4)

    def make(self, directory: Path, versions: int) -> None:
        from benchmarks.models import Tiny, save

        module = Tiny(0)
        for version in range(1, versions + 1):
            module.version.assign(float(version))
            save(module, directory / str(version))

    def template(self, version: int) -> str:
        return str(version)

    @property
    def inputs(self) -> dict[str, Array]:
        return {"x": self.x}

    def of_one_version(self, out: dict[str, Array]) -> bool:
        version = out["version"][0]
        return bool((out["version"] == version).all() and (out["y"] == self.x + version).all())


class MobileNets:
    """Odd versions have one set of weights and even ones another; an answer must be one of the two."""

    name = "mobilenet"

    def __init__(self) -> None:
        image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3))
        self.image = image.round(3).astype(np.float32)
        self.expected: list[Array] = []

    def make(self, directory: Path, versions: int) -> None:
        code = "import sys, pathlib; from benchmarks.models import save_mobilenet as save\n"
        code += "save(1, pathlib.Path(sys.argv[1], 'odd')); save(2, pathlib.Path(sys.argv[1], 'even'))"
        subprocess.run([sys.executable, "-c", code, str(directory)], check=True, stderr=subprocess.DEVNULL)

    def template(self, version: int) -> str:
        return "odd" if version % 2 else "even"

    @property
    def inputs(self) -> dict[str, Array]:
        return {"image": self.image}

    def of_one_version(self, out: dict[str, Array]) -> bool:
        (probabilities,) = out.values()
        for expected in self.expected:
            if np.allclose(probabilities, expected, rtol=1e-3, atol=1e-6):
                return True
        self.expected.append(probabilities)  # The first answer of either kind is what the rest is held against.
        return len(self.expected) <= 2


Models = TinyModels | MobileNets


async def call(ask: Ask, models: Models, log: Log) -> None:
    while not log.stop:
        start = time.perf_counter()
        try:
            out = await ask()
        except Exception as error:
            log.failed.append(f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(0.01)
            continue
        log.add(start, time.perf_counter())
        if not models.of_one_version(out):
            log.mixed += 1


Live = Callable[[], Awaitable[dict[str, str]]]
"""The state of each version by number, as text."""


@contextlib.asynccontextmanager
async def in_process(models: Models, base: Path, gc_freeze: bool) -> AsyncIterator[tuple[list[Ask], Live, int]]:
    from embedserve import ModelRegistry

    async with ModelRegistry(base, gc_freeze=gc_freeze) as registry:

        async def ask() -> dict[str, Array]:
            return await registry.predict(models.name, models.inputs)

        async def live() -> dict[str, str]:
            return {str(status.version): status.state.name for status in registry.status()[models.name]}

        yield [ask] * CALLERS, live, os.getpid()


@contextlib.asynccontextmanager
async def remote(models: Models, base: Path, transport: str) -> AsyncIterator[tuple[list[Ask], Live, int]]:
    import grpc

    config: dict[str, object] = {"name": models.name, "base_path": str(base / models.name)}
    async with server_process([config]) as server, contextlib.AsyncExitStack() as stack:
        status = HttpConnection("127.0.0.1", server.rest_port)

        async def live() -> dict[str, str]:
            _, body = await status.request("GET", f"/v1/models/{models.name}")
            return {entry["version"]: entry["state"] for entry in json.loads(body)["model_version_status"]}

        if transport == "rest":
            asks = [rest_caller(server.rest_port, models.name, models.inputs) for _ in range(CALLERS)]
        else:
            options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(server.grpc, options)) for _ in range(4)
            ]
            asks = [grpc_caller(channels[i % 4], models.name, models.inputs) for i in range(CALLERS)]
        yield asks, live, server.process.pid


async def swap(models: Models, templates: Path, base: Path, version: int, live: Live) -> None:
    """Drop `version` in and return when it serves and the one before has been unloaded."""
    from benchmarks.models import drop

    await asyncio.to_thread(drop, templates / models.template(version), base / models.name / str(version))
    while True:
        states = await live()
        if states.get(str(version)) == "AVAILABLE" and states.get(str(version - 1)) == "END":
            break
        await asyncio.sleep(0.02)
    await asyncio.to_thread(shutil.rmtree, base / models.name / str(version - 1))


async def measure(models: Models, transport: str, swaps: int, steady: float, gc_freeze: bool) -> bool:
    from benchmarks.models import drop

    with tempfile.TemporaryDirectory() as directory:
        templates, base = Path(directory, "templates"), Path(directory, "models")
        models.make(templates, swaps + 1)
        (base / models.name).mkdir(parents=True)
        drop(templates / models.template(1), base / models.name / "1")
        async with (
            in_process(models, base, gc_freeze) if transport == "in-process" else remote(models, base, transport)
        ) as (asks, live, pid):
            log = Log()
            callers = [asyncio.create_task(call(ask, models, log)) for ask in asks]
            await asyncio.sleep(1)  # Connections, caches.
            begin = time.perf_counter()
            await asyncio.sleep(steady)
            quiet = [(begin, time.perf_counter())]
            during, memory = [], {}
            for number in range(1, swaps + 1):
                begin = time.perf_counter()
                await swap(models, templates, base, number + 1, live)
                during.append((begin, time.perf_counter()))
                memory[number] = rss_megabytes(pid)
            log.stop = True
            await asyncio.gather(*callers)

    early = memory[min(5, swaps)]
    growth = memory[swaps] / early - 1
    print(f"{models.name}, {transport}: {swaps} swaps under {CALLERS} callers, {log.answered:,} answers")
    print(f"  steady      {log.figures(quiet)}")
    print(f"  swapping    {log.figures(during)}")
    print(
        f"  failed {len(log.failed)}, mixed versions {log.mixed}, "
        f"RSS {early:,.0f} -> {memory[swaps]:,.0f} MB ({growth:+.1%}), "
        f"{sum(end - begin for begin, end in during) / swaps:.1f} s from drop to old version unloaded"
    )
    for failure in dict.fromkeys(log.failed):
        print("   ", failure)
    sys.stdout.flush()
    return not log.failed and not log.mixed and growth <= 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "mobilenet"], default="tiny")
    parser.add_argument("--transport", choices=[*TRANSPORTS, "all"], default="all")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--steady", type=float, default=5.0, help="seconds of steady state, for comparison")
    parser.add_argument("--gc-freeze", action="store_true", help="in process: the registry's option of that name")
    arguments = parser.parse_args()
    if arguments.transport != "all":
        models: Models = TinyModels() if arguments.model == "tiny" else MobileNets()
        return not asyncio.run(
            measure(models, arguments.transport, arguments.swaps, arguments.steady, arguments.gc_freeze)
        )
    failed = 0
    for transport in TRANSPORTS:  # A process each: memory is the subject.
        command = [sys.executable, "-m", "benchmarks.hot_swap", "--model", arguments.model, "--transport", transport]
        command += ["--swaps", str(arguments.swaps), "--steady", str(arguments.steady)]
        command += ["--gc-freeze"] if arguments.gc_freeze else []
        failed |= subprocess.run(command, check=False).returncode
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
