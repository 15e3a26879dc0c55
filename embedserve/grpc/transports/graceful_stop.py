"""How a grpcio server leaves without losing a call: answers are held until every client has been told that it leaves.

A call that arrives between the server's decision and the client's hearing of it is cancelled by gRPC, and no client
tries it again. A client that waits for answers sends no call: so answers wait for a moment, clients are told, and then
they get them. Used by `server`; knows no message.
"""

from __future__ import annotations

import asyncio

__all__ = ["GracefulStop"]

# Seconds without a new call after which nobody is taken to be about to send one, and how long that is waited for.
QUIET = 0.05
PATIENCE = 0.5


class GracefulStop:
    """Counts the calls of one server, and holds their answers while it says that it leaves."""

    def __init__(self) -> None:
        self._arrivals = 0
        self._released: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<GracefulStop after {self._arrivals} calls{' (held)' if self._released is not None else ''}>"

    def arrived(self) -> None:
        """A call has come."""
        self._arrivals += 1

    async def answer(self) -> None:
        """Wait, before an answer goes out, while answers are held."""
        if self._released is not None:
            await self._released.wait()

    async def hold(self) -> None:
        """Hold answers; returns when no call has come for a moment, or some keep coming."""
        self._released = asyncio.Event()
        end = asyncio.get_running_loop().time() + PATIENCE
        before = -1
        while before != self._arrivals and asyncio.get_running_loop().time() < end:
            before = self._arrivals
            await asyncio.sleep(QUIET)

    def release(self) -> None:
        """Let the answers go."""
        if self._released is not None:
            self._released.set()
