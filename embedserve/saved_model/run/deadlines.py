"""Stops runs that outlive their time: one thread for all of them, there only while timed runs are.

Function servables need it, for TensorFlow bounds only session runs. Late by at most `_TICK`: whoever waits for the run
is answered by the loop on time; this only gets the run thread back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Deadlines", "TimedRun"]

_TICK = 0.02
_IDLE = 1.0


class TimedRun:
    """One run and when it has to end."""

    __slots__ = ("ends_at", "expired", "stop")

    def __init__(self, timeout: float) -> None:
        self.ends_at = time.monotonic() + timeout
        self.stop: Callable[[], None] | None = None
        self.expired = False


class Deadlines:
    """The timed runs of now, and the thread that looks after them."""

    def __init__(self) -> None:
        self._runs: set[TimedRun] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Deadlines of {len(self._runs)} runs>"

    def add(self, run: TimedRun) -> None:
        """Watch a run; its `stop` is called when its time is over. A `TimedRun` is added once."""
        with self._lock:
            self._runs.add(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="embedserve-deadlines", daemon=True)
                self._thread.start()

    def remove(self, run: TimedRun) -> None:
        """The run has ended."""
        with self._lock:
            self._runs.discard(run)

    def _watch(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(_TICK)
            now = time.monotonic()
            with self._lock:
                expired = [run for run in self._runs if run.ends_at <= now]
                self._runs.difference_update(expired)
                if self._runs or expired:
                    idle_since = now
                elif now - idle_since > _IDLE:
                    self._thread = None
                    return
            for run in expired:
                run.expired = True
                if run.stop is not None:
                    run.stop()
