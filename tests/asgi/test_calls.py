"""A call ends when its client goes or its deadline passes, once, and nothing is left over."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from embedserve.asgi import calls as calls_module
from embedserve.asgi.calls import Call, Calls, ClientDisconnected, Receive
from embedserve.errors import DeadlineExceededError

HOUR = 3600


async def gone() -> Any:
    return {"type": "http.disconnect"}


async def never() -> Any:
    await asyncio.get_running_loop().create_future()


async def ended() -> Any:
    """A host that answers at once, again and again, that the body has ended."""
    return {"type": "http.request", "body": b"", "more_body": False}


def watching() -> Calls:
    """Looks at its calls in every turn of the loop."""
    return Calls(patience=0)


def now() -> float:
    return asyncio.get_running_loop().time()


async def assert_nothing_left() -> None:
    """The task is as before: no cancellation is counted, and none arrives."""
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    for _ in range(5):
        await asyncio.sleep(0)


async def test_cancels_what_it_wraps() -> None:
    with pytest.raises(ClientDisconnected), watching().enter(gone):
        await never()
    await assert_nothing_left()


async def test_work_that_ends_first_keeps_its_result() -> None:
    with Calls().enter(gone):
        result = 1
    assert result == 1
    await assert_nothing_left()


@pytest.mark.parametrize("turns", range(10))
@pytest.mark.parametrize("receive", [gone, never])
async def test_whatever_comes_first_no_cancellation_is_left_over(turns: int, receive: Receive) -> None:
    calls = watching()
    try:
        with calls.enter(receive, now()):
            for _ in range(turns):
                await asyncio.sleep(0)
    except (ClientDisconnected, DeadlineExceededError):
        pass
    await assert_nothing_left()
    assert repr(calls) == "<Calls 0 not watched yet>"


async def test_an_error_of_the_work_is_passed_on() -> None:
    with pytest.raises(ValueError, match="mine"), Calls().enter(gone):
        raise ValueError("mine")


async def test_work_that_turns_the_cancellation_into_an_error_has_the_last_word() -> None:
    async def work() -> None:
        try:
            await never()
        except asyncio.CancelledError:
            raise ValueError("mine") from None

    with pytest.raises(ValueError, match="mine"), watching().enter(gone):
        await work()
    await assert_nothing_left()


async def test_a_deadline_cancels_what_it_wraps() -> None:
    with pytest.raises(DeadlineExceededError), watching().enter(never, now() + 0.01):
        await never()
    await assert_nothing_left()


async def test_a_deadline_that_has_passed_cancels_at_once() -> None:
    with pytest.raises(DeadlineExceededError), watching().enter(never, now() - HOUR):
        await never()


@pytest.mark.parametrize("receive", [gone, never])
async def test_a_cancellation_from_outside_stays_one(receive: Receive) -> None:
    """Also when client, deadline and the outside all want the end in the same turn."""
    inside = asyncio.Event()

    async def work() -> None:
        with watching().enter(receive, now()):
            inside.set()
            await never()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_host_that_answers_at_once_is_asked_with_pauses_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    async def receive() -> Any:
        asked.append(now())
        return await (ended() if len(asked) < 6 else gone())

    monkeypatch.setattr(calls_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(calls_module, "_LAST_PAUSE", 0.04)
    with pytest.raises(ClientDisconnected), watching().enter(receive):
        await never()
    pauses = [after - before for before, after in pairwise(asked)]
    assert all(pause >= least - 0.001 for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.04, 0.04), strict=True))


async def test_most_calls_have_no_task_and_no_timer() -> None:
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return await gone()

    calls = Calls(patience=HOUR)
    before = asyncio.all_tasks()
    for _ in range(3):
        with calls.enter(receive, now()):
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
    assert not asked


async def test_one_timer_looks_at_many_calls_and_stops_when_there_are_none() -> None:
    calls = watching()

    async def work() -> None:
        with calls.enter(gone):
            await never()

    ends = await asyncio.gather(*(work() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(end, ClientDisconnected) for end in ends)
    while calls._ticking_on is not None:
        await asyncio.sleep(0)


class TestReading:
    """A call whose body is read inside of it."""

    async def test_a_deadline_ends_the_reading(self) -> None:
        with pytest.raises(DeadlineExceededError), watching().enter(deadline=now()):
            await never()
        await assert_nothing_left()

    async def test_nobody_else_receives_while_the_body_is_read(self) -> None:
        with watching().enter():
            before = asyncio.all_tasks()
            for _ in range(10):
                await asyncio.sleep(0)
                assert asyncio.all_tasks() == before

    @pytest.mark.parametrize("turns", [0, 1, 10])
    async def test_a_client_that_goes_after_the_body_is_noticed(self, turns: int) -> None:
        async def work(call: Call) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            call.listen(gone)
            await never()

        with pytest.raises(ClientDisconnected), watching().enter() as call:
            await work(call)
        await assert_nothing_left()

    @pytest.mark.parametrize("turns", range(10))
    async def test_a_client_that_goes_while_it_is_answered_does_not_count(self, turns: int) -> None:
        """A host says that it goes, too, when it has the whole answer."""
        left = asyncio.Event()

        async def receive() -> Any:
            await left.wait()
            return await gone()

        with watching().enter() as call:
            call.listen(receive)
            for _ in range(turns):
                await asyncio.sleep(0)
            left.set()
            call.deafen()
            for _ in range(10):
                await asyncio.sleep(0)
        await assert_nothing_left()

    async def test_a_deadline_ends_an_answer_that_nobody_reads(self) -> None:
        async def work(call: Call) -> None:
            call.listen(never)
            call.deafen()
            await never()

        with pytest.raises(DeadlineExceededError), watching().enter(deadline=now() + 0.01) as call:
            await work(call)


def test_the_next_loop_watches_again_when_one_was_closed_in_the_middle() -> None:
    """As test clients and reloading hosts do it: one application, a loop for each of its lives."""
    calls = Calls(patience=0.001)

    async def quick() -> None:
        with calls.enter(gone):
            await asyncio.sleep(0)

    async def slow() -> None:
        with pytest.raises(ClientDisconnected), calls.enter(gone):
            await asyncio.wait_for(never(), 30)

    asyncio.run(quick())
    asyncio.run(slow())
    asyncio.run(slow())
