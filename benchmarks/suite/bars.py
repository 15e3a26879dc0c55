"""The bars that the suite is held against: each a ratio within one run, and whether it is met.

Reads samples; `alone` measures what needs no load. A bar whose servers or workloads were not measured is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.suite.alone import Alone
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Cell

Samples = Mapping[Cell, list[Load]]

PEERS_AT = {"half": (1, 16), "mlp": (1, 16, 64), "mobilenet": (1, 8)}
MOSEC_AT_64 = 0.7


@dataclass(frozen=True)
class Bar:
    """One promise: `ratio` is to be at least `bound`, or at most where `at_most`."""

    item: int
    what: str
    ratio: float
    bound: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


def rate_ratio(samples: Samples, one: Cell, other: Cell) -> float:
    """How many times `other`'s rate `one` has: the median over the rounds, each of which had its own noise."""
    rounds = zip(samples.get(one, []), samples.get(other, []), strict=False)
    ratios = [each.rate / base.rate for each, base in rounds if base.rate]
    return statistics.median(ratios) if ratios else math.nan


def bars(samples: Samples, alone: Alone | None) -> list[Bar]:
    """Every bar that can be judged, in the order of their items."""
    found = [*_in_process(samples), *_transports(samples), *_images(samples), *_peers(samples)]
    if alone is not None:
        found += [
            Bar(3, "mobilenet JSON: decode + encode, of json.loads + np.asarray + json.dumps", alone.codec, 0.2, True),
            Bar(6, "seconds from start to ready, less import tensorflow + load", alone.start_seconds, 1.5, True),
            Bar(6, "resident memory, of a bare process with TensorFlow and the same model", alone.memory, 1.1, True),
        ]
    return sorted((bar for bar in found if not math.isnan(bar.ratio)), key=lambda bar: bar.item)


def _in_process(samples: Samples) -> Iterator[Bar]:
    def cell(server: str, workload: str, concurrency: int) -> Cell:
        return Cell(workload, "in-process", concurrency, server)

    ours, bare = "embedserve-in-process", "bare-tensorflow"
    plain = cell(bare, "half", 1)
    yield Bar(
        1,
        "half, 64 callers in process, of plain signature calls",
        rate_ratio(samples, cell(ours, "half", 64), plain),
        10,
    )
    yield Bar(
        1,
        "half, 1 caller in process: latency, of a plain signature call",
        rate_ratio(samples, plain, cell(ours, "half", 1)),
        1,
        at_most=True,
    )
    share = rate_ratio(samples, cell(ours, "mobilenet", 8), cell(bare, "mobilenet", 8))
    yield Bar(1, "mobilenet, 8 callers in process, of bare TensorFlow at its best batch size", share, 0.95)


def _transports(samples: Samples) -> Iterator[Bar]:
    def half(protocol: str, server: str) -> Cell:
        return Cell("half", protocol, 64, server)

    rest = rate_ratio(samples, half("rest", "embedserve-uvicorn"), half("rest", "noop-starlette"))
    yield Bar(2, "half at 64 over REST, of a no-op Starlette route", rest, 0.5)
    grpc = rate_ratio(samples, half("grpc", "embedserve-uvicorn"), half("grpc", "noop-grpc.aio"))
    yield Bar(2, "half at 64 over gRPC, of a no-op grpc.aio server", grpc, 0.75)
    pyvoy = rate_ratio(samples, half("grpc", "embedserve-pyvoy"), half("grpc", "embedserve-uvicorn"))
    yield Bar(2, "half at 64 over gRPC under pyvoy, of grpc.aio", pyvoy, 2.5)


def _images(samples: Samples) -> Iterator[Bar]:
    rest = Cell("mobilenet", "rest", 8, "embedserve-uvicorn")
    naive = rate_ratio(samples, rest, Cell("mobilenet", "rest", 8, "naive-fastapi"))
    yield Bar(3, "mobilenet at 8 over REST, of naive FastAPI", naive, 8)
    grpc = rate_ratio(samples, rest, Cell("mobilenet", "grpc", 8, "embedserve-uvicorn"))
    yield Bar(3, "mobilenet at 8 over REST, of the same over gRPC", grpc, 0.9)


def _peers(samples: Samples) -> Iterator[Bar]:
    """Each peer's worst cell for us, and mosec's at 64."""
    for peer in (each.name for each in CONTENDERS.values() if each.group in ("peers", "naive")):
        ratios = {
            cell: rate_ratio(samples, ours(cell), cell)
            for cell in samples
            if cell.server == peer and cell.concurrency in PEERS_AT[cell.workload]
        }
        if ratios:
            worst = min(ratios, key=lambda cell: ratios[cell])
            where = f"{worst.workload} at {worst.concurrency} over {worst.protocol}"
            yield Bar(4, f"the nearest that {peer} comes: {where}", ratios[worst], 1)
    mosec = Cell("half", "rest", 64, "mosec")
    yield Bar(4, "half at 64 over REST, of mosec", rate_ratio(samples, ours(mosec), mosec), MOSEC_AT_64)


def ours(cell: Cell) -> Cell:
    """embedserve's own cell that another server's is held against."""
    server = "embedserve-in-process" if cell.protocol == "in-process" else "embedserve-uvicorn"
    return Cell(cell.workload, cell.protocol, cell.concurrency, server)
