from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from embedserve.config import LatestVersions, ModelConfig, SpecificVersions
from embedserve.lifecycle import file_system
from embedserve.lifecycle import source as source_module
from embedserve.lifecycle.scan import ModelMemory, scan_model
from embedserve.lifecycle.source import VersionDirectory
from embedserve.saved_model.files.completeness import fingerprint
from tests.lifecycle.conftest import SETTLE, Open, Recorder, install


class TestFollowing:
    async def test_versions_that_are_there_are_aspired(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        paths = {name: install(saved, tmp_path / name / "0001") for name in ("digits", "words")}
        source = await open_source(tmp_path)
        assert set(listener.models) == {"digits", "words"}
        await source.scan_now()
        for name, path in paths.items():
            contents = await asyncio.to_thread(fingerprint, path)
            assert listener.aspired[name] == {1: VersionDirectory(1, path, contents)}
            assert source.found(name) == {1: path}
            assert source.problem(name) is None
        assert source.diagnosis is None
        assert repr(source) == f"<FileSystemSource {tmp_path}, 2 models, watching>"

    async def test_a_new_version_is_taken_on_file_events_alone(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        install(saved, tmp_path / "m" / "1")
        await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        install(saved, tmp_path / "m" / "2")
        await listener.until_aspired("m", 2)

    async def test_a_new_model_is_found_on_file_events_alone(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        await open_source(tmp_path)
        install(saved, tmp_path / "m" / "1")
        await listener.until_aspired("m", 1)

    async def test_without_file_events_everything_is_found_by_polling(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        await open_source(tmp_path, watch=False, poll_interval=0.02)
        install(saved, tmp_path / "m" / "1")
        await listener.until_aspired("m", 1)
        shutil.rmtree(tmp_path / "m")
        await listener.until(lambda: not listener.models)

    async def test_nothing_is_scanned_while_nothing_happens(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(saved, tmp_path / "m" / "1")
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        await source.scan_now()
        scans = 0
        real = file_system.FileSystem.look

        def counting(disk: Any, path: Path) -> Any:
            nonlocal scans
            scans += 1
            return real(disk, path)

        monkeypatch.setattr(file_system.FileSystem, "look", counting)
        await source.scan_now()
        await source.scan_now()
        assert scans <= 3  # One each, and one hint that may have been under way.

    async def test_a_linked_version_directory_that_is_swapped_is_a_new_generation(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        for name in ("a", "b"):
            shutil.copytree(saved, tmp_path / "trees" / name)
        os.utime(tmp_path / "trees" / "b" / "saved_model.pb")
        base = tmp_path / "models" / "m"
        base.mkdir(parents=True)
        (base / "1").symlink_to(tmp_path / "trees" / "a")
        source = await open_source(tmp_path / "models", poll_interval=0.02)
        await listener.until_aspired("m", 1)
        (base / "next").symlink_to(tmp_path / "trees" / "b")
        os.replace(base / "next", base / "1")
        new = await asyncio.to_thread(fingerprint, tmp_path / "trees" / "b")
        await listener.until(lambda: listener.aspired["m"][1].fingerprint == new)
        assert [set(aspired) for _, aspired in listener.history if aspired] == [{1}, {1}]
        shutil.rmtree(tmp_path / "trees" / "b")
        await source.scan_now()
        assert listener.aspired["m"] == {}

    async def test_a_numeric_regular_file_is_explained(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        install(saved, tmp_path / "m" / "1")
        (tmp_path / "m" / "7").write_text("")
        source = await open_source(tmp_path)
        await source.scan_now()
        assert set(listener.aspired["m"]) == {1}
        assert listener.waiting["m"] == {
            7: f"{tmp_path}/m/7 is a regular file; a version is a directory that holds saved_model.pb"
        }


class TestOverwriteAndDelete:
    async def test_overwritten_in_place_it_becomes_a_new_generation_without_a_gap(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        path = install(saved, tmp_path / "m" / "1")
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        old = listener.aspired["m"][1].fingerprint
        (path / "saved_model.pb").write_bytes(b"half")
        await source.scan_now()
        assert "saved_model.pb is torn" in listener.waiting["m"][1]
        assert listener.aspired["m"][1].fingerprint == old
        shutil.copyfile(saved / "saved_model.pb", path / "saved_model.pb")
        new = await asyncio.to_thread(fingerprint, path)
        await listener.until(lambda: listener.aspired["m"][1].fingerprint == new)
        assert new != old
        assert listener.waiting["m"] == {}
        assert all(set(aspired) == {1} for _, aspired in listener.history if aspired)

    async def test_removed_file_by_file_it_goes_once(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        path = install(saved, tmp_path / "m" / "1")
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        told = len(listener.history)
        for file in [path / "saved_model.pb", *path.rglob("variables*.*"), *path.rglob("assets/*")]:
            file.unlink()
            await source.scan_now()
        assert len(listener.history) == told
        shutil.rmtree(path)
        await listener.until_aspired("m")
        assert len(listener.history) == told + 1

    async def test_a_removed_version_gives_way_to_the_one_before_without_a_gap(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        await open_source(tmp_path)
        path = install(saved, tmp_path / "m" / "2")
        await listener.until_aspired("m", 2)
        install(saved, tmp_path / "m" / "1")
        shutil.rmtree(path)
        await listener.until_aspired("m", 1)
        assert [set(aspired) for _, aspired in listener.history if aspired] == [{2}, {1}]


class TestBasePaths:
    async def test_one_that_does_not_exist_yet_is_followed_when_it_comes(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        base = tmp_path / "later" / "m"
        source = await open_source(None, ModelConfig(name="m", base_path=base), poll_interval=0.02)
        for _ in range(3):
            await source.scan_now()
        assert listener.aspired == {}
        assert "Could not find base path" in (source.problem("m") or "")
        assert len(caplog.records) == 1
        install(saved, base / "1")
        await listener.until_aspired("m", 1)

    async def test_one_that_goes_and_comes_back_changes_nothing_and_is_followed_on(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        base = tmp_path / "m"
        install(saved, base / "1")
        source = await open_source(None, ModelConfig(name="m", base_path=base), poll_interval=0.02)
        await listener.until_aspired("m", 1)
        told = len(listener.history)
        os.rename(base, tmp_path / "away")
        await source.scan_now()
        os.rename(tmp_path / "away", base)
        await source.scan_now()
        assert len(listener.history) == told
        install(saved, base / "2")
        await listener.until_aspired("m", 2)

    async def test_an_empty_one_unloads_everything_and_is_logged_once(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = install(saved, tmp_path / "m" / "1")
        source = await open_source(None, ModelConfig(name="m", base_path=tmp_path / "m"))
        await listener.until_aspired("m", 1)
        shutil.rmtree(path)
        for _ in range(3):
            await source.scan_now()
        assert listener.aspired["m"] == {}
        assert [record.message for record in caplog.records] == [
            f"No versions of servable m found under base path {tmp_path}/m. "
            f"Did you forget to name your leaf directory as a number (eg. '/1/')? "
            f"tf.saved_model.save(model, '{tmp_path}/m/1') makes version 1"
        ]

    async def test_a_missing_one_does_not_freeze_the_others(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        install(saved, tmp_path / "m" / "1")
        models = [
            ModelConfig(name="gone", base_path=tmp_path / "gone"),
            ModelConfig(name="m", base_path=tmp_path / "m"),
        ]
        await open_source(None, *models)
        await listener.until_aspired("m", 1)

    async def test_a_root_that_is_a_model_is_explained(
        self, saved: Path, tmp_path: Path, open_source: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        install(saved, tmp_path / "digits" / "1")
        source = await open_source(tmp_path / "digits")
        assert source.diagnosis == (
            f"{tmp_path}/digits holds version directories (1), so it is not a directory of models. Pass {tmp_path} to "
            f"find every model in it, or models=['{tmp_path}/digits'] to ModelRegistry, or --model_name=digits "
            f"--model_base_path={tmp_path}/digits on the command line"
        )
        assert source.diagnosis in caplog.messages

    async def test_what_is_no_model_beside_models_is_told_once(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        install(saved, tmp_path / "m" / "1")
        install(saved, tmp_path / "other" / "v2")
        (tmp_path / "notes").mkdir()
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        for _ in range(3):
            await source.scan_now()
        assert [record.message for record in caplog.records if "other" in record.message] == [
            f"{tmp_path}/other has no version whose name is a number, but 'v2'. "
            f"Run `mv {tmp_path}/other/v2 {tmp_path}/other/2`"
        ]
        assert "notes" not in caplog.text


class TestLimits:
    async def test_a_version_with_too_many_files_costs_the_model_nothing_else(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("embedserve.saved_model.files.completeness.MAX_FILES", 50)
        install(saved, tmp_path / "m" / "1")
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        shutil.copytree(saved, tmp_path / "m" / "3")
        for number in range(60):
            (tmp_path / "m" / "3" / str(number)).write_text("")
        (tmp_path / "m" / "4").symlink_to("/")
        await source.scan_now()
        assert set(listener.aspired["m"]) == {1}
        assert "more than 50 files are in it" in listener.waiting["m"][3]
        assert "link to a directory that holds it" in listener.waiting["m"][4]
        install(saved, tmp_path / "m" / "2")
        await listener.until_aspired("m", 2)

    async def test_a_root_with_too_many_entries_costs_known_models_nothing(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file_system, "MAX_ENTRIES", 5)
        install(saved, tmp_path / "m" / "1")
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        for number in range(10):
            (tmp_path / f"file-{number}").write_text("")
        await listener.until(lambda: "more than 5 entries are in it" in (listener.troubles.get("m") or ""))
        assert source.diagnosis == f"models directory {tmp_path} cannot be read: more than 5 entries are in it"
        install(saved, tmp_path / "m" / "2")
        await listener.until_aspired("m", 2)

    async def test_a_linked_model_that_leads_nowhere_any_more_is_gone(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        install(saved, tmp_path / "trees" / "m" / "1")
        (tmp_path / "models").mkdir()
        link = tmp_path / "models" / "m"
        link.symlink_to(tmp_path / "trees" / "m")
        (tmp_path / "models" / "file").symlink_to("/etc/hostname")
        await open_source(tmp_path / "models", poll_interval=0.02)
        await listener.until_aspired("m", 1)
        os.rename(tmp_path / "trees" / "m", tmp_path / "trees" / "away")
        await listener.until(lambda: not listener.models)
        os.rename(tmp_path / "trees" / "away", tmp_path / "trees" / "m")
        await listener.until(lambda: set(listener.models) == {"m"})


class TestRequests:
    async def test_a_policy_is_in_force_when_the_scan_returns(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        for version in (1, 2, 3):
            install(saved, tmp_path / "m" / str(version))
        source = await open_source(tmp_path)
        await listener.until_aspired("m", 3)
        source.set_policy("m", SpecificVersions(versions=(1,)))
        await source.scan_now()
        assert set(listener.aspired["m"]) == {1}
        source.set_policy("m", LatestVersions(num_versions=2))
        await source.scan_now()
        assert set(listener.aspired["m"]) == {2, 3}

    async def test_models_can_be_exchanged(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        a, b = (ModelConfig(name=name, base_path=tmp_path / name) for name in "ab")
        for name in "ab":
            install(saved, tmp_path / name / "1")
        source = await open_source(None, a)
        await listener.until_aspired("a", 1)
        source.set_policy("a", SpecificVersions(versions=()))
        source.set_models([a, b])
        await source.scan_now()
        assert listener.models == {"a": a, "b": b}
        assert {name: set(aspired) for name, aspired in listener.aspired.items()} == {"a": {1}, "b": {1}}
        source.set_models([b])
        told = len(listener.history)
        await source.scan_now()
        assert listener.models == {"b": b}
        assert len(listener.history) == told
        source.set_models([a, b])
        await source.scan_now()
        assert listener.history[told:] == [("a", {}), ("a", dict(listener.aspired["a"]))]

    async def test_scan_now_does_not_wait_for_a_directory_that_keeps_changing(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        path = install(saved, tmp_path / "m" / "1")
        ticks = itertools.count()

        async def keep_changing() -> None:
            while True:
                os.utime(path / "saved_model.pb", ns=(1, next(ticks)))
                await asyncio.sleep(SETTLE / 10)

        changing = asyncio.create_task(keep_changing())
        source = await open_source(tmp_path)
        async with asyncio.timeout(60):
            await source.scan_now()
        changing.cancel()
        assert listener.aspired["m"] == {}
        await listener.until_aspired("m", 1)

    async def test_a_cancelled_scan_now_disturbs_nobody(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        install(saved, tmp_path / "m" / "1")
        source = await open_source(tmp_path)
        calls = [asyncio.create_task(source.scan_now()) for _ in range(3)]
        await asyncio.sleep(0)
        calls[0].cancel()
        with suppress(asyncio.CancelledError):
            await calls[0]
        await asyncio.gather(*calls[1:])
        assert set(listener.aspired["m"]) == {1}


class TestRobustness:
    async def test_a_listener_that_fails_is_logged_and_told_on(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        listener.failing = True
        install(saved, tmp_path / "m" / "1")
        await open_source(tmp_path)
        await listener.until_aspired("m", 1)
        install(saved, tmp_path / "m" / "2")
        await listener.until_aspired("m", 2)
        assert "Recorder.on_aspired failed" in caplog.text

    async def test_a_scan_that_fails_is_logged_and_tried_again(
        self,
        saved: Path,
        tmp_path: Path,
        listener: Recorder,
        open_source: Open,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        source = await open_source(tmp_path)
        install(saved, tmp_path / "m" / "1")

        def broken(*args: Any) -> Any:
            raise RuntimeError("disk on fire")

        with monkeypatch.context() as patch:
            patch.setattr(source_module, "scan_root", broken)
            await source.scan_now()
        assert f"looking at {tmp_path} for versions failed" in caplog.text
        await source.scan_now()
        await listener.until_aspired("m", 1)

    async def test_after_the_end_nothing_is_told(
        self, saved: Path, tmp_path: Path, listener: Recorder, open_source: Open
    ) -> None:
        source = await open_source(tmp_path)
        pending = asyncio.create_task(source.scan_now())
        await asyncio.sleep(0)
        await source.aclose()
        await pending
        await source.aclose()
        assert repr(source).endswith("stopped>")
        install(saved, tmp_path / "m" / "1")
        await asyncio.sleep(0)
        assert listener.aspired == {}

    async def test_closing_while_a_scan_runs_does_not_hang(self, tmp_path: Path, open_source: Open) -> None:
        for _ in range(20):
            source = await open_source(tmp_path)
            source.set_models([])
            await asyncio.sleep(0)
            async with asyncio.timeout(30):
                await source.aclose()


class SteppedDisk(file_system.FileSystem):
    """The real file system, on a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


def write_in_place(saved: Path, path: Path, name: str) -> Iterator[None]:
    """As `cp` does, pausing after each part."""
    contents = (saved / name).read_bytes()
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    with (path / name).open("wb", buffering=0) as file:
        yield
        third = len(contents) // 3
        for begin, end in ((0, third), (third, len(contents) - 1), (len(contents) - 1, len(contents))):
            file.write(contents[begin:end])
            yield


def write_and_rename(saved: Path, path: Path, name: str) -> Iterator[None]:
    """As `rsync` does: a hidden file with the contents, then its rename."""
    target = path / name
    hidden = target.with_name(f".{target.name}.Xy12Zq")
    for _ in write_in_place(saved, path, str(hidden.relative_to(path)).replace(hidden.name, target.name)):
        os.rename(target, hidden)
        yield
        os.rename(hidden, target)
    os.rename(target, hidden)
    yield
    os.rename(hidden, target)
    yield


FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")


@pytest.mark.parametrize("write", [write_in_place, write_and_rename])
@pytest.mark.parametrize("pause", [0.4, 5.0], ids=["fast", "slow"])
def test_copied_file_by_file_in_every_order_it_is_aspired_only_when_whole(
    saved: Path, tmp_path: Path, write: Callable[[Path, Path, str], Iterator[None]], pause: float
) -> None:
    asset = next(str(file.relative_to(saved)) for file in (saved / "assets").iterdir())
    for number, order in enumerate(itertools.permutations([*FILES, asset])):
        base = tmp_path / str(number)
        (base / "1").mkdir(parents=True)
        config = ModelConfig(name="m", base_path=base)
        disk, memory = SteppedDisk(), ModelMemory()
        for name in order:
            # Nothing tells the length of an asset: a writer that stops for longer than the window must not stop in one.
            steps = write(saved, base / "1", name)
            for _ in steps if name != asset or pause < 1 else [list(steps)]:
                memory = scan_model(config, config.version_policy, memory, disk, 1.0).memory
                done = all((base / "1" / file).exists() for file in (*FILES, asset)) and all(
                    (base / "1" / file).read_bytes() == (saved / file).read_bytes() for file in (*FILES, asset)
                )
                assert done or not memory.aspired, f"taken too early in the order {order}, at {name}"
                disk.now += pause
        scan_twice = scan_model(config, config.version_policy, memory, disk, 1.0).memory
        disk.now += 1.0
        memory = scan_model(config, config.version_policy, scan_twice, disk, 1.0).memory
        assert memory.aspired == {1: VersionDirectory(1, base / "1", fingerprint(base / "1"))}
