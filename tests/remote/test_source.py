"""Local directories and stores as one source: who tells what, and a model that changes hands."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve.config import LatestVersions, ModelConfig, RegistryOptions, SpecificVersions
from embedserve.runtime.source import CombinedSource
from embedserve.store_url import StoreUrl
from tests.remote.recorder import Recorder
from tests.remote.stores import FAST, WebStore

Lines = dict[int, Path]
Open = Callable[..., Any]


@pytest.fixture
def listener() -> Recorder:
    return Recorder()


@pytest.fixture
async def open_source(listener: Recorder, tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[CombinedSource] = []

    async def open_(root: Path | StoreUrl | None, *models: ModelConfig) -> CombinedSource:
        options = RegistryOptions(**FAST, remote_cache_dir=tmp_path / "cache", poll_interval=0.1)
        source = CombinedSource(options, root, listener, listener.directories_in_use)
        opened.append(source)
        source.set_models(models)
        await source.start()
        return source

    yield open_
    for source in opened:
        await source.aclose()
        source.release()


def local(saved: Path, path: Path) -> Path:
    shutil.copytree(saved, path)
    return path.parent


async def test_models_of_both_kinds_are_told_as_one_set(
    web: WebStore, lines: Lines, listener: Recorder, open_source: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "far/1")
    here = local(lines[2], tmp_path / "models" / "here" / "2")
    far = ModelConfig(name="far", base_path=web.url("far"))
    source: CombinedSource = await open_source(tmp_path / "models", far)
    assert set(listener.models) == {"here", "far"}
    assert listener.models["far"] == far
    await listener.until_versions(1, name="far")
    await listener.until_versions(2, name="here")
    assert (source.problem("far"), source.problem("here"), source.diagnosis) == (None, None, None)
    assert set(source.stores()) == {"far"}
    named = ModelConfig(name="named", base_path=here)
    source.set_models([named])
    await source.scan_now()
    assert set(listener.models) == {"here", "named"}
    await listener.until_versions(2, name="named")
    assert repr(source).startswith(f"<CombinedSource {tmp_path / 'models'}, <FileSystemSource")


async def test_models_under_a_remote_root_beside_local_ones_given_by_name(
    web: WebStore, lines: Lines, listener: Recorder, open_source: Open, tmp_path: Path
) -> None:
    web.publish(lines[1], "models/far/1")
    near = ModelConfig(name="near", base_path=local(lines[2], tmp_path / "near" / "2"))
    source: CombinedSource = await open_source(StoreUrl(web.url("models")), near)
    assert set(listener.models) == {"far", "near"}
    await listener.until_versions(1, name="far")
    await listener.until_versions(2, name="near")
    source.set_models([])
    await source.scan_now()
    assert set(listener.models) == {"far"}
    web.publish(lines[1], "models/late/3")
    await listener.until_versions(3, name="late")
    assert not source.misused


async def test_policies_reach_whoever_follows_the_model(
    web: WebStore, lines: Lines, listener: Recorder, open_source: Open, tmp_path: Path
) -> None:
    for number in (1, 2):
        web.publish(lines[number], f"far/{number}")
        local(lines[number], tmp_path / "near" / str(number))
    models = [
        ModelConfig(name="far", base_path=web.url("far")),
        ModelConfig(name="near", base_path=tmp_path / "near"),
    ]
    source: CombinedSource = await open_source(None, *models)
    for name in ("far", "near"):
        await listener.until_versions(2, name=name)
        source.set_policy(name, SpecificVersions(versions=(1,)))
    await source.scan_now()
    assert (listener.versions("far"), listener.versions("near")) == ({1}, {1})
    source.set_models(models)
    for name in ("far", "near"):
        source.set_policy(name, SpecificVersions(versions=(1,)))
    await source.scan_now()
    assert {versions for _, versions in listener.history[-2:]} == {(1,)}, "a policy that is set again changes nothing"
    for name in ("far", "near"):
        source.set_policy(name, LatestVersions())
    await source.scan_now()
    assert (listener.versions("far"), listener.versions("near")) == ({2}, {2})


async def test_a_scan_does_not_wait_for_a_store_whose_model_has_its_old_policy(
    web: WebStore, listener: Recorder, open_source: Open
) -> None:
    source: CombinedSource = await open_source(None, ModelConfig(name="far", base_path=web.url("far")))
    web.kill()
    async with asyncio.timeout(30):
        await source.scan_now()
    assert "far" not in listener.aspired


async def test_a_model_that_moves_into_a_store_and_back_never_goes_dark(
    web: WebStore, lines: Lines, listener: Recorder, open_source: Open, tmp_path: Path
) -> None:
    web.publish(lines[2], "m/2")
    base = local(lines[1], tmp_path / "m" / "1")
    near, far = ModelConfig(name="m", base_path=base), ModelConfig(name="m", base_path=web.url("m"))
    source: CombinedSource = await open_source(None, near)
    await listener.until_versions(1)
    del listener.history[:]
    source.set_models([far])
    await source.scan_now()
    await listener.until_versions(2)
    source.set_models([near])
    await source.scan_now()
    await listener.until_versions(1)
    assert listener.aspired["m"][1].path == base / "1"
    assert () not in [versions for _, versions in listener.history]


async def test_a_remote_model_hides_one_of_its_name_under_the_root(
    web: WebStore, lines: Lines, listener: Recorder, open_source: Open, tmp_path: Path
) -> None:
    web.publish(lines[2], "m/2")
    local(lines[1], tmp_path / "models" / "m" / "1")
    source: CombinedSource = await open_source(tmp_path / "models", ModelConfig(name="m", base_path=web.url("m")))
    await listener.until_versions(2)
    await source.scan_now()
    assert listener.versions() == {2}
    source.set_models([])
    await source.scan_now()
    await listener.until_versions(1)
    assert listener.models["m"].base_path == tmp_path / "models" / "m"
