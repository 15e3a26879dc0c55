"""Messages arrive whole and in order, until the other end has gone."""

from __future__ import annotations

import socket

from embedserve.server.workers.channel import Channel
from embedserve.server.workers.messages import Alive, Key


async def ends() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return await Channel.over(one), await Channel.over(other)


async def test_what_is_sent_arrives_in_order_however_large_it_is() -> None:
    one, other = await ends()
    sent = [Alive({"a": n}) for n in range(100)] + [Alive(b"x" * 3_000_000), Key("m", 1, 2)]
    for message in sent:
        one.send(message)
    received = []
    async for message in other:
        received.append(message)
        if len(received) == len(sent):
            one.close()
    assert received == sent
    other.close()


async def test_half_a_message_is_none_and_nobody_is_told_anything_after_the_end() -> None:
    one, there = socket.socketpair()
    other = await Channel.over(there)
    one.sendall(b"\x10\0\0\0\0\0\0\0half")
    one.close()
    assert [message async for message in other] == []
    other.send(Alive())
    other.close()
    other.send(Alive())


async def test_a_channel_that_nobody_reads_says_so() -> None:
    one, there = socket.socketpair()
    channel = await Channel.over(one)
    assert not channel.congested
    channel.send(Alive(b"x" * 4_000_000))
    assert channel.congested
    there.close()
    channel.close()
