"""When a free slot waits for more requests: by tables of what came, without a loop and without a clock."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from functools import partial

import pytest

from embedserve.concurrency.dispatch_delay import DispatchDelay


class Clock:
    """Time that passes by hand, and how much of it the process has worked."""

    def __init__(self) -> None:
        self.time = 0.0
        self.worked = 0.0

    def advance(self, seconds: float, load: float = 1.0) -> None:
        self.time += seconds
        self.worked += seconds * load

    def delay(self) -> DispatchDelay:
        return DispatchDelay(lambda: self.time, lambda: self.worked)


def dispatch(
    delay: DispatchDelay, clock: Clock, waiting: Callable[[int], int], load: float = 1.0
) -> tuple[int, int, int]:
    """Ask until it says to dispatch; turns waited, pauses waited, and requests there at the end."""
    turns = pauses = 0
    while (pause := delay.pause(now := waiting(turns + pauses * 100))) is not None:
        if pause:
            pauses += 1
            clock.advance(pause, load)
        else:
            turns += 1
            clock.advance(0.000_01, load)
        assert turns + pauses < 200
    return turns, pauses, now


def more_of(first: int, asked: int) -> int:
    """Requests there after so many questions: one more each four."""
    return first + asked // 4


def test_nothing_to_gain_is_dispatched_at_once() -> None:
    delay = Clock().delay()
    assert all(delay.pause(0) is None for _ in range(100))


def test_a_lonely_request_waits_only_now_and_then_and_only_turns() -> None:
    clock = Clock()
    delay = clock.delay()
    waits = [dispatch(delay, clock, lambda asked: 1, load=0.1) for _ in range(160)]
    assert sum(turns > 0 for turns, _, _ in waits) == 160 // DispatchDelay.TRY_EVERY
    assert all(pauses == 0 for _, pauses, _ in waits)


def test_requests_that_come_turn_by_turn_share_a_batch() -> None:
    clock = Clock()
    delay = clock.delay()
    waits = [dispatch(delay, clock, lambda asked: 1 + asked // 4, load=0.1) for _ in range(60)]
    assert waits[-1][2] > 8
    assert all(turns <= DispatchDelay.MOST_TURNS and pauses == 0 for turns, pauses, _ in waits)


def test_a_saturated_process_pauses_where_few_are_there_and_runs_are_short() -> None:
    clock = Clock()
    delay = clock.delay()
    for _ in range(60):
        clock.advance(0.005)
        delay.ran(0.0002)
        last = dispatch(delay, clock, lambda asked: 1 + asked // 4)
    assert last[1] > 0
    assert delay.enough == sys.maxsize  # Only during a pause is there a number that ends it.


def test_long_runs_and_idle_processes_are_not_paused_for() -> None:
    for seconds, load in ((0.02, 1.0), (0.0002, 0.2)):
        clock = Clock()
        delay = clock.delay()
        for _ in range(100):
            clock.advance(0.005, load)
            delay.ran(seconds)
            _, pauses, _ = dispatch(delay, clock, partial(more_of, 1), load)
        assert pauses == 0, (seconds, load)


def of_threads(first: int, gained: int, asked: int) -> int:
    """Requests there after so many questions: none comes while the loop turns, as many as are `gained` in a pause."""
    return first + gained * (asked >= 100)


def pauses_of(delay: DispatchDelay, clock: Clock, first: int, gained: int, dispatches: int, load: float = 1.0) -> int:
    """Pauses in so many dispatches of requests that come from other threads."""
    pauses = 0
    for _ in range(dispatches):
        clock.advance(0.005, load)
        delay.ran(0.0002)
        pauses += dispatch(delay, clock, partial(of_threads, first, gained), load)[1] > 0
    return pauses


def test_pauses_are_tried_where_turns_are_in_vain() -> None:
    clock = Clock()
    delay = clock.delay()
    assert pauses_of(delay, clock, 6, 10, DispatchDelay.VAIN * DispatchDelay.TRY_EVERY) == 0
    assert pauses_of(delay, clock, 6, 10, 2 * DispatchDelay.TRY_EVERY) > 0


def test_an_idle_process_and_few_requests_are_not_paused_for_where_turns_are_in_vain() -> None:
    for first, load in ((6, 0.2), (2, 1.0)):
        clock = Clock()
        assert pauses_of(clock.delay(), clock, first, 10, 400, load) == 0, (first, load)


def test_pauses_that_bring_nothing_are_tried_less_and_less_often() -> None:
    clock = Clock()
    delay = clock.delay()
    early = pauses_of(delay, clock, 6, 0, 1000)
    pauses_of(delay, clock, 6, 0, 3000)
    assert 0 < pauses_of(delay, clock, 6, 0, 4 * DispatchDelay.RARELY) <= 5 <= early


def test_a_pause_goes_on_while_the_process_works_and_only_so_long() -> None:
    for load, steps in ((1.0, DispatchDelay.MOST_STEPS), (0.1, 1)):
        clock = Clock()
        delay = clock.delay()
        while True:
            clock.advance(0.005)
            _, pauses, _ = dispatch(delay, clock, lambda asked: 6, load)
            if pauses:
                break
        assert abs(pauses - steps) <= 1


def test_only_during_a_pause_is_there_a_number_that_ends_it() -> None:
    clock = Clock()
    delay = clock.delay()
    assert delay.enough == sys.maxsize
    while (pause := delay.pause(6)) != DispatchDelay.STEP:
        clock.advance(0.005 if pause is None else 0.000_01)
    assert delay.enough == 14
    delay.stop(14)
    assert delay.enough == sys.maxsize


class Core:
    """One core, on which requests are received and run, and clients elsewhere that ask again when they have an answer.

    Where `threads` receive, they do so a few at a time, and not while the loop turns.
    """

    RECEIVE, TURN, RUN, ROW, THINK = 0.000_08, 0.000_002, 0.000_15, 0.000_01, 0.000_06
    AT_ONCE = 6

    def __init__(self, threads: bool, pauses: bool) -> None:
        self.clock = Clock()
        self.delay = self.clock.delay()
        if not pauses:
            self.delay.SHORT_RUN = 0.0
        self.threads = threads
        self.coming: list[float] = []
        self.waiting = 0

    def receive(self, most: int) -> bool:
        """Receive what has come, if something has."""
        before = self.waiting
        while self.waiting < before + most and self.coming and self.coming[0] <= self.clock.time:
            heapq.heappop(self.coming)
            self.clock.advance(self.RECEIVE)
            self.waiting += 1
        return self.waiting > before

    def rest(self, until: float) -> None:
        self.clock.advance(max(min([until, *self.coming[:1]]) - self.clock.time, 0.000_001), load=0.0)

    def pause(self, seconds: float) -> bool:
        """Wait; whether there are enough before the end."""
        end = self.clock.time + seconds
        while self.clock.time < end:
            if not self.receive(1):
                self.rest(end)
            elif self.waiting >= self.delay.enough:
                self.delay.stop(self.waiting)
                return True
        return False

    def answers(self, clients: int, seconds: float) -> int:
        """How many a closed loop of clients gets in the second half of a time."""
        self.coming = [0.0] * clients
        answered = 0
        while self.clock.time < seconds:
            if not self.waiting:
                if not self.receive(self.AT_ONCE if self.threads else 1):
                    self.rest(seconds)
                continue
            pause = self.delay.pause(self.waiting)
            if pause == 0.0:
                self.clock.advance(self.TURN)
                if not self.threads:
                    self.receive(1)
                continue
            if pause and not self.pause(pause):
                continue
            self.clock.advance(self.RUN + self.waiting * self.ROW)
            self.delay.ran(self.RUN)
            answered += self.waiting * (self.clock.time > seconds / 2)
            for _ in range(self.waiting):
                heapq.heappush(self.coming, self.clock.time + self.THINK)
            self.waiting = 0
        return answered


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("clients", [1, 2, 4, 8, 16, 32, 64])
def test_pauses_cost_no_throughput_whoever_asks(clients: int, threads: bool) -> None:
    without, paused = (Core(threads, pauses).answers(clients, 2.0) for pauses in (False, True))
    assert paused > 0.95 * without


@pytest.mark.parametrize("clients", [16, 32, 64])
def test_pauses_bring_throughput_where_other_threads_receive(clients: int) -> None:
    without, paused = (Core(True, pauses).answers(clients, 2.0) for pauses in (False, True))
    assert paused > 1.05 * without


def test_pauses_follow_the_number_of_clients() -> None:
    core = Core(threads=True, pauses=True)
    core.answers(32, 2.0)
    fewer = Core(threads=True, pauses=True)
    fewer.delay = core.delay
    fewer.clock = core.clock
    alone = Core(threads=True, pauses=True).answers(8, 2.0)
    assert fewer.answers(8, 4.0) > 0.9 * 2 * alone  # Two seconds, and one.
