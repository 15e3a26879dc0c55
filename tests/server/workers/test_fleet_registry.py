"""The supervisor's registry over real directories and made-up workers: what is posted, and when."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from embedserve.config import AllVersions, LatestVersions, ModelConfig, RegistryOptions, RetryPolicy
from embedserve.errors import ServingError, UnsupportedError
from embedserve.servable import State
from embedserve.server.config import ServerConfig
from embedserve.server.workers.fleet import Fleet
from embedserve.server.workers.fleet_registry import FleetRegistry
from embedserve.server.workers.messages import Configs, Drop, Load, ServingTable
from tests.server.workers.fakes import VERDICTS, FakeWorker, make_fleet, routes_of
from tests.support.saved_models import half_plus_two


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half_plus_two(tmp_path_factory.mktemp("saved") / "two")


class Serving:
    """A registry over `tmp_path`, and two workers that serve."""

    def __init__(self, base: Path, saved: Path, **options: Any) -> None:
        self.base = base
        self.saved = saved
        self.lost: list[Any] = []
        self.fleet: Fleet = make_fleet(lost=lambda key: self.registry.lose(key))
        config = ServerConfig(
            models=(self.config(),), options=RegistryOptions(settle=0.0, poll_interval=0.1, **options)
        )
        self.registry = FleetRegistry(config, self.fleet, None)
        self.workers = [FakeWorker(self.fleet, index).up() for index in range(2)]

    def config(self, **fields: Any) -> ModelConfig:
        return ModelConfig(name="m", base_path=self.base / "m", **fields)

    def publish(self, version: int) -> None:
        hidden = self.base / f".{version}"
        shutil.copytree(self.saved, hidden)
        (self.base / "m").mkdir(exist_ok=True)
        hidden.rename(self.base / "m" / str(version))

    async def until(self, condition: Callable[[], bool]) -> None:
        assert self.registry._runtime is not None
        assert await self.registry._runtime.monitor.wait_until(condition, 20), self.registry.status()

    def state(self, version: int) -> State | None:
        return next((s.state for s in self.registry.status().get("m", ()) if s.version == version), None)

    @property
    def routed(self) -> set[int]:
        return set(routes_of(self.fleet).serving.get("m", {}))


@asynccontextmanager
async def serving(base: Path, saved: Path, **options: Any) -> AsyncIterator[Serving]:
    it = Serving(base, saved, **options)
    await asyncio.to_thread(it.publish, 1)
    await it.registry.start()
    it.fleet.open(rest=True, grpc=True)
    try:
        yield it
    finally:
        it.fleet.rollout.close()
        for worker in it.workers:
            worker.go_on()
        await it.registry.aclose()


async def test_a_version_is_posted_when_every_worker_has_it_and_gone_before_one_drops_it(
    tmp_path: Path, saved: Path
) -> None:
    async with serving(tmp_path, saved) as it:
        assert it.routed == {1}
        assert it.registry.status()["m"][0].kind == "fake"
        assert it.registry.status()["m"][0].batching == VERDICTS
        first, second = it.workers
        second.waiting = True
        await asyncio.to_thread(it.publish, 2)
        await it.until(lambda: it.state(2) is State.LOADING)
        while not second.told(Load)[1:]:
            await asyncio.sleep(0)
        assert it.routed == {1}
        posted: list[ServingTable] = []
        send = first.send

        def sent(message: Any) -> None:
            if type(message) is Drop:
                posted.append(routes_of(it.fleet))
            send(message)

        first.send = sent  # type: ignore[method-assign]
        second.go_on()
        await it.until(lambda: it.state(1) is State.END)
        assert it.routed == {2}
        assert [set(serving_table.serving["m"]) for serving_table in posted] == [{2}]
        with pytest.raises(UnsupportedError, match="answers no request"):
            await it.registry.predict("m", {})


async def test_loads_in_the_workers_wait_without_a_thread_of_the_supervisor(tmp_path: Path, saved: Path) -> None:
    async with serving(tmp_path, saved, num_load_threads=1) as it:
        first = it.workers[0]
        first.waiting = True
        await it.registry.reconfigure([it.config(version_policy=AllVersions())])
        for version in (2, 3):
            await asyncio.to_thread(it.publish, version)
        async with asyncio.timeout(20):
            while len(first.told(Load)) < 3:
                await asyncio.sleep(0)
        first.go_on()
        await it.until(lambda: it.state(2) is it.state(3) is State.AVAILABLE)
        assert it.routed == {1, 2, 3}


async def test_a_load_that_fails_in_one_worker_is_retried_and_never_posted(tmp_path: Path, saved: Path) -> None:
    retry = RetryPolicy(max_retries=1, initial=0.01, maximum=0.01)
    async with serving(tmp_path, saved, retry=retry) as it:
        it.workers[1].failing[2] = "out of memory"
        await asyncio.to_thread(it.publish, 2)
        await it.until(lambda: it.state(2) is State.END)
        assert it.registry.status()["m"][0].message == "out of memory"
        assert len(it.workers[1].told(Load)) == 3, "version 1 once, version 2 twice"
        assert it.routed == {1}
        assert it.state(1) is State.AVAILABLE


async def test_a_version_that_ends_two_workers_is_not_tried_a_third_time(tmp_path: Path, saved: Path) -> None:
    async with serving(tmp_path, saved, retry=RetryPolicy(initial=0.01, maximum=0.01)) as it:
        await asyncio.to_thread(it.publish, 2)
        for round in range(2):
            worker = it.workers[0]
            worker.waiting = True
            while len(worker.told(Load)) < 2:
                await asyncio.sleep(0)
            worker.die()
            assert it.routed == {1}, round
            it.workers[0] = FakeWorker(it.fleet, 0)
            it.workers[0].waiting = round == 0
            it.workers[0].up()
            it.workers[0].go_on()
        await it.until(lambda: it.registry.status()["m"][0].message.startswith("2 workers ended while they loaded"))
        await it.until(lambda: it.state(2) is State.LOADING)
        assert it.routed == {1}


async def test_labels_and_configurations_reach_all_at_once(tmp_path: Path, saved: Path) -> None:
    async with serving(tmp_path, saved) as it:
        await asyncio.to_thread(it.publish, 2)
        both = it.config(version_policy=AllVersions())
        await it.registry.reconfigure([both])
        await it.until(lambda: it.state(1) is it.state(2) is State.AVAILABLE)
        assert it.routed == {1, 2}
        with pytest.raises(ServingError, match="Request to assign label to version 3"):
            await it.registry.reconfigure([it.config(version_labels={"stable": 3})])
        assert it.routed == {1, 2}
        labelled = it.config(version_policy=LatestVersions(num_versions=2), version_labels={"stable": 1})
        await it.registry.reconfigure([labelled])
        assert routes_of(it.fleet).labels == {"m": {"stable": 1}}
        for worker in it.workers:
            told = [order.models for order in worker.orders if isinstance(order, Configs)]
            assert told[-1] == {"m": labelled}
        await it.registry.set_label("m", "stable", 2)
        assert routes_of(it.fleet).labels == {"m": {"stable": 2}}


async def test_a_version_that_nobody_has_any_more_is_withdrawn_and_tried_again(tmp_path: Path, saved: Path) -> None:
    async with serving(tmp_path, saved, retry=RetryPolicy(max_retries=0)) as it:
        for worker in it.workers:
            worker.die()
        it.workers = [FakeWorker(it.fleet, index) for index in range(2)]
        for worker in it.workers:
            worker.failing[1] = "the disk is gone"
            worker.up()
        await it.until(lambda: it.state(1) is State.END and it.registry.status()["m"][0].message != "")
        assert it.routed == set()
        assert it.registry.readiness()["m"] == "version 1 is END: DATA_LOSS: the disk is gone"
        assert all(worker.process.serving for worker in it.workers), "what is left is served"
