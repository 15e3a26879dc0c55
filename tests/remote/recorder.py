"""A listener that remembers what a syncer or a source told it, and waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from embedserve.config import ModelConfig
from embedserve.lifecycle.scan import VersionDirectory


class Recorder:
    """Told as a registry is; `in_use` is what it still reads."""

    def __init__(self) -> None:
        self.models: Mapping[str, ModelConfig] = {}
        self.aspired: dict[str, Mapping[int, VersionDirectory]] = {}
        self.waiting: dict[str, Mapping[int, str]] = {}
        self.history: list[tuple[str, tuple[int, ...]]] = []
        self.in_use: set[str] = set()
        self._told = asyncio.Event()

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        self.models = configs
        for told in (self.aspired, self.waiting):
            for name in told.keys() - configs.keys():
                del told[name]
        self._told.set()

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        self.aspired[name] = aspired
        self.history.append((name, tuple(sorted(aspired))))
        self._told.set()

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        self.waiting[name] = reasons
        self._told.set()

    def on_trouble(self, name: str, trouble: str | None) -> None:
        raise AssertionError("no directory is in trouble")

    def directories_in_use(self) -> set[str]:
        return self.in_use

    def versions(self, name: str = "m") -> set[int] | None:
        """What should be served, None before anything was said."""
        return set(self.aspired[name]) if name in self.aspired else None

    def reason(self, version: int, name: str = "m") -> str:
        return self.waiting.get(name, {}).get(version, "")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a state, told or not."""
        async with asyncio.timeout(60):
            while not condition():
                self._told.clear()
                try:
                    async with asyncio.timeout(0.05):
                        await self._told.wait()
                except TimeoutError:
                    pass

    async def until_versions(self, *versions: int, name: str = "m") -> None:
        await self.until(lambda: self.versions(name) == set(versions))
