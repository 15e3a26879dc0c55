"""The source on real mounts that are slow, hang, lie about inodes or go away."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.config import ModelConfig, SpecificVersions
from embedserve.lifecycle import looks as looks_module
from embedserve.lifecycle import source as source_module
from embedserve.lifecycle.watch import polled_devices
from tests.lifecycle.conftest import Open, Recorder, install
from tests.support.mounts import FuseMount, fuse, tmpfs

pytestmark = pytest.mark.slow

NAMES = ("a", "hung", "z")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuseMount]:
    """One FUSE file system for all tests."""
    with fuse(tmp_path_factory.mktemp("fuse")) as mount:
        yield mount


@pytest.fixture
def mount(mounted: FuseMount) -> Iterator[FuseMount]:
    """It, empty and well."""
    mounted.set()
    for child in mounted.backing.iterdir():
        shutil.rmtree(child)
    yield mounted
    mounted.set()


def deploy(saved: Path, mount: FuseMount, version: str) -> None:
    for name in NAMES:
        install(saved, mount.backing / name / version)


def _is_polled(path: Path) -> bool:
    return path.stat().st_dev in polled_devices()


async def test_where_inodes_change_all_the_time_a_version_settles_and_is_loaded_once(
    saved: Path, mount: FuseMount, listener: Recorder, open_source: Open
) -> None:
    """As rclone, goofys and mergerfs give them."""
    install(saved, mount.backing / "m" / "1")
    mount.set(inodes=True)
    inodes = [await asyncio.to_thread(lambda: (mount.path / "m").stat().st_ino) for _ in range(2)]
    assert inodes[0] != inodes[1]
    source = await open_source(mount.path, poll_interval=0.02)
    await listener.until_aspired("m", 1)
    for _ in range(3):
        await source.scan_now()
    assert [set(aspired) for _, aspired in listener.history] in ([{1}], [set(), {1}])


async def test_a_mount_that_hangs_costs_the_others_nothing_and_is_named(
    saved: Path, mount: FuseMount, listener: Recorder, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(saved, mount, "1")
    source = await open_source(mount.path, poll_interval=0.02)
    for name in NAMES:
        await listener.until_aspired(name, 1)
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 60.0)  # Nobody notices the hang in the time of a test.
    mount.set(hang=("/hung",))
    deploy(saved, mount, "2")
    for name in ("a", "z"):
        await listener.until_aspired(name, 2)
    source.set_policy("z", SpecificVersions(versions=(1,)))
    await source.scan_now(["z"])
    assert set(listener.aspired["z"]) == {1}
    assert listener.troubles == {}
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 0.3)
    source.hint()
    await listener.until(lambda: "has not come back" in (listener.troubles.get("hung") or ""))
    assert "has not come back" in (source.problem("hung") or "")
    assert set(listener.aspired["hung"]) == {1}
    await source.scan_now()  # What hangs is not waited for.
    mount.set()
    await listener.until_aspired("hung", 2)
    await listener.until(lambda: listener.troubles["hung"] is None)
    assert source.problem("hung") is None


async def test_when_every_thread_hangs_what_waits_is_named_and_all_go_on_when_they_are_back(
    saved: Path, mount: FuseMount, listener: Recorder, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks_module, "MOST_THREADS", 2)
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 0.2)
    deploy(saved, mount, "1")
    models = [ModelConfig(name=name, base_path=mount.path / name) for name in NAMES]
    source = await open_source(None, *models, poll_interval=0.02)
    for name in NAMES:
        await listener.until_aspired(name, 1)
    mount.set(hang=tuple(f"/{name}" for name in NAMES))
    source.hint()

    def named(words: str) -> int:
        return sum(words in (trouble or "") for trouble in listener.troubles.values())

    await listener.until(lambda: (named("has not come back"), named("no look at it has begun")) == (2, 1))
    assert {name: set(aspired) for name, aspired in listener.aspired.items()} == {name: {1} for name in NAMES}
    await source.scan_now()
    mount.set()
    deploy(saved, mount, "2")
    for name in NAMES:
        await listener.until_aspired(name, 2)
    await listener.until(lambda: set(listener.troubles.values()) == {None})


async def test_a_model_on_a_hung_mount_is_moved_by_its_configuration(
    saved: Path,
    mount: FuseMount,
    tmp_path: Path,
    listener: Recorder,
    open_source: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 0.2)
    install(saved, mount.backing / "m" / "1")
    install(saved, tmp_path / "m" / "2")
    there, here = (ModelConfig(name="m", base_path=path / "m") for path in (mount.path, tmp_path))
    source = await open_source(None, there, poll_interval=0.02)
    await listener.until_aspired("m", 1)
    mount.set(hang=("/m",))
    source.hint()
    await listener.until(lambda: bool(listener.troubles.get("m")))
    source.set_models([here])
    await listener.until_aspired("m", 2)
    await listener.until(lambda: listener.troubles == {"m": None})
    mount.set()


async def test_a_root_that_hangs_is_named_and_what_is_known_goes_on(
    saved: Path, mount: FuseMount, listener: Recorder, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(saved, mount.backing / "m" / "1")
    source = await open_source(mount.path, poll_interval=0.02)
    await listener.until_aspired("m", 1)
    monkeypatch.setattr(source_module, "LOOK_SECONDS", 0.2)
    mount.set(hang=("/",))
    source.hint()
    await listener.until(lambda: f"models directory {mount.path} cannot be read" in (listener.troubles.get("m") or ""))
    assert set(listener.models) == {"m"}
    assert not source.unread
    async with asyncio.timeout(30):
        await source.scan_now()
    mount.set()
    install(saved, mount.backing / "new" / "1")
    await listener.until_aspired("new", 1)
    await listener.until(lambda: listener.troubles["m"] is None)


async def test_the_end_does_not_wait_for_a_look_that_hangs(
    saved: Path, mount: FuseMount, open_source: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(source_module, "START_SECONDS", 0.05)
    mount.set(hang=("/",))
    source = await open_source(mount.path)
    assert source.unread
    assert not source.misused
    pending = asyncio.create_task(source.scan_now())
    async with asyncio.timeout(30):
        await source.aclose()
        await pending
    mount.set()


async def test_a_mount_that_goes_away_takes_nothing_along_and_is_followed_when_it_is_back(
    saved: Path, mount: FuseMount, listener: Recorder, open_source: Open
) -> None:
    install(saved, mount.backing / "m" / "1")
    source = await open_source(mount.path, poll_interval=0.02)
    await listener.until_aspired("m", 1)
    told = len(listener.history)
    await asyncio.to_thread(mount.go_away)
    await listener.until(lambda: "its mount is gone" in (listener.troubles.get("m") or ""))
    await asyncio.to_thread(mount.die)
    await asyncio.to_thread(mount.mount)
    await asyncio.to_thread(mount.die)  # Now every call fails.
    await listener.until(lambda: "Transport endpoint is not connected" in (listener.troubles.get("m") or ""))
    assert set(listener.models) == {"m"}
    assert len(listener.history) == told
    await asyncio.to_thread(mount.go_away)
    await asyncio.to_thread(mount.mount)
    install(saved, mount.backing / "m" / "2")
    await listener.until_aspired("m", 2)
    await listener.until(lambda: listener.troubles["m"] is None)
    assert source.diagnosis is None


async def test_a_base_path_that_loses_its_tmpfs_is_unreadable_and_not_empty(
    saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
) -> None:
    base = tmp_path / "m"
    base.mkdir()
    with tmpfs(base):
        install(saved, tmp_path / "stage" / "1")
        shutil.copytree(tmp_path / "stage" / "1", base / "1")
        source = await open_source(None, ModelConfig(name="m", base_path=base), poll_interval=0.02)
        await listener.until_aspired("m", 1)
        subprocess.run(["umount", "-l", base], check=True)
        await listener.until(lambda: "its mount is gone" in (listener.troubles.get("m") or ""))
        assert set(listener.aspired["m"]) == {1}
    with tmpfs(base):
        shutil.copytree(saved, base / "2")
        await listener.until_aspired("m", 2)
        shutil.rmtree(base / "2")
        await source.scan_now()
        assert listener.aspired["m"] == {}


async def test_file_events_are_asked_for_where_they_come_and_fuse_is_polled(
    saved: Path, mount: FuseMount, tmp_path: Path, listener: Recorder, open_source: Open
) -> None:
    path = tmp_path / "tmpfs"
    path.mkdir()
    with tmpfs(path):
        assert await asyncio.to_thread(_is_polled, mount.path)
        assert not await asyncio.to_thread(_is_polled, path)
        models = [ModelConfig(name="far", base_path=mount.path / "far"), ModelConfig(name="near", base_path=path)]
        (mount.backing / "far").mkdir()
        await open_source(None, *models)  # Nothing but file events makes it look.
        shutil.copytree(saved, path / "1")
        await listener.until_aspired("near", 1)
