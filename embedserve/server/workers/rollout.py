"""Loads a version in every worker or in none; also drops versions and lets new workers catch up.

`plan` decides the next worker to load in. The registry decides whether a version is published.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedserve.config import ModelConfig
from embedserve.errors import Code, LoadError, ServingError
from embedserve.lifecycle.changes import Changes
from embedserve.lifecycle.source import VersionDirectory
from embedserve.server.workers import plan
from embedserve.server.workers.messages import Failure, Key, Load, Loaded
from embedserve.server.workers.process import WorkerProcess

__all__ = ["CrashedError", "Rollout"]


class CrashedError(Exception):
    """A worker ended during a load; `alone` says whether the version was the only version loading in the worker."""

    def __init__(self, message: str, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


@dataclass
class _Attempt:
    """A version on the way to all workers; `problem` is the reason of a failed load.

    Attributes:
        alone: Other loads wait meanwhile, because a worker ended while several versions loaded.
        crashed: A worker ended while the version loaded.
        shared: The ended worker was loading further versions.
    """

    order: Load
    alone: bool = False
    problem: ServingError | None = None
    crashed: bool = False
    shared: bool = False


class Rollout:
    """The versions in the workers, and the versions on their way.

    Args:
        processes: Returns the process of each worker; None for a worker between two processes.
        changes: Notified after every message from a worker.
    """

    def __init__(self, processes: Callable[[], Sequence[WorkerProcess | None]], changes: Changes) -> None:
        self._seats = processes
        self._changes = changes
        self._attempts = itertools.count(1)
        self._loading: dict[Key, _Attempt] = {}
        self._ready: dict[Key, Load] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Rollout {len(self._ready)} ready, {len(self._loading)} loading>"

    async def load(self, name: str, directory: VersionDirectory, config: ModelConfig, alone: bool = False) -> Loaded:
        """Load a version in every worker; afterwards the version may be published.

        With `alone`, the load waits until no version loads, and later loads wait for the end of the load.

        Raises:
            LoadError: A worker could not load the version; all workers have dropped the version.
            CrashedError: A worker ended during the load; all workers have dropped the version.
        """
        await self._changes.wait_until(lambda: self._closed or self._may_begin(alone))
        key = Key(name, directory.version, next(self._attempts))
        attempt = self._loading[key] = _Attempt(Load(key, directory, config), alone)
        try:
            await self._follow(attempt)
        finally:
            del self._loading[key]
            self._changes.notify()
        if attempt.problem is None:
            # No await lies between the check of all workers and this line, so later workers catch up with the version.
            self._ready[key] = attempt.order
            return next(process.loaded[key] for process in self._processes() if key in process.loaded)
        await self.drop(key)
        raise CrashedError(attempt.problem.message, not attempt.shared) if attempt.crashed else attempt.problem

    def _may_begin(self, alone: bool) -> bool:
        return not self._loading if alone else not any(other.alone for other in self._loading.values())

    async def _follow(self, attempt: _Attempt) -> None:
        """Order the load in one worker after another, until all have the version or a load failed."""
        while not self._closed and attempt.problem is None:
            indices = plan.next_to_load(attempt.order.key, self._views())
            if indices is None:
                return
            for process in self._processes():
                if process.index in indices:
                    process.load(attempt.order)
            await self._changes.next()
        attempt.problem = attempt.problem or LoadError("the server is leaving", code=Code.CANCELLED)

    def _processes(self) -> list[WorkerProcess]:
        return [process for process in self._seats() if process is not None]

    def _views(self) -> list[plan.WorkerView]:
        return [
            plan.WorkerView(index, up=False) if process is None else process.view()
            for index, process in enumerate(self._seats())
        ]

    async def drop(self, key: Key) -> None:
        """Unload a version everywhere; return when the last request is answered and the memory is free."""
        self._ready.pop(key, None)
        for process in self._processes():
            process.drop(key)
        await self._changes.wait_until(lambda: not any(key in process.told for process in self._processes()))

    def catch_up(self, process: WorkerProcess) -> bool:
        """Order a new worker to load the serving workers' versions; return whether the worker may serve."""
        view = process.view()
        for key in plan.catching_up(view, self._ready):
            process.load(self._ready[key])
        return view.serving or plan.may_serve(view, self._ready)

    def failed(self, process: WorkerProcess, key: Key, failure: Failure) -> bool:
        """Note a failed load; return whether a new worker failed to load a version of the serving workers."""
        if (attempt := self._loading.get(key)) is not None:
            attempt.problem = attempt.problem or LoadError(failure.message, code=failure.code)
        return key in self._ready and not process.serving

    def died(self, process: WorkerProcess, how: str) -> bool:
        """Note the end of a worker; return whether the worker was loading a version, perhaps the reason of the end."""
        keys = process.loading()
        attempts = [attempt for key, attempt in self._loading.items() if key in keys]
        for attempt in attempts:
            attempt.problem = attempt.problem or LoadError(f"{how} while it loaded the version", code=Code.ABORTED)
            attempt.crashed, attempt.shared = True, len(attempts) > 1
        return bool(attempts)

    def close(self) -> None:
        """Stop further loads."""
        self._closed = True
        self._changes.notify()
