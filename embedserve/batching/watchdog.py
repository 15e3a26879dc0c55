"""When a run of a loaded version counts as stuck, and what follows: it is named, and the version refused meanwhile.

One `VersionRuns` per loaded version, shared by its predictors. `threads.RunPool` looks at the clock and replaces the
thread; this module knows neither thread nor queue.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from embedserve.errors import Code, DeadlineExceededError, ServingError
from embedserve.observer import Observers
from embedserve.servable import ServableId, Tensors

__all__ = ["SHORTEST_GRACE", "Run", "StuckRun", "VersionRuns", "grace"]

logger = logging.getLogger("embedserve")

SHORTEST_GRACE = 5.0
"""Seconds past its time that any run has: a kernel may be long, and sees only at its end that the run was stopped."""

_LONGEST_GRACE = 60.0
# Bound of the log line that names a stuck run.
_MOST_SHAPES = 16


def grace(allowed: float, longest: float) -> float:
    """Seconds beyond `allowed` after which a run counts as stuck: as long again, within 5 and 60 seconds.

    A version that has shown longer runs has twice the longest of them in all.

    Args:
        allowed: Seconds from the run's start to the moment at which its last caller is answered.
        longest: Seconds of the longest run of the version that ended by itself.
    """
    usual = min(max(allowed, SHORTEST_GRACE), _LONGEST_GRACE)
    return max(usual, 2 * longest - allowed)


@dataclass(frozen=True, slots=True)
class StuckRun:
    """A run that went on past its time and was left behind in its thread.

    Attributes:
        model, version, signature: What runs; the signature is empty for a SessionRun.
        shapes: Shape of each input, as text; never a value. For a batch those of its first request.
        rows: Rows of the batch, padding included; 0 where the request runs alone.
        since: `time.monotonic()` at which the run began.
        left_behind: `time.monotonic()` at which it counted as stuck.
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
        """Seconds for which it has run."""
        return time.monotonic() - self.since

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {shape}" for name, shape in list(self.shapes.items())[:_MOST_SHAPES])
        what = f"signature {self.signature!r}" if self.signature else "SessionRun"
        rows = f" in a batch of {self.rows} rows" * bool(self.rows)
        return f"{what} ({shapes or 'no inputs'}{rows}) for {self.seconds:.0f} s"


class Run(Protocol):
    """A run in a thread; `VersionRuns.begin` sets both times."""

    ends_at: float
    """The `loop.time()` at which its last caller has been answered."""

    look_at: float
    """As `threads.Work.look_at`."""


class _Waiting(Protocol):
    def turn_away(self, error: ServingError) -> None: ...


class VersionRuns:
    """How the runs of one loaded version are: which are stuck, and how long the longest took. Loop only.

    Args:
        id: Model and version.
        observers: Told of a run that ended, of a stuck one, and of its return.
        run_timeout: Seconds that a run may take, whatever its callers' deadlines; infinite for no bound.
        in_session: Whether the version runs in a graph session. Only a timeout stops a session's run, so each has one.
        changed: Called when the version begins to be refused, and when it recovers.
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
        self.stuck: dict[Any, StuckRun] = {}
        self.predictors: list[_Waiting] = []
        self._observers = observers
        self._changed = changed

    def __repr__(self) -> str:
        return f"<VersionRuns {self.id}, {len(self.stuck)} stuck>"

    @property
    def trouble(self) -> str | None:
        """Why the version is refused, None where it is not; readable from any thread."""
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
        """Note when a run that begins now has to end, and return the seconds that it is given.

        Args:
            run: About to be handed to a thread.
            now: `loop.time()`.
            timeout: Seconds until the last of its callers gives up; None if one of them never does.
        """
        if timeout is not None and timeout <= self.run_timeout:
            run.ends_at = now + timeout
            run.look_at = run.ends_at + grace(timeout, self.longest)
            return timeout
        run.ends_at = run.look_at = now + self.run_timeout
        return self._unless_given if timeout is None else self.run_timeout

    def overdue(self, run: Run) -> bool:
        """At `look_at`: whether the run is stuck. If not, its last callers are to be answered, and it is stopped."""
        if run.look_at > run.ends_at:
            return True
        run.look_at += grace(self.run_timeout, self.longest)
        return False

    def expired(self) -> DeadlineExceededError:
        """The error of a caller without a deadline, or with a later one, when `run_timeout` has passed."""
        return DeadlineExceededError(f"the run has taken longer than run_timeout, {self.run_timeout:g} s")

    def completed(self, seconds: float) -> None:
        """A run ended by itself, with an answer."""
        if seconds > self.longest:
            self.longest = seconds
        if self._observers:
            self._observers.graph_run_finished(self.id, seconds, self._in_session)

    def left_behind(self, run: object, signature: str, inputs: Tensors, rows: int, seconds: float) -> None:
        """A run is stuck: name it once, and refuse the version until it returns."""
        shapes = {name: str(list(array.shape)) for name, array in inputs.items()}
        now = time.monotonic()
        found = StuckRun(self.id.name, self.id.version, signature, shapes, rows, now - seconds, now)
        self.stuck[run] = found
        logger.error(
            "Servable version %s has a stuck run, %s; it cannot be stopped and keeps its thread. Requests for the "
            "version are refused until it returns",
            *(self.id, found),
        )
        if self._observers:
            self._observers.run_stuck(self.id, signature, seconds)
        for predictor in self.predictors:
            predictor.turn_away(self.refusal())
        self._changed()

    def returned(self, run: object) -> None:
        """The thread that ran `run` is back, be it that the run was stuck or not."""
        found = self.stuck.pop(run, None)
        if found is None:
            return
        logger.warning("Servable version %s: the stuck run has returned, %s", self.id, found)
        if self._observers:
            self._observers.run_returned(self.id, found.signature)
        self._changed()
