"""A worker's life after life: restarts, starts that are given up, silence, questions, and the drain one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from embedserve.errors import Code, ConfigError, StartError
from embedserve.server.workers import fleet as fleet_module
from embedserve.server.workers import plan
from embedserve.server.workers.messages import (
    Answer,
    Ask,
    Drain,
    Failed,
    Failure,
    Measure,
    Measured,
    Open,
    Opened,
    Setup,
    Stuck,
    Up,
)
from embedserve.server.workers.process import WorkerProcess
from tests.server.workers.fakes import LOAD_THREADS, FakeChild, FakeWorker, make_fleet


class Life:
    """One process of a made-up worker: what it says, until it hangs up."""

    def __init__(self, *words: Any, for_ever: bool = False) -> None:
        self.words = words
        self.for_ever = for_ever
        self.heard: list[Any] = []
        self.hung_up = asyncio.Event()
        self.child = FakeChild(1)

    def send(self, message: Any) -> None:
        self.heard.append(message)
        if isinstance(message, Drain):
            self.child.returncode = 0
            self.hung_up.set()

    def close(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Any]:
        for word in self.words:
            yield word
        if self.for_ever:
            await self.hung_up.wait()


class Lives:
    """In place of `WorkerProcess.start`: one life after the other."""

    def __init__(self, *lives: Life) -> None:
        self.lives = list(lives)
        self.processes: list[WorkerProcess] = []

    async def start(self, setup: Setup, shared_values: Any, listener: Any) -> WorkerProcess:
        life = self.lives.pop(0)
        wait: Any = life.child

        async def ended() -> int:
            return -9 if life.child.returncode is None else life.child.returncode

        wait.wait = ended
        process = WorkerProcess(setup.index, wait, life, 0.0, LOAD_THREADS)  # type: ignore[arg-type]
        self.processes.append(process)
        return process


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Lives:
    lives = Lives()
    monkeypatch.setattr(WorkerProcess, "start", lives.start)
    return lives


def only(group: BaseExceptionGroup[Any]) -> BaseException:
    (error,) = group.exceptions
    return only(error) if isinstance(error, BaseExceptionGroup) else error


async def test_a_worker_that_ends_again_and_again_while_starting_ends_the_start(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "restart_delay", lambda short_lives: 0.0)
    lives.lives = [Life(Up()) for _ in range(5)]
    with pytest.raises(BaseExceptionGroup) as raised:
        await make_fleet(1).run()
    error = only(raised.value)
    assert isinstance(error, StartError)
    assert error.message == "worker 0 was ended by SIGKILL, 3 times in a row at the start"
    assert len(lives.processes) == 3


async def test_a_port_that_cannot_be_had_ends_the_start_with_its_reason(lives: Lives) -> None:
    failure = Failure.of(ConfigError("the TLS key is not usable"))
    lives.lives = [Life(Up(), Failed(None, failure))]
    with pytest.raises(BaseExceptionGroup) as raised:
        await make_fleet(1).run()
    error = only(raised.value)
    assert isinstance(error, StartError)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "the TLS key is not usable")


async def test_a_worker_that_has_served_is_replaced_for_ever_later_and_later(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def restart_delay(short_lives: int) -> float:
        asked.append(short_lives)
        return 0.0

    monkeypatch.setattr(plan, "restart_delay", restart_delay)
    opened = Opened(rest=True, grpc=True)
    last = Life(Up(), opened, for_ever=True)
    lives.lives = [Life(Up(), opened, for_ever=True), *(Life(Up(), opened) for _ in range(5)), last]
    fleet = make_fleet(1)
    fleet.open(rest=True, grpc=True)
    running = asyncio.create_task(fleet.run())
    await fleet.opened()
    first = lives.processes[0]
    first.channel.hung_up.set()  # type: ignore[attr-defined]
    await fleet.changes.wait_until(lambda: not lives.lives)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert fleet.workers()[0].restarts == 6
    await fleet.opened()
    await fleet.drain(30)
    await running
    assert isinstance(last.heard[-1], Drain)


async def test_a_worker_that_talks_nonsense_is_replaced_and_harms_nobody(lives: Lives, caplog: Any) -> None:
    class Nonsense(Life):
        async def __aiter__(self) -> AsyncIterator[Any]:
            yield Up()
            raise EOFError("half a pickle")

    lives.lives = [Nonsense(), Life(Up(), Opened(rest=True, grpc=True), for_ever=True)]
    fleet = make_fleet(1)
    fleet.open(rest=True, grpc=True)
    running = asyncio.create_task(fleet.run())
    await fleet.opened()
    assert fleet.workers()[0].restarts == 1
    assert "what worker 0 said cannot be followed" in caplog.text
    await fleet.drain(30)
    await running


async def test_a_process_that_was_begun_before_the_drain_is_ended(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    start = lives.start

    async def slow(*arguments: Any) -> WorkerProcess:
        begun.set()
        await go.wait()
        return await start(*arguments)

    monkeypatch.setattr(WorkerProcess, "start", slow)
    late = Life(for_ever=True)
    late.child.kill = late.hung_up.set  # type: ignore[method-assign]
    lives.lives = [late]
    fleet = make_fleet(1)
    running = asyncio.create_task(fleet.run())
    await begun.wait()
    await fleet.drain(30)
    go.set()
    await running


async def test_a_silent_worker_is_killed(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "WATCH_INTERVAL", 0.001)
    monkeypatch.setattr(plan, "silent", lambda now, before, heard, limit: limit == 30)
    silent, starting = Life(Up(), for_ever=True), Life(for_ever=True)
    lives.lives = [silent, starting]
    fleet = make_fleet(2)
    running = asyncio.create_task(fleet.run())
    while silent.child.returncode is None:
        await asyncio.sleep(0.001)
    assert starting.child.returncode is None, "one that imports TensorFlow has more time"
    running.cancel()
    await asyncio.wait([running])
    assert starting.child.returncode == -9


async def test_workers_are_drained_one_by_one_and_those_that_do_not_serve_are_ended(lives: Lives) -> None:
    opened = Opened(rest=True, grpc=True)
    first, second = Life(Up(), opened, for_ever=True), Life(Up(), opened, for_ever=True)
    third = Life(for_ever=True)
    lives.lives = [first, second, third]
    fleet = make_fleet(3)
    fleet.open(rest=True, grpc=True)
    running = asyncio.create_task(fleet.run())
    await fleet.changes.wait_until(lambda: sum(w.state == "serving" for w in fleet.workers()) == 2)
    order: list[str] = []
    for name, life in (("first", first), ("second", second)):
        send = life.send

        def sent(message: Any, name: str = name, send: Any = send) -> None:
            if isinstance(message, Drain):
                order.append(f"{name}, while {[w.state for w in fleet.workers()]}")
            send(message)

        life.send = sent  # type: ignore[method-assign]
    third.child.kill = lambda: third.hung_up.set()  # type: ignore[method-assign]
    await fleet.drain(30)
    await running
    assert [line.split(", while")[0] for line in order] == ["first", "second"]
    assert "'restarting', 'draining'" in order[1], "the first had ended"


async def test_questions_are_answered_and_failures_carried_back() -> None:
    fleet = make_fleet(1)
    worker = FakeWorker(fleet, 0).up()
    fleet._hear(worker.process, Ask(7, "what?"))
    await asyncio.gather(*fleet._answers)
    assert worker.orders[-1] == Answer(7, "what?")

    async def refuse(question: Any) -> Any:
        raise ConfigError("no") if question == "wrong" else ValueError("a bug")

    object.__setattr__(fleet._hooks, "answer", refuse)
    for question, code in (("wrong", Code.INVALID_ARGUMENT), ("bug", Code.INTERNAL)):
        fleet._hear(worker.process, Ask(8, question))
        await asyncio.gather(*fleet._answers)
        assert worker.orders[-1].value.code is code


async def test_who_does_not_say_what_it_has_counted_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "MEASURE_PATIENCE", 0.01)
    fleet = make_fleet(2)
    quick, slow = (FakeWorker(fleet, index).up() for index in range(2))
    slow.waiting = True
    await fleet.measure()
    assert (quick.process.measured, slow.process.measured) == (1, 0)
    measuring = asyncio.create_task(fleet.measure())
    await asyncio.sleep(0)
    slow.say(Measured(2, {}))
    slow.go_on()
    await measuring
    assert any(isinstance(order, Measure) for order in slow.orders)


def test_a_fleet_tells_who_is_there() -> None:
    async def show() -> str:
        fleet = make_fleet(2)
        FakeWorker(fleet, 1).up()
        fleet.open(rest=True, grpc=False)
        assert Open(rest=True, grpc=False) in fleet.processes()[0].channel.orders  # type: ignore[attr-defined]
        return repr(fleet)

    assert asyncio.run(show()) == "<Fleet 0: restarting, 1: serving>"


async def test_a_worker_that_says_its_threads_are_stuck_is_told_to_end_and_the_others_serve_on(caplog: Any) -> None:
    fleet = make_fleet(2)
    workers = [FakeWorker(fleet, index).up() for index in range(2)]
    fleet.open(rest=True, grpc=False)
    await fleet.opened()
    for worker in workers:
        worker.say(Stuck(frozenset({"m"}), "no run thread is left"))
    while len(fleet.stuck_in().get("m", ())) < 2:
        await asyncio.sleep(0)
    assert fleet.stuck_in() == {"m": [0, 1]}
    assert [Drain() in worker.orders for worker in workers] == [True, False]
    assert "Worker 0 is replaced: no run thread is left" in caplog.text
    workers[0].die()
    assert fleet.stuck_in() == {"m": [1]}
    assert Drain() not in workers[1].orders
    new = FakeWorker(fleet, 0).up()
    while Drain() not in workers[1].orders:  # When the new process serves.
        await asyncio.sleep(0)
    assert new.process.serving
    assert Drain() not in new.orders


async def test_a_worker_with_a_stuck_run_and_threads_left_is_named_and_not_replaced() -> None:
    fleet = make_fleet(1)
    worker = FakeWorker(fleet, 0).up()
    fleet.open(rest=True, grpc=False)
    await fleet.opened()
    worker.say(Stuck(frozenset({"m"})))
    while not fleet.stuck_in():
        await asyncio.sleep(0)
    worker.say(Stuck())
    while fleet.stuck_in():
        await asyncio.sleep(0)
    assert Drain() not in worker.orders
