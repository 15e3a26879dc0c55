"""Rounds come at an interval, when woken, and again after whatever went wrong."""

from __future__ import annotations

import asyncio
import logging
from math import inf

import pytest

from embedserve.remote.errors import StoreError
from embedserve.remote.poller import Poller


class Work:
    """Counts rounds; each ends as `ends` says, or in order."""

    def __init__(self, *ends: Exception) -> None:
        self.begun = 0
        self.ends = list(ends)
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> None:
        self.begun += 1
        await self.go_on.wait()
        if self.ends:
            raise self.ends.pop(0)


async def test_a_woken_round_is_waited_for_and_not_the_one_under_way() -> None:
    work = Work()
    work.go_on.clear()
    poller = Poller(work, inf)
    poller.start()
    await asyncio.sleep(0)
    settled = asyncio.create_task(poller.settled(lambda: True))
    await asyncio.sleep(0)
    work.go_on.set()
    await settled
    assert work.begun == 2
    more = iter([False, False, True])

    def done() -> bool:
        finished = next(more)
        if not finished:
            poller.wake()
        return finished

    await poller.settled(done)
    assert work.begun == 5
    await poller.aclose()
    await poller.settled(lambda: False)


async def test_a_failure_is_counted_and_the_next_success_clears_it() -> None:
    work = Work(StoreError("no answer"), StoreError("still none"))
    poller = Poller(work, 0.001)
    poller.start()
    await poller.settled(lambda: False)
    assert (poller.error, poller.failures) in [("no answer", 1), ("still none", 2)]
    while work.begun < 3:
        await poller.settled(lambda: True)
    assert (poller.error, poller.failures) == (None, 0)
    await poller.aclose()


async def test_a_bug_is_logged_and_the_rounds_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    work = Work(KeyError("oops"))
    poller = Poller(work, inf)
    poller.start()
    await poller.settled(lambda: True)
    assert poller.error == "KeyError: 'oops'"
    assert "syncing failed; it is tried again" in caplog.text
    await poller.settled(lambda: True)
    assert poller.error is None
    await poller.aclose()
