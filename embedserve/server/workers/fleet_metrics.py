"""One metrics page of many processes: what workers have counted, ended ones included, is added up.

Counters and histograms never go back when a worker is replaced: what it had said last stays in the sum. Made by the
supervisor; knows no process.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from embedserve.metrics import Cells, Metrics, header
from embedserve.servable import ServableId
from embedserve.server.workers.messages import WorkerStatus

__all__ = ["FleetMetrics", "Measurement"]

_REQUESTS = ":tensorflow:serving:request_count"


@dataclass(frozen=True)
class Measurement:
    """A running worker and what it has counted; None if it has not said yet."""

    worker: WorkerStatus
    cells: Cells | None


class _EndedMetrics(Metrics):
    """What ended processes had counted. It hears of versions, to forget those that ended long ago, and counts no load:
    workers do."""

    def load_finished(self, id: ServableId, path: str, seconds: float, error: Exception | None) -> None:
        pass

    def warmup_finished(self, id: ServableId, path: str, seconds: float, records: int, error: Exception | None) -> None:
        pass


class FleetMetrics:
    """The sums, and a few lines about the workers themselves."""

    def __init__(self) -> None:
        self.ended = _EndedMetrics()
        """What ended processes had counted, as an observer of the supervisor's registry."""
        self._ended_requests: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<FleetMetrics, {sum(self._ended_requests.values())} requests of ended workers>"

    def bury(self, worker: int, cells: Cells | None) -> None:
        """Keep what a process had counted when it said so for the last time."""
        if cells is not None:
            self.ended.add_cells(cells)
            self._ended_requests[worker] += _requests(cells)

    def total(self, running: Iterable[Measurement]) -> Metrics:
        """What all have counted, those that ended included."""
        total = Metrics()
        total.add_cells(self.ended.cells())
        for measurement in running:
            total.add_cells(measurement.cells or {})
        return total

    def page(self, running: Iterable[Measurement]) -> bytes:
        """The page as one process would show it, and the workers' own lines at its end."""
        running = sorted(running, key=lambda measurement: measurement.worker.index)
        lines = [
            *header(
                "embedserve_worker_requests_total",
                "counter",
                "Requests that a worker has answered, its predecessors' included.",
            )
        ]
        lines += [
            f'embedserve_worker_requests_total{{worker="{index}"}} {self._ended_requests[index] + _requests(cells)}'
            for index, cells in ((m.worker.index, m.cells or {}) for m in running)
        ]
        lines += header("embedserve_worker_resident_bytes", "gauge", "Resident memory of a worker.")
        lines += [
            f'embedserve_worker_resident_bytes{{worker="{m.worker.index}"}} {size}'
            for m in running
            if (size := _resident_bytes(m.worker.pid)) is not None
        ]
        lines += header("embedserve_worker_restarts_total", "counter", "Times that a worker was replaced.")
        lines += [f'embedserve_worker_restarts_total{{worker="{m.worker.index}"}} {m.worker.restarts}' for m in running]
        lines += header("embedserve_worker_up", "gauge", "Whether a worker serves.")
        lines += [
            f'embedserve_worker_up{{worker="{m.worker.index}"}} {int(m.worker.state == "serving")}' for m in running
        ]
        return self.total(running).exposition() + "".join(f"{line}\n" for line in lines).encode()


def _requests(cells: Cells) -> int:
    return sum(cells.get(_REQUESTS, {}).values())


def _resident_bytes(pid: int | None) -> int | None:
    """The process's resident memory, where the system tells."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * mmap.PAGESIZE
