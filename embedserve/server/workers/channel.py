"""Messages between a supervisor and one worker: length-prefixed pickles over a socket pair.

Sending never waits: messages are buffered until the peer reads. The channel does not know the types of messages.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Self

__all__ = ["Channel"]

# Bytes in the send buffer above which the channel counts as congested: 1 MiB.
CONGESTED = 2**20

_LENGTH = struct.Struct("=Q")


class Channel:
    """One end of a connection. Iteration yields the peer's messages until the peer is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Open a channel over one end of a socket pair; the channel owns the socket from here on."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: object) -> None:
        """Send a message; a closing channel drops the message."""
        if not self._writer.is_closing():
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            self._writer.write(_LENGTH.pack(len(data)) + data)

    @property
    def congested(self) -> bool:
        """Whether more than `CONGESTED` bytes wait for the peer, so that periodic messages may be skipped."""
        return self._writer.transport.get_write_buffer_size() > CONGESTED

    async def __aiter__(self) -> AsyncIterator[Any]:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                yield pickle.loads(await self._reader.readexactly(length))

    def close(self) -> None:
        """Close the channel after buffered messages are sent."""
        self._writer.close()
