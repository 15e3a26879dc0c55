"""What a registry shows of itself, readable from any thread: state, models, versions, labels, statistics.

The half of `ModelRegistry` that changes nothing; its snapshots are of the entry that is on, or of the last one.
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
        """Whether requests can be answered: entered, in this process, not left, and the first loads have ended."""
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
        """The entry that is on; one of a process that has forked this one is not."""
        runtime = self._runtime
        return None if runtime is None or runtime.pid != os.getpid() else runtime

    @property
    def _entry_of_this_process(self) -> Runtime | None:
        """As `_entry`, but a child that was forked from the process with the entry is told so, not shown nothing."""
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
        """The event loop that owns the registry; None before entry and after leaving."""
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
        """The bound on request bytes that adapters hold; loop only."""
        return self._here().inflight

    def status(self, name: str | None = None) -> dict[str, tuple[VersionStatus, ...]]:
        """Every version ever known in this entry, by model, versions descending; of one model if named.

        Raises:
            RegistryStateError: In a forked child of the process that has entered the registry.
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
        """For each configured model None when it has an available, warm version that answers, else the reason.

        A version with a stuck run answers nothing until the run returns.
        """
        entry = self._entry
        if entry is None:
            return {model.name: self._not_entered for model in self._models}
        return entry.models.readiness()

    def unready(self) -> str | None:
        """Why the process as a whole is not ready, or None: what was configured at start has been served once.

        How much of it is needed is `start_requires`. Models that appear, fail or go later are no reason, but one with a
        stuck run is; `readiness` tells of each.
        """
        return self._not_entered if self._entry is None else self._entry.unready()

    def liveness(self) -> str | None:
        """Why this process should be replaced, because stuck runs have used up its threads; None while it should not.

        `max_stuck_runs` is the bound. A run that returns gives its thread back, and the reason goes.
        """
        return None if self._entry is None else self._entry.liveness()

    def labels(self, name: str) -> dict[str, int]:
        """Label → version of one model.

        Raises:
            RegistryStateError: As `status`.
        """
        entry = self._entry_of_this_process
        return {} if entry is None else dict(entry.models.labels.get(name, {}))

    def statistics(self) -> RegistryStatistics:
        """What the registry does now.

        Raises:
            RegistryStateError: Not entered, or as `status`.
        """
        runtime = self._here()
        runtime.check_process()
        return runtime.statistics()

    def check_reachable(self) -> None:
        """Raise, with the remedy, where no call can reach the registry: for adapters on another loop than its own.

        Raises:
            RegistryStateError: Not entered, left, in a forked child, or on a loop that does not run.
        """
        self._here().check_reachable()
