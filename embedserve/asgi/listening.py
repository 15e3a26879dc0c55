"""What an application over a registry tells the listener in front of it. The module knows no wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from embedserve.concurrency.inflight import InflightBytes

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["RegistryListening"]


class RegistryListening:
    """Base of the applications over a registry: one account and one page of metrics with the listener's."""

    _registry: ModelRegistry

    def account(self) -> InflightBytes | None:
        """The account of the registry's requests for the listener's bytes; None on a loop other than the registry's."""
        return self._registry.inflight if self._is_here() else None

    def refused(self, reason: str) -> None:
        """The listener refused a connection or a request before a call of the application."""
        loop, tell = self._registry.loop, self._registry.observers.listener_refused
        if self._is_here():
            tell(reason)
        elif loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(tell, reason)

    def _is_here(self) -> bool:
        loop = self._registry.loop
        return loop is not None and loop is asyncio._get_running_loop()
