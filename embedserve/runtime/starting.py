"""The end of a start: as many models configured at start have been served as the start requires.

Functions of each model's prospects; `Start` keeps a positive answer. The module knows no directory, clock or loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Literal, TypeAlias

__all__ = ["LOOK_INTERVAL", "Outcome", "Prospect", "Requires", "Start"]

LOOK_INTERVAL = 1.0
"""Seconds between two looks at prospects without a change: time alone makes some prospects worse."""

Requires: TypeAlias = Literal["all", "any"]


class Prospect(Enum):
    """The expectation for a model."""

    SERVED = auto()
    """A version is available."""
    COMING = auto()
    """A version is being copied, fetched or loaded, and no attempt has failed."""
    TROUBLED = auto()
    """No version can be had now: a load is tried again, a copy is torn, or the base path is missing."""
    HOPELESS = auto()
    """No version can succeed any more."""


class Outcome(Enum):
    """The stage of a start."""

    PENDING = auto()
    SERVING = auto()
    EMPTY = auto()
    """No model is present yet, and models may appear in a root."""
    FAILED = auto()


class Start:
    """A start of a registry.

    Args:
        requires: `all`: every model has to be served. `any`: a model has to be served, and no further model is coming.
        discovers: Whether models may appear in a root; an empty set of models is then no finished start.
    """

    def __init__(self, requires: Requires, discovers: bool) -> None:
        self._requires = requires
        self._discovers = discovers
        self._first: frozenset[str] = frozenset()
        self._served: set[str] = set()
        self.over = False
        """Whether the process is ready; later arrivals, removals and failures of models do not change the answer."""

    def __repr__(self) -> str:
        return f"<Start that requires {self._requires}, {'over' if self.over else 'pending'}>"

    def look(self, prospects: Mapping[str, Prospect], unread: bool = False) -> Outcome:
        """Note the prospects of all present models, and return the stage of the start.

        Args:
            prospects: By model.
            unread: Whether further models may exist, still undiscovered.
        """
        self._served |= {name for name, prospect in prospects.items() if prospect is Prospect.SERVED}
        if not unread:
            self._first = self._first or frozenset(prospects)
        outcome = Outcome.SERVING if self.over else Outcome.PENDING if unread else self._outcome(prospects)
        self.over = outcome is Outcome.SERVING
        return outcome

    def settle_for_less(self) -> bool:
        """End the start at the time limit; return whether the served models are enough."""
        self.over = self.over or (self._requires == "any" and bool(self._served))
        return self.over

    def missing(self, names: Collection[str]) -> list[str]:
        """Return the models among `names` still missing for the start."""
        return sorted(self._needed(names) - self._served)

    def _needed(self, names: Collection[str]) -> set[str]:
        """Return the models of the start that are still present; later models count once all first models are gone."""
        return set(self._first.intersection(names) or names)

    def _outcome(self, prospects: Mapping[str, Prospect]) -> Outcome:
        if not prospects:
            return Outcome.EMPTY if self._discovers else Outcome.SERVING
        missing = {prospects[name] for name in self.missing(prospects)}
        if Prospect.COMING in missing:
            return Outcome.PENDING
        if not missing or (self._requires == "any" and self._served):
            return Outcome.SERVING
        return Outcome.PENDING if Prospect.TROUBLED in missing else Outcome.FAILED
