"""Runs are stopped when their time is over, and left alone when they end before."""

from __future__ import annotations

import threading

from embedserve.saved_model.run.function import Deadlines, TimedRun


def test_a_run_is_stopped_once_when_its_time_is_over() -> None:
    deadlines, stopped = Deadlines(), threading.Event()
    run, calls = TimedRun(0.01), []

    def stop() -> None:
        calls.append(run.expired)
        stopped.set()

    run.stop = stop
    deadlines.add(run)
    assert stopped.wait(30)
    assert calls == [True]
    assert repr(deadlines) == "<Deadlines of 0 runs>"


def test_a_run_that_has_ended_is_left_alone() -> None:
    deadlines, other_stopped = Deadlines(), threading.Event()
    ended, other = TimedRun(0.05), TimedRun(0.1)
    ended.stop = lambda: stops.append("stopped")
    stops: list[str] = []
    other.stop = other_stopped.set
    deadlines.add(ended)
    deadlines.add(other)
    deadlines.remove(ended)
    assert other_stopped.wait(30)
    assert not stops
    assert not ended.expired
