"""gRPC on the own listener, on grpc.aio and in a host: Predict on a tiny model, beside a server that does nothing.

python -m benchmarks.grpc_transports [--seconds 2] [--repeats 5] [--json FILE]
python -m benchmarks.grpc_transports --serve embedserve-standalone     (one server alone, for a profiler)

The servers take turns on one processor core, h2load is on another and keeps 32 calls under way. Answers are
checked before and after; during the load, an answer of another size than a right one counts as failed. Processor time
per call is the figure that other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.suite import load, measure
from benchmarks.suite.bars import rate_ratio
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.measure import Cell, Plan, Results
from benchmarks.suite.workloads import Workload, examples_of, models_directory

NOOP_AIO, AIO, OWN, HTTP = SERVERS = (
    "noop-grpc.aio",
    "embedserve-grpcio",
    "embedserve-standalone",
    "embedserve-http",
)
WORKLOAD = Workload("half", ("grpc",), (32,))
# One server over another, and how many times its calls it is to answer at least.
RATIOS = (
    (AIO, NOOP_AIO, 0.7),
    (OWN, AIO, 2.5),
    (OWN, NOOP_AIO, None),
    (HTTP, OWN, None),
)


@dataclass(frozen=True)
class Ratio:
    """How many times the calls of `other` the server `one` answers; `by_cpu` is the same by processor time per call.

    Attributes:
        bound: The bar, or None for a figure without one.
    """

    one: str
    other: str
    rate: float
    by_cpu: float
    bound: float | None = None

    @property
    def met(self) -> bool:
        return self.bound is None or self.rate >= self.bound


def cell(server: str) -> Cell:
    (concurrency,) = WORKLOAD.concurrency
    return Cell(WORKLOAD.name, "grpc", concurrency, server)


def ratios(results: Results) -> Iterator[Ratio]:
    medians = results.medians()
    for one, other, bound in RATIOS:
        if cell(one) in medians and cell(other) in medians:
            by_cpu = medians[cell(other)].cpu / medians[cell(one)].cpu
            yield Ratio(one, other, rate_ratio(results.samples, cell(one), cell(other)), by_cpu, bound)


def markdown(results: Results) -> str:
    lines = [
        "| server | calls/s: median (lowest to highest) | CPU µs per call | p50 ms | p99 ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    medians = results.medians()
    for server in (server for server in SERVERS if cell(server) in medians):
        found = medians[cell(server)]
        rates = [sample.rate for sample in results.samples[cell(server)]]
        lines.append(
            f"| {server} | {found.rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {found.cpu * 1e6:.1f} "
            f"| {found.p50 * 1e3:.2f} | {found.p99 * 1e3:.2f} |"
        )
    lines += ["", "| ratio | by calls/s | by CPU per call | bar |", "| --- | --- | --- | --- |"]
    for ratio in ratios(results):
        bar = "" if ratio.bound is None else f"≥ {ratio.bound:g}: {'met' if ratio.met else '**missed**'}"
        lines.append(f"| {ratio.one} / {ratio.other} | {ratio.rate:.2f} | {ratio.by_cpu:.2f} | {bar} |")
    lines += [f"| {server} | not measured: {why} | | |" for server, why in results.absent.items()]
    lines += ["", *(results.problems or ["Every answer that was looked at was right, and no call failed."])]
    return "\n".join(lines)


def as_json(results: Results) -> str:
    document = {
        "samples": {each.server: [asdict(sample) for sample in found] for each, found in results.samples.items()},
        "medians": {each.server: asdict(found) for each, found in results.medians().items()},
        "ratios": [asdict(ratio) | {"met": ratio.met} for ratio in ratios(results)],
        "absent": results.absent,
        "problems": results.problems,
    }
    return json.dumps(document, indent=2)


def serve(server: str, core: int) -> int:
    """Run one server until it is interrupted."""
    models = models_directory([WORKLOAD.name])
    contender = CONTENDERS[server]
    with tempfile.TemporaryDirectory() as directory:
        answers = measure.write_answers(Path(directory), {WORKLOAD.name: examples_of(models, WORKLOAD.name)})
        place = measure.new_place(Path(directory, server), models, answers, Path(sys.executable))
        port = place.rest if contender.one_port else place.grpc
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *contender.command(place)],
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", **contender.environment(place)},
        )
        print(f"{server}: process {process.pid}, port {port}", flush=True)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # The server has heard it too.
                continue


def parser() -> argparse.ArgumentParser:
    cores = sorted(os.sched_getaffinity(0))
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    found.add_argument("--repeats", type=int, default=5, help="rounds; medians are reported")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    found.add_argument("--serve", choices=SERVERS, help="measure nothing: run this one server, and print its port")
    found.add_argument("--server-core", type=int, default=cores[0], help="processor of the servers")
    found.add_argument("--load-core", type=int, default=cores[-1], help="processor of the load generator")
    return found


def main() -> int:
    options = parser().parse_args()
    if options.serve:
        return serve(options.serve, options.server_core)
    if options.server_core == options.load_core:
        raise SystemExit("one processor is not enough: server and load generator each need their own")
    try:
        load.h2load()
    except load.NoLoadGenerator as error:
        raise SystemExit(str(error)) from None
    plan = Plan(
        [CONTENDERS[server] for server in SERVERS],
        [WORKLOAD],
        options.seconds,
        options.repeats,
        options.server_core,
        options.load_core,
    )
    results = measure.run(plan, models_directory([WORKLOAD.name]))
    if options.json:
        options.json.write_text(as_json(results))
    print(markdown(results))
    return 1 if results.problems or results.absent else 0


if __name__ == "__main__":
    raise SystemExit(main())
