"""A worker's registry: loads what it is told, answers by the serving table from the moment it is posted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.config import ModelConfig, RegistryOptions, RetryPolicy
from embedserve.errors import InvalidModelSpecError, NotReadyError, ServableNotFoundError
from embedserve.lifecycle.monitor import VersionStatus
from embedserve.lifecycle.source import VersionDirectory
from embedserve.servable import BlockingLoader, ServableId, State
from embedserve.server.workers import worker_registry
from embedserve.server.workers.messages import (
    Configs,
    Dropped,
    Failed,
    Key,
    Load,
    Loaded,
    ServingTable,
    Status,
    WorkerStatus,
)
from embedserve.server.workers.shared_value import SharedValue
from embedserve.server.workers.worker_registry import WorkerRegistry
from embedserve.signature import BatchingVerdict
from embedserve.testing import FakeLoader, Gate

X = {"x": np.array([1.0], np.float32)}
VERDICTS = {"serving_default": BatchingVerdict(True, "as the test says")}
CONFIG = ModelConfig(name="m", base_path="/fake/m")


class Worker:
    """A worker's registry with fake versions, and the shared values that its supervisor would post to."""

    def __init__(self) -> None:
        self.serving_table, self.status = SharedValue(), SharedValue()
        self.said: list[Any] = []
        self.loaders: dict[Key, FakeLoader] = {}
        self._next: list[FakeLoader] = []
        options = RegistryOptions(retry=RetryPolicy(max_retries=0), num_batch_threads=1)
        self.registry = WorkerRegistry(
            options, self.serving_table, self.status, self.said.append, make_loader=self._make
        )

    def _make(
        self, id: ServableId, directory: VersionDirectory, config: ModelConfig, options: RegistryOptions
    ) -> BlockingLoader:
        loader = self._next.pop(0)
        loader.id = id
        return loader

    async def load(self, version: int, attempt: int, loader: FakeLoader | None = None) -> Key:
        """Order a load and wait for the report."""
        key = Key("m", version, attempt)
        self.loaders[key] = loader or FakeLoader()
        self._next.append(self.loaders[key])
        directory = VersionDirectory(version, Path(f"/fake/m/{version}"), ())
        await self.registry.orders.load(Load(key, directory, CONFIG))
        return key

    def post(self, *keys: Key, labels: dict[str, int] | None = None) -> None:
        self.serving_table.post(ServingTable({"m": {key.version: key.attempt for key in keys}}, {"m": labels or {}}))

    async def answer(self, **spec: Any) -> float:
        return float((await self.registry.predict("m", X, **spec))["y"][0])


@asynccontextmanager
async def entered() -> AsyncIterator[Worker]:
    worker = Worker()
    await worker.registry.start(wait=False)
    worker.registry.orders.set_configs(Configs({"m": CONFIG}))
    try:
        yield worker
    finally:
        await worker.registry.aclose()
        worker.serving_table.close()
        worker.status.close()


async def test_what_a_loader_notes_is_told_with_the_version() -> None:
    loader = FakeLoader()
    loader.note = "not optimised"
    async with entered() as worker:
        one = await worker.load(1, 1, loader)
        assert worker.said == [Loaded(one, "fake", False, "not optimised", VERDICTS)]


async def test_a_loaded_version_answers_from_the_post_on_and_not_before() -> None:
    async with entered() as worker:
        one = await worker.load(1, 1)
        assert worker.said == [Loaded(one, "fake", False, batching=VERDICTS)]
        worker.post(one)
        with pytest.raises(NotReadyError):
            await worker.answer()  # It does not serve yet: others may not have what is posted now.
        worker.registry.orders.follow_routes()
        assert await worker.answer() == 11.0
        two = await worker.load(2, 2)
        assert await worker.answer() == 11.0
        worker.post(two)
        # The very next request, although nobody has told it to look.
        assert await worker.answer() == 12.0
        with pytest.raises(ServableNotFoundError):
            await worker.answer(version=1)


async def test_going_back_to_an_older_version_is_as_sudden() -> None:
    async with entered() as worker:
        worker.registry.orders.follow_routes()
        one, two = await worker.load(1, 1), await worker.load(2, 2)
        worker.post(one, two)
        assert (await worker.answer(), await worker.answer(version=1)) == (12.0, 11.0)
        worker.post(one)
        assert await worker.answer() == 11.0
        await worker.registry.orders.drop(two)
        assert worker.said[-1] == Dropped(two)
        assert worker.loaders[two].unloads == 1


async def test_requests_in_flight_end_on_their_version_and_a_drop_waits_for_them() -> None:
    async with entered() as worker:
        gate = Gate()
        worker.registry.orders.follow_routes()
        one = await worker.load(1, 1, FakeLoader(gate=gate))
        worker.post(one)
        gate.open()
        assert await worker.answer() == 11.0
        gate.close()
        answer = asyncio.create_task(worker.answer())
        while not gate.waiting:
            await asyncio.sleep(0)
        worker.post()
        dropping = asyncio.create_task(worker.registry.orders.drop(one))
        with pytest.raises(ServableNotFoundError):
            await worker.answer()
        assert not dropping.done()
        gate.open()
        assert await answer == 11.0
        await dropping
        assert worker.loaders[one].unloads == 1


async def test_new_contents_of_a_version_take_the_place_of_the_old_without_a_gap() -> None:
    async with entered() as worker:
        worker.registry.orders.follow_routes()
        old = await worker.load(1, 1)
        worker.post(old)
        assert await worker.answer(version=1) == 11.0
        new = await worker.load(1, 2, FakeLoader(lambda version, inputs: {"y": inputs["x"] * 100}))
        assert await worker.answer(version=1) == 11.0
        worker.post(new)
        assert await worker.answer(version=1) == 100.0
        await worker.registry.orders.drop(old)
        assert (worker.loaders[old].unloads, worker.loaders[new].unloads) == (1, 0)
        assert await worker.answer(version=1) == 100.0


async def test_new_contents_that_are_given_up_leave_the_old_serving() -> None:
    async with entered() as worker:
        worker.registry.orders.follow_routes()
        old = await worker.load(1, 1)
        worker.post(old)
        worker.registry.orders.adopt()
        new = await worker.load(1, 2)
        await worker.registry.orders.drop(new)
        assert worker.loaders[new].unloads == 1
        failing = await worker.load(1, 3, FakeLoader(failures=-1))
        assert isinstance(worker.said[-1], Failed)
        await worker.registry.orders.drop(failing)
        assert await worker.answer(version=1) == 11.0
        assert worker.loaders[old].unloads == 0


async def test_a_failed_load_is_reported_once_and_can_be_tried_again() -> None:
    async with entered() as worker:
        key = await worker.load(1, 1, FakeLoader(failures=-1))
        (failed,) = worker.said
        assert (failed.key, failed.failure.code.name) == (key, "DATA_LOSS")
        assert failed.failure.message == "the fake loader was told to fail"
        await worker.registry.orders.drop(key)
        again = await worker.load(1, 2)
        assert worker.said[-1] == Loaded(again, "fake", False, batching=VERDICTS)


async def test_a_version_that_is_dropped_while_it_loads_is_unloaded_and_never_reported() -> None:
    async with entered() as worker:
        gate = Gate()
        loading = asyncio.create_task(worker.load(1, 1, FakeLoader(load_gate=gate)))
        while not gate.waiting:
            await asyncio.sleep(0)
        key = Key("m", 1, 1)
        dropping = asyncio.create_task(worker.registry.orders.drop(key))
        await asyncio.sleep(0)
        gate.open()
        await dropping
        await loading
        assert worker.said[-1] == Dropped(key)
        assert not any(isinstance(message, Loaded) for message in worker.said)
        assert worker.loaders[key].unloads == 1


async def test_labels_mean_what_is_posted() -> None:
    async with entered() as worker:
        worker.registry.orders.follow_routes()
        one, two = await worker.load(1, 1), await worker.load(2, 2)
        worker.post(one, two, labels={"stable": 1})
        assert await worker.answer(label="stable") == 11.0
        worker.post(one, two, labels={"stable": 2, "old": 1})
        assert (await worker.answer(label="stable"), await worker.answer(label="old")) == (12.0, 11.0)
        worker.post(one, two)
        with pytest.raises(InvalidModelSpecError):
            await worker.answer(label="stable")


async def test_a_worker_that_lacks_what_is_posted_ends_rather_than_answer_with_the_past(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(worker_registry, "exit_now", ended.append)
    async with entered() as worker:
        worker.registry.orders.follow_routes()
        worker.post(await worker.load(1, 1))
        assert await worker.answer() == 11.0
        worker.post(Key("m", 2, 2))
        with pytest.raises(ServableNotFoundError):
            await worker.answer()
        assert ended == [1]


async def test_what_it_says_of_versions_and_readiness_is_what_the_supervisor_posted() -> None:
    async with entered() as worker:
        registry = worker.registry
        assert (registry.status(), registry.readiness(), registry.models(), registry.draining) == ({}, {}, (), False)
        status = VersionStatus(3, State.LOADING)
        workers = (WorkerStatus(0, 1, "serving", 0),)
        worker.status.post(Status({"m": (status,)}, {"m": "version 3 is LOADING", "n": None}, "later", False, workers))
        assert registry.status() == {"m": (status,)}
        assert registry.status("n") == {}
        assert registry.readiness() == {"m": "version 3 is LOADING", "n": None}
        assert registry.unready() == "later"
        assert registry.models() == ("m", "n")
        worker.status.post(Status({}, {}, "draining", True, workers))
        assert registry.draining
        assert registry.whole.workers == workers
