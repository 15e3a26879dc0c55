"""The parts that the root, the followers and the fetchers of a registry share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedserve.concurrency.load_pool import LoadPool
from embedserve.config import RegistryOptions
from embedserve.remote.cache import Cache
from embedserve.remote.leases import Leases
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.store import Store

__all__ = ["FIRST_ANSWER", "SyncContext"]

FIRST_ANSWER = 10.0
"""Seconds that a registry waits for a store's first answer before serving the cached versions."""


@dataclass(frozen=True)
class SyncContext:
    """The shared parts of a registry's sync.

    Attributes:
        options: As for `Syncer`.
        cache: The place of the versions.
        disk: Threads for the cache's files and for opening stores.
        leases: Counts the uses of cached versions.
        open_store: Opens the store of a URL with the storage options.
    """

    options: RegistryOptions
    cache: Cache
    disk: LoadPool
    leases: Leases
    open_store: Callable[[StoreUrl, Mapping[str, object]], Awaitable[Store]]

    @property
    def poll_interval(self) -> float:
        """Seconds between two questions to a store."""
        own = self.options.remote_poll_interval
        return self.options.poll_interval if own is None else own
