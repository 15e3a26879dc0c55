"""The bars that the suite is held against: each a ratio within one run, and whether it is met.

Reads samples; `alone` measures what needs no load. A bar whose servers or workloads were not measured is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.suite.alone import Alone
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Cell

Samples = Mapping[Cell, list[Load]]

PEERS_AT = {"half": (1, 16), "mlp": (1, 16, 64), "mobilenet": (1, 8)}
MOSEC_AT_64 = 0.7


@dataclass(frozen=True)
class Bar:
    """One promise: `ratio` is to be at least `bound`, or at most where `at_most`.

    Attributes:
        item: Number of the promise; several bars may be one promise.
        what: Of what, over what.
        ratio: As measured by the clock.
        by_cpu: The same by processor time per request, which other work on the machine disturbs least; NaN if unknown.
    """

    item: int
    what: str
    ratio: float
    bound: float
    at_most: bool = False
    by_cpu: float = math.nan

    @property
    def met(self) -> bool:
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


def rate_ratio(samples: Samples, one: Cell, other: Cell) -> float:
    """How many times `other`'s rate `one` has: the median over the rounds, each of which had its own noise."""
    return _median_ratio(samples, one, other, lambda load: load.rate)


def cpu_ratio(samples: Samples, one: Cell, other: Cell) -> float:
    """How many times the processor time that `one` uses for a request `other` uses, likewise."""
    return _median_ratio(samples, other, one, lambda load: load.cpu)


def _median_ratio(samples: Samples, one: Cell, other: Cell, figure: Callable[[Load], float]) -> float:
    rounds = zip(samples.get(one, []), samples.get(other, []), strict=False)
    ratios = [figure(each) / figure(base) for each, base in rounds if figure(base)]
    return statistics.median(ratios) if ratios else math.nan


def bars(samples: Samples, alone: Alone | None) -> list[Bar]:
    """Every bar that can be judged, in the order of their items."""

    def over(item: int, what: str, one: Cell, other: Cell, bound: float, at_most: bool = False) -> Bar:
        return Bar(item, what, rate_ratio(samples, one, other), bound, at_most, cpu_ratio(samples, one, other))

    found = [over(*each) for each in (*_in_process(), *_transports(), *_images(), *_peers(samples), *_optimised())]
    if alone is not None:
        found += [
            Bar(3, "mobilenet JSON: decode + encode, of json.loads + np.asarray + json.dumps", alone.codec, 0.2, True),
            Bar(6, "seconds from start to ready, less import tensorflow + load", alone.start_seconds, 1.5, True),
            Bar(6, "resident memory, of a bare process with TensorFlow and the same model", alone.memory, 1.1, True),
        ]
    return sorted((bar for bar in found if not math.isnan(bar.ratio)), key=lambda bar: bar.item)


Promise: TypeAlias = tuple[int, str, Cell, Cell, float] | tuple[int, str, Cell, Cell, float, bool]


def _in_process() -> Iterator[Promise]:
    def cell(server: str, workload: str, concurrency: int) -> Cell:
        return Cell(workload, "in-process", concurrency, server)

    ours, bare = "embedserve-in-process", "bare-tensorflow"
    plain = cell(bare, "half", 1)
    yield 1, "half, 64 callers in process, of plain signature calls", cell(ours, "half", 64), plain, 10
    latency = "half, 1 caller in process: latency, of a plain signature call"
    yield 1, latency, plain, cell(ours, "half", 1), 1, True
    best = "mobilenet, 8 callers in process, of bare TensorFlow at its best batch size"
    yield 1, best, cell(ours, "mobilenet", 8), cell(bare, "mobilenet", 8), 0.95


def _transports() -> Iterator[Promise]:
    def half(protocol: str, server: str) -> Cell:
        return Cell("half", protocol, 64, server)

    ours, grpcio = "embedserve-standalone", "embedserve-grpcio"
    starlette, aio = half("rest", "noop-starlette"), half("grpc", "noop-grpc.aio")
    yield 2, "half at 64 over REST, of a no-op Starlette route", half("rest", ours), starlette, 0.5
    yield 2, "half at 64 over gRPC, of a no-op grpc.aio server", half("grpc", ours), aio, 0.75
    yield 2, "half at 64 over gRPC, of the same on grpc.aio", half("grpc", ours), half("grpc", grpcio), 2.5


def _images() -> Iterator[Promise]:
    def mobilenet(protocol: str, server: str) -> Cell:
        return Cell("mobilenet", protocol, 8, server)

    rest = mobilenet("rest", "embedserve-standalone")
    yield 3, "mobilenet at 8 over REST, of naive FastAPI", rest, mobilenet("rest", "naive-fastapi"), 8
    yield 3, "mobilenet at 8 over REST, of the same over gRPC", rest, mobilenet("grpc", "embedserve-standalone"), 0.9


def _peers(samples: Samples) -> Iterator[Promise]:
    """The cell in which each peer comes nearest, and mosec's at 64."""
    for peer in (each.name for each in CONTENDERS.values() if each.group in ("peers", "naive")):
        cells = [cell for cell in samples if cell.server == peer and cell.concurrency in PEERS_AT[cell.workload]]
        if cells:
            nearest = min(cells, key=lambda cell: rate_ratio(samples, ours(cell), cell))
            where = f"{nearest.workload} at {nearest.concurrency} over {nearest.protocol}"
            yield 4, f"the nearest that {peer} comes: {where}", ours(nearest), nearest, 1
    mosec = Cell("half", "rest", 64, "mosec")
    yield 4, "half at 64 over REST, of mosec", ours(mosec), mosec, MOSEC_AT_64


def _optimised() -> Iterator[Promise]:
    for protocol, name in (("grpc", "gRPC"), ("rest", "REST")):
        plain, frozen = (Cell("mobilenet", protocol, 8, f"embedserve-{kind}") for kind in ("standalone", "optimised"))
        yield 5, f"mobilenet at 8 over {name}, optimised, of the same server without", frozen, plain, 1.2


def ours(cell: Cell) -> Cell:
    """embedserve's own cell that another server's is held against."""
    server = "embedserve-in-process" if cell.protocol == "in-process" else "embedserve-standalone"
    return Cell(cell.workload, cell.protocol, cell.concurrency, server)
