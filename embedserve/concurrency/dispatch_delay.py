"""How long a free run slot waits for requests already on their way through the loop.

Without a delay, a transport with an event per loop turn would have each request leave alone. A run of a single request
costs about as much as a run of thirty. The module knows no thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

__all__ = ["DispatchDelay"]


class DispatchDelay:
    """Decides from the gain of earlier waits: an idle system never waits, and a system without gain hardly ever waits.

    The first kind of wait is a few turns of the loop, as long as every few turns bring another request. Turns of an
    idle loop pass in microseconds, and a busy loop would not have run the work much sooner.

    The second kind is a pause of milliseconds, tried in a process with short runs and a fully used core. A pause pays
    while the core is busy with incoming requests, because each request saves most of a run. With few clients the core
    soon falls idle. A pause therefore ends at a number of requests: the number grows after pauses without idle time and
    shrinks after idle time. Pauses with more cost than gain are tried less and less often. Turns without a new request
    do not prove an empty queue: a turning loop keeps the core from threads with further requests.

    Attributes:
        enough: Number of requests to end a pause before the time is over.
    """

    QUIET_TURNS = 16
    MOST_TURNS = 64
    MOST_SECONDS = 0.002  # Bound of waiting by turns.
    TRUST = 8
    TRY_EVERY = 16

    SHORT_RUN = 0.002
    SATURATED = 0.5  # Of a single core, the most for Python code.
    WINDOW = 0.05
    STEP = 0.001  # Seconds; the pause goes on only after `WORKING` of a step spent at work.
    WORKING = 0.7
    MOST_STEPS = 4
    SAVED = 0.000_05  # Seconds of the process saved by each request in a shared run.
    RARELY = 1024  # Largest number of dispatches between two tries of a pause.
    # Where turns bring no request, pauses are tried after `VAIN` tries of turns, with at least `SOME` requests present.
    VAIN = 4
    SOME = 4.0
    # The change of the number of requests to end a pause. After an idle share above `LITTLE` between two pauses, the
    # number shrinks by the factor `SHRUNK`. Else the number grows, and the growth itself accelerates.
    LITTLE = 0.1
    SHRUNK = 0.8
    GROWTH = 0.125
    ACCELERATION = 1.06

    def __init__(self, now: Callable[[], float], used: Callable[[], float] = time.process_time) -> None:
        self._now = now
        self._used = used
        self._trust = 0
        self._since_tried = 0
        self._vain = 0  # Tries of turns in a row without a new request.
        self._turns = self._quiet = self._first = self._most = 0
        self._end = 0.0
        self._usual = 0.0  # Requests present before any wait.
        self._run_seconds = 0.0
        self._saturated = False
        self._window = (now(), used())
        self._paused = False
        # Now and used, at the end of the last pause and of the present pause's last step.
        self._since = self._stepped = (0.0, 0.0)
        self._balance = 0.0  # Seconds saved by the last pauses; without a saving, pauses are only tried.
        self._pause_every = self._until_pause = self.TRY_EVERY
        self._target = 0.0  # Requests to end a pause.
        self._growth = self.GROWTH
        self.enough = sys.maxsize

    def __repr__(self) -> str:
        pauses = f", pauses for {self._target:.0f}" * (self._balance > 0)
        return f"<DispatchDelay trust {self._trust}{', saturated' * self._saturated}{pauses}>"

    def ran(self, seconds: float) -> None:
        """Learn the seconds of a run, from the dispatch to the end."""
        self._run_seconds += (seconds - self._run_seconds) / 16

    def pause(self, waiting: int) -> float | None:
        """Return the seconds to the next call, 0 for the next turn of the loop; None to dispatch now.

        Args:
            waiting: Present requests able to share a run; 0 without any gain.
        """
        if self._paused:
            now, total = self._now(), self._used()
            began, used = self._stepped
            if now < self._end and total - used > self.WORKING * (now - began):
                self._stepped = (now, total)
                return self.STEP
            self.stop(waiting)
            return None
        if not self._turns:
            if not waiting:
                return None
            self._usual += (waiting - self._usual) / 16
            if self._pays(waiting):
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
        if self._most > self._first:
            self._trust = min(self._trust + 2, self.TRUST)
            self._vain = 0
        else:
            self._trust = max(self._trust - 1, 0)
            self._vain += 1
        return None

    def _pays(self, waiting: int) -> bool:
        """Return whether to wait by the clock."""
        tries = self._trust >= self.TRUST // 2
        if not self._trust:
            self._since_tried = (self._since_tried + 1) % self.TRY_EVERY
            if not self._since_tried:  # Reserved for a try of turns.
                return False
            tries = self._vain >= self.VAIN and self._usual >= self.SOME
        if self._run_seconds >= self.SHORT_RUN:
            return False
        if self._balance <= 0:
            if not tries:
                return False
            self._until_pause -= 1
            if self._until_pause > 0:
                return False
        elif waiting >= int(self._target):
            self._target += 1.0
            return False
        return self._busy()

    def _begin_pause(self, waiting: int) -> float:
        self._paused = True
        self._first = waiting
        now, total = self._stepped = (self._now(), self._used())
        if self._balance <= 0 or now - self._since[0] > self.WINDOW / 4:
            self._since = (now, total)
        self._end = now + self.MOST_STEPS * self.STEP
        self.enough = int(self._target) if self._balance > 0 else 2 * (waiting + 1)
        return self.STEP

    def stop(self, waiting: int) -> None:
        """End the pause, perhaps before the time, with `waiting` present requests."""
        self._paused = False
        now, total = self._now(), self._used()
        began, used = self._since
        self._since = (now, total)
        idle = (now - began) - (total - used)
        saved = (waiting - self._first - 1) * self.SAVED  # A further request would have come anyway.
        self._balance = max(self._balance, 0.0) * (7 / 8) + saved - idle
        if idle > self.LITTLE * (now - began):
            self._target = min(self._target, waiting) * self.SHRUNK
            self._growth = self.GROWTH
        elif waiting >= self.enough:
            self._target = max(self._target, self.enough) + self._growth
            self._growth = min(self._growth * self.ACCELERATION, 1.0)
        self.enough = sys.maxsize
        self._pause_every = self.TRY_EVERY if self._balance > 0 else min(2 * self._pause_every, self.RARELY)
        self._until_pause = self._pause_every

    def _busy(self) -> bool:
        """Return whether the process used up a core over the last window."""
        now = self._now()
        since, used = self._window
        if now - since >= self.WINDOW:
            total = self._used()
            self._saturated = total - used >= self.SATURATED * (now - since)
            self._window = (now, total)
        return self._saturated
