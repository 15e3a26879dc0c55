"""What the two processes of the one-port server say arrives, and so does an end."""

from __future__ import annotations

import asyncio
import socket

import pytest

from embedserve.errors import Code, ServingError, StartError
from embedserve.server.pyvoy.link import Link


async def linked() -> tuple[Link, Link]:
    ours, its = socket.socketpair()
    return await Link.open(ours), await Link.open(its)


async def test_stages_arrive_in_order_either_way_and_an_end_is_heard() -> None:
    ours, its = await linked()
    its.say("opening")
    its.say("ready")
    ours.say("drain")
    assert [await ours.heard(), await ours.heard(), await its.heard()] == ["opening", "ready", "drain"]
    its.close()
    assert await ours.heard() is None
    ours.say("drain")
    ours.close()
    ours.say("drain")


async def test_what_is_told_arrives_before_what_is_said_however_long_it_is() -> None:
    ours, its = await linked()
    text = "x" * 5_000_000
    ours.tell(text)
    ours.say("drain")
    assert await asyncio.wait_for(its.told(), 10) == text
    assert await its.heard() == "drain"
    ours.close()
    assert await its.told() == ""
    its.close()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StartError("1 servable(s) did not become available"), Code.UNKNOWN, "1 servable(s) did not become available"),
        (ServingError("two\nlines", code=Code.NOT_FOUND), Code.NOT_FOUND, "two\nlines"),
        (OSError(28, "No space left on device"), Code.UNKNOWN, "[Errno 28] No space left on device"),
    ],
)
async def test_a_failure_arrives_with_its_code_and_words(error: Exception, code: Code, message: str) -> None:
    ours, its = await linked()
    its.say("failed", error)
    await its.flush()
    its.close()
    with pytest.raises(ServingError) as caught:
        await asyncio.wait_for(ours.heard(), 10)
    assert (caught.value.code, caught.value.message) == (code, message)
    ours.close()
