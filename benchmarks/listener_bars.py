"""The bars of the listener: one table of ratios, each with its bound, beside C++, mosec, no-ops and plain TensorFlow.

python -m benchmarks.listener_bars [--server NAME] [--seconds 1] [--repeats 3] [--parts ratios,workers,swaps,held]

Servers take turns on one processor core, h2load (Debian: nghttp2-client) is on another. The C++ servers are small
stand-ins for TensorFlow Serving, which they are not; Debian's packages for them:

    apt-get install -y --no-install-recommends nghttp2-client g++ pkg-config libgrpc++-dev protobuf-compiler-grpc \\
        libprotobuf-dev protobuf-compiler

mosec is installed by pip into an environment of its own when first asked for. What cannot be had is a gap with a name,
and its bars are left open. Processor time per request is the figure that other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import workers
from benchmarks.suite import held, load, measure, swaps
from benchmarks.suite.bars import Bar, Samples, cpu_ratio, rate_ratio
from benchmarks.suite.client import Refused
from benchmarks.suite.contenders import CONTENDERS, Contender
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Cell, Plan, Results
from benchmarks.suite.processes import ServerFailed
from benchmarks.suite.report import table
from benchmarks.suite.workloads import Workload, models_directory

SERVER = "embedserve-standalone"
CPP_GRPC, CPP_REST, MOSEC, HTTPTOOLS, BARE = "cpp-grpc", "cpp-rest", "mosec", "noop-starlette", "bare-tensorflow"
NOOP = "noop-starlette-http"
WORKLOADS = (
    Workload("half", ("rest", "grpc"), (1, 16, 64)),
    Workload("mlp", ("rest", "grpc"), (64,)),
    Workload("mobilenet", ("rest", "grpc", "in-process"), (8,), 2.0),
)
PARTS = ("ratios", "workers", "swaps", "held")
SWAP_SECONDS = 5


@dataclass(frozen=True)
class Promise:
    """One row of the table: a figure of `one` over the same of `other`.

    Attributes:
        bound: Of the ratio; at most so much where `of_p50`, else at least.
        of_p50: The figure is the median latency instead of the rate.
    """

    what: str
    one: Cell
    other: Cell
    bound: float
    of_p50: bool = False

    def bar(self, item: int, samples: Samples) -> Bar:
        """The promise as it was kept; its ratio is NaN where a side was not measured."""
        if self.of_p50:
            sides = [samples.get(cell) or [] for cell in (self.one, self.other)]
            p50 = [statistics.median(load.p50 for load in found) if found else math.nan for found in sides]
            return Bar(item, self.what, p50[0] / p50[1], self.bound, at_most=True)
        one, other = self.one, self.other
        return Bar(item, self.what, rate_ratio(samples, one, other), self.bound, by_cpu=cpu_ratio(samples, one, other))


def promises(server: str) -> list[Promise]:
    """What is asked of a server, in the order of the table."""

    def ours(workload: str, protocol: str, count: int) -> Cell:
        return Cell(workload, protocol, count, server)

    def over(other: str, workload: str, protocol: str, count: int, bound: float, *, of_p50: bool = False) -> Promise:
        name = {"rest": "REST", "grpc": "gRPC"}[protocol]
        figure = "p50 of " if of_p50 else ""
        what = f"{figure}{name} {workload} at {count} / {other}"
        cells = ours(workload, protocol, count), Cell(workload, protocol, count, other)
        return Promise(what, *cells, bound, of_p50)

    rest, grpc = (ours("mobilenet", protocol, 8) for protocol in ("rest", "grpc"))
    return [
        over(CPP_GRPC, "half", "grpc", 64, 1.1),
        over(CPP_GRPC, "mlp", "grpc", 64, 2.5),
        over(CPP_GRPC, "half", "grpc", 1, 0.65),
        over(CPP_GRPC, "half", "grpc", 16, 0.8),
        over(MOSEC, "half", "rest", 64, 1.3),
        over(CPP_REST, "mlp", "rest", 64, 1.2),
        over(MOSEC, "mlp", "rest", 64, 2.0),
        over(CPP_REST, "half", "rest", 1, 2.0, of_p50=True),
        Promise("mobilenet at 8: REST / gRPC", rest, grpc, 0.8),
        Promise("mobilenet at 8: gRPC / bare TensorFlow", grpc, Cell("mobilenet", "in-process", 8, BARE), 0.95),
        Promise(
            "a no-op Starlette route at 64: this protocol / httptools",
            Cell("half", "rest", 64, NOOP),
            Cell("half", "rest", 64, HTTPTOOLS),
            1.3,
        ),
    ]


def bars(server: str, samples: Samples) -> list[Bar]:
    return [promise.bar(number, samples) for number, promise in enumerate(promises(server), 1)]


def ratios(options: argparse.Namespace) -> Results:
    """Measure every cell that a promise names, and our REST beside C++ where only latency is promised."""
    cells = {cell for promise in promises(options.server) for cell in (promise.one, promise.other)}
    cells |= {Cell("half", "rest", 64, CPP_REST)}
    servers = [each for name, each in CONTENDERS.items() if name in {cell.server for cell in cells}]
    cores = options.server_core, options.load_core
    plan = Plan(servers, WORKLOADS, options.seconds, options.repeats, *cores, frozenset(cells))
    return measure.run(plan, options.models)


def ratio_tables(server: str, results: Results) -> str:
    rows = [
        [
            bar.what,
            figure(bar.ratio),
            figure(bar.by_cpu),
            f"{'≤' if bar.at_most else '≥'} {bar.bound:g}",
            "open" if math.isnan(bar.ratio) else "met" if bar.met else "**missed**",
        ]
        for bar in bars(server, results.samples)
    ]
    parts = [table(["bar", "found", "by processor time", "bound", ""], rows)]
    medians = results.medians()
    rows = [
        [cell.server, cell.workload, cell.protocol, str(cell.concurrency), *figures(medians[cell])]
        for cell in sorted(medians, key=lambda cell: (cell.workload, cell.protocol, cell.concurrency, cell.server))
    ]
    parts += [table(["server", "model", "protocol", "at once", *FIGURES], rows)]
    parts += [f"{name} was not measured: {why}" for name, why in results.absent.items()]
    parts += results.problems or ["Every answer that was looked at was right, and no request failed."]
    return "\n\n".join(parts)


FIGURES = ("requests/s", "p50 ms", "p99 ms", "longest gap ms", "CPU µs each", "failed")


def figures(found: Load) -> list[str]:
    times = [f"{1e3 * seconds:.2f}" for seconds in (found.p50, found.p99, found.gap)]
    return [f"{found.rate:,.0f}", *times, f"{1e6 * found.cpu:.1f}", str(found.failed)]


def figure(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:.2f}"


def swap_table(found: Iterable[swaps.Pauses]) -> str:
    rows = []
    for each in found:
        for what, measured in (("quiet", each.quiet), (f"{each.swaps} swaps", each.swapping)):
            rows.append([f"{each.protocol}, {what}", *figures(measured)])
    return table(["half at 64", *FIGURES], rows)


def parts(options: argparse.Namespace, into: dict[str, object]) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each part's heading, and what measures it; figures go `into` a document too."""
    server: Contender = CONTENDERS[options.server]
    cores = options.server_core, options.load_core

    def all_ratios() -> str:
        results = ratios(options)
        into["bars"] = [asdict(bar) | {"met": bar.met} for bar in bars(options.server, results.samples)]
        into["samples"] = [asdict(cell) | {"samples": [*map(asdict, each)]} for cell, each in results.samples.items()]
        into["absent"], into["problems"] = results.absent, results.problems
        return ratio_tables(options.server, results)

    def two_workers() -> str:
        os.sched_setaffinity(0, options.cores)
        found = workers.rates("half", (1, 2), 64, options.seconds, options.repeats)
        into["workers"] = [{"protocol": key[0], "workers": key[1], **asdict(each)} for key, each in found.items()]
        lines = [
            f"two workers / one, {protocol}: "
            f"{found[protocol, 2].rate / found[protocol, 1].rate:.2f}, "
            f"{found[protocol, 2].rate:,.0f}/s over {found[protocol, 1].rate:,.0f}/s"
            for protocol in ("rest", "grpc")
        ]
        return "\n\n".join(lines)

    def pauses() -> str:
        found = list(swaps.measured(server, options.models, options.seconds * SWAP_SECONDS, cores))
        into["swaps"] = [*map(asdict, found)]
        return swap_table(found)

    def memory() -> str:
        found = held.measured(server, options.models, cores)
        into["held"] = asdict(found)
        return (
            f"{found.http1:,.0f} bytes for an idle HTTP/1.1 connection, {found.http2:,.0f} for an idle HTTP/2 "
            f"connection, {found.stream:,.0f} for an open stream"
        )

    yield "ratios", all_ratios
    yield "workers", two_workers
    yield "swaps", pauses
    yield "held", memory


HEADINGS = {
    "ratios": "The bars",
    "workers": "Two workers beside one, half, 64 callers, on all cores beside the load",
    "swaps": "p99 and the longest gap with and without swaps",
    "held": "Memory held",
}


def parser() -> argparse.ArgumentParser:
    cores = sorted(os.sched_getaffinity(0))
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.listener_bars",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    both = ("rest", "grpc")
    ours = [name for name, each in CONTENDERS.items() if each.group == "embedserve" and all(map(each.format, both))]
    found.add_argument("--server", choices=ours, default=SERVER, help="which of our servers is held to the bars")
    found.add_argument("--seconds", type=float, default=1.0, help="of one measurement; twice that for mobilenet")
    found.add_argument("--repeats", type=int, default=3, help="rounds; medians are reported")
    found.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    found.add_argument("--server-core", type=int, default=cores[0], help="processor of the servers")
    found.add_argument("--load-core", type=int, default=cores[-1], help="processor of the load generator")
    found.set_defaults(cores=cores)
    return found


def main() -> int:
    """Print the parts; a part that fails is said in its place, and the others still run."""
    options = parser().parse_args()
    wanted = options.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise SystemExit(f"no part {', '.join(unknown)}; known are {', '.join(PARTS)}")
    if options.server_core == options.load_core:
        raise SystemExit("one processor is not enough: server and load generator each need their own")
    try:
        load.h2load()
    except load.NoLoadGenerator as error:
        raise SystemExit(str(error)) from None
    options.models = models_directory(workload.name for workload in WORKLOADS)
    document: dict[str, object] = {"server": options.server, "seconds": options.seconds, "repeats": options.repeats}
    failed, begun = False, time.perf_counter()
    for name, measured in parts(options, document):
        if name not in wanted:
            continue
        print(f"## {HEADINGS[name]}\n", flush=True)
        try:
            print(measured(), flush=True)
        except (ServerFailed, Refused, RuntimeError, OSError, AssertionError) as error:
            failed = True
            document[name] = str(error)
            print(f"not measured: {type(error).__name__}: {error}", flush=True)
        print(flush=True)
    print(f"{options.server}, {options.repeats} rounds of {options.seconds:g} s: {time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2))
    return 1 if failed or document.get("problems") else 0


if __name__ == "__main__":
    sys.exit(main())
