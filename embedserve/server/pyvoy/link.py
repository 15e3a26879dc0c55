"""The socket between the two processes of the one-port server: what they say to each other, one JSON line each.

The parent tells its configuration, for a process's environment is no place for secrets, and when to drain; the
application says how far it is. A line's end is the other process's end.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Literal, Self, TypeAlias

from embedserve.errors import Code, ServingError

__all__ = ["Link", "Stage"]

Stage: TypeAlias = Literal["opening", "ready", "failed", "reread", "drain", "give up"]
"""`opening`: the port is about to open. `ready`: the models serve. `failed`: they will not. `reread`: as for SIGHUP.
`drain`: finish. `give up`: answer what has not finished with an error."""


_LONGEST_LINE = 2**26


class Link:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Take over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LONGEST_LINE))

    def say(self, stage: Stage, error: Exception | None = None) -> None:
        """Tell the other side; nothing happens when it has gone."""
        line: dict[str, Any] = {"stage": stage}
        if error is not None:
            line |= {"code": error.code if isinstance(error, ServingError) else Code.UNKNOWN, "message": str(error)}
        if not self._writer.is_closing():
            self._writer.write(json.dumps(line).encode() + b"\n")

    def tell(self, text: str) -> None:
        """Hand a text without line breaks over, before anything is said."""
        self._writer.write(text.encode() + b"\n")

    async def told(self) -> str:
        """What the other side tells, or nothing when it has ended."""
        return (await self._line()).decode().removesuffix("\n")

    async def flush(self) -> None:
        """Return when what was said has been sent."""
        await self._writer.drain()

    async def heard(self) -> Stage | None:
        """The next that the other side says, or None when it has ended.

        Raises:
            ServingError: What it said was that it failed.
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
        """Let go of this end."""
        self._writer.close()
