"""When a free slot waits for more requests: by tables of what came, without a loop and without a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from embedserve.settling import Settling


class Clock:
    """Time that passes by hand, and how much of it the process has worked."""

    def __init__(self) -> None:
        self.time = 0.0
        self.worked = 0.0

    def advance(self, seconds: float, load: float = 1.0) -> None:
        self.time += seconds
        self.worked += seconds * load

    def settling(self) -> Settling:
        return Settling(lambda: self.time, lambda: self.worked)


def dispatch(
    settling: Settling, clock: Clock, waiting: Callable[[int], int], load: float = 1.0
) -> tuple[int, int, int]:
    """Ask until it says to dispatch; turns waited, pauses waited, and requests there at the end."""
    turns = pauses = 0
    while (pause := settling.pause(now := waiting(turns + pauses * 100))) is not None:
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
    settling = Clock().settling()
    assert all(settling.pause(0) is None for _ in range(100))


def test_a_lonely_request_waits_only_now_and_then_and_only_turns() -> None:
    clock = Clock()
    settling = clock.settling()
    waits = [dispatch(settling, clock, lambda asked: 1, load=0.1) for _ in range(160)]
    assert sum(turns > 0 for turns, _, _ in waits) == 160 // Settling.TRY_EVERY
    assert all(pauses == 0 for _, pauses, _ in waits)


def test_requests_that_come_turn_by_turn_share_a_batch() -> None:
    clock = Clock()
    settling = clock.settling()
    waits = [dispatch(settling, clock, lambda asked: 1 + asked // 4, load=0.1) for _ in range(60)]
    assert waits[-1][2] > 8
    assert all(turns <= Settling.MOST_TURNS and pauses == 0 for turns, pauses, _ in waits)


def test_a_saturated_process_pauses_where_few_are_there_and_runs_are_short() -> None:
    clock = Clock()
    settling = clock.settling()
    for _ in range(60):
        clock.advance(0.005)
        settling.ran(0.0002)
        last = dispatch(settling, clock, lambda asked: 1 + asked // 4)
    assert last[1] > 0
    assert settling.enough == sys.maxsize  # Only during a pause is there a number that ends it.


def test_long_runs_full_queues_and_idle_processes_are_not_paused_for() -> None:
    for seconds, first, load in ((0.02, 1, 1.0), (0.0002, 40, 1.0), (0.0002, 1, 0.2)):
        clock = Clock()
        settling = clock.settling()
        for _ in range(100):
            clock.advance(0.005, load)
            settling.ran(seconds)
            _, pauses, _ = dispatch(settling, clock, partial(more_of, first), load)
        assert pauses == 0, (seconds, first, load)


def of_threads(first: int, gained: int, asked: int) -> int:
    """Requests there after so many questions: none comes while the loop turns, as many as are `gained` in a pause."""
    return first + gained * (asked >= 100)


def pauses_of(settling: Settling, clock: Clock, first: int, gained: int, dispatches: int, load: float = 1.0) -> int:
    """Pauses in so many dispatches of requests that come from other threads."""
    pauses = 0
    for _ in range(dispatches):
        clock.advance(0.005, load)
        settling.ran(0.0002)
        pauses += dispatch(settling, clock, partial(of_threads, first, gained), load)[1] > 0
    return pauses


def test_requests_that_other_threads_bring_are_paused_for_where_turns_are_in_vain() -> None:
    clock = Clock()
    settling = clock.settling()
    before = pauses_of(settling, clock, 6, 10, Settling.VAIN * Settling.TRY_EVERY)
    assert before == 0
    pauses_of(settling, clock, 6, 10, 200)
    # Of each few, one tries turns again.
    assert pauses_of(settling, clock, 6, 10, Settling.TRY_EVERY * 10) == (Settling.TRY_EVERY - 1) * 10
    assert any(settling.pause(6) == Settling.STEP for _ in range(Settling.MOST_TURNS))
    assert settling.enough == int(16 * Settling.PART)  # Not all that come at the most.


def test_pauses_for_other_threads_that_bring_nothing_are_given_up() -> None:
    clock = Clock()
    settling = clock.settling()
    assert pauses_of(settling, clock, 6, 10, 400) > 100
    pauses_of(settling, clock, 6, 0, Settling.TRUST)
    dispatches = 4000
    tries = dispatches // (Settling.TRY_EVERY * (Settling.PATIENCE + Settling.VAIN))
    assert 0 < pauses_of(settling, clock, 6, 0, dispatches) <= tries + 1


def test_other_threads_are_not_waited_for_by_an_idle_process_by_few_or_by_many() -> None:
    for first, load in ((6, 0.2), (2, 1.0), (20, 1.0)):
        clock = Clock()
        assert pauses_of(clock.settling(), clock, first, 10, 400, load) == 0, (first, load)


def test_turns_that_bring_requests_come_before_pauses_for_other_threads() -> None:
    clock = Clock()
    settling = clock.settling()
    assert pauses_of(settling, clock, 6, 10, 400) > 100
    for _ in range(2 * Settling.TRY_EVERY):
        clock.advance(0.005, load=0.1)
        last = dispatch(settling, clock, partial(more_of, 6), load=0.1)
    assert last[0] > 0
    assert last[1] == 0


def pause_once(settling: Settling, clock: Clock, clients: int) -> int:
    """One dispatch of a closed loop of `clients`, of which one is there at once; the number that ends its pause."""
    clock.advance(0.005)
    settling.ran(0.0002)
    pause = settling.pause(1)
    asked = 1
    while pause == 0.0:
        clock.advance(0.000_01)
        asked = min(asked + 1, clients)
        pause = settling.pause(asked)
    if pause is None:
        return 0
    enough = settling.enough
    clock.advance(pause)
    if clients >= enough:
        settling.stop(clients)
    else:
        while settling.pause(clients) is not None:
            clock.advance(pause)
    return enough


def test_a_pause_ends_when_as_many_are_there_as_ever_and_learns_that_fewer_come() -> None:
    clock = Clock()
    settling = clock.settling()
    many = max(pause_once(settling, clock, 12) for _ in range(400))
    assert many == 12
    few = [pause_once(settling, clock, 3) for _ in range(400)]
    assert 0 < min(enough for enough in few if enough) < 12
