"""What the parent process does besides its fleet: ends everything at a second signal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from embedserve.server import standalone
from embedserve.server.standalone import stop_on_signals


async def test_a_second_signal_ends_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(standalone, "exit_now", done.append)
    with stop_on_signals(lambda: done.append("workers killed")) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)
        assert done == []
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(10):
            while len(done) < 2:
                await asyncio.sleep(0)
    assert done == ["workers killed", 128 + signal.SIGINT]
