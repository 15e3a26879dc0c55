"""A registry belongs to one loop: what callers elsewhere get, and what is left when that loop is gone."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedserve import (
    ModelRegistry,
    NotReadyError,
    RegistryStateError,
    RetryPolicy,
    ServableNotFoundError,
    StartError,
    State,
)
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.integration.waiting import until_state

pytestmark = pytest.mark.slow

X = {"x": [1.0]}


def test_after_its_loop_was_closed_the_remedy_it_names_works() -> None:
    loaders = {1: FakeLoader()}
    registry = FakeRegistry({"m": loaders})
    asyncio.run(registry.start())
    with pytest.raises(RegistryStateError, match=r"loop .* is closed; enter it again .* or use `with registry`"):
        registry.predict_sync("m", X)
    with registry:
        assert registry.predict_sync("m", X)["y"].tolist() == [11.0]

    async def again() -> None:
        async with registry:
            assert (await registry.predict("m", X))["y"].tolist() == [11.0]

    asyncio.run(registry.start())
    asyncio.run(again())
    asyncio.run(registry.start())
    asyncio.run(registry.aclose())
    assert not registry.started
    for thread in threading.enumerate():
        if thread.name.startswith("embedserve-"):
            thread.join(20)
            assert not thread.is_alive(), thread


async def test_leaving_and_waiting_from_another_loop_are_bridged() -> None:
    gate = Gate()
    loader = FakeLoader(load_gate=gate)
    registry = FakeRegistry({"m": {1: loader}})
    await registry.start(wait=False)

    async def elsewhere() -> None:
        with pytest.raises(StartError, match="version 1 is LOADING"):
            await registry.wait_until_ready(0.01)
        ready = asyncio.create_task(registry.wait_until_ready())
        gate.open()
        await ready
        await registry.predict("m", X)
        await registry.aclose()
        with pytest.raises(NotReadyError):
            await registry.predict("m", X)

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert not registry.started
    assert (loader.loads, loader.unloads) == (1, 1)


async def test_a_handle_that_was_on_its_way_to_a_cancelled_caller_is_released() -> None:
    loader = FakeLoader()
    async with FakeRegistry({"m": {1: loader}}) as registry:

        async def elsewhere(turns: int) -> None:
            async def hold() -> None:
                async with registry.acquire("m"):
                    await asyncio.sleep(60)

            holding = asyncio.create_task(hold())
            for _ in range(turns):
                await asyncio.sleep(0)
            holding.cancel()
            await asyncio.wait([holding])

        for turns in range(40):
            await asyncio.to_thread(asyncio.run, elsewhere(turns))
        await registry.put("m", 2, FakeLoader())
        await until_state(registry, "m", 1, State.END)


def test_threads_that_call_while_a_private_registry_is_left_get_an_error_and_none_hangs() -> None:
    def call_until_it_is_left(registry: ModelRegistry) -> int:
        answered = 0
        while True:
            try:
                registry.predict_sync("m", X)
                answered += 1
            except ServableNotFoundError:
                pass
            except RegistryStateError:
                return answered

    with ThreadPoolExecutor(6) as threads:
        for _ in range(20):
            with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
                calls = [threads.submit(call_until_it_is_left, registry) for _ in range(6)]
                registry.predict_sync("m", X)
            for call in calls:
                call.result(30)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_may_enter_the_same_registry_anew() -> None:
    with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        child = os.fork()
        if child == 0:
            try:
                with registry:
                    answer = registry.predict_sync("m", X)["y"].tolist()
                os._exit(0 if answer == [11.0] else 3)
            except BaseException:
                os._exit(4)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert registry.predict_sync("m", X)["y"].tolist() == [11.0]


async def test_snapshots_are_readable_from_any_thread_while_versions_change() -> None:
    stop = False

    def read(registry: ModelRegistry) -> int:
        reads = 0
        while not stop:
            assert registry.status("m")["m"]
            assert registry.models() == ("m",)
            assert "m" in registry.readiness()
            assert registry.statistics().run_threads > 0
            assert "ModelRegistry" in repr(registry)
            reads += 1
        return reads

    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        readers = [asyncio.create_task(asyncio.to_thread(read, registry)) for _ in range(2)]
        for version in range(2, 12):
            await registry.put("m", version, FakeLoader())
            await until_state(registry, "m", version, State.AVAILABLE)
            await until_state(registry, "m", version - 1, State.END)
        stop = True
        assert min(await asyncio.gather(*readers)) > 0


async def test_plain_with_works_in_a_cell_of_a_notebook_whose_loop_runs() -> None:
    with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        assert registry.predict_sync("m", X)["y"].tolist() == [11.0]
        assert (await registry.predict("m", X))["y"].tolist() == [11.0]
    broken = FakeRegistry({"m": {1: FakeLoader(failures=-1)}}, retry=RetryPolicy(max_retries=0))
    with pytest.raises(StartError), broken:
        pass
