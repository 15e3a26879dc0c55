"""The parts of an entry that a server may bring: loaders on the loop, predictors, a policy, a check of each request."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from embedserve import ModelRegistry
from embedserve.config import ModelConfig, RetryPolicy
from embedserve.errors import LoadError, NotReadyError, StartError
from embedserve.lifecycle.source import VersionDirectory
from embedserve.lifecycle.source_protocol import SourceListener
from embedserve.runtime.runtime import Collaborators, Runtime
from embedserve.servable import Servable, ServableId
from embedserve.testing import FakeLoader, FakeRegistry, FakeServable, FakeSource

PATH = Path("/fake/m")
X = {"x": np.array([1.0], np.float32)}


class LoopLoader:
    """Loads on the loop, without a thread."""

    batching = None
    note = ""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[str] = []
        self.failures = failures

    async def load(self) -> Servable:
        self.calls.append("load")
        if len(self.calls) <= self.failures:
            raise LoadError("told to fail")
        fake = FakeLoader()
        fake.loaded = True
        return FakeServable(fake, 1)

    async def unload(self) -> None:
        self.calls.append("unload")


def registry_of(loader: LoopLoader, **options: object) -> ModelRegistry:
    def collaborators(runtime: Runtime) -> Collaborators:
        return Collaborators(
            make_source=lambda options, root, listener, in_use: source_of(listener),
            make_loader=lambda id, directory, config: loader,
        )

    def source_of(listener: SourceListener) -> FakeSource:
        return FakeSource(listener, {"m": {1: FakeLoader()}})

    models = [ModelConfig(name="m", base_path="/fake/m")]
    return ModelRegistry(models=models, collaborators=collaborators, **options)  # type: ignore[arg-type]


def load_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("embedserve-load")}


async def test_a_loader_on_the_loop_is_awaited_and_needs_no_thread() -> None:
    loader, before = LoopLoader(), load_threads()
    async with registry_of(loader) as registry:
        assert (await registry.predict("m", X))["y"].tolist() == [11.0]
        assert load_threads() <= before
    assert loader.calls == ["load", "unload"]


async def test_a_failed_load_is_unloaded_before_the_next_attempt() -> None:
    loader = LoopLoader(failures=1)
    async with registry_of(loader, retry=RetryPolicy(initial=0.01)):
        assert loader.calls == ["load", "unload", "load"]
    loader = LoopLoader(failures=1)
    with pytest.raises(StartError, match="told to fail"):
        await registry_of(loader, retry=RetryPolicy(max_retries=0)).start()
    assert loader.calls == ["load", "unload"]


async def test_each_entry_has_collaborators_of_its_own() -> None:
    entries: list[Runtime] = []

    def collaborators(runtime: Runtime) -> Collaborators:
        entries.append(runtime)
        return Collaborators()

    registry = FakeRegistry({"m": {1: FakeLoader()}}, collaborators=collaborators)
    for _ in range(2):
        async with registry:
            await registry.predict("m", X)
    assert len({id(runtime) for runtime in entries}) == 2


async def test_a_check_before_each_request_may_refuse_it() -> None:
    refused: list[str] = []

    def check() -> None:
        if refused:
            raise NotReadyError(refused[0])

    registry = FakeRegistry({"m": {1: FakeLoader()}}, collaborators=lambda runtime: Collaborators(before_request=check))
    async with registry:
        await registry.predict("m", X)
        refused.append("the process ends")
        with pytest.raises(NotReadyError, match="the process ends"):
            await registry.predict("m", X)
        with pytest.raises(NotReadyError, match="the process ends"):
            registry.acquire_now("m")


async def test_threads_run_the_steps_of_a_blocking_loader() -> None:
    fake = FakeLoader()
    registry = FakeRegistry({"m": {1: FakeLoader()}}, num_batch_threads=2)
    async with registry:
        make_loader = registry._here().in_threads(lambda id, directory, config, options: fake)
        directory, config = VersionDirectory(1, PATH, ()), ModelConfig(name="m", base_path=PATH)
        loader = make_loader(ServableId("m", 1), directory, config)
        assert (await loader.load()) is fake.servable
        assert len(fake.warm_threads) == 2
        assert threading.get_ident() not in fake.warm_threads
        await loader.unload()
        assert (fake.loads, fake.unloads, fake.gave_back) == (1, 1, 1)
