"""One worker process as its supervisor has it: how it is started, what it was told, what it has reported.

Made and used by `fleet`, on the supervisor's loop. Decides nothing.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Self

from embedserve.server.workers.channel import Channel
from embedserve.server.workers.messages import Drain, Drop, Failure, Key, Load, Loaded, Open, Setup, Stuck
from embedserve.server.workers.plan import WorkerView

__all__ = ["WorkerProcess"]


class WorkerProcess:
    """From its start to its end; a worker that is restarted gets another one.

    Attributes:
        up: TensorFlow is imported.
        told: What it was told to load; a key leaves when the version is out of its memory.
        opened: The ports that it said are open.
        serving_since: When it was told to open its ports; None before.
        heard: When it last said something.
        cells: What it has counted.
        measured: The number of the `Measure` it answered last.
        stuck: What it said of its stuck runs.
    """

    def __init__(self, index: int, process: asyncio.subprocess.Process, channel: Channel, now: float) -> None:
        self.index = index
        self.channel = channel
        self.up = False
        self.told: dict[Key, Load] = {}
        self.loaded: dict[Key, Loaded] = {}
        self.failed: dict[Key, Failure] = {}
        self.opened = Open(rest=False, grpc=False)
        self.serving_since: float | None = None
        self.draining = False
        self.heard = now
        self.cells: Any = None
        self.measured = 0
        self.stuck = Stuck()
        self._process = process
        self._dropping: set[Key] = set()
        self._ports = Open(rest=False, grpc=False)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.index}, pid {self.pid}, {self.state}>"

    @classmethod
    async def start(cls, setup: Setup, shared_values: Sequence[int], listeners: Sequence[socket.socket]) -> Self:
        """Spawn a process that inherits these descriptors, and tell it who it is."""
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = [theirs.fileno(), *shared_values, *(listener.fileno() for listener in listeners)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "embedserve.server.workers", *map(str, inherited)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=inherited,
                start_new_session=True,  # A terminal's ctrl-C is for the supervisor, which drains one after the other.
            )
        channel = await Channel.over(ours)
        channel.send(setup)
        return cls(setup.index, process, channel, asyncio.get_running_loop().time())

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def serving(self) -> bool:
        """Whether it was told to open ports: what it answers counts."""
        return self.serving_since is not None

    @property
    def state(self) -> str:
        """In a word."""
        if self.draining:
            return "draining"
        if self.serving:
            return "serving"
        return "loading" if self.up else "starting"

    def view(self) -> WorkerView:
        """As decisions see it."""
        return WorkerView(
            self.index,
            self.up,
            self.serving,
            frozenset(self.told),
            frozenset(self.loaded),
            self.draining,
            self.stuck.trouble is not None,
        )

    def load(self, order: Load) -> None:
        """Tell it to load a version, in place of an older generation that does not serve there."""
        if not self.serving:
            for key in [key for key in self.loaded if key[:2] == order.key[:2]]:
                del self.loaded[key]
        self.told[order.key] = order
        self.channel.send(order)

    def has_loaded(self, loaded: Loaded) -> None:
        """It said that it has a version; what it was told to drop or replace since, it has no more."""
        key = loaded.key
        replaced = not self.serving and any(k[:2] == key[:2] and k.attempt > key.attempt for k in self.told)
        if key in self.told and key not in self._dropping and not replaced:
            self.loaded[key] = loaded

    def drop(self, key: Key) -> None:
        """Tell it to unload a version, if it has it and was not told so before."""
        if key in self.told and key not in self._dropping:
            self._dropping.add(key)
            self.loaded.pop(key, None)
            self.channel.send(Drop(key))

    def dropped(self, key: Key) -> None:
        """It said that the version is out of memory."""
        self._dropping.discard(key)
        self.told.pop(key, None)
        self.failed.pop(key, None)

    def open(self, ports: Open, now: float) -> None:
        """Tell it to open these ports, unless it has been told."""
        if ports != self._ports:
            self._ports = ports
            self.serving_since = now if self.serving_since is None else self.serving_since
            self.channel.send(ports)

    def drain(self) -> None:
        """Tell it to finish what is in flight and end."""
        self.draining = True
        self.channel.send(Drain())

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self) -> str:
        """Wait for its end, and say how it was."""
        status = await self._process.wait()
        self.channel.close()
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
