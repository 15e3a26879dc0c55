"""Results of sweeps that never ran."""

from __future__ import annotations

from collections.abc import Mapping

from embedserve.tuning.measure import Measurement
from embedserve.tuning.plan import Cell, Setting
from embedserve.tuning.sweep import Result

NO_FAILURES: Mapping[str, int] = {}


def result(
    setting: Setting, concurrency: int, throughput: float, p99: float, failed: Mapping[str, int] = NO_FAILURES
) -> Result:
    """A cell with `throughput` requests/s and a `p99` in seconds."""
    answered = round(throughput * 10)
    if not answered:
        return Result(Cell(setting, concurrency), Measurement(10.0, 0, failed))
    return Result(Cell(setting, concurrency), Measurement(10.0, answered, failed, p99 / 4, p99 / 2, p99))
