"""The counts of `Metrics`: families of cells by label values, histograms, and events that wait to be counted together.

The module knows no metric by name and no page.
"""

from __future__ import annotations

import operator
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["NOTED", "Counter", "Exemplar", "Family", "Histogram", "Labels", "Noted", "Sample", "all_micros", "micros"]

_FEW = 16
"""Values up to which a loop is faster than numpy."""

NOTED = 512
"""Events of a kind that are counted together: some 50 KiB, and a count of as many takes less than a millisecond."""

Labels = tuple[str, ...]
Sample = tuple[str, dict[str, str], float]


class Exemplar(NamedTuple):
    """A value of a traced call, and the seconds since 1970 of the call's end."""

    trace_id: str
    span_id: str
    value: float
    at: float


class Family:
    """A metric with a cell for each combination of label values."""

    kind = "gauge"

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = (), *, listed: bool = True) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self.listed = listed  # The page has the TYPE line before the first cell.

    def values(self) -> Iterator[Sample]:
        """Yield suffix, labels and value of each sample, in the order of the cells' label values."""
        return iter(())

    def drop(self, leading: Labels) -> None:
        """Forget the cells whose first label values equal `leading`."""

    def cells(self) -> Mapping[Labels, object]:
        """Return a copy of every cell."""
        return {}

    def add_cells(self, cells: Mapping[Labels, Any]) -> None:
        """Add the cells of another process."""

    def named(self, values: Labels) -> dict[str, str]:
        return dict(zip(self.labels, values, strict=True))


class Counter(Family):
    """A family of sums that only grow."""

    kind = "counter"

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = (), *, listed: bool = True) -> None:
        super().__init__(name, documentation, labels, listed=listed)
        self._cells: dict[Labels, int] = {}

    def add(self, values: Labels, amount: int = 1) -> None:
        self._cells[values] = self._cells.get(values, 0) + amount

    def values(self) -> Iterator[Sample]:
        # The copy lets a scraping thread of the host read while the loop counts.
        for values, count in sorted(self._cells.copy().items()):
            yield "", self.named(values), count

    def drop(self, leading: Labels) -> None:
        for values in [values for values in self._cells if values[: len(leading)] == leading]:
            del self._cells[values]

    def cells(self) -> Mapping[Labels, object]:
        return self._cells.copy()

    def add_cells(self, cells: Mapping[Labels, Any]) -> None:
        for values, amount in cells.items():
            self.add(values, amount)


class Histogram(Family):
    """A family of histograms with common limits; the last bucket, +Inf, is not listed."""

    kind = "histogram"

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], limits: tuple[float, ...], *, listed: bool = True
    ) -> None:
        super().__init__(name, documentation, labels, listed=listed)
        self._limits = limits
        self._edges = np.array(limits)
        self._names = (*(f"{limit:g}" for limit in limits), "+Inf")
        self._cells: dict[Labels, tuple[list[int], list[float]]] = {}
        self._exemplars: dict[Labels, dict[int, Exemplar]] = {}

    def exemplify(self, values: Labels, exemplar: Exemplar) -> None:
        """Keep the trace of an observed value; each bucket has the trace of its latest such value."""
        self._exemplars.setdefault(values, {})[bisect_left(self._limits, exemplar.value)] = exemplar

    def exemplars(self) -> Mapping[Labels, Mapping[int, Exemplar]]:
        """The traces by cell and number of the bucket."""
        return {values: of_cell.copy() for values, of_cell in self._exemplars.copy().items()}

    def observe(self, values: Labels, value: float, times: int = 1) -> None:
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells.setdefault(values, ([0] * (len(self._limits) + 1), [0.0]))
        counts, total = cell
        # A value equal to a limit is in the limit's own bucket, as `le` says; TF Serving counts such a value in the
        # next bucket.
        counts[bisect_left(self._limits, value)] += times
        total[0] += value * times

    def observe_all(self, values: Labels, given: Sequence[float], times: int = 1) -> None:
        """Observe each of many values `times` times, in one pass."""
        if len(given) < _FEW:
            for value in given:
                self.observe(values, value, times)
            return
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells.setdefault(values, ([0] * (len(self._limits) + 1), [0.0]))
        counts, total = cell
        places = np.searchsorted(self._edges, given)  # As `bisect_left`.
        for place, count in enumerate(np.bincount(places).tolist()):
            counts[place] += count * times
        total[0] += float(np.sum(given)) * times

    def values(self) -> Iterator[Sample]:
        for values, (counts, total) in sorted(self._cells.copy().items()):
            labels = self.named(values)
            cumulated = 0
            for limit, count in zip(self._names, counts.copy(), strict=True):
                cumulated += count
                yield "_bucket", {**labels, "le": limit}, cumulated
            yield "_sum", labels, total[0]
            yield "_count", labels, cumulated

    def drop(self, leading: Labels) -> None:
        for values in [values for values in self._cells if values[: len(leading)] == leading]:
            del self._cells[values]
            self._exemplars.pop(values, None)

    def cells(self) -> Mapping[Labels, object]:
        exemplars = self.exemplars()
        return {
            values: (counts.copy(), total[0], exemplars.get(values, {}))
            for values, (counts, total) in self._cells.copy().items()
        }

    def add_cells(self, cells: Mapping[Labels, Any]) -> None:
        for values, (counts, total, exemplars) in cells.items():
            for bucket, exemplar in exemplars.items():
                kept = self._exemplars.setdefault(values, {})
                if bucket not in kept or kept[bucket].at < exemplar.at:
                    kept[bucket] = exemplar
            mine, sum_of_mine = self._cells.setdefault(values, ([0] * (len(self._limits) + 1), [0.0]))
            mine[:] = map(operator.add, mine, counts)
            sum_of_mine[0] += total


class Noted:
    """Events of a kind that wait to be counted together. The loop appends events, and any thread counts.

    Args:
        count: Counts the values of the events with a common key.

    Attributes:
        events: Key and value of each event.
    """

    __slots__ = ("_count", "_lock", "events")

    def __init__(self, count: Callable[[Any, list[float]], None]) -> None:
        self._count = count
        self.events: deque[tuple[Any, float]] = deque()
        self._lock = threading.Lock()

    def count(self) -> None:
        """Count the events so far; a scraping thread of the host may do so while the loop notes further events."""
        with self._lock:
            by_key: dict[Any, list[float]] = {}
            for _ in range(len(self.events)):
                key, value = self.events.popleft()
                by_key.setdefault(key, []).append(value)
            for key, values in by_key.items():
                self._count(key, values)


def micros(seconds: float) -> int:
    """Return whole microseconds."""
    return round(seconds * 1e6)


def all_micros(seconds: Sequence[float]) -> Sequence[float]:
    """Return whole microseconds for each value."""
    if len(seconds) < _FEW:
        return [micros(each) for each in seconds]
    rounded: Sequence[float] = np.rint(np.multiply(seconds, 1e6))  # type: ignore[assignment]
    return rounded
