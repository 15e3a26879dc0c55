"""Follows a model's base path in a remote store: queries the store, and updates the cache and the listener.

Every round is `plan.decide` over the store's answer and the cache's contents; an unanswered query removes no version.
Loop only. Knows no loaded version.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from embedserve.config import ModelConfig, VersionPolicy
from embedserve.lifecycle.scan import VersionDirectory
from embedserve.lifecycle.source_protocol import SourceListener, StoreStatistics
from embedserve.lifecycle.version_policy import choose, find_versions, names_only_absent
from embedserve.remote.cache import Cache, cache_key
from embedserve.remote.contents import RemoteVersion
from embedserve.remote.context import FIRST_ANSWER, SyncContext
from embedserve.remote.errors import StoreError
from embedserve.remote.fetcher import Fetcher
from embedserve.remote.options import storage_options
from embedserve.remote.plan import Known, Plan, decide, superfluous
from embedserve.remote.poller import Poller
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.store import Store

__all__ = ["Follower"]

logger = logging.getLogger("embedserve")

# Marks contents from another source than the store.
_ELSEWHERE = "elsewhere"


class Follower:
    """Keeps the listener informed of a remote model, from `start` to `aclose`.

    Args:
        config: The model; the base path is a `StoreUrl`.
        context: The parts shared with other followers.
        listener: Receives the reports.
        served: The aspired versions that an earlier source last reported for the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: SyncContext,
        listener: SourceListener,
        served: Mapping[int, VersionDirectory],
    ) -> None:
        assert isinstance(config.base_path, StoreUrl)
        options = context.options
        self.config = config
        self.url = config.base_path
        self._policy = self._last_policy = config.version_policy
        self._storage_options = storage_options(self.url.scheme, config.storage_options, options)
        self._key = cache_key(self.url, self._storage_options)
        self._context = context
        self._absent = options.absent_versions
        self._cache = context.cache
        self._disk = context.disk
        self._listener = listener
        self._store: Store | None = None
        self._names: Mapping[int, str] | None = None
        self._looked: Mapping[int, RemoteVersion] = {}
        self.served: Mapping[int, VersionDirectory] = dict(served)
        self._digests = dict.fromkeys(served, _ELSEWHERE)
        self._told = bool(served)
        self._waiting: Mapping[int, str] = {}
        self._last_sync: float | None = None
        self._cached_bytes = 0
        self._complaint: str | None = None
        self._duplicates: set[str] = set()
        self._poller = Poller(self._round, context.poll_interval)
        self._fetcher = Fetcher(config.name, self.url, self._key, context, self._poller.wake)

    def __repr__(self) -> str:
        return f"<Follower of {self.config.name} at {self.url}, serving {sorted(self.served)}>"

    @property
    def problem(self) -> str | None:
        """The reason why a version may be missing, or None."""
        if self._poller.error is not None:
            return self._poller.error
        if self._names is None:
            return f"{self.url} has not answered yet"
        if not self._names:
            return f"No versions of servable {self.config.name} found under base path {self.url}"
        return None if choose(self._policy, self._names) else self._unwanted(self._names)

    def _unwanted(self, names: Collection[int]) -> str:
        found = ", ".join(map(str, sorted(names)[-20:]))
        return f"{self.url} holds versions {found}, none of which the version policy wants"

    @property
    def coming(self) -> bool:
        """Whether the store's first answer is pending, or a version is being fetched; False after a failure."""
        if self._poller.error is not None or self._fetcher.error is not None:
            return False
        return self._names is None or self._fetcher.running is not None or bool(self._fetcher.finished)

    def statistics(self) -> StoreStatistics:
        """The state of the sync; readable from any thread."""
        return StoreStatistics(
            str(self.url),
            self._last_sync,
            self._poller.error or self._fetcher.error,
            self._poller.failures,
            self._fetcher.running,
            self._fetcher.fetched_bytes,
            self._cached_bytes,
        )

    def start(self) -> None:
        """Begin to follow."""
        self._poller.start()

    def stop(self) -> None:
        """End all reports; `aclose` waits for the end."""
        self._poller.stop()

    def set_policy(self, config: ModelConfig, policy: VersionPolicy | None) -> None:
        """Follow a changed configuration, or replace the configured policy, from the next round on."""
        self.config = config
        policy = config.version_policy if policy is None else policy
        if policy != self._policy:
            self._policy = policy
            self._poller.wake()

    def hint(self) -> None:
        """Query the store soon."""
        self._poller.wake()

    async def settled(self) -> None:
        """Wait until each version that the policy wants is fetched and reported, or is unavailable for now."""
        await self._poller.settled(lambda: self._fetcher.running is None)

    async def aclose(self) -> None:
        """Stop, and wait for the end of all reports."""
        await self._poller.aclose()
        await self._fetcher.aclose()

    async def cached_paths(self) -> list[Path]:
        """Every whole version of the store in the cache."""
        return [found.path for found in await self._disk.run(self._cache.whole, self._key)]

    # A round.

    async def _round(self) -> None:
        policy = self._policy
        cached, self._cached_bytes = await self._disk.run(_look_into, self._cache, self._key)
        try:
            plan = await self._ask_patiently(policy, cached)
        except StoreError as error:
            self._complain(str(error))
            await self._serve_from_memory(policy, cached, str(error))
            raise
        assert self._names is not None
        slip = bool(self.served) and self._absent != "unload" and names_only_absent(policy, self._names)
        self._complain(self._unwanted(self._names) if slip else None)
        if policy != self._policy:
            return  # Changed in the meantime; the next round comes at once.
        await self._serve(plan, {v: finding or self._fetching(v) for v, finding in plan.waiting.items()})
        assert self._store is not None
        self._fetcher.note(self._looked)
        self._fetcher.stop_unless(self._names if policy == self._last_policy else plan.fetch)
        self._fetcher.start(self._store, self._names, self._looked, plan.fetch)
        self._last_policy = policy
        await self._remove(plan, cached)

    def _fetching(self, version: int) -> str:
        return self._fetcher.progress(version, self._looked[version])

    async def _ask_patiently(self, policy: VersionPolicy, cached: _Cached) -> Plan:
        """Query the store; serve from the cache during a slow first answer."""
        asking = asyncio.ensure_future(self._ask(policy, cached))
        try:
            if not self._told:
                await asyncio.wait([asking], timeout=FIRST_ANSWER)
                if not asking.done():
                    await self._serve_from_memory(policy, cached, f"{self.url} has not answered yet")
            return await asking
        finally:
            asking.cancel()

    async def _ask(self, policy: VersionPolicy, cached: _Cached) -> Plan:
        if self._store is None:
            await self._disk.run(self._cache.open)
            self._store = await self._context.open_store(self.url, self._storage_options)
        names, duplicates = find_versions(await self._store.directories(), policy)
        if not names and self.url.is_web:
            # An error page, a captive portal and a disabled index look the same.
            raise StoreError(f"the page at {self.url}/ lists no version; it is taken for an error page")
        looked: dict[int, RemoteVersion] = {}
        while (plan := self._decide(policy, names, looked, cached)).look:
            versions = await asyncio.gather(*(self._store.look(names[version]) for version in plan.look))
            looked |= dict(zip(plan.look, versions, strict=True))
        self._names, self._looked, self._last_sync = names, looked, time.time()
        for version, used, ignored in duplicates:
            if ignored not in self._duplicates:
                self._duplicates.add(ignored)
                logger.warning("%s has version %d twice: %s is used, %s ignored", self.url, version, used, ignored)
        return plan

    def _decide(
        self, policy: VersionPolicy, found: Collection[int], looked: Mapping[int, RemoteVersion], cached: _Cached
    ) -> Plan:
        known = Known(looked, cached, self._fetcher.findings(), self._digests, self._fetcher.without_room())
        return decide(policy, found, known, self._absent)

    async def _serve_from_memory(self, policy: VersionPolicy, cached: _Cached, error: str) -> None:
        """Apply the policy to the last answer, or to the cache; an error unloads no version."""
        names = cached if self._names is None else self._names
        if self._names is None and not cached:
            return
        unknown = RemoteVersion(lacking=error)
        looked = {version: self._looked.get(version, unknown) for version in names}
        plan = self._decide(policy, names, looked, cached)
        waiting = {v: finding or f"it is not fetched: {error}" for v, finding in plan.waiting.items()}
        await self._serve(plan, {v: reason for v, reason in waiting.items() if v not in plan.serve or reason != error})

    async def _serve(self, plan: Plan, waiting: Mapping[int, str]) -> None:
        """Take the chosen versions and report changes to the listener.

        Raises:
            StoreError: A version has gone from the cache since. The listener hears no report.
        """
        served: dict[int, VersionDirectory] = {}
        for version, digest in plan.serve.items():
            if self._digests.get(version) == digest and version not in self._fetcher.finished:
                served[version] = self.served[version]
                continue
            path = self._cache.path(self._key, version, digest)
            fingerprint = await self._context.leases.take(self.config.name, path)
            if fingerprint is None:
                raise StoreError(f"{path} has gone from the cache, or is not whole")
            served[version] = VersionDirectory(version, path, fingerprint)
            self._fetcher.finished.discard(version)
        self._context.leases.keep(self.config.name, {directory.path for directory in served.values()})
        before, self.served, self._digests = self.served, served, dict(plan.serve)
        if not self._told or served != before:
            self._told = True
            self._listener.on_aspired(self.config.name, MappingProxyType(served))
        if waiting != self._waiting:
            self._waiting = waiting
            self._listener.on_waiting(self.config.name, MappingProxyType(dict(waiting)))

    async def _remove(self, plan: Plan, cached: _Cached) -> None:
        assert self._names is not None
        bounded = self._context.options.remote_cache_max_bytes is not None
        # A pinned model may return to the configured policy, and a bounded cache may keep versions that were served
        # once.
        keep = self._names if bounded else choose(self.config.version_policy, self._names)
        gone = superfluous(keep, self._looked, cached, plan.serve)
        self._context.leases.discard(self.config.name, (self._cache.path(self._key, *which) for which in gone))
        await self._fetcher.drop(plan.waiting.keys())

    def _complain(self, error: str | None) -> None:
        if error != self._complaint:
            if error is not None:
                logger.warning("%s cannot be synced, what is served stays: %s", self.config.name, error)
            elif self._complaint is not None:
                logger.info("%s is synced with %s again", self.config.name, self.url)
        self._complaint = error


_Cached: TypeAlias = dict[int, dict[str, int]]


def _look_into(cache: Cache, key: str) -> tuple[_Cached, int]:
    """Find the last use of a store's whole versions, by version and digest, and the sum of the versions' bytes."""
    cached: _Cached = {}
    for found in cache.whole(key):
        cached.setdefault(found.version, {})[found.digest] = found.used
    return cached, cache.size(key)
