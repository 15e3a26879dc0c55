"""The socket between the two processes of the single-port server; a message is a JSON line.

The parent sends the configuration, because an environment is no place for secrets, and the order to drain. The
application reports progress. A closed socket means the end of the peer process.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Literal, Self, TypeAlias

from embedserve.errors import Code, ServingError

__all__ = ["Link", "Stage"]

Stage: TypeAlias = Literal["opening", "ready", "failed", "reread", "drain", "give up"]
"""Progress and orders.

`opening`: the port is about to open. `ready`: the models serve. `failed`: the start failed. `reread`: as for SIGHUP.
`drain`: finish. `give up`: fail the unfinished requests.
"""


# Most bytes of a line: 64 MiB. The longest line is the configuration, with the config file in compressed form.
_LONGEST_LINE = 2**26


class Link:
    """An end of the link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Take over an end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LONGEST_LINE))

    def say(self, stage: Stage, error: Exception | None = None) -> None:
        """Send a stage to the peer; a peer that has gone is ignored."""
        line: dict[str, Any] = {"stage": stage}
        if error is not None:
            line |= {"code": error.code if isinstance(error, ServingError) else Code.UNKNOWN, "message": str(error)}
        if not self._writer.is_closing():
            self._writer.write(json.dumps(line).encode() + b"\n")

    def tell(self, text: str) -> None:
        """Send a text without line breaks, before any stage."""
        self._writer.write(text.encode() + b"\n")

    async def told(self) -> str:
        """The text sent by the peer, or an empty string when the peer has ended."""
        return (await self._line()).decode().removesuffix("\n")

    async def flush(self) -> None:
        """Return when all messages have been sent."""
        await self._writer.drain()

    async def heard(self) -> Stage | None:
        """The peer's next stage, or None when the peer has ended.

        Raises:
            ServingError: The peer reported a failed start.
        """
        line = await self._line()
        if not line:
            return None
        message = json.loads(line)
        stage: Stage = message["stage"]
        if stage == "failed":
            raise ServingError(message["message"], code=Code(message["code"]))
        return stage

    async def _line(self) -> bytes:
        try:
            return await self._reader.readline()
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Close the end."""
        self._writer.close()
