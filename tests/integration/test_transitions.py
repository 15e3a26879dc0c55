"""What the manager does when its aims change while it works, over fake versions."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from embedserve import LatestVersions, LoadError, ModelConfig, RetryPolicy, SpecificVersions, State
from embedserve.lifecycle import thread_loader
from embedserve.servable import Servable
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.integration.waiting import state_of, until_state

X = {"x": [1.0]}


async def test_resource_preserving_passes_over_a_version_that_was_overtaken_before_its_turn() -> None:
    overtaken = FakeLoader()
    async with FakeRegistry({"m": {1: FakeLoader()}}, transition="resource") as registry:
        async with registry.acquire("m"):
            await registry.put("m", 2, overtaken)
            assert state_of(registry, "m", 2) is State.START
            await registry.put("m", 3, FakeLoader())
            assert state_of(registry, "m", 2) is State.END
        await until_state(registry, "m", 3, State.AVAILABLE)
    assert overtaken.loads == 0


async def test_what_a_failed_load_had_made_is_not_kept_with_its_error() -> None:
    class Half:
        pass

    class FailsHalfway(FakeLoader):
        def load(self) -> Servable:
            half = Half()
            made.append(weakref.ref(half))
            try:
                raise OSError("disk full")
            except OSError as error:
                raise LoadError("half a model") from error

    made: list[weakref.ref[Half]] = []
    async with FakeRegistry({"m": {1: FakeLoader()}}, retry=RetryPolicy(max_retries=0)) as registry:
        await registry.put("m", 2, FailsHalfway())
        await until_state(registry, "m", 2, State.END)
        gc.collect()
        assert [half() for half in made] == [None]
        assert (await registry.predict("m", X))["y"].tolist() == [11.0]


async def test_a_version_that_is_wanted_again_at_once_is_retried() -> None:
    failing = FakeLoader(failures=1)
    async with FakeRegistry({"m": {1: FakeLoader()}}, retry=RetryPolicy(initial=60.0)) as registry:
        await registry.put("m", 2, failing)
        assert registry._runtime is not None
        await registry._runtime.monitor.wait_until(lambda: bool(registry.status("m")["m"][0].message), 20)
        assert registry.source is not None
        for policy in (SpecificVersions(versions=(1,)), LatestVersions()):
            registry.source.set_policy("m", policy)
            await registry.source.scan_now()
        await until_state(registry, "m", 2, State.AVAILABLE)


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (5000, 60.0)])
def test_retries_come_after_one_second_doubling_to_sixty(failures: int, seconds: float) -> None:
    assert RetryPolicy().delay(failures) == seconds


async def test_leaving_bounds_the_wait_for_a_version_that_was_retired_before_too() -> None:
    old = FakeLoader()
    registry = FakeRegistry({"m": {1: old}}, drain_timeout=0.02)
    await registry.start()
    handle = registry.acquire_now("m")
    await registry.put("m", 2, FakeLoader())
    await until_state(registry, "m", 1, State.UNLOADING)
    await registry.aclose()
    assert old.loaded  # Its holder may still be in the model.
    handle.release()


async def test_a_request_without_end_does_not_hold_up_new_versions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(thread_loader, "WARM_UP_PATIENCE", 0.02)
    gate = Gate()
    found = {"endless": {1: FakeLoader(gate=gate)}, "m": {1: FakeLoader()}}
    async with FakeRegistry(found, num_batch_threads=2) as registry:
        endless = asyncio.create_task(registry.predict("endless", X))
        while not gate.waiting:
            await asyncio.sleep(0)
        new = FakeLoader()
        await registry.put("m", 2, new)
        await until_state(registry, "m", 2, State.AVAILABLE)
        assert len(new.warm_threads) == 1
        assert "goes without warm-up in 1 of 2 run threads" in caplog.text
        assert (await registry.predict("m", X))["y"].tolist() == [12.0]
        gate.open()
        assert (await endless)["y"].tolist() == [11.0]


async def test_leaving_ends_a_change_that_is_under_way() -> None:
    gate = Gate()
    target = FakeLoader(load_gate=gate)
    registry = FakeRegistry({"m": {1: target, 2: FakeLoader()}})
    await registry.start()
    pinning = asyncio.create_task(registry.pin("m", 1))
    while not gate.waiting:
        await asyncio.sleep(0)
    leaving = asyncio.create_task(registry.aclose())
    with pytest.raises(LoadError, match="version 1 of model m did not become available: the registry was left"):
        await pinning
    assert not leaving.done()
    gate.open()
    await leaving
    assert (target.loads, target.unloads) == (1, 1)


async def test_requests_in_flight_are_answered_when_the_registry_is_left() -> None:
    gate = Gate()
    async with FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, warmup="none") as registry:
        calls = [asyncio.create_task(registry.predict("m", X)) for _ in range(4)]
        while not gate.waiting:
            await asyncio.sleep(0)
        leaving = asyncio.create_task(registry.aclose())
        await until_state(registry, "m", 1, State.UNLOADING)
        assert registry.draining
        gate.open()
        assert [(await call)["y"].tolist() for call in calls] == [[11.0]] * 4
        await leaving


async def test_an_unpin_whose_version_fails_keeps_what_serves() -> None:
    found = {"m": {1: FakeLoader(), 2: FakeLoader(failures=-1)}}
    only_1 = ModelConfig(name="m", base_path="/fake/m", version_policy=SpecificVersions(versions=(1,)))
    async with FakeRegistry(found, models=[only_1], retry=RetryPolicy(max_retries=0)) as registry:
        await registry.reconfigure([only_1.model_copy(update={"version_policy": LatestVersions()})])
        await registry.pin("m", 1)
        with pytest.raises(LoadError, match="version 2 of model m did not become available: the fake loader"):
            await registry.unpin("m")
        assert (await registry.predict("m", X))["y"].tolist() == [11.0]
        await registry.put("m", 3, FakeLoader())
        await until_state(registry, "m", 3, State.AVAILABLE)


async def test_memory_is_given_back_once_for_many_versions_that_are_unloaded_together() -> None:
    loaders = [FakeLoader() for _ in range(40)]
    registry = FakeRegistry({f"m{number}": {1: loader} for number, loader in enumerate(loaders)})
    async with registry:
        pass
    assert all(loader.unloads == 1 for loader in loaders)
    # One for the first that end while others are still being unloaded by the other load thread, one at the end.
    assert 1 <= sum(loader.gave_back for loader in loaders) <= 3


async def test_memory_is_given_back_before_an_unloaded_version_has_ended() -> None:
    loader = FakeLoader()
    async with FakeRegistry({"m": {1: loader}}) as registry:
        await registry.put("m", 2, FakeLoader())
        await until_state(registry, "m", 1, State.END)
        assert loader.gave_back == 1
