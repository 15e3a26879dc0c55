"""Who enters the registry, and what an application says that cannot use it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from embedserve.asgi.hosting import check_usable, path_as_sent, run_lifespan
from embedserve.errors import NotReadyError, StartError
from embedserve.testing import FakeLoader, FakeRegistry


def registry(**options: Any) -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader()}}, **options)


class Host:
    """Starts an application and, when told, ends it."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self.tell("startup")

    def tell(self, step: str) -> None:
        self._events.put_nowait({"type": f"lifespan.{step}"})

    async def receive(self) -> Any:
        return await self._events.get()

    async def send(self, event: dict[str, Any]) -> None:
        self.said.put_nowait(event)

    async def heard(self) -> str:
        return str((await asyncio.wait_for(self.said.get(), 30))["type"])


async def test_a_registry_that_nobody_entered_is_entered_for_the_applications_life() -> None:
    reg, host = registry(), Host()
    task = asyncio.create_task(run_lifespan(reg, None, host.receive, host.send))
    assert await host.heard() == "lifespan.startup.complete"
    assert reg.started
    host.tell("shutdown")
    assert await host.heard() == "lifespan.shutdown.complete"
    await task
    assert not reg.started


async def test_a_registry_that_is_entered_stays_so() -> None:
    async with registry() as reg:
        host = Host()
        host.tell("shutdown")
        await run_lifespan(reg, None, host.receive, host.send)
        assert [await host.heard() for _ in range(2)] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert reg.started


async def test_a_failed_start_is_told_to_the_host_and_raised() -> None:
    reg = FakeRegistry({"m": {1: FakeLoader(load_gate=None, failures=-1)}}, start_timeout=0.05)
    host = Host()
    with pytest.raises(StartError, match="m"):
        await run_lifespan(reg, None, host.receive, host.send)
    event = await host.said.get()
    assert event["type"] == "lifespan.startup.failed"
    assert "m" in event["message"]
    assert not reg.started


@pytest.mark.may_block
async def test_a_registry_of_another_loop_is_used_and_left_to_whoever_entered_it() -> None:
    reg, host = registry(), Host()
    with reg:
        host.tell("shutdown")
        await run_lifespan(reg, None, host.receive, host.send)
        assert [await host.heard() for _ in range(2)] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert reg.started
        check_usable(reg)


@pytest.mark.parametrize(
    ("path", "raw", "sent"),
    [
        ("/a/", b"/ml/a", "/a"),
        ("/a/", b"/ml/a/", "/a/"),
        ("/a/", b"/ml/a/?b", "/a/"),
        ("/a/", b"/ml/a%2F", "/a/"),
        ("/a", b"/ml/a/", "/a"),
        ("/", b"/ml", "/"),
        ("/a/", b"", "/a/"),
        ("/a/", None, "/a/"),
    ],
)
def test_only_a_slash_that_was_not_sent_is_taken_off_a_path(path: str, raw: bytes | None, sent: str) -> None:
    assert path_as_sent({"path": path, "raw_path": raw}) == sent


async def test_a_registry_that_was_not_entered_is_refused_with_what_to_add() -> None:
    reg = registry()
    with pytest.raises(NotReadyError, match=r"lifespan=registry\.lifespan"):
        check_usable(reg)
    async with reg:
        check_usable(reg)


async def test_a_cancelled_host_ends_the_lifespan_and_leaves_the_registry() -> None:
    reg, host = registry(), Host()
    task = asyncio.create_task(run_lifespan(reg, None, host.receive, host.send))
    await host.heard()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not reg.started
