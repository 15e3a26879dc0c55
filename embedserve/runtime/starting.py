"""When a start is over: the models that were configured at start have been served once, as far as the start needs them.

Functions of each model's prospects; `Start` remembers the answer, which stays. Knows no directory, clock or loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Literal, TypeAlias

__all__ = ["LOOK_INTERVAL", "Outcome", "Prospect", "Requires", "Start"]

LOOK_INTERVAL = 1.0
"""Seconds between two looks at prospects besides those after every change: time alone makes some of them worse."""

Requires: TypeAlias = Literal["all", "any"]


class Prospect(Enum):
    """What can be expected of one model."""

    SERVED = auto()
    """A version is available."""
    COMING = auto()
    """A version is being copied, fetched or loaded, and no attempt has failed."""
    TROUBLED = auto()
    """No version can be had now: a load is tried again, a copy is torn, or the base path is missing."""
    HOPELESS = auto()
    """No version can succeed any more."""


class Outcome(Enum):
    """Where a start is."""

    PENDING = auto()
    SERVING = auto()
    EMPTY = auto()
    """There is no model yet, and a root in which models may appear."""
    FAILED = auto()


class Start:
    """One start of a registry.

    Args:
        requires: `all`: every model has to be served. `any`: one has to be served, and no other is coming.
        discovers: Whether models may appear by themselves, so that an empty set of models is no finished start.
    """

    def __init__(self, requires: Requires, discovers: bool) -> None:
        self._requires = requires
        self._discovers = discovers
        self._first: frozenset[str] = frozenset()
        self._served: set[str] = set()
        self.over = False
        """Whether the process is ready: models that come, go or fail later do not change that."""

    def __repr__(self) -> str:
        return f"<Start that requires {self._requires}, {'over' if self.over else 'pending'}>"

    def look(self, prospects: Mapping[str, Prospect], unread: bool = False) -> Outcome:
        """Note the prospects of every model there is now, and say where the start is.

        Args:
            prospects: By model.
            unread: Whether there may be models that are not known yet.
        """
        self._served |= {name for name, prospect in prospects.items() if prospect is Prospect.SERVED}
        if not unread:
            self._first = self._first or frozenset(prospects)
        outcome = Outcome.SERVING if self.over else Outcome.PENDING if unread else self._outcome(prospects)
        self.over = outcome is Outcome.SERVING
        return outcome

    def settle_for_less(self) -> bool:
        """The time of the start is up; whether what has been served is enough."""
        self.over = self.over or (self._requires == "any" and bool(self._served))
        return self.over

    def missing(self, names: Collection[str]) -> list[str]:
        """Those of the models `names` that the start still needs."""
        return sorted(self._needed(names) - self._served)

    def _needed(self, names: Collection[str]) -> set[str]:
        """The models of the start that are still there; those that came later count once all of the first are gone."""
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
