"""Has a version loaded by every worker, or by none: loads, drops, and what a worker that comes up must catch up with.

Used by `fleet` and `fleet_registry`, on the supervisor's loop. Which worker is next is decided in `plan`, whether a
version is published by the registry.
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
    """A worker ended while it loaded a version; `alone` says whether it loaded no other."""

    def __init__(self, message: str, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


@dataclass
class _Attempt:
    """A version that is being loaded; `problem` is why it cannot be.

    Attributes:
        alone: No other version is loaded meanwhile, since one of several has ended a worker.
        crashed: A worker ended while it loaded this version.
        shared: It loaded others as well.
    """

    order: Load
    alone: bool = False
    problem: ServingError | None = None
    crashed: bool = False
    shared: bool = False


class Rollout:
    """The versions that workers have or are to have.

    Args:
        processes: The process of each worker; None for one that is being replaced.
        changes: Notified after everything that a worker says.
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
        """Have a version loaded by every worker, while no other is if `alone`; when this returns it may be published.

        Raises:
            LoadError: One of them could not load it, and the others have dropped it.
            CrashedError: One of them ended while it did, and the others have dropped it.
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
            # In the step that saw every worker ready: one that comes up after it must catch up.
            self._ready[key] = attempt.order
            return next(process.loaded[key] for process in self._processes() if key in process.loaded)
        await self.drop(key)
        raise CrashedError(attempt.problem.message, not attempt.shared) if attempt.crashed else attempt.problem

    def _may_begin(self, alone: bool) -> bool:
        return not self._loading if alone else not any(other.alone for other in self._loading.values())

    async def _follow(self, attempt: _Attempt) -> None:
        """Tell one worker after the other, until all have loaded the version or one of them has not."""
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
        """Have a version unloaded everywhere; returns when its last request is answered and its memory is free."""
        self._ready.pop(key, None)
        for process in self._processes():
            process.drop(key)
        await self._changes.wait_until(lambda: not any(key in process.told for process in self._processes()))

    def catch_up(self, process: WorkerProcess) -> bool:
        """Tell a worker that comes up what the others have; whether it has it, too."""
        view = process.view()
        for key in plan.catching_up(view, self._ready):
            process.load(self._ready[key])
        return view.serving or plan.may_serve(view, self._ready)

    def failed(self, process: WorkerProcess, key: Key, failure: Failure) -> bool:
        """A worker could not load a version; True if the others have it already and so cannot give it up."""
        if (attempt := self._loading.get(key)) is not None:
            attempt.problem = attempt.problem or LoadError(failure.message, code=failure.code)
        return key in self._ready and not process.serving

    def died(self, process: WorkerProcess, how: str) -> bool:
        """A worker has ended; what it was loading may be the reason. Whether there was such a version."""
        keys = process.told.keys() - process.loaded.keys() - process.failed.keys()
        attempts = [attempt for key, attempt in self._loading.items() if key in keys]
        for attempt in attempts:
            attempt.problem = attempt.problem or LoadError(f"{how} while it loaded the version", code=Code.ABORTED)
            attempt.crashed, attempt.shared = True, len(attempts) > 1
        return bool(attempts)

    def close(self) -> None:
        """Nothing more is loaded."""
        self._closed = True
        self._changes.notify()
