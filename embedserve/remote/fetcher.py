"""Brings versions of a model from the store into the cache, one at a time, and remembers the outcomes.

Decides when a failed fetch is repeated. A version becomes whole only if the fetched contents are still in the store and
are loadable. Loop only; knows no policy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from embedserve.remote.cache import Part
from embedserve.remote.contents import RemoteFile, RemoteVersion
from embedserve.remote.context import SyncContext
from embedserve.remote.errors import BusyError, NoRoomError, StoreError
from embedserve.remote.plan import next_delay
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.store import Store

__all__ = ["Fetcher"]

logger = logging.getLogger("embedserve")

# Seconds until the first retry of a failed fetch; `next_delay` lengthens the pauses.
FIRST_RETRY = 1.0


@dataclass(frozen=True)
class _Attempt:
    """The outcome of the last attempt at some contents.

    Attributes:
        text: The reason why the contents are missing.
        since: Loop time of the first failed attempt.
        retry_at: Loop time of the next attempt; None if a retry would give the same outcome.
        final: Whether another version should take the contents' place until then.
    """

    text: str
    since: float = 0.0
    retry_at: float | None = None
    final: bool = True


class Fetcher:
    """The fetches of a model.

    Args:
        model: The model's name, for the log.
        url: The model's base path.
        key: The key of the model's store in the cache.
        context: The parts shared with other fetchers; the leases keep a version that became whole.
        ended: Called after every fetch, and when a failed fetch may be repeated.
    """

    def __init__(self, model: str, url: StoreUrl, key: str, context: SyncContext, ended: Callable[[], None]) -> None:
        self._model = model
        self._url = url
        self._key = key
        self._cache = context.cache
        self._disk = context.disk
        self._settle = context.options.settle
        self._keep = partial(context.leases.put, model)
        self._ended = ended
        self._attempts: dict[tuple[int, str], _Attempt] = {}
        self._seen: dict[tuple[int, str], float] = {}
        self._parts: dict[int, Part] = {}
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.running: int | None = None
        """The version that is being fetched."""
        self.fetched_bytes = 0
        self.finished: set[int] = set()
        """Versions that became whole since the follower last took note."""

    def __repr__(self) -> str:
        return f"<Fetcher of {self._model}, {'idle' if self.running is None else f'at version {self.running}'}>"

    def findings(self) -> dict[tuple[int, str], str]:
        """The reasons why contents are unavailable, by version and digest, while a retry would not help."""
        now = asyncio.get_running_loop().time()
        return {
            key: attempt.text
            for key, attempt in self._attempts.items()
            if attempt.final and (attempt.retry_at is None or attempt.retry_at > now)
        }

    def without_room(self) -> set[tuple[int, str]]:
        """Contents that did not fit into the cache, by version and digest."""
        return {key for key, attempt in self._attempts.items() if attempt.final and attempt.retry_at is not None}

    def progress(self, version: int, contents: RemoteVersion) -> str:
        """Describe the progress of a version that only needs fetching."""
        attempt = self._attempts.get((version, contents.digest))
        if attempt is not None and not attempt.final:
            return f"it could not be fetched from {self._url}: {attempt.text}; it is tried again"
        return f"it is being fetched from {self._url} ({len(contents.files)} files, {contents.size} bytes)"

    @property
    def error(self) -> str | None:
        """The reason of the last failed attempt with a pending retry."""
        return next((attempt.text for attempt in self._attempts.values() if not attempt.final), None)

    def note(self, looked: Mapping[int, RemoteVersion]) -> None:
        """Note since when each version has the present contents; forget missing contents."""
        now = asyncio.get_running_loop().time()
        there = {(version, contents.digest) for version, contents in looked.items()}
        self._seen = {key: self._seen.get(key, now) for key in there}
        self._attempts = {key: attempt for key, attempt in self._attempts.items() if key in there}

    def start(
        self, store: Store, names: Mapping[int, str], looked: Mapping[int, RemoteVersion], fetch: Sequence[int]
    ) -> None:
        """Fetch the first due version of `fetch`, unless a fetch is under way."""
        if self._task is not None:
            return
        now = asyncio.get_running_loop().time()
        for version in fetch:
            attempt = self._attempts.get((version, looked[version].digest))
            if attempt is None or attempt.retry_at is None or attempt.retry_at <= now:
                self.running = version
                work = self._fetch(store, version, names[version], looked[version])
                self._task = asyncio.get_running_loop().create_task(work, name="embedserve-fetch")
                self._task.add_done_callback(self._done)
                return

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = self.running = None
        self._ended()

    def stop_unless(self, wanted: Collection[int]) -> None:
        """Cancel a fetch of a version outside `wanted`; the fetched files stay for a later fetch."""
        if self._task is not None and self.running not in wanted:
            self._task.cancel()

    async def drop(self, wanted: Collection[int]) -> None:
        """Remove the parts of versions outside `wanted`, except the part of a running fetch."""
        for version in self._parts.keys() - {*wanted, self.running}:
            await self._disk.run_shielded(self._cache.abandon, self._parts.pop(version))

    async def aclose(self) -> None:
        """Stop. Fetched files stay in the cache for the next process."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for part in self._parts.values():
            part.lock.release()

    async def _fetch(self, store: Store, version: int, name: str, contents: RemoteVersion) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        key = version, contents.digest
        try:
            lacking = await self._bring(store, version, name, contents)
            if lacking is not None:
                self._attempts[key] = _Attempt(lacking)
            else:
                self._attempts.pop(key, None)
                seconds, size = loop.time() - begin, contents.size / 1e6
                logger.info("Fetched %s version %d: %.1f MB in %.1f s", self._model, version, size, seconds)
        except NoRoomError as error:
            self._try_again(key, str(error), final=True)
        except BusyError:
            self._try_again(key, "another process is fetching it into the same cache", final=False)
        except (StoreError, OSError) as error:
            self._forget_broken(version, error)
            self._try_again(key, str(error), final=False)
        except Exception as error:
            logger.exception("fetching %s version %d failed; it is tried again", self._model, version)
            self._try_again(key, f"{type(error).__name__}: {error}", final=False)

    def _forget_broken(self, version: int, error: Exception) -> None:
        """Begin a part anew after a manual removal."""
        if isinstance(error, FileNotFoundError) and version in self._parts:
            self._parts.pop(version).lock.release()

    def _try_again(self, key: tuple[int, str], text: str, final: bool) -> None:
        loop = asyncio.get_running_loop()
        before = self._attempts.get(key)
        since = loop.time() if before is None else before.since
        if before is None or before.text != text:
            logger.warning("%s version %d is not fetched from %s: %s", self._model, key[0], self._url, text)
        delay = next_delay(FIRST_RETRY, loop.time() - since)
        self._attempts[key] = _Attempt(text, since, loop.time() + delay, final)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(delay, self._ended)

    async def _bring(self, store: Store, version: int, name: str, contents: RemoteVersion) -> str | None:
        """Fetch, look again, judge, put in place.

        Returns:
            The missing pieces of the version; None for a whole version.
        """
        loop = asyncio.get_running_loop()
        previous = self._parts.pop(version, None)
        part = await self._disk.run_shielded(self._cache.begin, self._key, self._url, version, contents, previous)
        if part is None:
            self.finished.add(version)
            return None
        self._parts[version] = part
        logger.info("Fetching %s version %d from %s: %d files", self._model, version, self._url, len(part.missing))
        try:
            async with asyncio.TaskGroup() as files:
                for file in part.missing:
                    files.create_task(self._bring_file(store, part, file))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        quiet_at = self._seen.get((version, contents.digest), loop.time()) + self._settle
        await asyncio.sleep(max(0.0, quiet_at - loop.time()))
        if (await store.look(name)).digest != contents.digest:
            raise StoreError("it changed in the store while it was being fetched")
        lacking = await self._disk.run_shielded(self._cache.finish, part)
        if lacking is not None:
            return lacking.replace(str(part.path), str(self._url / name))
        del self._parts[version]
        self._keep(self._cache.path(self._key, version, contents.digest), part.lock)
        self.finished.add(version)
        return None

    async def _bring_file(self, store: Store, part: Part, file: RemoteFile) -> None:
        fetched = part.path / f".{secrets.token_hex(8)}"
        await store.fetch(file, fetched)
        await self._disk.run_shielded(self._cache.place, part, file, fetched)
        self.fetched_bytes += file.size
