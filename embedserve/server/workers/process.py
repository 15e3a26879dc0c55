"""A worker process as seen by the supervisor: start, orders sent and reports received.

Lives on the supervisor's loop. Decides nothing.
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
    """A worker's process from start to end; a restarted worker gets a new `WorkerProcess`.

    Attributes:
        load_threads: The number of versions that the worker loads at a time.
        up: Whether TensorFlow is imported.
        told: The load orders sent, by key. A key leaves when the version is out of the worker's memory.
        opened: The ports reported as open.
        serving_since: Loop time of the order to open ports; None before.
        heard: Loop time of the last message from the worker.
        cells: The metrics last reported.
        measured: The number of the `Measure` answered last.
        stuck: The last report of stuck runs.
    """

    def __init__(
        self, index: int, process: asyncio.subprocess.Process, channel: Channel, now: float, load_threads: int
    ) -> None:
        self.index = index
        self.load_threads = load_threads
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
        """Spawn a process with the given descriptors, and send `setup` to the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = [theirs.fileno(), *shared_values, *(listener.fileno() for listener in listeners)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "embedserve.server.workers", *map(str, inherited)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=inherited,
                # A terminal's ctrl-C goes to the supervisor alone. The supervisor drains one worker after another.
                start_new_session=True,
            )
        channel = await Channel.over(ours)
        channel.send(setup)
        load_threads = setup.config.options.num_load_threads
        return cls(setup.index, process, channel, asyncio.get_running_loop().time(), load_threads)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def serving(self) -> bool:
        """Whether the worker was told to open ports, so the worker's answers count."""
        return self.serving_since is not None

    @property
    def state(self) -> str:
        """The process's phase in a single word."""
        if self.draining:
            return "draining"
        if self.serving:
            return "serving"
        return "loading" if self.up else "starting"

    def view(self) -> WorkerView:
        """The facts that decisions in `plan` need."""
        return WorkerView(
            self.index,
            self.up,
            self.serving,
            frozenset(self.told),
            frozenset(self.loaded),
            self.draining,
            self.stuck.trouble is not None,
            len(self.loading()) >= self.load_threads,
        )

    def loading(self) -> set[Key]:
        """Versions ordered to be loaded, and neither loaded nor failed nor ordered to be dropped."""
        return self.told.keys() - self.loaded.keys() - self.failed.keys() - self._dropping

    def load(self, order: Load) -> None:
        """Order the load of a version.

        Before the worker serves, the new generation replaces an older generation of the same version.
        """
        if not self.serving:
            for key in [key for key in self.loaded if key[:2] == order.key[:2]]:
                del self.loaded[key]
        self.told[order.key] = order
        self.channel.send(order)

    def has_loaded(self, loaded: Loaded) -> None:
        """Note a loaded version, unless the version was dropped or replaced since the order."""
        key = loaded.key
        replaced = not self.serving and any(k[:2] == key[:2] and k.attempt > key.attempt for k in self.told)
        if key in self.told and key not in self._dropping and not replaced:
            self.loaded[key] = loaded

    def drop(self, key: Key) -> None:
        """Order the unload of a version, unless the worker lacks the version or has the order already."""
        if key in self.told and key not in self._dropping:
            self._dropping.add(key)
            self.loaded.pop(key, None)
            self.channel.send(Drop(key))

    def dropped(self, key: Key) -> None:
        """Note that the version is out of the worker's memory."""
        self._dropping.discard(key)
        self.told.pop(key, None)
        self.failed.pop(key, None)

    def open(self, ports: Open, now: float) -> None:
        """Order the worker to open `ports`; a repeated order is not sent."""
        if ports != self._ports:
            self._ports = ports
            self.serving_since = now if self.serving_since is None else self.serving_since
            self.channel.send(ports)

    def drain(self) -> None:
        """Order the worker to finish requests in flight and to end."""
        self.draining = True
        self.channel.send(Drain())

    def kill(self) -> None:
        """Kill the process, unless the process has ended."""
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self) -> str:
        """Wait for the end of the process, and describe the exit."""
        status = await self._process.wait()
        self.channel.close()
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
