"""Which cells a sweep measures, in which order: settings of the server, times numbers of callers.

Pure; called by `command`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from embedserve.signature import BatchingVerdict

__all__ = ["ALONE", "Cell", "Grid", "Setting", "default_run_threads", "plan"]

ALONE = 1
"""The batch limit of requests that are not batched."""


class Setting(NamedTuple):
    """What a sweep varies of a server; the smaller of two is the simpler one.

    Attributes:
        run_threads: Threads that run the model.
        batch_limit: Rows that share a run at most; `ALONE` for no batching.
    """

    run_threads: int
    batch_limit: int

    def __str__(self) -> str:
        threads = f"{self.run_threads} run thread{'s' * (self.run_threads > 1)}"
        return f"{threads}, {'no batching' if self.batch_limit == ALONE else f'batches up to {self.batch_limit} rows'}"


class Cell(NamedTuple):
    """One measurement: a setting under so many callers."""

    setting: Setting
    concurrency: int


@dataclass(frozen=True)
class Grid:
    """The values to combine."""

    concurrency: tuple[int, ...]
    batch_limits: tuple[int, ...]
    run_threads: tuple[int, ...]


def default_run_threads(cpus: int) -> tuple[int, ...]:
    """One thread, half of what the process may use, and all of it."""
    return tuple(sorted({1, max(cpus // 2, 1), cpus}))


def plan(grid: Grid, batching: BatchingVerdict) -> tuple[list[Cell], list[str]]:
    """The cells, those of one setting together, simple settings first and few callers first.

    Args:
        grid: What to combine.
        batching: Whether requests of the signature may share a run.

    Returns:
        The cells, and a sentence for each part of the grid that is left out.
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
