"""What pyvoy's event loops need of an application."""

from __future__ import annotations

import asyncio
import logging

import pytest

from embedserve.server.pyvoy.application import overlook_late_events


def test_only_events_that_come_too_late_are_overlooked(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        overlook_late_events(loop, {"message": "late", "exception": asyncio.InvalidStateError("invalid state")})
        overlook_late_events(loop, {"message": "no exception"})
        overlook_late_events(loop, {"message": "a bug", "exception": ValueError("x")})
    finally:
        loop.close()
    assert [record.message.splitlines()[0] for record in caplog.records] == ["no exception", "a bug"]
    assert all(record.levelno == logging.ERROR for record in caplog.records)
