"""Roll back, roll forward, labels and new configurations over real directories, awaited and from threads."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve import (
    AllVersions,
    Code,
    InvalidModelSpecError,
    LatestVersions,
    ModelConfig,
    ModelRegistry,
    ServableNotFoundError,
    ServingError,
    State,
)
from embedserve.testing import FakeLoader, FakeRegistry, FakeSource
from tests.integration.conftest import QUICK, deploy
from tests.integration.waiting import state_of, until_state

pytestmark = pytest.mark.slow

Line = Callable[[int], Path]


async def answer(registry: ModelRegistry, name: str = "m", label: str | None = None) -> float:
    return float((await registry.predict(name, [[7.0]], label=label))["y"].item())


async def test_a_roll_back_returns_when_the_old_version_serves_and_holds_until_it_is_taken_back(
    models: Path, line: Line
) -> None:
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    async with ModelRegistry(models, **QUICK) as registry:
        assert await answer(registry) == 2.0
        stop = False

        async def call() -> int:
            count = 0
            while not stop:
                assert await answer(registry) in (1.0, 2.0, 3.0)
                count += 1
            return count

        callers = [asyncio.create_task(call()) for _ in range(4)]
        await registry.pin("m", 1)
        assert await answer(registry) == 1.0
        assert state_of(registry, "m", 1) is State.AVAILABLE
        await until_state(registry, "m", 2, State.END)
        deploy(line(3), models / "m" / "3")
        await registry.pin("m", 1)
        assert await answer(registry) == 1.0
        await registry.unpin("m")
        assert await answer(registry) == 3.0
        await until_state(registry, "m", 1, State.END)
        await registry.unpin("m")
        assert await answer(registry) == 3.0
        stop = True
        assert min(await asyncio.gather(*callers)) > 0


async def test_a_pin_to_no_version_unloads_the_model_until_unpin(models: Path, line: Line) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        await registry.pin("m")
        await until_state(registry, "m", 1, State.END)
        with pytest.raises(ServableNotFoundError):
            await answer(registry)
        deploy(line(2), models / "m" / "2")
        await registry.look_again()
        assert registry.unready() is None
        await registry.unpin("m")
        assert await answer(registry) == 2.0
        with pytest.raises(ServableNotFoundError, match="Could not find model 'x'"):
            await registry.pin("x")


async def test_an_unpin_finds_a_model_that_has_just_been_dropped_in(models: Path, line: Line) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **{**QUICK, "poll_interval": 3600.0}) as registry:
        deploy(line(5), models / "new" / "1")
        await registry.unpin("new")
        assert await answer(registry, "new") == 5.0


async def test_a_pin_waits_for_a_version_that_has_just_been_dropped_in(models: Path, line: Line) -> None:
    deploy(line(2), models / "m" / "2")
    async with ModelRegistry(models, **{**QUICK, "settle": 0.3}) as registry:
        deploy(line(1), models / "m" / "1")
        await registry.pin("m", 1)
        assert await answer(registry) == 1.0


async def test_a_pin_on_a_version_that_is_not_whole_says_what_it_lacks_and_changes_nothing(
    models: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.runtime.control.SETTLE_GRACE", 0.1)
    torn = deploy(line(1), models / "m" / "1")
    (torn / "variables" / "variables.index").unlink()
    deploy(line(2), models / "m" / "2")
    async with ModelRegistry(models, **QUICK) as registry:
        with pytest.raises(ServableNotFoundError, match=r"Could not find version 1 of model m: .*variables\.index"):
            await registry.pin("m", 1)
        assert await answer(registry) == 2.0
        deploy(line(3), models / "m" / "3")
        await until_state(registry, "m", 3, State.AVAILABLE)


async def test_labels_follow_their_versions(models: Path, line: Line) -> None:
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    config = ModelConfig(
        name="m", base_path=models / "m", version_policy=AllVersions(), version_labels={"stable": 1, "canary": 2}
    )
    async with ModelRegistry(models=[config], **QUICK) as registry:
        for version in (1, 2):
            await until_state(registry, "m", version, State.AVAILABLE)
        assert (await answer(registry, label="stable"), await answer(registry, label="canary")) == (1.0, 2.0)
        await registry.set_label("m", "stable", 2)
        assert await answer(registry, label="stable") == 2.0
        with pytest.raises(ServingError, match="version 9 of model m, which is not currently available") as raised:
            await registry.set_label("m", "stable", 9)
        assert raised.value.code is Code.FAILED_PRECONDITION
        assert registry.labels("m") == {"stable": 2, "canary": 2}
        await registry.set_label("m", "canary", None)
        with pytest.raises(InvalidModelSpecError, match="Unrecognized servable version label: canary"):
            await answer(registry, label="canary")
        with pytest.raises(ServableNotFoundError, match="Could not find model 'q'; models: m"):
            await registry.set_label("q", "stable", 1)
        shutil.rmtree(models / "m" / "2")
        await until_state(registry, "m", 2, State.END)
        with pytest.raises(ServableNotFoundError, match=r"Specific\(m, 2\)"):
            await answer(registry, label="stable")


async def test_a_new_configuration_adds_removes_and_moves_models(tmp_path: Path, line: Line) -> None:
    for name, version in (("a", 1), ("b", 2), ("moved", 3)):
        deploy(line(version), tmp_path / name / "1")
    a, b = (ModelConfig(name=name, base_path=tmp_path / name) for name in ("a", "b"))
    async with ModelRegistry(models=[a], **QUICK) as registry:
        await registry.reconfigure([a, b])
        assert (await answer(registry, "a"), await answer(registry, "b")) == (1.0, 2.0)
        async with registry.acquire("a") as handle:
            await registry.reconfigure([b])
            assert registry.models() == ("b",)
            with pytest.raises(ServableNotFoundError):
                await answer(registry, "a")
            assert (await handle.predict([[0.0]]))["y"].item() == 1.0
        await until_state(registry, "a", 1, State.END)
        await registry.reconfigure([b.model_copy(update={"base_path": tmp_path / "moved"})])
        while await answer(registry, "b") != 3.0:  # The old contents answer until the new ones do.
            await asyncio.sleep(0)


async def test_pins_and_labels_of_discovered_models_outlive_a_new_configuration(
    tmp_path: Path, models: Path, line: Line
) -> None:
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    deploy(line(3), tmp_path / "given" / "1")
    given = ModelConfig(name="given", base_path=tmp_path / "given", version_labels={"only": 1})
    async with ModelRegistry(models, **QUICK) as registry:
        await registry.pin("m", 1)
        await registry.set_label("m", "stable", 1)
        for configs in ([given.model_copy(update={"version_labels": {}})], [given], [given]):
            await registry.reconfigure(configs)
            assert (await answer(registry), await answer(registry, label="stable")) == (1.0, 1.0)
        assert await answer(registry, "given", label="only") == 3.0
        await registry.reconfigure([])
        assert (await answer(registry), registry.models(), registry.labels("given")) == (1.0, ("m",), {})
        await registry.unpin("m")
        assert await answer(registry) == 2.0


def test_every_change_has_a_twin_for_threads(tmp_path: Path, models: Path, line: Line) -> None:
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    deploy(line(3), tmp_path / "given" / "1")
    given = ModelConfig(name="given", base_path=tmp_path / "given", version_policy=LatestVersions(num_versions=1))
    with ModelRegistry(models, **QUICK) as registry:

        def y(**which: str) -> float:
            return float(registry.predict_sync("m", [[0.0]], **which)["y"].item())  # type: ignore[arg-type]

        registry.pin_sync("m", 1)
        assert y() == 1.0
        registry.set_label_sync("m", "stable", 1)
        assert y(label="stable") == 1.0
        registry.unpin_sync("m")
        assert y() == 2.0
        with pytest.raises(ServableNotFoundError, match="Could not find version 7"):
            registry.pin_sync("m", 7)
        registry.reconfigure_sync([given])
        assert registry.predict_sync("given", [[0.0]])["y"].item() == 3.0
        with registry.acquire_sync("m") as handle:
            assert (handle.version, handle.predict_sync([[0.0]])["y"].item()) == (2, 2.0)


async def test_leaving_in_the_middle_of_a_roll_back_leaves_nothing_running(
    models: Path, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        deploy(line(version), models / "m" / str(version))
    for turns in (0, 5, 50, 500):
        async with ModelRegistry(models, **QUICK) as registry:
            pinning = asyncio.create_task(registry.pin("m", 1))
            for _ in range(turns):
                await asyncio.sleep(0)
        await asyncio.wait([pinning], timeout=20)
        assert isinstance(pinning.exception(), ServingError | None)
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_look_that_takes_long_holds_up_no_later_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}, "n": {1: FakeLoader()}}) as registry:

        async def look(self: FakeSource, names: object = None) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(FakeSource, "scan_now", look)
        monkeypatch.setattr("embedserve.runtime.control.LOOK_PATIENCE", 0.01)
        awaited = asyncio.create_task(registry.reconfigure([ModelConfig(name="m", base_path="/fake/m")]))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await registry.reconfigure([ModelConfig(name="n", base_path="/fake/n")], wait=False)
            await registry.set_label("n", "stable", 1)
        assert not awaited.done()
        awaited.cancel()
