"""Waits for states of an entered registry, without sleeping for them."""

from __future__ import annotations

from collections.abc import Callable

from embedserve import ModelRegistry, State
from embedserve.lifecycle.monitor import VersionStatus


def status_of(registry: ModelRegistry, name: str, version: int) -> VersionStatus | None:
    return next((status for status in registry.status().get(name, ()) if status.version == version), None)


def state_of(registry: ModelRegistry, name: str, version: int) -> State | None:
    status = status_of(registry, name, version)
    return None if status is None else status.state


async def until(registry: ModelRegistry, condition: Callable[[], bool]) -> None:
    """Wait on the registry's loop; the condition is asked again after every change of a version."""
    assert registry._runtime is not None
    assert await registry._runtime.monitor.wait_until(condition, 30), registry.status()


async def until_state(registry: ModelRegistry, name: str, version: int, state: State) -> None:
    await until(registry, lambda: state_of(registry, name, version) is state)


async def until_told(registry: ModelRegistry, scans: int = 2) -> None:
    """Let the source look at the directories so many times more."""
    assert registry._runtime is not None
    for _ in range(scans):
        await registry._runtime.source.scan_now()
