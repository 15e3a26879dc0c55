"""A registry over real stores: requests go on through updates, half uploads and outages."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from embedserve import (
    AllVersions,
    Code,
    ConfigError,
    LatestVersions,
    ModelConfig,
    ModelRegistry,
    ServableNotFoundError,
    StartError,
    State,
)
from embedserve.remote import leases as leases_module
from tests.integration.waiting import state_of, status_of, until, until_state
from tests.remote.stores import FAST, Answer, ObjectStore, WebStore, files_of, scripted_web
from tests.support import saved_models

pytestmark = pytest.mark.slow

Lines = dict[int, Path]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(leases_module, "LOOK_AGAIN", 0.05)
    return {**FAST, "remote_cache_dir": tmp_path / "cache", "start_timeout": 60.0}


async def answer(registry: ModelRegistry, name: str = "m", **which: Any) -> float:
    return float((await registry.predict(name, [[7.0]], **which))["y"][0, 0])


class Callers:
    """Ask without a pause; every answer is kept, and no request may fail."""

    def __init__(self) -> None:
        self.answers: list[float] = []

    @property
    def changes(self) -> list[float]:
        """The answers without repetitions."""
        return [now for before, now in zip([None, *self.answers], self.answers, strict=False) if before != now]


@asynccontextmanager
async def asking(registry: ModelRegistry) -> AsyncIterator[Callers]:
    callers, ended = Callers(), asyncio.Event()

    async def ask() -> None:
        while not ended.is_set():
            callers.answers.append(await answer(registry))
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask())
        try:
            yield callers
        finally:
            ended.set()


async def met(condition: Callable[[], bool]) -> None:
    """Wait for what the registry does not tell."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_published_updated_overwritten_and_half_uploaded_every_answer_is_of_a_whole_version(
    bucket: ObjectStore, lines: Lines, options: dict[str, Any], tmp_path: Path
) -> None:
    bucket.publish(lines[1], "models/m/1")
    model = ModelConfig(name="m", base_path=bucket.url("models/m"), storage_options=bucket.storage_options)
    async with ModelRegistry(models=[model], **options) as registry, asking(registry) as callers:
        files = files_of(lines[2])
        *most, last = sorted(files, key=lambda key: key == "variables/variables.index")
        for key in most:
            bucket.put(f"models/m/2/{key}", files[key])
            await met(lambda: "is missing" in (status.note if (status := status_of(registry, "m", 2)) else ""))
        assert state_of(registry, "m", 2) is State.START
        assert registry.readiness() == {"m": None}
        bucket.put(f"models/m/2/{last}", files[last])
        await until_state(registry, "m", 2, State.AVAILABLE)
        await until_state(registry, "m", 1, State.END)
        bucket.publish(lines[3], "models/m/2")
        await until(registry, lambda: (status := status_of(registry, "m", 2)) is not None and status.generation == 2)
        await met(lambda: callers.answers[-1] == 3.0)
        await met(lambda: len(list((tmp_path / "cache").glob("*/*-*"))) == 1)
    assert callers.changes == [1.0, 2.0, 3.0]


async def test_an_outage_unloads_nothing_and_later_versions_still_arrive(
    web: WebStore, lines: Lines, options: dict[str, Any]
) -> None:
    web.publish(lines[1], "models/m/1")
    async with ModelRegistry(web.url("models"), **options) as registry, asking(registry) as callers:
        web.kill()
        await met(lambda: registry.statistics().stores["m"].failures >= 3)
        asked = len(callers.answers)
        await met(lambda: len(callers.answers) > asked + 5)
        assert registry.models() == ("m",)
        assert [(s.version, s.state, s.note) for s in registry.status()["m"]] == [(1, State.AVAILABLE, "")]
        web.publish(lines[2], "models/m/2")
        web.start()
        await until_state(registry, "m", 2, State.AVAILABLE)
        await met(lambda: callers.answers[-1] == 2.0)
    assert callers.changes == [1.0, 2.0]


async def test_an_object_store_that_comes_back_empty_or_half_filled_unloads_nothing(
    lines: Lines, options: dict[str, Any]
) -> None:
    with ObjectStore() as store:
        store.new_bucket()
        store.publish(lines[1], "m/1")
        model = ModelConfig(name="m", base_path=store.url("m"), storage_options=store.storage_options)
        async with ModelRegistry(models=[model], **options) as registry, asking(registry) as callers:
            store.kill()
            await met(lambda: registry.statistics().stores["m"].failures >= 2)
            store.start()  # As a new one: there is not even a bucket.
            await met(lambda: "does not exist" in (registry.statistics().stores["m"].last_error or ""))
            store.client.create_bucket(Bucket=store.bucket)
            files = files_of(lines[2])
            for key in sorted(files):
                store.put(f"m/2/{key}", files[key])
                before = registry.statistics().stores["m"].last_sync
                await met(lambda: registry.statistics().stores["m"].last_sync != before)  # noqa: B023
            await until_state(registry, "m", 2, State.AVAILABLE)
            await met(lambda: callers.answers[-1] == 2.0)
        assert callers.changes == [1.0, 2.0]


async def test_a_restart_during_an_outage_serves_from_the_cache(
    web: WebStore, lines: Lines, options: dict[str, Any]
) -> None:
    web.publish(lines[1], "m/1")
    web.publish(lines[2], "m/2")
    model = ModelConfig(name="m", base_path=web.url("m"), version_policy=LatestVersions(num_versions=2))
    registry = ModelRegistry(models=[model], **options)
    async with registry:
        await until_state(registry, "m", 1, State.AVAILABLE)
        await until_state(registry, "m", 2, State.AVAILABLE)
    web.kill()
    async with registry:
        await until_state(registry, "m", 1, State.AVAILABLE)
        await until_state(registry, "m", 2, State.AVAILABLE)
        assert registry.statistics().stores["m"].last_sync is None
        await registry.pin("m", 1)
        assert await answer(registry) == 1.0
        await registry.unpin("m")
        assert await answer(registry) == 2.0
        with pytest.raises(ServableNotFoundError, match="Could not find version 3 of model m under http://127"):
            await registry.pin("m", 3)
        web.publish(lines[3], "m/3")
        web.start()
        await until_state(registry, "m", 3, State.AVAILABLE)


async def test_pins_labels_and_reconfigurations_are_as_with_local_directories(
    web: WebStore, lines: Lines, options: dict[str, Any], tmp_path: Path
) -> None:
    for number in (1, 2):
        web.publish(lines[number], f"m/{number}")
    shutil.copytree(lines[3], tmp_path / "near" / "3")
    far = ModelConfig(name="m", base_path=web.url("m"))
    near = ModelConfig(name="near", base_path=tmp_path / "near")
    async with ModelRegistry(models=[far, near], **options) as registry:
        assert (await answer(registry), await answer(registry, "near")) == (2.0, 3.0)
        await registry.pin("m", 1)
        assert await answer(registry) == 1.0
        await registry.set_label("m", "stable", 1)
        assert await answer(registry, label="stable") == 1.0
        await registry.unpin("m")
        assert await answer(registry) == 2.0
        with pytest.raises(ServableNotFoundError):
            await registry.pin("m", 9)
        every = far.model_copy(update={"version_policy": AllVersions()})
        await registry.reconfigure([every, near])
        await until_state(registry, "m", 1, State.AVAILABLE)
        late = ModelConfig(name="late", base_path=web.url("m"), version_labels={})
        await registry.reconfigure([late])
        assert registry.models() == ("late",)
        assert await answer(registry, "late") == 2.0
        await until_state(registry, "m", 2, State.END)


async def test_a_model_that_reads_files_at_run_time_is_overwritten_like_any_other(
    web: WebStore, options: dict[str, Any], tmp_path: Path
) -> None:
    saved = saved_models.reads_asset_at_run_time(tmp_path / "saved" / "1")
    (asset,) = (saved / "assets").iterdir()
    web.publish(saved, "m/1")
    model = ModelConfig(name="m", base_path=web.url("m"))
    async with ModelRegistry(models=[model], **options) as registry:
        async with registry.acquire("m") as handle:
            (name,) = handle.signatures["serving_default"].inputs
            (output,) = handle.signatures["serving_default"].outputs
            value = {name: [b"x"]}

            async def told() -> Any:
                return (await handle.predict(value))[output].tolist()

            before = await told()
            asset_here = web.directory / "m" / "1" / "assets" / asset.name
            asset_here.write_bytes(asset_here.read_bytes() + b"2")
            await until(
                registry, lambda: (status := status_of(registry, "m", 1)) is not None and status.generation == 2
            )
            assert await told() == before, "whoever holds the old contents reads the old files"
        after = (await registry.predict("m", value))[output].tolist()
        assert after != before


# Starts that fail.


async def test_a_start_without_store_and_cache_says_why(options: dict[str, Any], web: WebStore) -> None:
    web.kill()
    url = web.url("m").replace("//", "//me:hush-hush@")
    registry = ModelRegistry(models=[ModelConfig(name="m", base_path=url)], **options | {"start_timeout": 0.5})
    with pytest.raises(StartError, match=r"m: http://\*\*\*@127.* cannot be read: ClientConnectorError") as caught:
        await registry.start()
    assert "hush-hush" not in f"{caught.value} {registry!r} {registry.status()}"
    root = ModelRegistry(web.url("models"), **options | {"start_timeout": 0.5})
    with pytest.raises(StartError, match=r"models directory http://.* cannot be read"):
        await root.start()


async def test_a_start_waits_for_a_root_whose_store_fails_and_says_so(
    web: WebStore, lines: Lines, options: dict[str, Any]
) -> None:
    web.publish(lines[1], "models/m/1")
    web.kill()
    registry = ModelRegistry(web.url("models"), **options)
    starting = asyncio.create_task(registry.start())
    await met(lambda: "cannot be read" in (registry.unready() or ""))
    assert not starting.done()
    web.start()
    async with asyncio.timeout(60):
        await starting
    assert await answer(registry) == 1.0
    await registry.aclose()


async def test_a_start_that_needs_any_model_goes_without_stores_that_fail_or_list_nothing(
    web: WebStore, bucket: ObjectStore, lines: Lines, options: dict[str, Any]
) -> None:
    web.publish(lines[1], "m/1")
    bucket.put("empty/README", b"no version here")
    with WebStore(web.directory.parent / "other") as other:
        down = other.url("m")
    empty = ModelConfig(name="empty", base_path=bucket.url("empty"), storage_options=bucket.storage_options)
    models = [
        ModelConfig(name="m", base_path=web.url("m")),
        ModelConfig(name="down", base_path=down),
        empty,
    ]
    async with ModelRegistry(models=models, start_requires="any", **options) as registry:
        assert await answer(registry) == 1.0
        assert registry.unready() is None
        readiness = registry.readiness()
        assert "cannot be read" in (readiness["down"] or "")
        assert "No versions of servable empty found" in (readiness["empty"] or "")
        bucket.publish(lines[2], "empty/1")
        await met(lambda: registry.readiness()["empty"] is None)
    needs_all = ModelRegistry(models=models, start_requires="all", **options | {"start_timeout": 0.5})
    with pytest.raises(StartError, match=r"down: .* cannot be read"):
        await needs_all.start()


async def test_a_version_that_is_not_whole_is_the_reason_for_a_start_that_fails(
    web: WebStore, lines: Lines, options: dict[str, Any]
) -> None:
    web.publish(lines[1], "m/1")
    (web.directory / "m" / "1" / "variables" / "variables.index").unlink()
    registry = ModelRegistry(models=[ModelConfig(name="m", base_path=web.url("m"))], **options | {"start_timeout": 3.0})
    with pytest.raises(StartError, match=r"version 1: http://127.*/m/1/variables/variables.index is missing"):
        await registry.start()


async def test_a_missing_package_refuses_the_configuration_and_nothing_changes(
    web: WebStore, lines: Lines, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    web.publish(lines[1], "m/1")
    async with ModelRegistry(models=[ModelConfig(name="m", base_path=web.url("m"))], **options) as registry:
        import importlib.util

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'embedserve\[s3\]'") as caught:
            await registry.reconfigure([ModelConfig(name="n", base_path="s3://bucket/n")])
        assert caught.value.code is Code.UNIMPLEMENTED
        assert await answer(registry) == 1.0


# Leaving.


async def test_leaving_waits_neither_for_a_store_that_hangs_nor_for_a_fetch(
    lines: Lines, options: dict[str, Any], tmp_path: Path
) -> None:
    files, release = files_of(lines[1]), threading.Event()

    def hang(method: str, path: str) -> Answer:
        if path == "/slow/":
            release.wait(60)
        if path == "/m/":
            return 200, {"Content-Type": "text/html"}, b'<a href="1/"></a>'
        if path == "/m/1/":
            return 200, {"Content-Type": "text/html"}, b'<a href="saved_model.pb"></a>'
        if method == "GET":
            release.wait(60)
        return 200, {}, files["saved_model.pb"]

    with scripted_web(hang) as url:
        models = [ModelConfig(name=name, base_path=f"{url}/{name}") for name in ("m", "slow")]
        registry = ModelRegistry(models=models, **options | {"remote_timeout": 60.0})
        await registry.start(wait=False)
        await met(lambda: registry.statistics().stores["m"].fetching == 1)
        async with asyncio.timeout(20):
            await registry.aclose()
        release.set()


@pytest.mark.may_block
def test_a_script_uses_a_store_with_a_plain_with_twice(web: WebStore, lines: Lines, options: dict[str, Any]) -> None:
    web.publish(lines[1], "m/1")
    registry = ModelRegistry(models=[ModelConfig(name="m", base_path=web.url("m"))], **options)
    for _ in range(2):
        with registry:
            assert float(registry.predict_sync("m", [[7.0]])["y"][0, 0]) == 1.0
            registry.pin_sync("m", 1)
