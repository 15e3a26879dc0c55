"""An outside coordinator holds publishing back, publishes and withdraws in one step, and hears what serves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from embedserve.config import ModelConfig
from embedserve.errors import NotReadyError
from embedserve.lifecycle.managed_version import ManagedVersion
from embedserve.runtime.runtime import Collaborators, Runtime
from embedserve.servable import Servable, State
from embedserve.testing import FakeLoader, FakeRegistry

X = {"x": np.array([1.0], np.float32)}


class Holding:
    """Holds every version back until it is published or let go."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[ManagedVersion, Servable]] = {}
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()
        self.changes = 0
        self.models: list[list[str]] = []

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        self.held[version.id.version] = version, servable
        self.arrived.set()
        going, dropped = asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(version.unaspired.wait())
        await asyncio.wait({going, dropped}, return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        dropped.cancel()

    def serving_changed(self) -> None:
        self.changes += 1

    def models_changed(self, configs: Mapping[str, ModelConfig]) -> None:
        self.models.append(sorted(configs))


class HeldRegistry(FakeRegistry):
    """A fake registry whose manager asks `coordinator`."""

    def __init__(self, found: Mapping[str, Mapping[int, FakeLoader]]) -> None:
        self.coordinator = Holding()
        super().__init__(found, collaborators=lambda runtime: Collaborators(coordinator=self.coordinator))


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


def runtime_of(registry: FakeRegistry) -> Runtime:
    assert registry._runtime is not None
    return registry._runtime


async def test_a_held_version_is_loaded_and_warm_and_answers_nothing(loader: FakeLoader) -> None:
    registry = HeldRegistry({"m": {1: loader}})
    await registry.start(wait=False)
    await registry.coordinator.arrived.wait()
    assert loader.warm_threads
    with pytest.raises(NotReadyError):
        await registry.predict("m", X)
    registry.coordinator.go.set()
    await registry.wait_until_ready()
    assert (await registry.predict("m", X))["y"].tolist() == [11.0]
    assert registry.coordinator.changes == 1
    assert registry.coordinator.models[0] == ["m"]
    await registry.aclose()


async def test_publish_and_withdraw_by_the_coordinator_are_one_synchronous_step() -> None:
    registry = HeldRegistry({"m": {1: FakeLoader()}})
    await registry.start(wait=False)
    coordinator, manager = registry.coordinator, runtime_of(registry).manager
    await coordinator.arrived.wait()
    version, servable = coordinator.held[1]
    manager.publish(version, servable)
    assert manager.available("m") == (1,)
    assert coordinator.changes == 1
    manager.withdraw(version)
    assert manager.available("m") == ()
    assert coordinator.changes == 2
    coordinator.go.set()
    await registry.aclose()
    assert version.state is State.END


async def test_a_withdrawn_version_that_is_still_wanted_is_loaded_anew(loader: FakeLoader) -> None:
    registry = HeldRegistry({"m": {1: loader}})
    await registry.start(wait=False)
    registry.coordinator.go.set()
    await registry.wait_until_ready()
    runtime = runtime_of(registry)
    runtime.manager.withdraw(runtime.manager.latest("m"))
    assert await runtime.monitor.wait_until(lambda: loader.loads == 2 and runtime.manager.available("m") == (1,), 20)
    assert (await registry.predict("m", X))["y"].tolist() == [11.0]
    await registry.aclose()


async def test_a_held_version_that_nobody_wants_any_more_is_unloaded(loader: FakeLoader) -> None:
    registry = HeldRegistry({"m": {1: loader}})
    await registry.start(wait=False)
    await registry.coordinator.arrived.wait()
    await registry.remove("m", 1)
    assert await runtime_of(registry).monitor.wait_until(lambda: not runtime_of(registry).manager.versions_of("m"), 20)
    assert loader.unloads == 1
    assert registry.coordinator.changes == 0
    await registry.aclose()
