"""A registry whose directory of models is on a mount that hangs, at the start or later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedserve import ModelRegistry, StartError
from embedserve.lifecycle import source as source_module
from tests.integration.conftest import QUICK, deploy
from tests.integration.waiting import status_of, until
from tests.support.mounts import FuseMount, fuse

pytestmark = pytest.mark.slow


@pytest.fixture
def mount(tmp_path: Path, line: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FuseMount]:
    """A FUSE file system with the model `m`; hangs are noticed soon."""
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(source_module, "CLOSE_SECONDS", 0.1)
    with fuse(tmp_path) as mount:
        deploy(line(1), mount.backing / "m" / "1")
        yield mount


async def test_a_root_that_hangs_after_the_start_takes_nothing_down_and_is_named(
    mount: FuseMount, line: Callable[[int], Path]
) -> None:
    async with ModelRegistry(mount.path, **QUICK) as registry:
        mount.set(hang=("/", "/m"))

        def note() -> str:
            status = status_of(registry, "m", 1)
            assert status is not None
            return status.note

        await until(registry, lambda: "has not come back" in note())
        assert note().startswith("new versions are not found: ")
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[1.0]]
        assert registry.unready() is None
        assert registry.liveness() is None
        assert registry.readiness() == {"m": None}
        mount.set()
        await until(registry, lambda: note() == "")
        deploy(line(2), mount.backing / "m" / "2")
        await until(registry, lambda: status_of(registry, "m", 2) is not None)
        mount.set(hang=("/", "/m"))
        leaving = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - leaving < registry.options.drain_timeout


async def test_a_start_waits_for_a_root_that_hangs_and_says_so(mount: FuseMount) -> None:
    mount.set(hang=("/",))
    registry = ModelRegistry(mount.path, **QUICK)
    starting = asyncio.create_task(registry.start())
    async with asyncio.timeout(60):
        while "has not come back" not in (registry.unready() or ""):
            await asyncio.sleep(0.01)
    assert not registry.started
    assert not starting.done()
    mount.set()
    await starting
    assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[1.0]]
    await registry.aclose()


async def test_a_start_gives_up_a_root_that_hangs_at_its_time_limit(mount: FuseMount) -> None:
    mount.set(hang=("/",))
    registry = ModelRegistry(mount.path, **{**QUICK, "start_timeout": 1.0})
    with pytest.raises(StartError, match=f"models directory {mount.path} cannot be read: a look at it has not come"):
        await registry.start()


async def test_a_start_that_needs_any_model_goes_without_one_that_hangs(
    mount: FuseMount, line: Callable[[int], Path]
) -> None:
    deploy(line(2), mount.backing / "hung" / "1")
    await asyncio.to_thread((mount.path / "hung").stat)  # While a first lookup hangs, the kernel may allow no other.
    mount.set(hang=("/hung",))
    async with ModelRegistry(mount.path, **QUICK) as registry:
        assert registry.unready() is None
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[1.0]]
        assert "has not come back" in (registry.readiness()["hung"] or "")
        mount.set()
        await until(registry, lambda: registry.readiness() == {"hung": None, "m": None})
