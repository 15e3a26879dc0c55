"""What appears in, changes in and disappears from real directories, and what a registry makes of it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve import (
    AllVersions,
    ModelConfig,
    ModelRegistry,
    Observer,
    ServableNotFoundError,
    State,
)
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.servable import ServableId
from tests.integration.conftest import QUICK, SavedModel, deploy, overwrite
from tests.integration.waiting import state_of, status_of, until, until_state, until_told

pytestmark = pytest.mark.slow

Line = Callable[[int], Path]


async def answer(registry: ModelRegistry, name: str = "m", **which: Any) -> float:
    return float((await registry.predict(name, [[7.0]], **which))["y"][0, 0])


def known(registry: ModelRegistry, version: int) -> VersionStatus:
    return status_of(registry, "m", version) or VersionStatus(version, State.START)


class Loads(Observer):
    """Counts the loads of each version, and asks `allowed` at each."""

    def __init__(self, allowed: Callable[[ServableId], bool] = lambda id: True) -> None:
        self.begun: list[int] = []
        self.too_early: list[int] = []
        self._allowed = allowed

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        if state is State.LOADING and error is None:
            self.begun.append(id.version)
            if not self._allowed(id):
                self.too_early.append(id.version)


async def test_models_and_versions_are_found_at_entry_and_at_run_time(models: Path, line: Line) -> None:
    deploy(line(1), models / "m" / "1")
    deploy(line(2), models / "n" / "0002")
    (models / "notes").mkdir()
    async with ModelRegistry(models, **QUICK) as registry:
        assert registry.models() == ("m", "n")
        assert (await answer(registry), await answer(registry, "n")) == (1.0, 2.0)
        deploy(line(3), models / "late" / "5")
        await until_state(registry, "late", 5, State.AVAILABLE)
        assert await answer(registry, "late", version=5) == 3.0
        deploy(line(2), models / "m" / "2")
        await until_state(registry, "m", 1, State.END)
        assert await answer(registry) == 2.0
        assert registry.models() == ("late", "m", "n")
        assert repr(registry) == f"<ModelRegistry '{models}', serving late:5, m:2, n:2>"
        assert [(s.version, s.state, s.path) for s in registry.status()["m"]] == [
            (2, State.AVAILABLE, str(models / "m" / "2")),
            (1, State.END, str(models / "m" / "1")),
        ]


async def test_models_given_one_by_one_stand_beside_those_found(tmp_path: Path, models: Path, line: Line) -> None:
    deploy(line(1), models / "m" / "1")
    deploy(line(2), tmp_path / "elsewhere" / "1")
    deploy(line(3), tmp_path / "elsewhere" / "3")
    given = ModelConfig(name="given", base_path=tmp_path / "elsewhere", version_policy=AllVersions())
    async with ModelRegistry(models, models=[given], **QUICK) as registry:
        for version in (1, 3):
            await until_state(registry, "given", version, State.AVAILABLE)
        assert await answer(registry) == 1.0
        assert (await answer(registry, "given"), await answer(registry, "given", version=1)) == (3.0, 2.0)
    async with ModelRegistry(models=[given], **QUICK) as registry:
        assert registry.models() == ("given",)
        await until_state(registry, "given", 3, State.AVAILABLE)
        assert await answer(registry, "given") == 3.0


@pytest.mark.parametrize("graph_first", [True, False])
async def test_a_version_copied_slowly_file_by_file_is_not_loaded_before_it_is_whole(
    models: Path, saved: SavedModel, line: Line, graph_first: bool
) -> None:
    source = saved("lookup")
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    files.sort(key=lambda path: (path.name == "saved_model.pb") is not graph_first)
    whole = False
    loads = Loads(lambda id: id.version == 1 or whole)
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, observers=[loads], **QUICK) as registry:
        target = models / "m" / "2"
        for last, path in enumerate(files, 1 - len(files)):
            contents = (source / path).read_bytes()
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with (target / path).open("wb", buffering=0) as file:
                for piece in (contents[: len(contents) // 2], contents[len(contents) // 2 :]):
                    quiet_at = time.monotonic() + 2 * QUICK["settle"]
                    while time.monotonic() < quiet_at:  # It is quiet for long enough, only not whole.
                        await until_told(registry, 1)
                    whole = last == 0 and piece != contents[: len(contents) // 2]
                    file.write(piece)
            assert await answer(registry) == 1.0
        await until_state(registry, "m", 2, State.AVAILABLE)
        assert (await registry.predict("m", ["green", "black"]))["ids"].tolist() == [1, -1]
    assert (loads.begun, loads.too_early) == ([1, 2], [])


async def test_a_version_that_is_not_whole_says_in_its_status_what_is_missing(
    models: Path, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        target = deploy(line(2), models / "m" / "2.copying")
        (target / "variables" / "variables.index").unlink()
        target.rename(models / "m" / "2")
        await until(registry, lambda: "variables.index" in known(registry, 2).note)
        assert state_of(registry, "m", 2) is State.START
        assert state_of(registry, "m", 1) is State.AVAILABLE
        assert f"{models / 'm' / '2'}" in caplog.text
        assert "is not taken yet: " in caplog.text
        shutil.rmtree(models / "m" / "2")
        await until(registry, lambda: status_of(registry, "m", 2) is None)


async def test_overwritten_in_place_under_load_the_new_contents_take_over_without_a_gap(
    models: Path, line: Line
) -> None:
    target = deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        stop = False
        seen: list[float] = []

        async def call() -> None:
            while not stop:
                seen.append(await answer(registry, version=1))

        callers = [asyncio.create_task(call()) for _ in range(8)]
        for generation, contents in enumerate((2, 3), 2):
            overwrite(line(contents), target)
            await until(registry, lambda g=generation: known(registry, 1).generation == g)  # type: ignore[misc]
            seen.clear()
            while len(seen) < 100:
                await asyncio.sleep(0)
            assert set(seen[-50:]) == {float(contents)}
        stop = True
        await asyncio.gather(*callers)
        assert (known(registry, 1).state, known(registry, 1).note) == (State.AVAILABLE, "")


async def test_an_incomplete_overwrite_never_replaces_what_serves(models: Path, line: Line) -> None:
    target = deploy(line(1), models / "m" / "1")
    loads = Loads()
    async with ModelRegistry(models, observers=[loads], **QUICK) as registry:
        (data,) = target.glob("variables/variables.data-*")
        data.write_bytes(data.read_bytes()[:-1])
        await until(registry, lambda: "variables.data" in known(registry, 1).note)
        await until_told(registry)
        assert await answer(registry) == 1.0
        assert loads.begun == [1]
        overwrite(line(2), target)
        await until(registry, lambda: known(registry, 1).generation == 2)
        assert await answer(registry) == 2.0
        assert known(registry, 1).note == ""


async def test_a_model_that_reads_an_asset_at_run_time_is_not_reloaded_in_place(
    models: Path, saved: SavedModel, caplog: pytest.LogCaptureFixture
) -> None:
    target = deploy(saved("reads_asset_at_run_time"), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        overwrite(saved("reads_asset_at_run_time"), target)
        await until(registry, lambda: "not reloaded: put the new contents in a new version directory" in caplog.text)
        await until_told(registry)
        assert (await registry.predict("m", ["a"]))["y"].tolist() == [b"a!"]
        assert known(registry, 1).generation == 1
        deploy(saved("reads_asset_at_run_time"), models / "m" / "2")
        await until_state(registry, "m", 1, State.END)
        assert (await registry.predict("m", ["a"]))["y"].tolist() == [b"a!"]


async def test_new_contents_in_another_directory_replace_a_model_that_reads_files_at_run_time(
    models: Path, saved: SavedModel
) -> None:
    deploy(saved("reads_asset_at_run_time"), models / "m" / "001")
    async with ModelRegistry(models, **QUICK) as registry:
        deploy(saved("reads_asset_at_run_time"), models / "m" / "1")  # Of two names of a version the last one counts.
        await until(registry, lambda: known(registry, 1).generation == 2 and known(registry, 1).path.endswith("m/1"))
        assert (await registry.predict("m", ["a"]))["y"].tolist() == [b"a!"]


async def test_a_root_that_is_gone_or_is_no_directory_changes_nothing(models: Path, line: Line) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        aside = models.rename(models.with_name("aside"))
        await until_told(registry, 3)
        assert (await answer(registry), registry.models()) == (1.0, ("m",))
        models.write_text("in its place")
        await until_told(registry, 3)
        assert (await answer(registry), registry.models()) == (1.0, ("m",))
        models.unlink()
        aside.rename(models)
        deploy(line(2), models / "m" / "2")
        await until_state(registry, "m", 2, State.AVAILABLE)


async def test_a_model_directory_that_is_gone_removes_the_model_and_its_pin(models: Path, line: Line) -> None:
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    deploy(line(3), models / "n" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        await registry.pin("m", 1)
        (models / "m").rename(models.with_name("aside"))
        await until_state(registry, "m", 1, State.END)
        await until(registry, lambda: registry.models() == ("n",))
        with pytest.raises(ServableNotFoundError, match="models served: n"):
            await registry.predict("m", [[1.0]])
        models.with_name("aside").rename(models / "m")
        await until_state(registry, "m", 2, State.AVAILABLE)
        assert await answer(registry) == 2.0


async def test_a_configured_base_path_that_is_gone_changes_nothing_and_an_empty_one_unloads(
    models: Path, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    base = models / "m"
    deploy(line(1), base / "1")
    async with ModelRegistry(models=[ModelConfig(name="m", base_path=base)], **QUICK) as registry:
        aside = base.rename(models / "aside")
        await until_told(registry, 3)
        assert await answer(registry) == 1.0
        assert f"Could not find base path {base} for servable m" in caplog.text
        base.mkdir()
        await until_state(registry, "m", 1, State.END)
        assert registry.models() == ("m",)
        assert "No versions of servable m found under base path" in caplog.text
        assert "No versions of servable m found" in (registry.readiness()["m"] or "")
        base.rmdir()
        aside.rename(base)
        await until_state(registry, "m", 1, State.AVAILABLE)


async def test_a_deleted_version_directory_unloads_that_version(models: Path, line: Line) -> None:
    config = ModelConfig(name="m", base_path=models / "m", version_policy=AllVersions())
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    async with ModelRegistry(models=[config], **QUICK) as registry:
        for version in (1, 2):
            await until_state(registry, "m", version, State.AVAILABLE)
        async with registry.acquire("m") as handle:
            shutil.rmtree(models / "m" / "2")
            await until_state(registry, "m", 2, State.UNLOADING)
            assert await answer(registry) == 1.0
            assert (await handle.predict([[7.0]]))["y"].tolist() == [[2.0]]
        await until_state(registry, "m", 2, State.END)
        with pytest.raises(ServableNotFoundError, match=r"Specific\(m, 2\); available versions of 'm': 1"):
            await registry.predict("m", [[1.0]], version=2)
