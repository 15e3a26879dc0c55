"""Decides which runs of a signature are short enough for the event loop, by the times of earlier runs of like sizes.

A thread costs a short run more than the run itself. The graph has to show that the sizes of the inputs bound the time
(`Signature.unbounded`), and a run of the sizes has to be measured in a thread first. The module knows no clock and no
thread; `fairness.LoopBudget` bounds the share of the loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable

from embedserve.batching.run_times import RunTimes
from embedserve.servable import Servable, ServableId
from embedserve.signature import Signature

__all__ = ["LoopRuns", "loop_runs"]

logger = logging.getLogger("embedserve")

# Runs in threads before the times of a size are trusted.
TRUSTED = 5

# Most sizes of rows with times; further sizes run in threads.
MOST_SIZES = 64

# Runs of a trusted size from one learnt time to the next.
LEARNT_SHARE = 8

# Times the limit. A run of so much processor time shows that the sizes do not bound the signature's time. A run of so
# many seconds with less processor time was held up by the machine.
FAR_BEYOND = 5

# Times the seconds of a held-up run: the pause of runs on the loop. The loop loses a twentieth of all time at most.
PAUSE = 20


def loop_runs(id: ServableId, signature: Signature, servable: Servable, limit: float) -> LoopRuns | None:
    """Return the record for a signature whose runs may be on the loop; None for a signature that stays in threads."""
    if limit <= 0 or signature.unbounded or not signature.stateless or signature.name not in servable.inline:
        return None
    return LoopRuns(id, signature.name, limit)


class _Times:
    __slots__ = ("largest", "runs", "times")

    def __init__(self) -> None:
        self.times = RunTimes()
        self.largest = 0
        self.runs = 0


class LoopRuns:
    """The times of a signature's runs by size, and the trust in the times. Loop only.

    Args:
        id: Model and version, for messages.
        name: The signature.
        limit: Seconds of the longest run for the loop.

    Attributes:
        runs: Runs on the loop so far.
        barred: Why no run of the signature is on the loop any more; empty before such a reason.
    """

    def __init__(self, id: ServableId, name: str, limit: float) -> None:
        self._id = id
        self._name = name
        self._limit = limit
        self._sizes: dict[Hashable, _Times] = {}
        self._paused_until = -math.inf
        self.runs = 0
        self.barred = ""

    def __repr__(self) -> str:
        return f"<LoopRuns {self._name}: {self.barred or f'{self.runs} runs, {len(self._sizes)} sizes'}>"

    def expected(self, size: Hashable, rows: int, now: float) -> float:
        """Return the expected seconds of a run for the loop; infinite for a run that belongs in a thread.

        Args:
            size: All that a run's time depends on but the number of rows: the outputs and the sizes of a row.
            rows: Rows of the run, padding included; not more than in earlier runs of the size for a finite answer.
            now: The time, on the clock of `held`.
        """
        known = self._sizes.get(size)
        if known is None or known.runs < TRUSTED or rows > known.largest or self.barred or now < self._paused_until:
            return math.inf
        seconds = known.times.seconds(rows)
        return seconds if seconds <= self._limit else math.inf

    def ran_in_thread(self, size: Hashable, rows: int, seconds: float) -> None:
        """Learn from a completed run in a thread.

        Args:
            size, rows: As for `expected`.
            seconds: Processor time of the thread: a wait for the interpreter would be no part of a run on the loop.
        """
        known = self._sizes.get(size)
        if known is None:
            if len(self._sizes) >= MOST_SIZES:
                return
            known = self._sizes[size] = _Times()
        known.runs += 1
        if known.runs <= 2 * TRUSTED or rows > known.largest or known.runs % LEARNT_SHARE == 0:
            known.largest = max(known.largest, rows)
            known.times.observe(rows, seconds)

    def held(self, size: Hashable, rows: int, seconds: float, used: float, now: float) -> None:
        """Learn from a run on the loop, and give up runs on the loop where the run was far beyond the limit.

        Args:
            size, rows: As for `expected`.
            seconds: Time of the loop.
            used: Processor time of the loop's thread.
            now: The time of the end.
        """
        self.runs += 1
        if self.runs == 1:
            logger.info(
                "%s: signature %r runs on the event loop, a run of %d rows takes %.0f µs",
                *(self._id, self._name, rows, seconds * 1e6),
            )
        known = self._sizes[size]
        if seconds <= FAR_BEYOND * self._limit:
            if self.runs % LEARNT_SHARE == 0:
                known.times.observe(rows, seconds)
            return
        if used > FAR_BEYOND * self._limit:
            self.barred = f"a run of {rows} rows took {used * 1e3:.3g} ms on the event loop"
            logger.warning("%s: signature %r runs in threads from now on: %s", self._id, self._name, self.barred)
            return
        self._paused_until = now + PAUSE * seconds
