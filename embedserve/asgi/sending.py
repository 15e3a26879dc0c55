"""Sends a large body piece by piece, so that it is known when the client has it, and that the client reads at all.

Hosts take what they are given and wait before the next piece only. A body in one piece would lie in the socket's buffer
after its call has ended, in nobody's account.
"""

from __future__ import annotations

import asyncio

from embedserve.asgi.calls import ClientDisconnected, Send

__all__ = ["PIECE", "send_body"]

PIECE = 1 << 20
"""Bytes that are given to the host at once: what a connection may hold outside the account."""

PATIENCE = 60.0
"""Seconds that a client has to take one piece: 17 kB/s."""


async def send_body(send: Send, body: bytes, *, more_body: bool = False) -> None:
    """Send a body whose start has been sent; returns when no more than a piece of it is left to send.

    Args:
        send: The scope's send callable.
        body: Of any length.
        more_body: Other pieces follow.

    Raises:
        ClientDisconnected: The client does not take what is sent.
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
