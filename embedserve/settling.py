"""How long a free run slot waits for requests that are already on their way through the loop.

A transport that hands the loop an event at a time would have each request leave alone, though more are coming, and a
run of one costs about as much as a run of thirty. Asked by `threads.RunPool` before each dispatch; knows no thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

__all__ = ["Settling"]


class Settling:
    """Decides from what waiting has brought so far: an idle system never waits, and one with nothing to gain hardly.

    First it waits turns of the loop, as long as each few of them bring another request: turns of a loop that has
    nothing to do pass in microseconds, and a busy one would not have run the work much sooner. Where that brings
    requests, few are there without it, runs are short, and the process has used most of a core for a while, it waits
    milliseconds, as long as each brings a request and there are not as many as come at the most: little is lost, for
    the core is busy with the requests that come, and the runs take a small part of it instead of most.

    Attributes:
        enough: Requests at which a pause ends before its time.
    """

    QUIET_TURNS = 16
    MOST_TURNS = 64
    MOST_SECONDS = 0.002  # Of waiting by turns.
    TRUST = 8
    TRY_EVERY = 16
    SHORT_RUN = 0.002
    FEW = 8.0
    STEP = 0.002
    MOST_STEPS = 2
    SATURATED = 0.5  # Of one core, which is all that Python code can use.
    WINDOW = 0.05

    def __init__(self, now: Callable[[], float], used: Callable[[], float] = time.process_time) -> None:
        self._now = now
        self._used = used
        self._trust = 0
        self._since_tried = 0
        self._turns = self._quiet = self._first = self._most = 0
        self._end = 0.0
        self._paused = False
        self._peak = 0.0
        self.enough = sys.maxsize
        self._run_seconds = 0.0
        self._usual = 0.0  # Requests that are there before any waiting.
        self._saturated = False
        self._window = (now(), used())

    def __repr__(self) -> str:
        return f"<Settling trust {self._trust}{', saturated' * self._saturated}>"

    def ran(self, seconds: float) -> None:
        """A run took so long, from its dispatch to its end."""
        self._run_seconds += (seconds - self._run_seconds) / 16

    def pause(self, waiting: int) -> float | None:
        """Seconds after which to ask again, 0 for the next turn of the loop; None to dispatch now.

        Args:
            waiting: Requests that could go together and are here now; 0 where none can be gained.
        """
        if self._paused:
            if waiting > self._most and self._now() < self._end:
                self._most = waiting
                return self.STEP
            if waiting == self._most:  # Nobody else is coming: there are fewer clients than there were.
                self._peak -= (self._peak - waiting) / 8
            self._resume(waiting)
            return None
        if not self._turns and not self._begin(waiting):
            return None
        if not self._turns and self._pays():
            self._paused = True
            self._end = self._now() + self.MOST_STEPS * self.STEP
            self.enough = max(int(self._peak), waiting + 1)
            return self.STEP
        self._turns += 1
        if waiting > self._most:
            self._most, self._quiet = waiting, 0
        else:
            self._quiet += 1
        if self._quiet < self.QUIET_TURNS and self._turns < self.MOST_TURNS and self._now() < self._end:
            return 0.0
        self._turns = 0
        self._learn(self._most > self._first)
        return None

    def stop(self, waiting: int) -> None:
        """The pause is over before its time, with `waiting` requests there."""
        self._resume(waiting)

    def _resume(self, waiting: int) -> None:
        self._paused = False
        self.enough = sys.maxsize
        self._peak = max(waiting, self._peak)
        self._learn(waiting > self._first + 1)  # One more would have come anyway.

    def _begin(self, waiting: int) -> bool:
        if not waiting:
            return False
        if not self._trust:
            self._since_tried += 1
            if self._since_tried < self.TRY_EVERY:
                return False
        self._since_tried = 0
        self._usual += (waiting - self._usual) / 16
        self._first = self._most = waiting
        self._quiet = 0
        self._end = self._now() + self.MOST_SECONDS
        return True

    def _learn(self, gained: bool) -> None:
        self._trust = min(self._trust + 2, self.TRUST) if gained else max(self._trust - 1, 0)

    def _pays(self) -> bool:
        """Whether to wait by the clock."""
        if self._trust < self.TRUST // 2 or self._usual >= self.FEW or self._run_seconds >= self.SHORT_RUN:
            return False
        return self._busy()

    def _busy(self) -> bool:
        """Whether the process used up a core over the last window."""
        now = self._now()
        since, used = self._window
        if now - since >= self.WINDOW:
            total = self._used()
            self._saturated = total - used >= self.SATURATED * (now - since)
            self._window = (now, total)
        return self._saturated
