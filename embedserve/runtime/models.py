"""The models of an entered registry: the configuration, labels and prospects of each model.

The module reads the states of manager, monitor and source and changes none of the three. The module knows no request
and no start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from embedserve.config import ModelConfig
from embedserve.errors import Code
from embedserve.lifecycle.manager import Manager
from embedserve.lifecycle.monitor import Monitor
from embedserve.lifecycle.source_protocol import Source
from embedserve.runtime.starting import Prospect
from embedserve.servable import State

__all__ = ["Models"]

# Failed attempts in a row after which a start gives up on a version, although the load is still retried.
ATTEMPTS_AT_START = 3


class Models:
    """Configurations and labels by model, and the prospects of each.

    Args:
        labels_changed: Called after every change of a label on demand.
    """

    def __init__(
        self, manager: Manager, monitor: Monitor, source: Source, labels_changed: Callable[[], None] | None
    ) -> None:
        self.configs: dict[str, ModelConfig] = {}
        self.labels: dict[str, dict[str, int]] = {}
        """Version by label, by model."""
        self._manager = manager
        self._monitor = monitor
        self._source = source
        self._labels_changed = labels_changed

    def __repr__(self) -> str:
        return f"<Models {', '.join(sorted(self.configs)) or 'none'}>"

    def set_labels(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Set the labels of all models: version by label, by model."""
        self.labels = {name: dict(versions) for name, versions in labels.items()}
        if self._labels_changed is not None:
            self._labels_changed()

    def prospect(self, name: str) -> Prospect:
        """Return the expectation for a model."""
        if self._manager.available(name):
            return Prospect.SERVED
        versions = self._manager.versions_of(name)
        untried = any(v.error is None and v.state in (State.START, State.LOADING) for v in versions)
        if untried or self._source.coming(name):
            return Prospect.COMING
        if not versions and self._source.misplaced(name):
            return Prospect.HOPELESS
        hopeless = bool(versions) and all(
            v.failed and (v.state is State.END or v.failures >= ATTEMPTS_AT_START) for v in versions
        )
        return Prospect.HOPELESS if hopeless and not self._monitor.waiting(name) else Prospect.TROUBLED

    def readiness(self) -> dict[str, str | None]:
        """Return None for each configured model with an available, warm version and no stuck run, else the reason."""
        return {
            name: self.trouble(name) if self._manager.available(name) else self._why_not(name) for name in self.configs
        }

    def trouble(self, name: str) -> str | None:
        """Return why requests to a serving model are refused, or None."""
        reasons = [
            f"version {version.id.version} is refused: {trouble}"
            for version in self._manager.serving()
            if version.id.name == name and (predictor := version.predictor) is not None
            if (trouble := predictor.trouble) is not None
        ]
        return "; ".join(reasons) or None

    def _why_not(self, name: str) -> str:
        reasons = []
        for version in self._manager.versions_of(name):
            text = f"version {version.id.version} is {version.state.name}"
            if version.error is not None:
                text += f": {Code(version.error.code).name}: {version.error}"
            reasons.append(text)
        reasons += [f"version {number}: {why}" for number, why in self._monitor.waiting(name).items()]
        return "; ".join(reasons) or self._source.problem(name) or "no version directory has been looked at yet"
