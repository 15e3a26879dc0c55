"""The choice of the next claim on a run slot, the time to lend an extra thread, and the loop's share of short work.

Models take turns, however many signatures, versions and callers a model has. The module knows no thread, no clock and
no batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

__all__ = ["LEND_AFTER", "LoopBudget", "Turns", "lend_at", "next_in_turn"]

LEND_AFTER = 0.1
"""Seconds of holding every slot by a single model before another model is lent a thread.

Chosen longer than the runs of most models: short runs give a slot back sooner, and a pool keeps to the size.
"""


def next_in_turn(claims: Sequence[str], held: Mapping[str, int], served: Mapping[str, int]) -> int:
    """Return the index of the claim for the free slot.

    The model with the fewest slots goes first; among equals, the model with the oldest last turn; within a model, the
    oldest claim. A model without a slot therefore waits for at most a single run of each further model to begin. No
    model gets the last slot while a model without a slot waits. Turns count runs: a batch is a turn.

    Args:
        claims: The model of each claim, oldest first; at least a single claim.
        held: Number of slots held by each model.
        served: Number of a model's last turn; turns are counted up from 1.
    """
    if len(claims) == 1:
        return 0
    return min(range(len(claims)), key=lambda i: (held.get(claims[i], 0), served.get(claims[i], 0)))


class Turns:
    """The number of slots held by each model, and the last turn of each model.

    Attributes:
        held: Slots by model; a model without a slot is absent.
    """

    REMEMBERED = 4096  # Models; models served longest ago are forgotten, and count as never served.

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self._served: dict[str, int] = {}  # In the order of the last turns.
        self._turn = 0

    def next(self, claims: Sequence[str]) -> int:
        """As `next_in_turn`."""
        return next_in_turn(claims, self.held, self._served)

    def begin(self, model: str) -> None:
        """Note a slot taken by the model."""
        self._turn += 1
        self.held[model] = self.held.get(model, 0) + 1
        self._served.pop(model, None)
        self._served[model] = self._turn
        if len(self._served) > self.REMEMBERED:
            del self._served[next(iter(self._served))]

    def end(self, model: str) -> None:
        """Return a slot of the model."""
        left = self.held[model] - 1
        if left:
            self.held[model] = left
        else:
            del self.held[model]


def lend_at(claims: Collection[str], running: Sequence[tuple[str, float]]) -> float | None:
    """Return the time for serving a claim by a thread beyond the pool's size; None for never.

    A model with long or endless runs may hold every slot, because no further model waited at the time of the claims.

    Args:
        claims: The model of each claim.
        running: For each of the pool's slots, all taken: the model in the slot and the beginning of the run.
    """
    if not running:
        return None
    holder = running[0][0]
    if all(claim == holder for claim in claims) or any(model != holder for model, _ in running):
        return None
    return max(began for _, began in running) + LEND_AFTER


class LoopBudget:
    """The seconds that short work may take of the loop: at most `size` at once, and at most half of all time.

    Args:
        size: Seconds; 0 keeps all work in threads.
    """

    SHARE = 0.5

    def __init__(self, size: float) -> None:
        self._size = self._left = size
        self._at = -math.inf

    def admits(self, seconds: float, now: float) -> bool:
        """Return whether work of the expected `seconds` may begin now."""
        if seconds > self._size:
            return False
        self._left = min(self._size, self._left + (now - self._at) * self.SHARE)
        self._at = now
        return seconds <= self._left

    def spend(self, seconds: float) -> None:
        """Note work that took `seconds`; longer work than expected is made up for before the next."""
        self._left -= seconds
