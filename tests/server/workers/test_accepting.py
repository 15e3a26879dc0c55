"""Connections to one listening socket are shared evenly, none waits for long, and none is lost when one leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator

import pytest

from embedserve.server.workers import accepting
from embedserve.server.workers.accepting import Acceptor, ConnectionCounts, may_accept, surplus


@pytest.mark.parametrize(
    ("own", "others", "expected"), [(0, [], True), (3, [3, 4], True), (4, [3], False), (1, [0, 9], False)]
)
def test_who_takes_a_connection(own: int, others: list[int], expected: bool) -> None:
    assert may_accept(own, others) is expected


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [(16, [0], 8), (16, [15], 0), (3, [1], 0), (5, [1], 2), (0, [16], 0), (9, [], 0), (12, [0, 0], 8), (4, [5, 60], 0)],
)
def test_who_gives_connections_up(own: int, others: list[int], expected: int) -> None:
    assert surplus(own, others) == expected


@pytest.fixture
def counts() -> Iterator[ConnectionCounts]:
    with contextlib.closing(ConnectionCounts(3)) as counts:
        yield counts


def test_numbers_are_seen_by_every_process_that_has_the_descriptor(counts: ConnectionCounts) -> None:
    with contextlib.closing(ConnectionCounts(3, os.dup(counts.fd))) as other:
        assert other.accepting() == []
        counts.set(0, 7)
        other.set(2, 0)
        assert counts.accepting() == other.accepting() == [7, 0]
        assert counts.accepting(but=0) == [0]
        other.set(2, None)
        assert counts.accepting() == [7]


class Owned:
    """The connections of a worker, as its acceptor sees them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @property
    def connections(self) -> int:
        return len(self.worker.connections)

    def retire(self, count: int) -> None:
        self.worker.retired += count


class Worker:
    """One of those that listen: says its number to whoever connects."""

    def __init__(
        self, counts: ConnectionCounts, index: int, listener: socket.socket, tls: ssl.SSLContext | None = None
    ) -> None:
        self.connections: set[object] = set()
        self.retired = 0
        worker = self

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                worker.connections.add(self)
                transport.write(b"%d\n" % index)

            def connection_lost(self, error: Exception | None) -> None:
                worker.connections.discard(self)

        own = listener.dup()
        self.acceptor = Acceptor(counts, index, [own], Protocol, 128, tls, Owned(self))


@contextlib.asynccontextmanager
async def connected(port: int, number: int) -> AsyncIterator[list[int]]:
    """That many connections at once, and who has each."""
    streams = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(number)))
    async with asyncio.timeout(20):
        yield [int(await reader.readline()) for reader, _ in streams]
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


async def test_connections_are_shared_evenly_whether_they_come_at_once_or_one_by_one(
    counts: ConnectionCounts, listener: socket.socket
) -> None:
    workers = [Worker(counts, index, listener) for index in range(2)]
    port = listener.getsockname()[1]
    async with connected(port, 20) as burst:
        assert abs(burst.count(0) - burst.count(1)) <= 2
        async with contextlib.AsyncExitStack() as stack:
            each = [(await stack.enter_async_context(connected(port, 1)))[0] for _ in range(20)]
            both = burst + each
            assert abs(both.count(0) - both.count(1)) <= 2
    for worker in workers:
        worker.acceptor.close()
        await worker.acceptor.wait_closed()
    assert counts.accepting() == []


async def test_a_connection_is_not_left_to_one_that_hangs(counts: ConnectionCounts, listener: socket.socket) -> None:
    worker = Worker(counts, 0, listener)
    counts.set(1, 0)  # It has none, and takes none.
    async with connected(listener.getsockname()[1], 5) as all_of_them:
        assert all_of_them == [0] * 5
    worker.acceptor.close()


async def test_the_last_to_close_takes_what_waits_first(counts: ConnectionCounts, listener: socket.socket) -> None:
    first, last = (Worker(counts, index, listener) for index in range(2))
    first.acceptor.close()
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        listener.close()
        last.acceptor.close()
        await last.acceptor.wait_closed()
        said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 10), 20)
        assert said == b"1\n"


async def test_a_tls_handshake_that_drags_on_is_given_up_when_the_port_is_closed(
    counts: ConnectionCounts, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "HANDSHAKE", 0.01)
    worker = Worker(counts, 0, listener, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with socket.create_connection(listener.getsockname()) as silent:
        silent.setblocking(False)
        async with asyncio.timeout(20):
            while counts.accepting() != [1]:
                await asyncio.sleep(0.001)
            worker.acceptor.close()
            await worker.acceptor.wait_closed()
            assert await asyncio.get_running_loop().sock_recv(silent, 10) == b""
