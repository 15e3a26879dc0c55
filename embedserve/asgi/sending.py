"""Sends a large body piece by piece, so that the server knows about the client's progress.

A host accepts any piece at once, and waits before the next piece only. A whole body would lie in the socket's buffer
after the end of the call, and outside the account of bytes in flight.
"""

from __future__ import annotations

import asyncio

from embedserve.asgi.calls import ClientDisconnected, Send

__all__ = ["PIECE", "send_body"]

PIECE = 1 << 20
"""Bytes given to the host at once: a connection may hold as many outside the account of bytes in flight."""

PATIENCE = 60.0
"""Seconds for a client to take a piece: 17 kB/s at the least."""


async def send_body(send: Send, body: bytes, *, more_body: bool = False) -> None:
    """Send a body after its start; returns when at most a piece of the body is still in the host's buffer.

    Args:
        send: The scope's send callable.
        body: Of any length.
        more_body: Further pieces follow.

    Raises:
        ClientDisconnected: The client does not read.
    """
    if len(body) <= PIECE:
        await send({"type": "http.response.body", "body": body, "more_body": more_body})
        return
    for at in range(0, len(body), PIECE):
        piece = body[at : at + PIECE]
        try:
            async with asyncio.timeout(PATIENCE):
                await send(
                    {"type": "http.response.body", "body": piece, "more_body": more_body or at + PIECE < len(body)}
                )
        except TimeoutError:
            raise ClientDisconnected(f"the client took no bytes for {PATIENCE:g} s") from None
