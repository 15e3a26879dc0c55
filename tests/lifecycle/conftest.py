"""A source over real directories, and a listener that remembers what it was told."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.lifecycle.source import FileSystemSource, VersionDirectory
from tests.support import saved_models

SETTLE = 0.05


class Recorder:
    """A listener that remembers everything it was told."""

    def __init__(self) -> None:
        self.models: Mapping[str, ModelConfig] = {}
        self.aspired: dict[str, Mapping[int, VersionDirectory]] = {}
        self.waiting: dict[str, Mapping[int, str]] = {}
        self.troubles: dict[str, str | None] = {}
        self.history: list[tuple[str, dict[int, VersionDirectory]]] = []
        self.failing = False
        self._told = asyncio.Event()

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        self.models = configs
        self._told.set()

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        self.aspired[name] = aspired
        self.history.append((name, dict(aspired)))
        self._told.set()
        if self.failing:
            raise RuntimeError("the listener has a bug")

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        self.waiting[name] = reasons
        self._told.set()

    def on_trouble(self, name: str, trouble: str | None) -> None:
        self.troubles[name] = trouble
        self._told.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._told.clear()
                await self._told.wait()

    async def until_aspired(self, name: str, *versions: int) -> None:
        await self.until(lambda: name in self.aspired and set(self.aspired[name]) == set(versions))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel with variables and an asset."""
    return saved_models.lookup(tmp_path_factory.mktemp("source") / "1")


@pytest.fixture
def listener() -> Recorder:
    return Recorder()


Open = Callable[..., Awaitable[FileSystemSource]]


@pytest.fixture
async def open_source(listener: Recorder) -> AsyncIterator[Open]:
    """Starts sources; by default nothing but file events and `scan_now` makes them scan."""
    opened: list[FileSystemSource] = []

    async def open_(root: Path | None = None, *models: ModelConfig, **options: Any) -> FileSystemSource:
        chosen = RegistryOptions(**{"settle": SETTLE, "poll_interval": math.inf, **options})
        source = FileSystemSource(chosen, root, listener)
        source.set_models(models)
        opened.append(source)
        await source.start()
        return source

    yield open_
    for source in opened:
        await source.aclose()


def install(saved: Path, path: Path) -> Path:
    """Put a version in place by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.parent.parent / f".stage-{path.parent.name}-{path.name}"
    shutil.copytree(saved, stage)
    os.rename(stage, path)
    return path
