from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from embedserve.lifecycle.watch import DirectoryWatch, WatchTarget


def target(path: Path) -> WatchTarget:
    status = path.stat()
    return WatchTarget(path, status.st_dev, status.st_ino)


async def hinted(hint: asyncio.Event) -> None:
    async with asyncio.timeout(30):
        await hint.wait()


async def test_a_change_anywhere_below_gives_a_hint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "node_modules" / ".venv").mkdir(parents=True)  # Names that watchfiles hides by default.
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    assert await watch.arm([target(tmp_path)])
    (tmp_path / "node_modules" / ".venv" / "file").write_text("x")
    await hinted(hint)
    await watch.aclose()
    assert caplog.records == []


async def test_arming_again_for_the_same_directories_does_nothing(tmp_path: Path) -> None:
    watch = DirectoryWatch(lambda: None)
    assert await watch.arm([target(tmp_path)])
    assert not await watch.arm([target(tmp_path)])
    assert not await watch.arm([])
    await watch.aclose()


async def test_a_directory_made_anew_is_watched_again(tmp_path: Path) -> None:
    path = tmp_path / "models"
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    path.mkdir()
    assert await watch.arm([target(path)])
    path.rmdir()
    await hinted(hint)
    path.mkdir()  # On many file systems with the inode of the one before.
    assert await watch.arm([target(path)])
    hint.clear()
    (path / "file").write_text("x")
    await hinted(hint)
    await watch.aclose()


async def test_when_nothing_can_be_watched_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def awatch(*paths: Path, **options: object) -> object:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("watchfiles.awatch", awatch)
    caplog.set_level(logging.INFO)
    watch = DirectoryWatch(lambda: None)
    for _ in range(3):
        assert not await watch.arm([target(tmp_path)])
    await watch.aclose()
    assert caplog.messages == [
        f"cannot watch {tmp_path} (OS file watch limit reached); new versions are found by polling"
    ]


async def test_a_directory_that_has_just_gone_does_not_cost_the_others_their_events(tmp_path: Path) -> None:
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    await watch.arm([WatchTarget(tmp_path / "gone", 1, 2), target(tmp_path)])
    (tmp_path / "file").write_text("x")
    await hinted(hint)
    await watch.aclose()
