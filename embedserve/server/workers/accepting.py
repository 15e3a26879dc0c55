"""Shares the connections of listening sockets among processes: each takes one when no other has fewer.

Left to the kernel, whoever wakes first takes all that come at once, and connections that are kept alive stay where they
are. Used by a worker's REST port; knows no HTTP.
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

from embedserve.server.workers.shared_value import shared_file

__all__ = ["Acceptor", "ConnectionCounts", "may_accept", "surplus"]

logger = logging.getLogger("embedserve")

# Seconds that a connection is left to a process that has fewer; then it is taken by whoever looks again.
GRACE = 0.005
# Seconds between two attempts while no descriptor is to be had.
EXHAUSTED = 1.0
# Seconds that a TLS handshake may take once the port is closed.
HANDSHAKE = 1.0
# Seconds between two looks for connections that have ended.
TELL_INTERVAL = 0.1

_NONE = 2**64 - 1


def may_accept(own: int, others: Iterable[int]) -> bool:
    """Whether a process with `own` connections takes the next one at once, given those that others have."""
    return all(own <= count for count in others)


def surplus(own: int, others: Sequence[int]) -> int:
    """How many of its `own` connections a process should give up, so that they are opened anew where there are fewer.

    None while the difference is small: a process that was replaced has none, and would have none for as long as clients
    keep their connections.
    """
    mean = (own + sum(others)) / (1 + len(others))
    return own - math.ceil(mean) if own > 1.2 * mean + 1 else 0


class ConnectionCounts:
    """How many connections each of several processes has, in shared memory; each writes its own number only.

    Args:
        workers: How many processes there are.
        fd: The descriptor that another process made, or None to make one.
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
        """So many connections has this process; None while it takes none."""
        self._counts[worker] = _NONE if count is None else count

    def accepting(self, *, but: int | None = None) -> Sequence[int]:
        """The numbers of those that take connections."""
        return [count for worker, count in enumerate(self._counts) if count != _NONE and worker != but]

    def close(self) -> None:
        """Give the memory and the descriptor back."""
        self._counts.release()
        self._bytes.release()
        self._map.close()
        os.close(self.fd)


class Acceptor:
    """Takes connections for one process, from construction to `close`; in place of an `asyncio.Server`.

    Args:
        counts, worker: Where to write how many connections there are, and as whom.
        listeners: Bound; other processes listen on them too.
        protocol: Makes a connection's protocol.
        backlog: How many connections the kernel keeps until one is taken.
        tls: Encrypts them, or None.
        connections: How many there are now.
    """

    def __init__(
        self,
        counts: ConnectionCounts,
        worker: int,
        listeners: Sequence[socket.socket],
        protocol: Callable[[], asyncio.BaseProtocol],
        backlog: int,
        tls: ssl.SSLContext | None,
        connections: Callable[[], int],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._protocol = protocol
        self._tls = tls
        self._connections = connections
        self._counts = counts
        self._worker = worker
        self._opening: set[asyncio.Task[None]] = set()
        self._pausing: asyncio.TimerHandle | None = None
        self._closed = False
        self.surplus = 0
        """How many connections should be closed after their next answer."""
        for listener in listeners:
            listener.setblocking(False)
            listener.listen(backlog)
        self._listen()
        self._telling = self._loop.call_soon(self._keep_telling)

    def __repr__(self) -> str:
        return f"<Acceptor of worker {self._worker}, {self._own()} connections{' (closed)' if self._closed else ''}>"

    def _own(self) -> int:
        return self._connections() + len(self._opening)

    def _tell(self) -> None:
        if not self._closed:
            self._counts.set(self._worker, self._own())

    def _keep_telling(self) -> None:
        """Nobody says when a connection has ended, so look."""
        self._tell()
        self.surplus = surplus(self._own(), self._counts.accepting(but=self._worker))
        self._telling = self._loop.call_later(TELL_INTERVAL, self._keep_telling)

    def _listen(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._arrived, listener)

    def _look_away(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())

    def _arrived(self, listener: socket.socket) -> None:
        """Connections are waiting. One is taken per turn of the loop, for others look as well."""
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
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._tell()
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except Exception as error:  # A handshake that failed: the client knows.
            logger.debug("a connection was not opened: %s", error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def close(self) -> None:
        """Take no more connections; if nobody else does, those that the kernel has already are taken before."""
        if self._closed:
            return
        self.abandon()
        for listener in self._listeners:
            while not self._counts.accepting() and self._accept(listener):
                pass
            listener.close()

    def abandon(self) -> None:
        """Take no more connections; those that the kernel has stay for another process."""
        self._closed = True
        self._counts.set(self._worker, None)
        self._telling.cancel()
        if self._pausing is not None:
            self._pausing.cancel()
        else:
            self._look_away()

    async def wait_closed(self) -> None:
        """Return when every connection that was taken has been opened; a handshake that drags on is given up."""
        if self._opening:
            await asyncio.wait(self._opening, timeout=HANDSHAKE)
        for task in self._opening:
            task.cancel()
