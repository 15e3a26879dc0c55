"""One metrics page for many processes: the sum of the workers' metrics, ended workers included.

Counters and histograms never go back when a worker is replaced: the last report of an ended process stays in the sum.
The module knows no process.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embedserve.metrics import Cells, Metrics, header
from embedserve.servable import ServableId
from embedserve.server.workers.messages import WorkerStatus

__all__ = ["FleetMetrics", "Measurement"]

# The last line of a page in OpenMetrics' format.
_END = b"# EOF\n"
_REQUESTS = ":tensorflow:serving:request_count"


@dataclass(frozen=True)
class Measurement:
    """A running worker and the worker's metrics; None before the first report."""

    worker: WorkerStatus
    cells: Cells | None


class _EndedMetrics(Metrics):
    """The metrics of ended processes.

    As an observer the object hears of versions, so that long-ended versions are forgotten. Loads are not counted here:
    the workers count loads.
    """

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        pass

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        pass


class FleetMetrics:
    """Sums of the workers' metrics, and a few lines per worker."""

    def __init__(self) -> None:
        self.ended = _EndedMetrics()
        """The metrics of ended processes, as an observer of the supervisor's registry."""
        self._ended_requests: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<FleetMetrics, {sum(self._ended_requests.values())} requests of ended workers>"

    def bury(self, worker: int, cells: Cells | None) -> None:
        """Keep the last report of an ended process."""
        if cells is not None:
            self.ended.add_cells(cells)
            self._ended_requests[worker] += _requests(cells)

    def total(self, running: Iterable[Measurement]) -> Metrics:
        """The metrics of all processes, ended processes included."""
        total = Metrics()
        total.add_cells(self.ended.cells())
        for measurement in running:
            total.add_cells(measurement.cells or {})
        return total

    def page(self, running: Iterable[Measurement], *, openmetrics: bool = False) -> bytes:
        """The metrics page of a single process, with lines per worker at the end."""
        running = sorted(running, key=lambda measurement: measurement.worker.index)
        lines = "".join(
            f"{line}\n"
            for name, kind, documentation, values in self._of_workers(running)
            for line in (
                *header(name.removesuffix("_total") if openmetrics else name, kind, documentation),
                *(f'{name}{{worker="{index}"}} {value}' for index, value in values),
            )
        ).encode()
        total = self.total(running)
        if openmetrics:
            return total.openmetrics().removesuffix(_END) + lines + _END
        return total.exposition() + lines

    def _of_workers(self, running: list[Measurement]) -> Iterator[tuple[str, str, str, list[tuple[int, int]]]]:
        """Yield the metrics of the workers: name, kind, documentation, and the value for each worker."""
        yield (
            *("embedserve_worker_requests_total", "counter"),
            "Requests that a worker has answered, its predecessors' included.",
            [(m.worker.index, self._ended_requests[m.worker.index] + _requests(m.cells or {})) for m in running],
        )
        sizes = [(m.worker.index, _resident_bytes(m.worker.pid)) for m in running]
        yield (
            *("embedserve_worker_resident_bytes", "gauge", "Resident memory of a worker."),
            [(index, size) for index, size in sizes if size is not None],
        )
        yield (
            *("embedserve_worker_restarts_total", "counter", "Times that a worker was replaced."),
            [(m.worker.index, m.worker.restarts) for m in running],
        )
        yield (
            *("embedserve_worker_up", "gauge", "Whether a worker serves."),
            [(m.worker.index, int(m.worker.state == "serving")) for m in running],
        )


def _requests(cells: Cells) -> int:
    return sum(cells.get(_REQUESTS, {}).values())


def _resident_bytes(pid: int | None) -> int | None:
    """The process's resident bytes, where the system tells."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * mmap.PAGESIZE
