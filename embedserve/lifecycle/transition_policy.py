"""The next load or unload: stateless functions from snapshots of a model's versions to an action.

The manager applies actions until a policy returns None. Policies know no clock, no loader and no await.
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
    """A move of a version."""

    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, order=True, slots=True)
class VersionSnapshot:
    """A generation of a version as the policy sees the generation; ordered by version, then generation."""

    version: int
    generation: int
    state: State
    aspired: bool


TransitionPolicy = Callable[[Iterable[VersionSnapshot]], tuple[Action, VersionSnapshot] | None]


def availability_preserving(versions: Iterable[VersionSnapshot]) -> tuple[Action, VersionSnapshot] | None:
    """Load the new version before unloading the old version.

    A serving generation stays until a newer generation of the same version serves. Requests for exactly the version
    therefore see no gap either.

    Source: TF Serving, availability_preserving_policy.cc; generations are an addition.
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
    """Unload every version that is not aspired, and only then load: a gap in availability, but less memory.

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
    """Unload unaspired versions and load aspired versions at once; the source of the aspired versions keeps the order.

    A serving generation still waits for a newer generation of the same version.
    """
    versions = sorted(versions)
    replacing = {v.version for v in versions if v.aspired and v.state is not State.AVAILABLE}
    for v in versions:
        if not v.aspired and v.state is State.AVAILABLE and v.version not in replacing:
            return Action.UNLOAD, v
    return next(((Action.LOAD, v) for v in versions if v.aspired and v.state is State.START), None)
