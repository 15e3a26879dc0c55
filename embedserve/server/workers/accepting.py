"""Shares the connections of listening sockets among processes: the process with the fewest connections accepts next.

Without sharing, the first process awake accepts all connections of a burst, and kept-alive connections stay there. The
module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import mmap
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from embedserve.server.workers.shared_value import shared_file

__all__ = ["Acceptor", "ConnectionCounts", "may_accept", "surplus"]

logger = logging.getLogger("embedserve")

# Seconds for which a connection is left to a process with fewer connections; afterwards any process accepts.
GRACE = 0.005
# Seconds between two attempts while no descriptor is free.
EXHAUSTED = 1.0
# Seconds for a TLS handshake after the port is closed.
HANDSHAKE = 1.0
# Seconds between two counts of open connections.
TELL_INTERVAL = 0.1

# The number in shared memory of a process not accepting.
_NONE = 2**64 - 1


def may_accept(own: int, others: Iterable[int]) -> bool:
    """Whether a process with `own` connections accepts at once, given the counts of the remaining processes."""
    return all(own <= count for count in others)


def surplus(own: int, others: Sequence[int]) -> int:
    """The number of connections for a process to give up; clients then reconnect to processes with fewer connections.

    Zero for small differences. Without surplus a replaced process would stay empty as long as clients keep connections.
    """
    mean = (own + sum(others)) / (1 + len(others))
    return own - math.ceil(mean) if own > 1.2 * mean + 1 else 0


class ConnectionCounts:
    """The number of connections per process, in shared memory; each process writes only its own number.

    Args:
        workers: The number of processes.
        fd: The descriptor from another process, or None to create the file.
    """

    def __init__(self, workers: int, fd: int | None = None) -> None:
        size = -(-8 * workers // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = shared_file(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        self._bytes = memoryview(self._map)
        self._counts = self._bytes.cast("Q")[:workers]
        if fd is None:
            for worker in range(workers):
                self.set(worker, None)

    def __repr__(self) -> str:
        return f"<ConnectionCounts {self.accepting()}>"

    def set(self, worker: int, count: int | None) -> None:
        """Set a process's number of connections; None for a process not accepting."""
        self._counts[worker] = _NONE if count is None else count

    def accepting(self, *, but: int | None = None) -> Sequence[int]:
        """The numbers of all accepting processes."""
        return [count for worker, count in enumerate(self._counts) if count != _NONE and worker != but]

    def close(self) -> None:
        """Release the memory and the descriptor."""
        self._counts.release()
        self._bytes.release()
        self._map.close()
        os.close(self.fd)


class Owner(Protocol):
    """The owner of accepted connections."""

    @property
    def connections(self) -> int:
        """Number of open connections."""

    def retire(self, count: int) -> None:
        """End `count` connections after their next answers."""


class Acceptor:
    """Accepts connections for a process, from construction to `close`; replaces an `asyncio.Server`.

    Args:
        counts, worker: The shared counts and the index of the process.
        listeners: Bound sockets, shared with further processes.
        protocol: Makes a connection's protocol.
        backlog: Connections queued by the kernel.
        tls: The TLS context, or None for plain text.
        owner: Counts the open connections, and ends some on request.
    """

    def __init__(
        self,
        counts: ConnectionCounts,
        worker: int,
        listeners: Sequence[socket.socket],
        protocol: Callable[[], asyncio.BaseProtocol],
        backlog: int,
        tls: ssl.SSLContext | None,
        owner: Owner,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._protocol = protocol
        self._tls = tls
        self._owner = owner
        self._counts = counts
        self._worker = worker
        self._opening: set[asyncio.Task[None]] = set()
        self._pausing: asyncio.TimerHandle | None = None
        self._closed = False
        for listener in listeners:
            listener.setblocking(False)
            listener.listen(backlog)
        self._listen()
        self._telling = self._loop.call_soon(self._keep_telling)

    def __repr__(self) -> str:
        return f"<Acceptor of worker {self._worker}, {self._own()} connections{' (closed)' if self._closed else ''}>"

    def _own(self) -> int:
        return self._owner.connections + len(self._opening)

    def _tell(self) -> None:
        if not self._closed:
            self._counts.set(self._worker, self._own())

    def _keep_telling(self) -> None:
        """Count connections every `TELL_INTERVAL` seconds, because no event tells the end of a connection."""
        self._tell()
        self._owner.retire(surplus(self._own(), self._counts.accepting(but=self._worker)))
        self._telling = self._loop.call_later(TELL_INTERVAL, self._keep_telling)

    def _listen(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._arrived, listener)

    def _look_away(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())

    def _arrived(self, listener: socket.socket) -> None:
        """Accept a waiting connection. A single connection is accepted per turn of the loop, for all processes look."""
        self._tell()
        if may_accept(self._own(), self._counts.accepting(but=self._worker)):
            self._accept(listener)
        else:
            self._pause(GRACE)

    def _pause(self, seconds: float) -> None:
        if not self._closed:
            self._look_away()
            self._pausing = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pausing = None
        self._listen()
        for listener in self._listeners:
            if self._pausing is None:  # A descriptor may be lacking again.
                self._accept(listener)

    def _accept(self, listener: socket.socket) -> bool:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # Another process was faster, or the client is gone.
        except OSError as error:
            logger.error("Connections cannot be accepted (%s); it is tried again in %g s", error, EXHAUSTED)
            self._pause(EXHAUSTED)
            return False
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._tell()
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except Exception as error:  # The handshake failed, and the client knows.
            logger.debug("a connection was not opened: %s", error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def close(self) -> None:
        """Stop accepting; the last accepting process first accepts the connections queued in the kernel."""
        if self._closed:
            return
        self.abandon()
        for listener in self._listeners:
            while not self._counts.accepting() and self._accept(listener):
                pass
            listener.close()

    def abandon(self) -> None:
        """Stop accepting; connections queued in the kernel stay for another process."""
        self._closed = True
        self._counts.set(self._worker, None)
        self._telling.cancel()
        if self._pausing is not None:
            self._pausing.cancel()
        else:
            self._look_away()

    async def wait_closed(self) -> None:
        """Return when every accepted connection is open; handshakes longer than `HANDSHAKE` seconds are cancelled."""
        if self._opening:
            await asyncio.wait(self._opening, timeout=HANDSHAKE)
        for task in self._opening:
            task.cancel()
