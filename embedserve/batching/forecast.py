"""When a run thread comes free, told from the runs that are on and from how fast batches have left lately.

Fed and asked by adaptive_queue.py, which passes the time in. Other models may have the same threads: how long they keep
them shows in the pace. Knows no clock and no queue.
"""

from __future__ import annotations

import heapq

__all__ = ["Forecast"]


class Forecast:
    """What is known of the runs of one queue.

    Attributes:
        pace: Seconds from one start to the next while more waits, as a share of how long the first one runs.
    """

    def __init__(self, threads: int) -> None:
        self.pace = 1 / threads
        self._threads = threads
        self._ends: list[float] = []  # When the runs that are on should end, as a heap.
        self._started_at = 0.0
        self._expected = 0.0
        self._backlogged = False

    def started(self, now: float, expected: float, backlogged: bool) -> None:
        """A run that should take `expected` seconds begins; `backlogged` if more waits."""
        if self._backlogged and self._expected:
            share = min((now - self._started_at) / self._expected, 10.0)
            self.pace += (share - self.pace) * 0.1
        self._backlogged = backlogged
        self._started_at = now
        self._expected = expected
        heapq.heappush(self._ends, now + expected)

    def ended(self, waits: bool) -> None:
        """One of the runs is over; `waits` if there is more to run."""
        if self._ends:  # It may have begun before anyone asked for a forecast.
            heapq.heappop(self._ends)
        if not waits:
            # What the pace was under load says less and less.
            self.pace += (1 / self._threads - self.pace) * 0.1

    def next_slot(self, now: float) -> float:
        """Seconds until a thread should be free."""
        return max(self._ends[0] - now, 0.0) if len(self._ends) >= self._threads else 0.0
