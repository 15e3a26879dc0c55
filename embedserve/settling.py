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

    Turns that bring nothing do not say that nothing is on its way: other threads may have it, which a turning loop
    keeps from the core. There a pause is tried now and then, and made as long as pauses bring requests.

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

    # Where other threads have the requests.
    VAIN = 4  # Tries of turns that brought nothing, before a pause is tried.
    PATIENCE = 16  # Tries until the next one where a pause has brought nothing either.
    SOME = 4.0  # With fewer, a try would cost more than it could bring.
    FEW_OF_THREADS = 16.0
    PART = 0.6  # Of what comes at the most ends a pause: with all of them here, those threads would have nothing to do.

    def __init__(self, now: Callable[[], float], used: Callable[[], float] = time.process_time) -> None:
        self._now = now
        self._used = used
        self._trust = 0
        self._since_tried = 0
        self._vain = 0  # Tries of turns in a row that brought nothing.
        self._threads_trust = 0  # As `_trust`, in pauses where turns bring nothing.
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
        if not self._turns:
            if not waiting:
                return None
            self._usual += (waiting - self._usual) / 16
            if self._pays():
                return self._begin_pause(waiting)
            if not self._trust and self._since_tried:
                return None
            self._first = self._most = waiting
            self._quiet = 0
            self._end = self._now() + self.MOST_SECONDS
        self._turns += 1
        if waiting > self._most:
            self._most, self._quiet = waiting, 0
        else:
            self._quiet += 1
        if self._quiet < self.QUIET_TURNS and self._turns < self.MOST_TURNS and self._now() < self._end:
            return 0.0
        self._turns = 0
        gained = self._most > self._first
        self._trust = self._learned(self._trust, gained)
        self._vain = 0 if gained else self._vain + 1
        return None

    def stop(self, waiting: int) -> None:
        """The pause is over before its time, with `waiting` requests there."""
        self._resume(waiting)

    def _begin_pause(self, waiting: int) -> float:
        self._paused = True
        self._first = self._most = waiting
        self._end = self._now() + self.MOST_STEPS * self.STEP
        enough = self._peak if self._trust else self._peak * self.PART
        self.enough = max(int(enough), waiting + 1)
        return self.STEP

    def _resume(self, waiting: int) -> None:
        self._paused = False
        self.enough = sys.maxsize
        self._peak = max(waiting, self._peak)
        gained = waiting > self._first + 1  # One more would have come anyway.
        if self._trust:
            self._trust = self._learned(self._trust, gained)
            return
        self._threads_trust = self._learned(self._threads_trust, gained)
        if not self._threads_trust:
            self._vain = -self.PATIENCE

    def _learned(self, trust: int, gained: bool) -> int:
        return min(trust + 2, self.TRUST) if gained else max(trust - 1, 0)

    def _pays(self) -> bool:
        """Whether to wait by the clock."""
        if self._trust:
            return self._trust >= self.TRUST // 2 and self._usual < self.FEW and self._can_pause()
        self._since_tried = (self._since_tried + 1) % self.TRY_EVERY
        if not self._since_tried:  # The turn of the turns.
            return False
        tries = self._vain >= self.VAIN and self._since_tried == self.TRY_EVERY // 2 and self._usual >= self.SOME
        return bool(self._threads_trust or tries) and self._usual < self.FEW_OF_THREADS and self._can_pause()

    def _can_pause(self) -> bool:
        return self._run_seconds < self.SHORT_RUN and self._busy()

    def _busy(self) -> bool:
        """Whether the process used up a core over the last window."""
        now = self._now()
        since, used = self._window
        if now - since >= self.WINDOW:
            total = self._used()
            self._saturated = total - used >= self.SATURATED * (now - since)
            self._window = (now, total)
        return self._saturated
