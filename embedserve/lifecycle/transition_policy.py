"""Which load or unload comes next: stateless functions from snapshots of one model's versions to one action.

Called by the manager after every change until the answer is None. Knows no clock, no loader and no await.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from embedserve.servable import State

__all__ = [
    "Action",
    "TransitionPolicy",
    "VersionSnapshot",
    "as_told",
    "availability_preserving",
    "resource_preserving",
]


class Action(enum.Enum):
    """What to do with one version."""

    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, order=True, slots=True)
class VersionSnapshot:
    """One generation of one version as the policy sees it; ordered by version, then generation."""

    version: int
    generation: int
    state: State
    aspired: bool


TransitionPolicy = Callable[[Iterable[VersionSnapshot]], tuple[Action, VersionSnapshot] | None]


def availability_preserving(versions: Iterable[VersionSnapshot]) -> tuple[Action, VersionSnapshot] | None:
    """Load the new before unloading the old.

    A serving generation whose version is about to be replaced by a newer generation is left alone until that one
    serves, so that requests for exactly this version see no gap either.

    Source: TF Serving, availability_preserving_policy.cc; generations are ours.
    """
    versions = sorted(versions)
    aspired = [v for v in versions if v.aspired]
    replacing = {v.version for v in aspired if v.state is not State.AVAILABLE}
    unaspired_ready = [
        v for v in versions if not v.aspired and v.state is State.AVAILABLE and v.version not in replacing
    ]
    if unaspired_ready and (
        not aspired or any(v.state is State.AVAILABLE for v in aspired) or len(unaspired_ready) > 1
    ):
        return Action.UNLOAD, unaspired_ready[0]
    new = [v for v in aspired if v.state is State.START]
    return (Action.LOAD, new[-1]) if new else None


def resource_preserving(versions: Iterable[VersionSnapshot]) -> tuple[Action, VersionSnapshot] | None:
    """Unload everything that is not aspired, and only then load: a gap in availability, less memory.

    Source: TF Serving, resource_preserving_policy.cc.
    """
    versions = sorted(versions)
    unaspired = [v for v in versions if not v.aspired]
    for v in unaspired:
        if v.state is State.AVAILABLE:
            return Action.UNLOAD, v
    if any(v.state is not State.END for v in unaspired):
        return None
    new = [v for v in versions if v.aspired and v.state is State.START]
    return (Action.LOAD, new[-1]) if new else None


def as_told(versions: Iterable[VersionSnapshot]) -> tuple[Action, VersionSnapshot] | None:
    """Unload whatever is not aspired and load whatever is, in any order: whoever tells what is aspired keeps the order.

    A serving generation still waits for the one that replaces it.
    """
    versions = sorted(versions)
    replacing = {v.version for v in versions if v.aspired and v.state is not State.AVAILABLE}
    for v in versions:
        if not v.aspired and v.state is State.AVAILABLE and v.version not in replacing:
            return Action.UNLOAD, v
    return next(((Action.LOAD, v) for v in versions if v.aspired and v.state is State.START), None)
