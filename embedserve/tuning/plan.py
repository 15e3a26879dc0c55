"""Decides the cells of a sweep and their order: settings of the server, times numbers of callers.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from embedserve.signature import BatchingVerdict

__all__ = ["ALONE", "Cell", "Grid", "Setting", "default_run_threads", "plan"]

ALONE = 1
"""The batch limit without batching."""


class Setting(NamedTuple):
    """The varied part of a server's options; the smaller of two settings is the simpler setting.

    Attributes:
        run_threads: Number of run threads.
        batch_limit: Most rows in a run; `ALONE` for no batching.
    """

    run_threads: int
    batch_limit: int

    def __str__(self) -> str:
        threads = f"{self.run_threads} run thread{'s' * (self.run_threads > 1)}"
        return f"{threads}, {'no batching' if self.batch_limit == ALONE else f'batches up to {self.batch_limit} rows'}"


class Cell(NamedTuple):
    """A measurement: a setting under a number of callers."""

    setting: Setting
    concurrency: int


@dataclass(frozen=True)
class Grid:
    """The values to combine."""

    concurrency: tuple[int, ...]
    batch_limits: tuple[int, ...]
    run_threads: tuple[int, ...]


def default_run_threads(cpus: int) -> tuple[int, ...]:
    """A single thread, half of the process's CPUs, and all CPUs."""
    return tuple(sorted({1, max(cpus // 2, 1), cpus}))


def plan(grid: Grid, batching: BatchingVerdict) -> tuple[list[Cell], list[str]]:
    """Make the cells, grouped by setting, simple settings first and few callers first.

    Args:
        grid: The values to combine.
        batching: Whether requests of the signature may share a run.

    Returns:
        The cells, and a sentence for each omitted part of the grid.
    """
    notes = []
    limits = _sorted(grid.batch_limits)
    if not batching.batchable and limits != [ALONE]:
        notes.append(f"Not batched, so only measured without: {batching.reason}.")
        limits = [ALONE]
    settings = [Setting(threads, limit) for threads in _sorted(grid.run_threads) for limit in limits]
    return [Cell(setting, callers) for setting in settings for callers in _sorted(grid.concurrency)], notes


def _sorted(values: Iterable[int]) -> list[int]:
    return sorted(set(values))
