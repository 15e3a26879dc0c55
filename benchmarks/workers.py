"""Workers on one machine: two processes against one; a worker killed under load; versions swapped under load.

python -m benchmarks.workers [--parts throughput,memory,start,kill,swaps] [--models half,mobilenet] [--workers 0,1,2]
                             [--callers N] [--seconds 5] [--rounds 3]

The load comes from the same machine, and the server may use all of it: the figures of the servers compare with each
other. `0` workers is the server that needs no supervisor. Memory, of one server at a time after a load, is what each
process has to itself and its part of what it shares (PSS; what else on the machine runs TensorFlow shares its
libraries, and makes that smaller), and what it has mapped (RSS). Bars: no failed request but those that a killed worker
held; no answer of an older version after one of a newer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.callers import Array, Ask, grpc_caller, rest_caller
from benchmarks.ports import free_port
from benchmarks.suite.load import Load, Target, h2load, median, parse
from benchmarks.suite.wire import TFS_GRPC, TFS_REST, Format, framed
from benchmarks.suite.workloads import examples_of, models_directory

CONCURRENCY = {"half": 64, "mobilenet": 16}
CALLERS = 8


class Server:
    """One standalone server, with so many workers."""

    def __init__(self, models: Path, workers: int, log: Path) -> None:
        self.workers = workers
        self.rest, self.grpc = free_port(), free_port()
        monitoring = log.with_suffix(".monitoring")
        monitoring.write_text("prometheus_config { enable: true }")
        command = [sys.executable, "-m", "embedserve", str(models), f"--workers={workers}"]
        command += [f"--rest_api_port={self.rest}", f"--port={self.grpc}", f"--monitoring_config_file={monitoring}"]
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=errors, start_new_session=True
            )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest}{path}", timeout=30) as response:
            return json.loads(response.read())

    def wait_until_serving(self) -> None:
        while b"Entering the event loop" not in self._log.read_bytes():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.05)

    def status(self) -> list[dict[str, Any]]:
        """Of each worker; empty without workers."""
        return list(self.get("/-/workers")["workers"]) if self.workers else []

    def processes(self) -> dict[str, int]:
        """Every process by what it is."""
        first = "supervisor" if self.workers else "server"
        return {first: self._process.pid} | {f"worker {w['index']}": w["pid"] for w in self.status()}

    def shares(self) -> list[int]:
        """How many requests each worker has answered."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest}/monitoring/prometheus/metrics", timeout=30) as page:
            text = page.read().decode()
        return [int(count) for count in re.findall(r"embedserve_worker_requests_total\{.*?\} (\d+)", text)]

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise


@contextlib.contextmanager
def serving(models: Path, workers: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        server = Server(models, workers, Path(directory, "log"))
        try:
            server.wait_until_serving()
            yield server
        finally:
            server.close()


def tell(pids: dict[Server, list[int]], number: signal.Signals) -> None:
    """Stop everything where it stands, or let it go on."""
    for each in pids.values():
        for pid in each:
            os.kill(pid, number)


@contextlib.contextmanager
def running(chosen: Server, pids: dict[Server, list[int]]) -> Iterator[None]:
    """Let one server run while the others stand still."""
    tell({chosen: pids[chosen]}, signal.SIGCONT)
    try:
        yield
    finally:
        tell({chosen: pids[chosen]}, signal.SIGSTOP)


# Throughput and memory.


def measure_once(target: Target, concurrency: int, seconds: float) -> Load:
    """h2load with a connection per request under way, on whichever core is free."""
    with tempfile.TemporaryDirectory() as directory:
        body, log = Path(directory, "body"), Path(directory, "log")
        body.write_bytes(target.body)
        command = [h2load(), "--duration", f"{round(seconds * 1000)}ms", "--warm-up-time", "1s"]
        command += ["--data", str(body), "--log-file", str(log), "--clients", str(concurrency)]
        if target.grpc:
            command += ["--max-concurrent-streams", "1", "--window-bits", "24", "--connection-window-bits", "26"]
            command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        else:
            command += ["--h1", "--header", "content-type: application/json"]
        done = subprocess.run([*command, target.url], capture_output=True, text=True, timeout=seconds + 60, check=True)
        return parse(done.stdout, log.read_text(), target, concurrency)


def target_of(server: Server, model: str, form: Format, x: Array) -> Target:
    message = form.encode(model, x)
    grpc = form.protocol == "grpc"
    port = server.grpc if grpc else server.rest
    return Target(f"http://127.0.0.1:{port}{form.path(model)}", framed(message) if grpc else message, grpc)


def memory_of(pid: int) -> tuple[float, float]:
    """RSS and PSS in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (int(re.findall(rf"^{name}: +(\d+) kB", text, re.MULTILINE)[0]) / 1024 for name in ("Rss", "Pss"))
    return rss, pss


def rates(model: str, counts: Sequence[int], callers: int, seconds: float, rounds: int) -> dict[tuple[str, int], Load]:
    """Medians by protocol and number of workers; the servers take turns. Prints each worker's part of the answers."""
    models = models_directory([model])
    x = examples_of(models, model).x[:1]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        only = Path(directory, "models")
        only.mkdir()
        (only / model).symlink_to(models / model)
        servers = [stack.enter_context(serving(only, workers)) for workers in counts]
        pids = {server: list(server.processes().values()) for server in servers}
        stack.callback(tell, pids, signal.SIGCONT)
        tell(pids, signal.SIGSTOP)
        loads: dict[tuple[str, int], list[Load]] = {}
        for _ in range(rounds):
            for form in (TFS_REST, TFS_GRPC):
                for server in servers:
                    with running(server, pids):
                        target = target_of(server, model, form, x)
                        load = measure_once(target, callers, seconds)
                    loads.setdefault((form.protocol, server.workers), []).append(load)
        if counts[-1] > 1:
            with running(servers[-1], pids):
                shares = servers[-1].shares()
            listed = ", ".join(f"{share / sum(shares):.0%}" for share in shares)
            print(f"answered by each of {counts[-1]} workers: {listed}")
    return {key: median(each) for key, each in loads.items()}


def throughput(model: str, counts: Sequence[int], callers: int, seconds: float, rounds: int) -> bool:
    """Servers with so many workers beside each other; ratios are to the first."""
    medians = rates(model, counts, callers, seconds, rounds)
    print(f"{model}, {callers} callers, {rounds} rounds of {seconds:g} s")
    for (protocol, workers), load in sorted(medians.items(), key=lambda item: (item[0][0] == "grpc", item[0])):
        ratio = load.rate / medians[protocol, counts[0]].rate
        print(
            f"  {protocol:4}  workers {workers}: {load.rate:8,.0f}/s ({ratio:.2f})   "
            f"p50 {1e3 * load.p50:7.1f}   p99 {1e3 * load.p99:7.1f} ms   failed {load.failed}"
        )
    sys.stdout.flush()
    return not any(load.failed for load in medians.values())


def memory(model: str, counts: Sequence[int], seconds: float) -> None:
    """What the processes of one server hold, with so many workers."""
    models = models_directory([model])
    x = examples_of(models, model).x[:1]
    with tempfile.TemporaryDirectory() as directory:
        only = Path(directory, "models")
        only.mkdir()
        (only / model).symlink_to(models / model)
        for workers in counts:
            with serving(only, workers) as server:
                for form in (TFS_REST, TFS_GRPC):
                    measure_once(target_of(server, model, form, x), CONCURRENCY[model], seconds)
                held = {name: memory_of(pid) for name, pid in server.processes().items()}
            listed = ", ".join(f"{name} {rss:,.0f} RSS {pss:,.0f} PSS" for name, (rss, pss) in held.items())
            print(f"{model}, workers {workers}: {sum(pss for _, pss in held.values()):,.0f} MB in all ({listed})")
    sys.stdout.flush()


def start(model: str, counts: Sequence[int], rounds: int) -> None:
    """From the command to the first answer, with so many workers; and from a killed worker to the next answer."""
    models = models_directory([model])
    x = examples_of(models, model).x[:1]
    with tempfile.TemporaryDirectory() as directory:
        only = Path(directory, "models")
        only.mkdir()
        (only / model).symlink_to(models / model)
        for workers in counts:
            seconds: list[float] = []
            again: list[float] = []
            for _ in range(rounds):
                begin = time.perf_counter()
                with serving(only, workers) as server:
                    ask = target_of(server, model, TFS_REST, x)
                    answer(ask)
                    seconds.append(time.perf_counter() - begin)
                    if workers == 1:
                        os.kill(server.status()[0]["pid"], signal.SIGKILL)
                        begin = time.perf_counter()
                        time.sleep(0.05)
                        answer(ask)
                        again.append(time.perf_counter() - begin)
            after_kill = f", after a kill {statistics.median(again):.1f} s" if again else ""
            print(f"{model}, workers {workers}: first answer {statistics.median(seconds):.1f} s{after_kill}")
    sys.stdout.flush()


def answer(ask: Target) -> None:
    """One request over a connection of its own."""
    request = urllib.request.Request(ask.url, data=ask.body, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        response.read()


# Under load from this process: what fails, and what is seen.


@dataclass
class Seen:
    """Answers by when they came, failures by when they did, and older versions that came after newer ones."""

    answered: list[float]
    failed: list[tuple[float, str]]
    stale: int = 0
    newest: float = 0.0
    stop: bool = False

    def rate(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at in self.answered) / (end - begin)

    def pause(self, begin: float, end: float) -> float:
        """The longest time without any answer."""
        inside = sorted(at for at in self.answered if begin <= at <= end)
        return max(after - before for before, after in zip([begin, *inside], [*inside, end], strict=True))


async def call(ask: Ask, seen: Seen) -> None:
    while not seen.stop:
        floor = seen.newest
        try:
            out = await ask()
        except Exception as error:
            seen.failed.append((time.perf_counter(), f"{type(error).__name__}: {str(error)[:200]}"))
            continue
        seen.answered.append(time.perf_counter())
        if "version" in out:
            version = float(out["version"][0])
            seen.stale += version < floor
            seen.newest = max(seen.newest, version)


@contextlib.asynccontextmanager
async def callers(server: Server, model: str, inputs: dict[str, Array]) -> Any:
    """As many over REST as over gRPC, each with a connection of its own."""
    import grpc

    seen = Seen([], [])
    async with contextlib.AsyncExitStack() as stack:
        asks = [rest_caller(server.rest, model, inputs) for _ in range(CALLERS)]
        for number in range(CALLERS):
            options = [("grpc.use_local_subchannel_pool", 1), ("embedserve.number", number)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}", options))
            asks.append(grpc_caller(channel, model, inputs))
        tasks = [asyncio.create_task(call(ask, seen)) for ask in asks]
        try:
            yield seen
        finally:
            seen.stop = True
            await asyncio.gather(*tasks)


async def kill(models: Path, times: int) -> bool:
    """SIGKILL to one worker and the other in turn."""
    from benchmarks.hot_swap import TinyModels

    tiny = TinyModels()
    fine = True
    with serving(models, 2) as server:
        failures, strength, rates = [], [], []
        for number in range(times):
            async with callers(server, tiny.name, tiny.inputs) as seen:
                await asyncio.sleep(2)
                workers = await asyncio.to_thread(server.status)
                victim = workers[number % 2]["pid"]
                killed = time.perf_counter()
                os.kill(victim, signal.SIGKILL)
                while True:
                    workers = await asyncio.to_thread(server.status)
                    if all(worker["state"] == "serving" and worker["pid"] != victim for worker in workers):
                        break
                    await asyncio.sleep(0.05)
                full = time.perf_counter()
                await asyncio.sleep(2)
            failures.append(len(seen.failed))
            strength.append(full - killed)
            rates.append((seen.rate(killed - 1.5, killed), seen.rate(killed + 0.2, full), seen.pause(killed, full)))
            late = [error for at, error in seen.failed if at > killed + 1]
            fine &= not late
            for error in dict.fromkeys(late):
                print("   ", error)
    before, during, pauses = zip(*rates, strict=True)
    print(f"a worker killed under {2 * CALLERS} callers, {times} times")
    print(
        f"  failed {failures} (each caller has one request under way), "
        f"full strength after {statistics.median(strength):.1f} s, {statistics.median(before):,.0f}/s before, "
        f"{statistics.median(during):,.0f}/s until then, no answer for {1e3 * max(pauses):.0f} ms at most"
    )
    sys.stdout.flush()
    return fine


async def swaps(templates: Path, count: int) -> bool:
    """One version after the other, while every caller watches that none is older than one that somebody has seen."""
    import shutil

    from benchmarks.hot_swap import TinyModels
    from benchmarks.models import drop

    tiny = TinyModels()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory, tiny.name)
        base.mkdir()
        drop(templates / "1", base / "1")
        with serving(Path(directory), 2) as server:
            async with callers(server, tiny.name, tiny.inputs) as seen:
                await asyncio.sleep(2)
                begin = time.perf_counter()
                for version in range(2, count + 2):
                    await asyncio.to_thread(drop, templates / str(version), base / str(version))
                    while True:
                        status = await asyncio.to_thread(server.get, f"/v1/models/{tiny.name}")
                        states = {each["version"]: each["state"] for each in status["model_version_status"]}
                        if states.get(str(version)) == "AVAILABLE" and states.get(str(version - 1)) == "END":
                            break
                        await asyncio.sleep(0.02)
                    await asyncio.to_thread(shutil.rmtree, base / str(version - 1))
                end = time.perf_counter()
    print(f"{count} swaps on 2 workers under {2 * CALLERS} callers, {len(seen.answered):,} answers")
    print(
        f"  failed {len(seen.failed)}, older after newer {seen.stale}, {(end - begin) / count:.2f} s a swap, "
        f"no answer for {1e3 * seen.pause(begin, end):.0f} ms at most"
    )
    for failure in dict.fromkeys(error for _, error in seen.failed):
        print("   ", failure)
    sys.stdout.flush()
    return not seen.failed and not seen.stale


def make_versions(directory: Path, count: int) -> None:
    """In a process of its own, as this one imports no TensorFlow."""
    code = "import sys, pathlib; from benchmarks.hot_swap import TinyModels as T; "
    code += "T().make(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, str(directory), str(count)], check=True, stderr=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="throughput,memory,start,kill,swaps")
    parser.add_argument("--workers", default="0,1,2", help="how many, for throughput, memory and start")
    parser.add_argument("--callers", type=int, help="for throughput, instead of as many as the model has")
    parser.add_argument("--models", default="half,mobilenet")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--swaps", type=int, default=20)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    counts = [int(count) for count in arguments.workers.split(",")]
    fine = True
    if "throughput" in parts:
        for model in arguments.models.split(","):
            callers = arguments.callers or CONCURRENCY[model]
            fine &= throughput(model, counts, callers, arguments.seconds, arguments.rounds)
    if "memory" in parts:
        for model in arguments.models.split(","):
            memory(model, counts, arguments.seconds)
    if "start" in parts:
        for model in arguments.models.split(","):
            start(model, counts, arguments.rounds)
    if "kill" in parts or "swaps" in parts:
        with tempfile.TemporaryDirectory() as directory:
            templates = Path(directory, "templates")
            make_versions(templates, max(arguments.swaps + 1, 1))
            if "kill" in parts:
                models = Path(directory, "models")
                (models / "tiny").mkdir(parents=True)
                (models / "tiny" / "1").symlink_to(templates / "1")
                fine &= asyncio.run(kill(models, arguments.kills))
            if "swaps" in parts:
                fine &= asyncio.run(swaps(templates, arguments.swaps))
    return not fine


if __name__ == "__main__":
    raise SystemExit(main())
