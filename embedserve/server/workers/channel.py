"""Messages between a supervisor and one worker: pickles with their length before them, over a socket pair.

Sending never waits; what the other side does not read is kept. Knows no message.
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

# Bytes that nobody has read yet.
CONGESTED = 2**20

_LENGTH = struct.Struct("=Q")


class Channel:
    """One end of a connection; iterate over it for what the other end says, until that is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """The channel over one end of a socket pair, which belongs to it from here on."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: Any) -> None:
        """Say something; nothing happens where nobody is left to hear it."""
        if not self._writer.is_closing():
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            self._writer.write(_LENGTH.pack(len(data)) + data)

    @property
    def congested(self) -> bool:
        """Whether the other end has not read for a while: what is said regularly need not be said now."""
        return self._writer.transport.get_write_buffer_size() > CONGESTED

    async def __aiter__(self) -> AsyncIterator[Any]:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                yield pickle.loads(await self._reader.readexactly(length))

    def close(self) -> None:
        """Hang up, after what was said."""
        self._writer.close()
