"""Runs the cells of a plan against the model within a budget of time.

The caller keeps the list of results, so the results outlive an interruption.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from embedserve.registry import ModelRegistry
from embedserve.tuning.measure import Measurement, measure
from embedserve.tuning.model import TunedModel
from embedserve.tuning.plan import Cell, Setting
from embedserve.tuning.requests import PATIENCE, Requests

__all__ = ["Pace", "Progress", "Result", "sweep"]

# Seconds of warm-up for each second measured.
_WARMUP = 0.25


@dataclass(frozen=True)
class Result:
    """A cell and its measurement."""

    cell: Cell
    measured: Measurement


class Progress(Protocol):
    """Receives the progress of a sweep."""

    def loading(self, setting: Setting) -> None:
        """The model is about to be loaded under a setting."""

    def measuring(self, cell: Cell) -> None:
        """A cell is about to be measured."""

    def measured(self) -> None:
        """A cell has been measured."""


class Pace:
    """The time for each cell: `seconds_per_cell`, or less to fit all cells into the budget.

    Args:
        seconds_per_cell: Seconds to measure a cell; the warm-up comes in addition.
        budget: Seconds from now on until the last cell may begin; loads count.
    """

    def __init__(self, seconds_per_cell: float, budget: float) -> None:
        self._seconds = seconds_per_cell
        self._end = time.perf_counter() + budget

    def seconds(self, cells_left: int) -> float | None:
        """Seconds to measure the next cell, with `cells_left` cells to go; None when the budget is used up."""
        left = self._end - time.perf_counter()
        return min(self._seconds, left / cells_left / (1 + _WARMUP)) if left > 0 else None


async def sweep(
    model: TunedModel,
    requests: Requests,
    cells: Sequence[Cell],
    pace: Pace,
    results: list[Result],
    progress: Progress,
) -> None:
    """Measure the cells in order and append each result to `results`; return early when the budget is used up.

    Each setting needs a separate registry, so the model is loaded once per setting.

    Raises:
        StartError: The model cannot be loaded.
    """
    most_rows = max((cell.concurrency for cell in cells), default=0) * requests.most_rows
    left = len(cells)
    for setting, group in itertools.groupby(cells, key=lambda cell: cell.setting):
        if pace.seconds(left) is None:
            return
        progress.loading(setting)
        async with model.registry(setting, most_rows) as registry:
            for cell in group:
                seconds = pace.seconds(left)
                if seconds is None:
                    return
                progress.measuring(cell)
                results.append(Result(cell, await _measured(registry, requests, cell, seconds)))
                progress.measured()
                left -= 1


async def _measured(registry: ModelRegistry, requests: Requests, cell: Cell, seconds: float) -> Measurement:
    (name,) = registry.models()
    inputs, count = requests.inputs, len(requests.inputs)
    predict, signature_name = registry.predict, requests.signature.name

    async def ask(turn: int) -> None:
        await predict(name, inputs[turn % count], signature_name=signature_name, timeout=PATIENCE)

    return await measure(ask, cell.concurrency, seconds, seconds * _WARMUP)
