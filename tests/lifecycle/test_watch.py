from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedserve.lifecycle import watch as watch_module
from embedserve.lifecycle.watch import DirectoryWatch, WatchTarget, polled_devices


def target(path: Path) -> WatchTarget:
    status = path.stat()
    return WatchTarget(path, status.st_dev, status.st_ino)


async def hinted(hint: asyncio.Event) -> None:
    async with asyncio.timeout(30):
        await hint.wait()
    hint.clear()


async def test_a_change_anywhere_below_gives_a_hint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "node_modules" / ".venv").mkdir(parents=True)  # Names that watchfiles hides by default.
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    watch.arm([target(tmp_path)])
    await hinted(hint)  # The watch is set.
    (tmp_path / "node_modules" / ".venv" / "file").write_text("x")
    await hinted(hint)
    await watch.aclose()
    assert caplog.records == []


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "embedserve-watch"]


async def test_only_what_is_new_is_armed_and_only_what_is_gone_is_left(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    watch.arm([target(a)])
    await hinted(hint)
    (first,) = watching()
    watch.arm([target(a)])
    assert watching() == [first]
    watch.arm([target(a), target(b)])
    await hinted(hint)
    assert first in watching()
    assert len(watching()) == 2
    watch.arm([target(b)])
    await asyncio.to_thread(first.join, 30)
    assert len(watching()) == 1
    (second,) = watching()
    await watch.aclose()
    await asyncio.to_thread(second.join, 30)
    assert watching() == []


async def test_setting_a_watch_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mount that has gone: no call for the directory comes back."""
    entered, back = threading.Event(), threading.Event()

    def watch_forever(*paths: Path, **options: object) -> Iterator[set[object]]:
        entered.set()
        back.wait(60)
        yield set()

    monkeypatch.setattr("watchfiles.watch", watch_forever)
    monkeypatch.setattr(watch_module, "_CLOSE_SECONDS", 0.01)
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    watch.arm([target(tmp_path)])
    assert await asyncio.to_thread(entered.wait, 30)
    watch.arm([target(tmp_path)])
    assert len(watching()) == 1
    await watch.aclose()
    assert not hint.is_set()
    back.set()


def test_mounts_without_events_for_others_changes_are_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "36 35 98:3 / /data rw,noatime master:1 - ext4 /dev/sda1 rw",
        "37 35 0:41 / /models rw - fuse.rclone bucket: rw",
        "38 35 0:42 / /share rw shared:2 - nfs4 server:/export rw",
        "39 35 0:43 / /ram rw - tmpfs tmpfs rw",
    )
    monkeypatch.setattr(Path, "read_text", lambda path, errors: "\n".join(lines))
    assert polled_devices() == {os.makedev(0, 41), os.makedev(0, 42)}


async def test_a_directory_made_anew_is_watched_again(tmp_path: Path) -> None:
    path = tmp_path / "models"
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    path.mkdir()
    watch.arm([target(path)])
    await hinted(hint)
    path.rmdir()
    await hinted(hint)
    path.mkdir()  # On many file systems with the inode of the one before.
    watch.arm([target(path)])
    await hinted(hint)
    (path / "file").write_text("x")
    await hinted(hint)
    await watch.aclose()


async def test_when_nothing_can_be_watched_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_watch(*paths: Path, **options: object) -> object:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("watchfiles.watch", no_watch)
    caplog.set_level(logging.INFO)
    watch = DirectoryWatch(lambda: None)
    for _ in range(3):
        watch.arm([target(tmp_path)])
        await watch.aclose()
    assert caplog.messages == [
        f"cannot watch {tmp_path} (OS file watch limit reached); new versions are found by polling"
    ]


async def test_a_directory_that_has_just_gone_does_not_cost_the_others_their_events(tmp_path: Path) -> None:
    hint = asyncio.Event()
    watch = DirectoryWatch(hint.set)
    watch.arm([WatchTarget(tmp_path / "gone", 1, 2), target(tmp_path)])
    await hinted(hint)
    (tmp_path / "file").write_text("x")
    await hinted(hint)
    await watch.aclose()
