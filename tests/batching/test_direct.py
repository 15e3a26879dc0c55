"""The unbatched path: bounded, in order, with deadlines and cancellation; and the promises both paths keep."""

from __future__ import annotations

import asyncio
import math
import threading

import numpy as np
import pytest

from embedserve.batching.direct import DeadlineTimer, DirectPredictor
from embedserve.batching.routing import BatchingPredictor
from embedserve.batching.watchdog import VersionRuns
from embedserve.config import BatchingOptions
from embedserve.errors import Code, DeadlineExceededError, InferenceError, QueueFullError, RegistryStateError
from embedserve.observer import Observers
from embedserve.servable import Array, Cancellation, Tensors
from tests.batching.fakes import ID, FakeServable, Rig, rig, signature, times_ten

both = pytest.mark.parametrize("batching", [False, True], ids=["direct", "batched"])


def beside(r: Rig, batching: bool, servable: FakeServable | None = None) -> DirectPredictor | BatchingPredictor:
    """A predictor of another version on the same threads."""
    runs = VersionRuns(ID, Observers(), math.inf)
    direct = DirectPredictor(servable or FakeServable(), runs, r.pool, Observers(), 100)
    return BatchingPredictor(direct, [signature()], r.pool, Observers(), BatchingOptions()) if batching else direct


async def test_each_request_is_a_run_of_its_own_on_the_callers_arrays() -> None:
    async with rig(batching=False, threads=2) as r:
        assert isinstance(r.predictor, DirectPredictor)
        x = np.array([1, 2])
        answers = await asyncio.gather(r.submit(x=x), r.submit(3), r.submit(4, output_names=("y",)))
        assert [answer["y"].tolist() for answer in answers] == [[10, 20], [30], [40]]
        assert sorted(r.servable.sizes) == [1, 1, 2]
        assert any(inputs["x"] is x for inputs in r.servable.runs)
        assert ("y",) in r.servable.output_names
        statistics = r.predictor.statistics()
        assert (statistics.runs, statistics.requests, statistics.waiting, statistics.running) == (3, 3, 0, 0)


async def test_requests_run_in_the_order_in_which_they_came() -> None:
    async with rig(batching=False) as r:
        await asyncio.gather(*(r.submit(i) for i in range(10)))
        assert [int(inputs["x"][0]) for inputs in r.servable.runs] == list(range(10))


async def test_a_full_direct_queue_refuses_at_once_and_says_what_is_in_it() -> None:
    async with rig(FakeServable(held=True), batching=False, max_pending=3) as r:
        answers = [r.submit(i) for i in range(3)]
        await r.began()
        with pytest.raises(QueueFullError, match=r"2 requests wait, 1 run and max_pending_requests is 3") as caught:
            r.submit(3)
        assert caught.value.code is Code.UNAVAILABLE
        answers[1].cancel()
        answers.append(r.submit(4))
        r.servable.let(3)
        assert [(await answers[i])["y"].tolist() for i in (0, 2, 3)] == [[0], [20], [40]]
        assert r.predictor.statistics().refused == 1


async def test_several_versions_share_the_threads_in_turn() -> None:
    order: list[str] = []

    def noting(name: str) -> FakeServable:
        def model(inputs: Tensors) -> dict[str, Array]:
            order.append(name)
            return times_ten(inputs)

        return FakeServable(model)

    async with rig(noting("a"), batching=False) as a:
        b = Rig(a.servable, a.pool, beside(a, False, noting("b")))
        await asyncio.gather(*[a.submit(i) for i in range(3)], *[b.submit(i) for i in range(3)])
        await b.predictor.aclose()
    assert order == [*"ababab"]


@both
async def test_a_request_that_left_or_timed_out_while_waiting_costs_no_run(batching: bool) -> None:
    async with rig(FakeServable(held=True), BatchingOptions(max_batch_size=1), batching=batching) as r:
        first = r.submit(1)
        await r.began()
        gone, late, last = r.submit(2), r.submit(3, timeout=0.01), r.submit(4)
        gone.cancel()
        with pytest.raises(DeadlineExceededError, match=r"^Timed out waiting for notification$") as caught:
            await late
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        r.servable.let(2)
        assert [(await answer)["y"].tolist() for answer in (first, last)] == [[10], [40]]
        assert len(r.servable.runs) == 2
        assert r.predictor.statistics().dropped == 2


@both
async def test_a_deadline_that_has_passed_already_costs_no_run(batching: bool) -> None:
    async with rig(batching=batching) as r:
        with pytest.raises(DeadlineExceededError):
            await r.submit(1, timeout=-1)
        assert not r.servable.runs
        assert (await r.submit(2, timeout=60))["y"].tolist() == [20]
        assert r.servable.timeouts[0] is not None
        assert 50 < r.servable.timeouts[0] <= 60


@both
async def test_a_run_that_nobody_waits_for_is_cancelled_and_its_slot_freed(batching: bool) -> None:
    async with rig(FakeServable(held=True), batching=batching) as r:
        request = asyncio.ensure_future(r.submit(1))
        await r.began()
        request.cancel()
        other = r.submit(2)
        await r.began()
        r.servable.let(1)
        assert (await other)["y"].tolist() == [20]
        assert r.servable.cancelled == 1
        assert r.predictor.statistics().cancelled == 1


@both
async def test_a_run_that_outlives_its_deadline_is_cancelled(batching: bool) -> None:
    async with rig(FakeServable(held=True), batching=batching) as r:
        endless = r.submit(1, timeout=0.01)
        with pytest.raises(DeadlineExceededError):
            await endless
        other = r.submit(2)
        await r.began(2)
        r.servable.let(1)
        assert (await other)["y"].tolist() == [20]
        assert r.servable.cancelled == 1


@both
async def test_a_run_that_notices_its_time_limit_first_fails_with_the_same_error(batching: bool) -> None:
    def model(inputs: Tensors) -> dict[str, Array]:
        raise InferenceError("the session's own words", code=Code.DEADLINE_EXCEEDED)

    async with rig(FakeServable(model), batching=batching) as r:
        for request in (r.submit(1, timeout=60), r.submit(2, timeout=60)):
            with pytest.raises(DeadlineExceededError, match=r"^Timed out waiting for notification$"):
                await request
        with pytest.raises(InferenceError, match="the session's own words"):
            await r.submit(3)


@both
@pytest.mark.parametrize("error", [InferenceError("no", code=Code.ABORTED), ValueError("bug"), SystemExit(1)])
async def test_what_the_run_raises_is_the_callers(batching: bool, error: BaseException) -> None:
    def model(inputs: Tensors) -> dict[str, Array]:
        raise error

    async with rig(FakeServable(model), batching=batching) as r:
        with pytest.raises(RuntimeError if isinstance(error, SystemExit) else type(error), match=str(error)):
            await r.submit(1)


@both
async def test_closing_answers_what_was_submitted_waits_for_threads_and_refuses_the_rest(batching: bool) -> None:
    options = BatchingOptions(max_batch_size=1, batch_timeout_micros=60_000_000)
    async with rig(FakeServable(held=True), options, batching=batching) as r:
        answers = [r.submit(i) for i in range(3)]
        await r.began()
        answers[0].cancel()  # Its thread is not back before it is let go on or notices.
        closing = [asyncio.create_task(r.predictor.aclose()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RegistryStateError, match="is being unloaded"):
            r.submit(9)
        assert not any(task.done() for task in closing)
        r.servable.let(2)
        assert [(await answer)["y"].tolist() for answer in answers[1:]] == [[10], [20]]
        await asyncio.gather(*closing)
        assert r.predictor.statistics().running == 0
        assert "waiting" in repr(r.predictor)


@both
async def test_closing_does_not_wait_for_a_slot_for_requests_that_are_gone(batching: bool) -> None:
    blocker = FakeServable(held=True)
    async with rig(blocker, batching=False) as r:
        endless = r.submit(1)
        await r.began()
        other = Rig(FakeServable(), r.pool, beside(r, batching))
        waiting = other.submit(2)
        closing = asyncio.create_task(other.predictor.aclose())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait_for(closing, 30)
        assert not endless.done()
        blocker.let(1)
        await endless


class Request:
    """What a deadline timer watches."""

    def __init__(self, deadline: float | None) -> None:
        self.future: asyncio.Future[dict[str, Array]] = asyncio.get_running_loop().create_future()
        self.deadline = deadline


async def test_one_timer_ends_each_request_at_its_own_deadline() -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    requests = [Request(at and now + at) for at in (0.03, None, 0.01, 60.0, 0.02, 0.02)]
    timer = DeadlineTimer(loop, lambda: requests)
    ended: dict[int, float] = {}
    for i, request in enumerate(requests):
        request.future.add_done_callback(lambda _, i=i: ended.update({i: loop.time()}))  # type: ignore[misc]
        if request.deadline is not None:
            timer.watch(request.deadline)
    requests[4].future.set_result({})
    await asyncio.wait([requests[0].future])
    assert set(ended) == {4, 2, 5, 0}
    # No order: a busy machine may reach several deadlines in one sweep.
    assert all(ended[i] >= (requests[i].deadline or 0) - 0.001 for i in (2, 5, 0))
    assert not requests[1].future.done()
    assert not requests[3].future.done()
    timer.close()
    for request in requests:
        if request.future.done() and request is not requests[4]:
            assert isinstance(request.future.exception(), DeadlineExceededError)


# Calls that are not runs of a signature.


class Held:
    """A call that waits until it is let go or cancelled."""

    def __init__(self) -> None:
        self.began, self.end = threading.Event(), threading.Event()
        self.timeout: float | None = None

    def __call__(self, *, cancellation: Cancellation, timeout: float | None) -> str:
        self.timeout = timeout
        cancellation.on_cancel(self.end.set)
        self.began.set()
        assert self.end.wait(30)
        cancellation.on_cancel(None)
        return "cancelled" if cancellation.cancelled else "done"


@both
async def test_a_call_waits_for_a_run_thread_as_requests_do(batching: bool) -> None:
    async with rig(batching=batching, max_pending=2) as r:
        first, second = Held(), Held()
        one, two = r.predictor.submit_call(first), r.predictor.submit_call(second)
        with pytest.raises(QueueFullError, match="max_pending_requests is 2"):
            r.predictor.submit_call(Held())
        assert await asyncio.to_thread(first.began.wait, 30)
        assert not second.began.is_set()
        for held in (first, second):
            held.end.set()
        assert [await one, await two] == ["done", "done"]
        assert (first.timeout, r.predictor.statistics().runs) == (None, 2)


@both
async def test_a_call_is_cancelled_when_its_caller_leaves_or_its_time_is_over(batching: bool) -> None:
    async with rig(batching=batching) as r:
        left, late = Held(), Held()
        answer = r.predictor.submit_call(left)
        assert await asyncio.to_thread(left.began.wait, 30)
        answer.cancel()
        with pytest.raises(DeadlineExceededError):
            await r.predictor.submit_call(late, r.pool.loop.time() + 0.05)
        assert await asyncio.to_thread(left.end.wait, 30)
        await r.predictor.aclose()
        with pytest.raises(RegistryStateError, match="is being unloaded"):
            r.predictor.submit_call(Held())


@both
async def test_closing_waits_for_the_thread_of_a_call_that_nobody_awaits(batching: bool) -> None:
    ended = threading.Event()
    go = threading.Event()
    began = threading.Event()

    def call(*, cancellation: Cancellation, timeout: float | None) -> None:
        began.set()
        assert go.wait(30)
        ended.set()

    async with rig(batching=batching) as r:
        answer = r.predictor.submit_call(call)
        assert await asyncio.to_thread(began.wait, 30)
        answer.cancel()
        closing = asyncio.create_task(r.predictor.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
        go.set()
        await closing
        assert ended.is_set()
