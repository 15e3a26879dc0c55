"""Finds the models under a remote root: `ModelRegistry("s3://bucket/models")`.

Every directory with a version directory is a model. A missing model is dropped only after a second miss, and a store
without an answer drops no model. Loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from embedserve.errors import ConfigError
from embedserve.lifecycle.version_policy import version_number
from embedserve.remote.context import FIRST_ANSWER, SyncContext
from embedserve.remote.errors import MissingError, StoreError
from embedserve.remote.options import storage_options
from embedserve.remote.poller import Poller
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.store import Store

__all__ = ["RemoteRoot"]

logger = logging.getLogger("embedserve")


class RemoteRoot:
    """Knows the models under a URL.

    Args:
        url: The root.
        context: As for followers.
        changed: Called with all names after every change.
    """

    def __init__(self, url: StoreUrl, context: SyncContext, changed: Callable[[Sequence[str]], None]) -> None:
        options = context.options
        self.url = url
        self._context = context
        self._changed = changed
        self._storage_options = storage_options(url.scheme, {}, options)
        self._store: Store | None = None
        self._names: tuple[str, ...] = ()
        self._missed: set[str] = set()
        self.diagnosis: str | None = f"{url} has not answered yet"
        """The reason for missing models, with advice, or None."""
        self.misused = False
        """Whether the root is missing, or holds other contents than models."""
        self.unread = True
        """Whether the models are still unknown to both store and cache."""
        self._poller = Poller(self._round, context.poll_interval)

    def __repr__(self) -> str:
        return f"<RemoteRoot {self.url}, {len(self._names)} models>"

    async def start(self) -> None:
        """Begin; returns after the first answer, or after `FIRST_ANSWER` seconds."""
        self._poller.start()
        try:
            async with asyncio.timeout(FIRST_ANSWER):
                await self._poller.settled(lambda: True)
        except TimeoutError:
            await self._remember()

    def hint(self) -> None:
        """Query the store soon."""
        self._poller.wake()

    async def aclose(self) -> None:
        """Stop."""
        await self._poller.aclose()

    async def _round(self) -> None:
        try:
            found = await self._models()
        except StoreError as error:
            self._say(f"models directory {self.url}: {error}")
            await self._remember()
            self.misused = self.unread and isinstance(error, MissingError)
            raise
        self.unread = False
        gone = set(self._names) - set(found)
        kept = gone if self._context.options.absent_versions == "last" else gone - self._missed
        self._missed = gone
        self._tell(sorted({*found, *kept}))

    async def _models(self) -> list[str]:
        if self._store is None:
            await self._context.disk.run(self._context.cache.open)
            self._store = await self._context.open_store(self.url, self._storage_options)
        names = [name for name in await self._store.directories() if self._may_be_model(name)]
        if not names and self.url.is_web:
            raise StoreError(f"the page at {self.url}/ lists no directory; it is taken for an error page")
        new = [name for name in names if name not in self._names]
        verdicts = await asyncio.gather(*(self._is_model(self._store, name) for name in new))
        others = {name for name, is_model in zip(new, verdicts, strict=True) if not is_model}
        models = [name for name in names if name not in others]
        self.misused = False
        self._say(None if models else self._diagnose(names))
        return models

    def _may_be_model(self, name: str) -> bool:
        try:
            return not name.startswith(".") and (self.url / name).name == name
        except ConfigError:
            return False

    async def _is_model(self, store: Store, name: str) -> bool:
        try:
            return any(version_number(child) is not None for child in await store.directories(name))
        except MissingError:
            return False

    def _diagnose(self, names: Sequence[str]) -> str:
        versions = [name for name in names if version_number(name) is not None]
        if versions:
            self.misused = True
            above = self.url.full.rpartition("/")[0]
            return (
                f"{self.url} holds version directories ({', '.join(sorted(versions)[:5])}), so it is not a directory "
                f"of models. Pass {StoreUrl(above)} to find every model in it, or ModelConfig(name={self.url.name!r}, "
                f"base_path={str(self.url)!r}) for this model alone"
            )
        return f"no models found under {self.url}; expected {self.url}/<model name>/<version number>/saved_model.pb"

    async def _remember(self) -> None:
        """Take the models from the cache before the first answer."""
        if self._names:
            return
        context = self._context
        names = await context.disk.run(context.cache.names_below, self.url, self._storage_options)
        if names:
            logger.info("%s does not answer; %s: from the cache", self.url, ", ".join(names))
            self.unread = False
            self._tell(names)

    def _tell(self, names: Sequence[str]) -> None:
        if tuple(names) != self._names:
            self._names = tuple(names)
            self._changed(names)

    def _say(self, diagnosis: str | None) -> None:
        if diagnosis is not None and diagnosis != self.diagnosis:
            logger.warning("%s", diagnosis)
        self.diagnosis = diagnosis
