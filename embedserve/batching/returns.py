"""Who comes back soon after an answer, and whether a batch that could leave should wait for them.

A run with a large fixed cost splits callers that ask again and again into groups: the first to come back leave at once
in a small batch, the others wait for its end, and every caller waits for two runs instead of one. Fed and asked by
adaptive_queue.py, which passes the time in. Knows no clock and no queue.
"""

from __future__ import annotations

import math

from embedserve.batching.run_times import RunTimes

__all__ = ["SHORTEST", "Returns"]

SHORTEST = 0.002
"""Fixed cost of a run, in seconds, below which a wait would be too short for the timers of an event loop."""

# How many times the seconds that the waiting lose those must gain who come meanwhile.
GAIN = 1.5


class Returns:
    """How many rows come within the fixed cost of a run after a run has ended, and how fast, as it usually is.

    Attributes:
        until: Rows that come after this are no returns.
    """

    def __init__(self) -> None:
        self.until = -math.inf
        self._ended_at = -math.inf
        self._answered = 0
        self._returned = 0
        self._all_answered = 0.0
        self._all_returned = 0.0
        # Seconds from an end to the first row, and from one row to the next.
        self._first = 0.0
        self._gap = 0.0
        self._last = 0.0

    def answered(self, rows: int, now: float, times: RunTimes) -> None:
        """A run of so many rows has ended."""
        self._all_answered = self._all_answered * 0.8 + self._answered
        self._all_returned = self._all_returned * 0.8 + min(self._returned, self._answered)
        self._answered, self._returned = rows, 0
        self._ended_at, self.until = now, now + times.fixed

    def came(self, rows: int, now: float) -> None:
        """A request of so many rows was queued, not later than `until`."""
        if self._returned:
            self._gap += ((now - self._last) / rows - self._gap) * 0.05
        else:
            self._first += (now - self._ended_at - self._first) * 0.2
        self._last = now
        self._returned += rows

    def worth_waiting_until(self, rows: int, times: RunTimes) -> float:
        """Until when `rows` that could run should wait for those who are about to come; 0 for not at all.

        Those who come in time save a run of their own, `times.fixed` seconds each; those who wait lose the wait and
        the rows that they will run with.
        """
        usual = self._all_returned / self._all_answered if self._all_answered else 0.0
        expected = usual * self._answered
        missing = expected - self._returned
        if missing < 0.5:
            return 0.0
        wait = missing * self._gap + (0.0 if self._returned else self._first)
        if missing * (times.fixed - wait) < GAIN * rows * (wait + times.per_row * missing):
            return 0.0
        return min(self._ended_at + self._first + 1.5 * expected * self._gap, self.until)
