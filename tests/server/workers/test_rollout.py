"""A version is loaded by every worker or by none, one worker first while any serves; who comes up has what all have."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from embedserve.config import ModelConfig
from embedserve.errors import LoadError
from embedserve.lifecycle.source import VersionDirectory
from embedserve.server.workers.fleet import Fleet
from embedserve.server.workers.messages import Drop, Key, Load, Loaded, Open
from embedserve.server.workers.rollout import CrashedError
from tests.server.workers.fakes import LOAD_THREADS, FakeWorker, make_fleet

CONFIG = ModelConfig(name="m", base_path="/fake/m")


async def load(fleet: Fleet, version: int = 1) -> Loaded:
    directory = VersionDirectory(version, Path(f"/fake/m/{version}"), ())
    async with asyncio.timeout(10):
        return await fleet.rollout.load("m", directory, CONFIG)


async def until(condition: object) -> None:
    """Let the loop turn until `condition()`; bounded by the test's own time limit."""
    assert callable(condition)
    while not condition():
        await asyncio.sleep(0)


def serving(fleet: Fleet, *indices: int) -> list[FakeWorker]:
    workers = [FakeWorker(fleet, index).up() for index in indices]
    fleet.open(rest=True, grpc=True)
    return workers


async def test_at_the_start_all_load_side_by_side_and_all_must_have() -> None:
    fleet = make_fleet()
    first = FakeWorker(fleet, 0).up()
    loading = asyncio.create_task(load(fleet))
    await until(lambda: first.process.loaded)
    assert not loading.done()
    second = FakeWorker(fleet, 1).up()
    loaded = await loading
    assert first.told(Load) == second.told(Load) == [loaded.key]
    # Nobody serves before the ports are wanted.
    assert not any(isinstance(order, Open) for order in first.orders)
    fleet.open(rest=True, grpc=True)
    await fleet.opened()
    assert [worker.state for worker in fleet.workers()] == ["serving", "serving"]


async def test_one_serving_worker_goes_first() -> None:
    fleet = make_fleet()
    first, second = serving(fleet, 0, 1)
    first.waiting = True
    loading = asyncio.create_task(load(fleet))
    await until(lambda: first.told(Load))
    for _ in range(10):
        await asyncio.sleep(0)
    assert second.told(Load) == []
    first.go_on()
    key = (await loading).key
    assert second.told(Load) == [key]


async def test_what_one_cannot_load_is_dropped_by_all() -> None:
    fleet = make_fleet(3)
    first, second, third = serving(fleet, 0, 1, 2)
    second.failing[1] = "a shard is missing"
    with pytest.raises(LoadError, match="a shard is missing"):
        await load(fleet)
    for worker in (first, second, third):
        assert worker.told(Load) == worker.told(Drop)
        assert not worker.process.told
    # A later attempt is another one.
    second.failing.clear()
    loaded = await load(fleet)
    assert loaded.key.attempt > first.told(Drop)[0].attempt


async def test_a_worker_that_dies_while_it_loads_ends_the_attempt_and_the_others_drop_it() -> None:
    fleet = make_fleet()
    first, second = serving(fleet, 0, 1)
    second.waiting = True
    loading = asyncio.create_task(load(fleet))
    await until(lambda: second.told(Load))
    second.die()
    with pytest.raises(CrashedError, match=r"worker 1 was ended by SIGKILL while it loaded the version"):
        await loading
    assert first.told(Drop) == first.told(Load)


async def test_of_versions_that_are_loaded_together_none_is_blamed_and_each_can_be_loaded_alone() -> None:
    fleet = make_fleet(1)
    (worker,) = serving(fleet, 0)
    worker.waiting = True
    loads = [asyncio.create_task(load(fleet, version)) for version in (1, 2)]
    await until(lambda: len(worker.told(Load)) == 2)
    worker.die()
    for each in loads:
        with pytest.raises(CrashedError) as raised:
            await each
        assert not raised.value.alone
    (worker,) = serving(fleet, 0)
    worker.waiting = True
    directory = VersionDirectory(1, Path("/m/1"), ())
    alone = asyncio.create_task(fleet.rollout.load("m", directory, CONFIG, alone=True))
    await until(lambda: len(worker.told(Load)) == 1)
    other = asyncio.create_task(load(fleet, 2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(worker.told(Load)) == 1
    worker.die()
    with pytest.raises(CrashedError) as raised:
        await alone
    assert raised.value.alone
    serving(fleet, 0)
    assert (await other).key.version == 2


async def test_a_worker_is_ordered_as_many_loads_as_it_has_load_threads() -> None:
    fleet = make_fleet(1)
    (worker,) = serving(fleet, 0)
    worker.waiting = True
    loads = [asyncio.create_task(load(fleet, version)) for version in range(1, LOAD_THREADS + 2)]
    await until(lambda: len(worker.told(Load)) == LOAD_THREADS)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(worker.told(Load)) == LOAD_THREADS
    worker.die()
    for each in loads[:LOAD_THREADS]:
        with pytest.raises(CrashedError):
            await each
    serving(fleet, 0)
    assert (await loads[-1]).key.version == LOAD_THREADS + 1, "no order had reached the worker that ended"


async def test_a_worker_that_dies_after_it_has_loaded_is_not_waited_for() -> None:
    fleet = make_fleet()
    first, second = serving(fleet, 0, 1)
    second.waiting = True
    loading = asyncio.create_task(load(fleet))
    await until(lambda: second.told(Load))
    first.die()
    second.go_on()
    assert (await loading).key in second.process.loaded


async def test_a_worker_that_comes_up_loads_what_the_others_have_before_it_serves() -> None:
    fleet = make_fleet()
    first, second = serving(fleet, 0, 1)
    keys = [(await load(fleet, version)).key for version in (1, 2)]
    await fleet.rollout.drop(keys[0])
    assert first.told(Drop) == [keys[0]]
    second.die()
    assert fleet.workers()[1].state == "restarting"
    again = FakeWorker(fleet, 1)
    again.waiting = True
    again.up()
    assert fleet.workers()[1].state == "loading"
    assert again.told(Load) == [keys[1]]
    # What becomes ready meanwhile, it loads as well.
    keys.append((await load(fleet, 3)).key)
    fleet._changed()
    assert again.told(Load) == keys[1:]
    assert not again.process.serving
    again.go_on()
    await until(lambda: again.process.serving)
    assert set(again.process.loaded) == set(keys[1:])


async def test_a_worker_that_comes_up_between_two_generations_of_a_version_waits_for_the_older_to_go() -> None:
    fleet = make_fleet()
    _, second = serving(fleet, 0, 1)
    old = (await load(fleet)).key
    second.die()
    again = FakeWorker(fleet, 1)
    again.waiting = True
    again.up()
    new = (await load(fleet)).key
    fleet._changed()
    assert again.told(Load) == [old, new]
    again.go_on()
    await until(lambda: new in again.process.loaded)
    assert not again.process.serving
    await fleet.rollout.drop(old)
    await until(lambda: again.process.serving)


async def test_a_worker_that_cannot_catch_up_is_replaced_while_others_serve() -> None:
    lost: list[Key] = []
    fleet = make_fleet(lost=lost.append)
    _, second = serving(fleet, 0, 1)
    await load(fleet)
    second.die()
    again = FakeWorker(fleet, 1)
    again.failing[1] = "out of memory"
    again.up()
    await until(lambda: again.child.returncode is not None)
    assert not lost


async def test_what_nobody_can_load_any_more_is_given_up_when_nobody_serves() -> None:
    lost: list[Key] = []
    fleet = make_fleet(1, lost=lost.append)
    (only,) = serving(fleet, 0)
    key = (await load(fleet)).key
    only.die()
    again = FakeWorker(fleet, 0)
    again.failing[1] = "the directory is gone"
    again.up()
    await until(lambda: lost)
    assert lost == [key]
    assert again.child.returncode is None
    await fleet.rollout.drop(key)
    await until(lambda: again.process.serving)


async def test_a_drop_is_done_when_the_last_worker_says_so_or_is_gone() -> None:
    fleet = make_fleet()
    first, second = serving(fleet, 0, 1)
    key = (await load(fleet)).key
    first.waiting = second.waiting = True
    dropping = asyncio.create_task(fleet.rollout.drop(key))
    await until(lambda: second.told(Drop))
    first.go_on()
    await until(lambda: not first.process.told)
    assert not dropping.done()
    second.die()
    await dropping


async def test_a_fleet_that_leaves_loads_nothing_more() -> None:
    fleet = make_fleet()
    first, _ = serving(fleet, 0, 1)
    first.waiting = True
    loading = asyncio.create_task(load(fleet))
    await until(lambda: first.told(Load))
    fleet.rollout.close()
    first.die()
    with pytest.raises((LoadError, CrashedError)):
        await loading
    with pytest.raises(LoadError, match="the server is leaving"):
        await load(fleet)
