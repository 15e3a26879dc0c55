"""A registry's read-only side, for any thread: state, models, versions, labels, statistics.

The base class of `ModelRegistry` changes no state. Snapshots belong to the current entry, or to the last entry.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from embedserve.concurrency.inflight import InflightBytes
from embedserve.config import ModelConfig
from embedserve.errors import NotReadyError
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.runtime.runtime import RegistryStatistics, Runtime
from embedserve.store_url import StoreUrl

__all__ = ["RegistryView"]


class RegistryView:
    """The base of `ModelRegistry`."""

    def __init__(self, root: Path | StoreUrl | None, models: Sequence[ModelConfig]) -> None:
        self._root = root
        self._models = tuple(models)
        self._runtime: Runtime | None = None
        self._entering: Future[None] | None = None
        self._last_status: Mapping[str, tuple[VersionStatus, ...]] = {}

    def __repr__(self) -> str:
        what = repr(str(self._root)) if self._root is not None else f"models={[model.name for model in self._models]}"
        runtime = self._runtime
        if runtime is None:
            return f"<ModelRegistry {what}, {'starting' if self._is_entering else 'not entered'}>"
        if self._entry is None:
            return f"<ModelRegistry {what}, entered in process {runtime.pid}, which forked this one>"
        serving = ", ".join(runtime.monitor.available()) or "nothing"
        return f"<ModelRegistry {what}, {'draining' if runtime.draining else 'serving'} {serving}>"

    @property
    def started(self) -> bool:
        """Whether requests can be answered: entered in the current process, not left, and the first loads are over."""
        return self._entry is not None and self._entry.started

    @property
    def _is_entering(self) -> bool:
        return self._entering is not None and not self._entering.done()

    @property
    def _not_entered(self) -> str:
        where = "" if self._runtime is None else " in this process, which was forked from the one that entered it"
        return f"the registry has not been entered{where}"

    @property
    def _entry(self) -> Runtime | None:
        """The current entry; None for an entry of a parent process before a fork."""
        runtime = self._runtime
        return None if runtime is None or runtime.pid != os.getpid() else runtime

    @property
    def _entry_of_this_process(self) -> Runtime | None:
        """As `_entry`, but raises in a child forked from the process with the entry."""
        runtime = self._runtime
        if runtime is not None:
            runtime.check_process()
        return runtime

    @property
    def draining(self) -> bool:
        """Whether shutdown has begun: readiness is down, requests are still answered."""
        return self._entry is not None and self._entry.draining

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The owner loop of the registry; None before entry and after leaving."""
        return None if self._runtime is None else self._runtime.loop

    def _here(self) -> Runtime:
        runtime = self._runtime
        if runtime is None:
            raise NotReadyError(
                "the registry has not been entered, or has been left: use `async with registry`, `with registry`, "
                "`registry.ensure_started()`, or give the host app `lifespan=registry.lifespan`"
            )
        return runtime

    @property
    def inflight(self) -> InflightBytes:
        """The bound on request bytes held by adapters; loop only."""
        return self._here().inflight

    def status(self, name: str | None = None) -> dict[str, tuple[VersionStatus, ...]]:
        """Return every version of the entry, past and present, by model, versions descending.

        Args:
            name: Only the model with the name, if given.

        Raises:
            RegistryStateError: The process is a forked child of the process with the entry.
        """
        entry = self._entry_of_this_process
        snapshot = self._last_status if entry is None else entry.monitor.snapshot
        return {model: statuses for model, statuses in snapshot.items() if name is None or model == name}

    def models(self) -> tuple[str, ...]:
        """Names of the configured and discovered models; empty where the registry is not entered.

        Raises:
            RegistryStateError: As `status`.
        """
        entry = self._entry_of_this_process
        return () if entry is None else tuple(sorted(entry.models.readiness()))

    def readiness(self) -> dict[str, str | None]:
        """Return None for each configured model with an available, warm and answering version, else the reason.

        A version with a stuck run does not answer until the run returns.
        """
        entry = self._entry
        if entry is None:
            return {model.name: self._not_entered for model in self._models}
        return entry.models.readiness()

    def unready(self) -> str | None:
        """Return why the process as a whole is not ready, or None once the models configured at start have been served.

        `start_requires` decides how many models are required. Models with a later arrival, failure or removal are no
        reason. A stuck run in a model is a reason; `readiness` has the reason for each model.
        """
        return self._not_entered if self._entry is None else self._entry.unready()

    def liveness(self) -> str | None:
        """Return why the process should be replaced: stuck runs have used up the threads. None in a healthy process.

        `max_stuck_runs` is the bound. A returning run gives the thread back and ends the reason.
        """
        return None if self._entry is None else self._entry.liveness()

    def labels(self, name: str) -> dict[str, int]:
        """Return the labels of a model with their versions.

        Raises:
            RegistryStateError: As `status`.
        """
        entry = self._entry_of_this_process
        return {} if entry is None else dict(entry.models.labels.get(name, {}))

    def statistics(self) -> RegistryStatistics:
        """Return a snapshot of the registry's work.

        Raises:
            RegistryStateError: Not entered, or as `status`.
        """
        runtime = self._here()
        runtime.check_process()
        return runtime.statistics()

    def check_reachable(self) -> None:
        """Raise, with the remedy, where no call can reach the registry: for adapters on a foreign loop.

        Raises:
            RegistryStateError: Not entered, left, in a forked child, or on a stopped loop.
        """
        self._here().check_reachable()
