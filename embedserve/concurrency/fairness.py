"""Whose claim on a run slot is served next, and when one thread more is lent: functions over plain data.

A model takes turns with the others however many signatures, versions and callers it has. Asked by `threads.RunPool`.
Knows no thread, no clock and no batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

__all__ = ["LEND_AFTER", "Turns", "lend_at", "next_in_turn"]

LEND_AFTER = 0.1
"""Seconds for which one model must have held every slot before another is lent a thread.

Chosen above the runs that most models have: those give a slot back sooner, and a pool keeps to its size.
"""


def next_in_turn(claims: Sequence[str], held: Mapping[str, int], served: Mapping[str, int]) -> int:
    """Index of the claim that gets the free slot.

    The model that holds the fewest slots goes first, among equals the one whose last turn is longest ago, among its
    claims the oldest. A model that holds no slot therefore waits for at most one run of each other model to begin, and
    no model gets the last slot while another, which has none, waits. Turns count runs: a batch is one turn.

    Args:
        claims: The model of each claim, oldest first; at least one.
        held: Slots that a model holds now.
        served: Number of a model's last turn; turns are counted up from 1.
    """
    if len(claims) == 1:
        return 0
    return min(range(len(claims)), key=lambda i: (held.get(claims[i], 0), served.get(claims[i], 0)))


class Turns:
    """Which model holds how many slots, and when each was served last.

    Attributes:
        held: Slots by model; a model without one is not in it.
    """

    REMEMBERED = 4096  # Models; those served longest ago are forgotten, and count as never served.

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self._served: dict[str, int] = {}  # In the order of the last turns.
        self._turn = 0

    def next(self, claims: Sequence[str]) -> int:
        """As `next_in_turn`."""
        return next_in_turn(claims, self.held, self._served)

    def begin(self, model: str) -> None:
        """A run of the model takes a slot."""
        self._turn += 1
        self.held[model] = self.held.get(model, 0) + 1
        self._served.pop(model, None)
        self._served[model] = self._turn
        if len(self._served) > self.REMEMBERED:
            del self._served[next(iter(self._served))]

    def end(self, model: str) -> None:
        """It gives the slot back."""
        left = self.held[model] - 1
        if left:
            self.held[model] = left
        else:
            del self.held[model]


def lend_at(claims: Collection[str], running: Sequence[tuple[str, float]]) -> float | None:
    """When a claim may be served by a thread beyond the pool's size; None for not at all.

    One model whose runs are long, or never end, may hold every slot because nobody else waited when it took them.

    Args:
        claims: The model of each claim.
        running: For each slot, all of them taken, the model that holds it and when its run began.
    """
    if not running:
        return None
    holder = running[0][0]
    if all(claim == holder for claim in claims) or any(model != holder for model, _ in running):
        return None
    return max(began for _, began in running) + LEND_AFTER
