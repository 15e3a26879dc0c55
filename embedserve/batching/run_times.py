"""The seconds of a run by rows, learnt from the runs: a fixed part, and a part for each row.

Medians of the last runs of like size hide the effect of a garbage collection, a swap or a busy neighbour on single
runs. The module knows no clock and no queue.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["RunTimes"]

# Number of last runs of like size in a median.
WINDOW = 9

# Runs after which an absent size counts for half.
HALF_LIFE = 32


class _Size:
    """The last runs of like size."""

    __slots__ = ("last", "median", "rows", "seconds")

    def __init__(self) -> None:
        self.rows: deque[int] = deque(maxlen=WINDOW)
        self.seconds: deque[float] = deque(maxlen=WINDOW)
        self.median = 0.0
        self.last = 0

    def add(self, rows: int, seconds: float, run: int) -> None:
        self.rows.append(rows)
        self.seconds.append(seconds)
        self.median = sorted(self.seconds)[len(self.seconds) // 2]
        self.last = run


class RunTimes:
    """Seconds of a run as `fixed + per_row * rows`.

    Attributes:
        fixed: Seconds of a run apart from the rows.
        per_row: Seconds of each row; 0 while all runs had the same size.
        error: Usual error of a prediction, as a share of the prediction.
        runs: Number of runs seen.
    """

    def __init__(self) -> None:
        self.fixed = 0.0
        self.per_row = 0.0
        self.error = 0.0
        self.runs = 0
        self._sizes: dict[tuple[int, int], _Size] = {}

    def __repr__(self) -> str:
        return f"<RunTimes {self.fixed * 1e3:.3g} ms + {self.per_row * 1e3:.3g} ms per row, from {self.runs} runs>"

    def observe(self, rows: int, seconds: float) -> bool:
        """Learn the seconds of a run of `rows` rows; return whether the expectation changes."""
        expected = self.seconds(rows)
        if expected:
            self.error += (min(abs(seconds / expected - 1), 1.0) - self.error) * 0.05
        self.runs += 1
        # Eight sizes from each power of two to the next.
        octave = max(rows.bit_length() - 4, 0)
        size = self._sizes.setdefault((octave, rows >> octave), _Size())
        before = size.median
        size.add(rows, seconds, self.runs)
        if abs(size.median - before) <= 0.02 * before and self.runs % HALF_LIFE:
            return False
        self._fit()
        return True

    def seconds(self, rows: float) -> float:
        """Return the expected seconds of a run of `rows` rows; 0 before the first run."""
        return self.fixed + self.per_row * rows

    def rows_within(self, seconds: float) -> float:
        """Return the rows that run in `seconds`; infinite for free rows, below 1 where no run is short enough."""
        if self.per_row:
            return (seconds - self.fixed) / self.per_row
        return math.inf if seconds >= self.fixed else 0.0

    def _fit(self) -> None:
        """Fit least squares of the medians' relative errors, with more weight on late medians."""
        total = of_rows = of_squares = of_seconds = of_products = 0.0
        for size in self._sizes.values():
            rows, seconds = sum(size.rows) / len(size.rows), max(size.median, 1e-9)
            age = (self.runs - size.last) / HALF_LIFE
            weight = len(size.rows) * 0.5 ** min(age, 100.0) / seconds**2
            total += weight
            of_rows += weight * rows
            of_squares += weight * rows * rows
            of_seconds += weight * seconds
            of_products += weight * rows * seconds
        spread = total * of_squares - of_rows * of_rows
        if len(self._sizes) == 1 or spread <= 1e-9 * total * of_squares:
            self.fixed, self.per_row = of_seconds / total, 0.0
            return
        self.per_row = max((total * of_products - of_rows * of_seconds) / spread, 0.0)
        self.fixed = (of_seconds - self.per_row * of_rows) / total
        if self.fixed < 0:
            self.fixed, self.per_row = 0.0, of_products / of_squares
