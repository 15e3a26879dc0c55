"""Decides that a run of a loaded version is stuck, names the run, and has the version refused until the return.

Each loaded version has a `VersionRuns`, shared by the version's predictors. `threads.RunPool` looks at the clock and
replaces the thread; the module knows neither thread nor queue.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from embedserve.errors import Code, DeadlineExceededError, ServingError
from embedserve.observer import Observers
from embedserve.servable import ServableId, Tensors

__all__ = ["SHORTEST_GRACE", "Run", "StuckRun", "VersionRuns", "grace"]

logger = logging.getLogger("embedserve")

SHORTEST_GRACE = 5.0
"""Seconds of grace for any run past the time limit: a kernel may be long, and notices a stop only at its end."""

_LONGEST_GRACE = 60.0
# Bound of shapes in the log line about a stuck run.
_MOST_SHAPES = 16


def grace(allowed: float, longest: float) -> float:
    """Return the seconds beyond `allowed` until a run counts as stuck: as long again, within 5 and 60 seconds.

    A version with longer completed runs has twice the longest run in all.

    Args:
        allowed: Seconds from the run's start to the answer of the last caller.
        longest: Seconds of the version's longest completed run.
    """
    usual = min(max(allowed, SHORTEST_GRACE), _LONGEST_GRACE)
    return max(usual, 2 * longest - allowed)


@dataclass(frozen=True, slots=True)
class StuckRun:
    """A run beyond the time limit, left behind in the run thread.

    Attributes:
        model, version, signature: The target of the run; the signature is empty for a SessionRun.
        shapes: Shape of each input, as text; never a value. A batch shows the shapes of the first request.
        rows: Rows of the batch, padding included; 0 for a request run alone.
        since: `time.monotonic()` at the beginning of the run.
        left_behind: `time.monotonic()` at the verdict of stuck.
    """

    model: str
    version: int
    signature: str
    shapes: Mapping[str, str]
    rows: int
    since: float
    left_behind: float

    @property
    def seconds(self) -> float:
        """Seconds since the beginning of the run."""
        return time.monotonic() - self.since

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {shape}" for name, shape in list(self.shapes.items())[:_MOST_SHAPES])
        what = f"signature {self.signature!r}" if self.signature else "SessionRun"
        rows = f" in a batch of {self.rows} rows" * bool(self.rows)
        return f"{what} ({shapes or 'no inputs'}{rows}) for {self.seconds:.0f} s"


class Run(Protocol):
    """A run in a thread; `VersionRuns.begin` sets both times."""

    ends_at: float
    """The `loop.time()` by which the last caller has been answered."""

    look_at: float
    """As `threads.Work.look_at`."""


class _Waiting(Protocol):
    def turn_away(self, error: ServingError) -> None: ...


class VersionRuns:
    """The runs of a loaded version: the stuck runs, and the time of the longest run. Loop only.

    Args:
        id: Model and version.
        observers: Receive ended runs, stuck runs and returns of stuck runs.
        run_timeout: Largest seconds of a run, whatever the callers' deadlines; infinite for no bound.
        in_session: Whether the version runs in a graph session. Only a timeout stops a session's run, so each run has a
            timeout.
        changed: Called when the version begins to be refused, and at the recovery.
    """

    def __init__(
        self,
        id: ServableId,
        observers: Observers,
        run_timeout: float,
        changed: Callable[[], None] = lambda: None,
        *,
        in_session: bool = False,
    ) -> None:
        self.id = id
        self.run_timeout = run_timeout
        self._unless_given = run_timeout if in_session and run_timeout < math.inf else None
        self._in_session = in_session
        self.longest = 0.0
        self.stuck: dict[object, StuckRun] = {}
        self.predictors: list[_Waiting] = []
        self._observers = observers
        self._changed = changed

    def __repr__(self) -> str:
        return f"<VersionRuns {self.id}, {len(self.stuck)} stuck>"

    @property
    def trouble(self) -> str | None:
        """Why the version is refused; None for a healthy version. Readable from any thread."""
        stuck = list(self.stuck.values())
        if not stuck:
            return None
        return f"{len(stuck)} of its runs {'is' if len(stuck) == 1 else 'are'} stuck: {'; '.join(map(str, stuck[:4]))}"

    def refusal(self) -> ServingError:
        """The error of a request while the version has stuck runs."""
        return ServingError(
            f"Servable {self.id} is refused until its stuck runs return: {self.trouble}", code=Code.UNAVAILABLE
        )

    def begin(self, run: Run, now: float, timeout: float | None) -> float | None:
        """Note the end time of a beginning run, and return the seconds given to the run.

        Args:
            run: On the way to a thread.
            now: `loop.time()`.
            timeout: Seconds until the run's last caller gives up; None with a caller of endless patience.
        """
        if timeout is not None and timeout <= self.run_timeout:
            run.ends_at = now + timeout
            run.look_at = run.ends_at + grace(timeout, self.longest)
            return timeout
        run.ends_at = run.look_at = now + self.run_timeout
        return self._unless_given if timeout is None else self.run_timeout

    def overdue(self, run: Run) -> bool:
        """At `look_at`: return whether the run is stuck. If not, answer the last callers, and the run is stopped."""
        if run.look_at > run.ends_at:
            return True
        run.look_at += grace(self.run_timeout, self.longest)
        return False

    def expired(self) -> DeadlineExceededError:
        """Return the error of a caller without a deadline, or with a later deadline, after `run_timeout`."""
        return DeadlineExceededError(f"the run has taken longer than run_timeout, {self.run_timeout:g} s")

    def completed(self, seconds: float) -> None:
        """Note a run completed with an answer."""
        if seconds > self.longest:
            self.longest = seconds
        if self._observers.present:
            self._observers.graph_run_finished(self.id, seconds, self._in_session)

    def left_behind(self, run: object, signature: str, inputs: Tensors, rows: int, seconds: float) -> None:
        """Note a stuck run: log the run once, and refuse the version until the run's return."""
        shapes = {name: str(list(array.shape)) for name, array in inputs.items()}
        now = time.monotonic()
        found = StuckRun(self.id.name, self.id.version, signature, shapes, rows, now - seconds, now)
        self.stuck[run] = found
        logger.error(
            "Servable version %s has a stuck run, %s; it cannot be stopped and keeps its thread. Requests for the "
            "version are refused until it returns",
            *(self.id, found),
        )
        if self._observers.present:
            self._observers.run_stuck(self.id, signature, seconds)
        for predictor in self.predictors:
            predictor.turn_away(self.refusal())
        self._changed()

    def returned(self, run: object) -> None:
        """Note the return of the thread of `run`, stuck or not."""
        found = self.stuck.pop(run, None)
        if found is None:
            return
        logger.warning("Servable version %s: the stuck run has returned, %s", self.id, found)
        if self._observers.present:
            self._observers.run_returned(self.id, found.signature)
        self._changed()
