"""Loads in threads: a blocking loader as the asynchronous loader that the manager awaits.

A step beyond its time limit is left behind in the thread. Knows no directory and no TensorFlow. Loop only.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from embedserve.concurrency.load_pool import LoadPool
from embedserve.concurrency.threads import RunPool
from embedserve.errors import Code, HungError, LoadError
from embedserve.observer import Observers
from embedserve.servable import BlockingLoader, Servable, ServableId

if TYPE_CHECKING:
    from embedserve.config import Batching, BatchingOptions

__all__ = ["LoaderThreads", "ThreadLoader"]

logger = logging.getLogger("embedserve")

# Seconds that warm-up waits for a busy run thread: a request without end must not hold up every new version.
WARM_UP_PATIENCE = 5.0


class LoaderThreads:
    """The threads that the loaders of an entry share.

    Args:
        load_pool: Threads for the steps of loads and unloads.
        run_pool: Threads that are warmed up for a new version.
        observers: Told of replayed warm-up requests.
        limit: Seconds of a step before the step is left behind.
    """

    def __init__(self, load_pool: LoadPool, run_pool: RunPool, observers: Observers, limit: float = math.inf) -> None:
        self.load_pool = load_pool
        self.run_pool = run_pool
        self.observers = observers
        self.limit = limit
        self._giving_back: _GivingBack | None = None

    async def give_back(self, loader: BlockingLoader) -> None:
        """Give a dropped version's memory back, together with the memory of versions dropped before the start.

        Giving back holds up every thread for a while. The load threads do so after the unloads queued before, and all
        the unloads share the call.
        """
        if self._giving_back is None or self._giving_back.begun:
            self._giving_back = _GivingBack(self.load_pool, loader)
        await asyncio.shield(self._giving_back.ended)


class _GivingBack:
    """Memory given back for all waiting unloads at once, when a load thread is free."""

    def __init__(self, pool: LoadPool, loader: BlockingLoader) -> None:
        self._loader = loader
        self.begun = False
        self.ended = asyncio.ensure_future(pool.run_shielded(self._run))

    def _run(self) -> None:
        self.begun = True
        self._loader.give_back()


class ThreadLoader:
    """Runs the steps of a blocking loader in threads.

    Args:
        id: The version.
        path: The version's directory, for messages.
        blocking: The steps.
        threads: Shared with the other loaders.
        warm_up: Whether recorded and made-up requests run before the version counts as loaded.
    """

    def __init__(
        self, id: ServableId, path: str, blocking: BlockingLoader, threads: LoaderThreads, warm_up: bool = True
    ) -> None:
        self._id = id
        self._path = path
        self.blocking = blocking
        self._threads = threads
        self._warm_up = warm_up
        self._servable: Servable | None = None

    def __repr__(self) -> str:
        return f"<ThreadLoader {self._id} from {self._path}>"

    @property
    def batching(self) -> tuple[Batching, BatchingOptions] | None:
        """As `Loader`."""
        return self.blocking.batching

    @property
    def note(self) -> str:
        """As `Loader`."""
        return self.blocking.note

    async def load(self) -> Servable:
        """Load, replay recorded requests, warm up each run thread, and compare the directory with its beginning.

        Raises:
            LoadError: A step failed, or the directory changed meanwhile.
            HungError: A step has not ended within the limit; the thread drops the resources after the step's end.
        """
        threads, loader = self._threads, self.blocking
        try:
            servable = self._servable = await threads.load_pool.run_shielded(
                loader.load, limit=threads.limit, late=loader.unload
            )
            if self._warm_up:
                await self._replay(servable)
                await self._warm_up_threads(servable)
            if not await threads.load_pool.run_shielded(loader.unchanged):
                raise LoadError(f"{self._path} changed while it was being loaded", code=Code.ABORTED)
        except HungError:
            self._servable = None
            raise
        return servable

    async def _replay(self, servable: Servable) -> None:
        threads, loader = self._threads, self.blocking
        loop = asyncio.get_running_loop()
        started = loop.time()
        error: Exception | None = None
        try:
            await threads.load_pool.run_shielded(
                *(loader.warm_up, servable), limit=threads.limit, late=lambda _: loader.unload(servable)
            )
        except LoadError as raised:
            error = raised
            raise
        finally:
            records = loader.warmup_records
            if threads.observers and records is not None:
                threads.observers.warmup_finished(self._id, self._path, loop.time() - started, records, error)

    async def _warm_up_threads(self, servable: Servable) -> None:
        pool, observers, loop = self._threads.run_pool, self._threads.observers, asyncio.get_running_loop()
        started = loop.time()
        warm_up = partial(_quietly, self.blocking.warm_up_thread, servable)
        cold = await pool.run_in_each_thread(warm_up, WARM_UP_PATIENCE, self._threads.limit)
        if cold:
            logger.warning(
                "Servable version %s goes without warm-up in %d of %d run threads, which a run has kept busy for %g s",
                *(self._id, cold, pool.size, WARM_UP_PATIENCE),
            )
        if observers:
            observers.threads_warmed(self._id, loop.time() - started)

    async def unload(self) -> None:
        """Drop the version in a thread, and give the memory back."""
        servable, self._servable = self._servable, None
        await self._threads.load_pool.run_shielded(self.blocking.unload, servable, limit=self._threads.limit)
        await self._threads.give_back(self.blocking)


def _quietly(call: Callable[[Servable], object], servable: Servable) -> None:
    try:
        call(servable)
    except Exception as error:
        logger.debug("a made-up warm-up run failed: %s", error)
