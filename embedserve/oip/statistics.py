"""Counts and durations of requests by version, as the Open Inference Protocol's statistics tell them.

An observer: the counting begins with the first request of the protocol, so that a registry without such requests pays
nothing. Requests of all APIs count from then on. The module knows no wire.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedserve.observer import Observer
from embedserve.servable import ServableId, State

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["InferenceStatistics", "VersionCounts", "statistics_of"]

_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_UNUSED = ("cache_hit", "cache_miss")


@dataclass(slots=True)
class VersionCounts:
    """The counts of a version; durations in seconds, of which `compute_infer` includes `queue`."""

    last_inference: int = 0
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_DURATIONS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_DURATIONS, 0.0))

    def add(self, what: str, seconds: float) -> None:
        """Count an event of a duration."""
        self.count[what] += 1
        self.seconds[what] += seconds

    def durations(self) -> dict[str, dict[str, int]]:
        """Counts, and durations in nanoseconds; there is no cache of responses."""
        seconds = self.seconds | {"compute_infer": self.seconds["compute_infer"] - self.seconds["queue"]}
        found = {what: {"count": self.count[what], "ns": max(round(seconds[what] * 1e9), 0)} for what in _DURATIONS}
        return found | {what: {"count": 0, "ns": 0} for what in _UNUSED}


class InferenceStatistics(Observer):
    """Counts the requests of each version that is loaded; made by `statistics_of`.

    A request that ran counts once in `success`, `queue`, `compute_input`, `compute_infer` and `compute_output`, and a
    request that failed in `fail`. Only requests of the protocol add time to `compute_input` and `compute_output`.
    """

    def __init__(self) -> None:
        self._counts: dict[ServableId, VersionCounts] = {}

    def __repr__(self) -> str:
        return f"<InferenceStatistics of {len(self._counts)} versions>"

    def of(self, name: str, version: int) -> VersionCounts:
        """The counts of a version."""
        return self._counts.get(ServableId(name, version)) or VersionCounts()

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        """Forget a version that is gone."""
        if state is State.END:
            self._counts.pop(id, None)

    def queue_wait(self, id: ServableId, signature_name: str, seconds: float) -> None:
        """Add a task's wait."""
        self._of(id).seconds["queue"] += seconds

    def run_finished(self, id: ServableId, signature_name: str, seconds: float, error: Exception | None) -> None:
        """Count a request's stay in the predictor."""
        counts = self._of(id)
        if error is not None:
            counts.add("fail", seconds)
            return
        counts.last_inference = time.time_ns() // 1_000_000
        counts.add("success", seconds)
        counts.add("compute_infer", seconds)
        for what in ("queue", "compute_input", "compute_output"):
            counts.count[what] += 1

    def translated(self, name: str, version: int, reading: float, writing: float) -> None:
        """Add the seconds that reading the inputs and writing the outputs of an answered request took."""
        seconds = self._of(ServableId(name, version)).seconds
        seconds["compute_input"] += reading
        seconds["compute_output"] += writing
        seconds["success"] += reading + writing

    def _of(self, id: ServableId) -> VersionCounts:
        counts = self._counts.get(id)
        if counts is None:
            counts = self._counts[id] = VersionCounts()
        return counts


def statistics_of(registry: ModelRegistry) -> InferenceStatistics:
    """The statistics of a registry; the first call begins the counting."""
    found = registry.observers.first(InferenceStatistics)
    if found is None:
        found = InferenceStatistics()
        registry.observers.add(found)
    return found
