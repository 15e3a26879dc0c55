"""Keeps worker processes alive, sends orders, handles messages, and drains workers in order.

The coroutine `_keep` is a worker's life, restarts included. `plan` decides the next step, and `rollout` the versions to
load. The fleet runs on the supervisor's loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from embedserve.config import ModelConfig
from embedserve.errors import Code, ServingError, StartError
from embedserve.lifecycle.changes import Changes
from embedserve.server.workers import plan
from embedserve.server.workers.accepting import ConnectionCounts
from embedserve.server.workers.hands import Hands, Suspects
from embedserve.server.workers.messages import (
    Alive,
    Answer,
    Ask,
    Configs,
    Dropped,
    Failed,
    Failure,
    Key,
    Loaded,
    Look,
    Measure,
    Measured,
    Open,
    Opened,
    ServingTable,
    Setup,
    Stuck,
    Up,
    WorkerStatus,
)
from embedserve.server.workers.process import WorkerProcess
from embedserve.server.workers.rollout import Rollout
from embedserve.server.workers.shared_value import SharedValue

__all__ = ["Fleet", "FleetHooks"]

logger = logging.getLogger("embedserve")

# Seconds between two checks for silent workers.
WATCH_INTERVAL = 1.0
# Seconds to wait for the workers' metrics. A worker that is busy for longer counts with its last report.
MEASURE_PATIENCE = 1.0
# Seconds in which a process must end after closing its channel; a draining process has `drain_timeout` more.
END_PATIENCE = 15.0
# Seconds of silence allowed at the start of a process: the import of TensorFlow blocks all else in the process.
START_PATIENCE = 300.0


@dataclass
class _Seat:
    """The place of a worker, kept across the worker's processes."""

    index: int
    process: WorkerProcess | None = None
    restarts: int = 0
    short_lives: int = 0
    failed_starts: int = 0
    ended: str = ""


@dataclass(frozen=True)
class FleetHooks:
    """The fleet's calls to its owner.

    Attributes:
        answer: Answers a worker's question for all workers.
        lost: Called when no worker serves a published version and a new load of the version failed.
        buried: Called with an ended process, whose last metrics are kept.
    """

    answer: Callable[[object], Awaitable[object]]
    lost: Callable[[Key], None]
    buried: Callable[[WorkerProcess], None]


class Fleet:
    """The worker processes of a server.

    Args:
        setup: Makes the first message to the worker with the given index.
        count: The number of workers.
        listeners: Bound sockets of the ports.
        worker_timeout: Seconds of silence before a worker is killed.
        hooks: Calls to the owner.
    """

    def __init__(
        self,
        setup: Callable[[int], Setup],
        count: int,
        listeners: Sequence[socket.socket],
        worker_timeout: float,
        hooks: FleetHooks,
    ) -> None:
        self.serving_table = SharedValue()
        self.status = SharedValue()
        self.connections = (ConnectionCounts(count), ConnectionCounts(count))  # Of REST's port, of gRPC's port.
        self.hands = Hands(count)
        self.suspects = Suspects()
        self._shared = (self.serving_table, self.status, *self.connections, self.hands)
        self.changes = Changes()
        self._setup = setup
        self._seats = [_Seat(index) for index in range(count)]
        self._listeners = listeners
        self._worker_timeout = worker_timeout
        self._hooks = hooks
        self.rollout = Rollout(lambda: [seat.process for seat in self._seats], self.changes)
        self._configs = Configs({})
        self._ports = Open(rest=False, grpc=False)
        self._has_opened = False
        self._stopping = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._measures = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Fleet {', '.join(f'{w.index}: {w.state}' for w in self.workers())}>"

    # Processes.

    def processes(self) -> list[WorkerProcess]:
        """The running processes."""
        return [seat.process for seat in self._seats if seat.process is not None]

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The state of every worker."""
        return tuple(
            WorkerStatus(seat.index, None, "restarting", seat.restarts, seat.ended)
            if (process := seat.process) is None
            else WorkerStatus(seat.index, process.pid, process.state, seat.restarts, seat.ended)
            for seat in self._seats
        )

    async def run(self) -> None:
        """Keep every worker alive until `drain`.

        Raises:
            StartError: Before the ports first opened, a worker ended three times in a row or could not open its ports.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch())
                lives = [tasks.create_task(self._keep(seat)) for seat in self._seats]
                await asyncio.wait(lives)
                watching.cancel()
        finally:
            self._stopping.set()
            self.rollout.close()
            self.kill()
            self._changed()

    async def _keep(self, seat: _Seat) -> None:
        """Run a worker's life: process after process."""
        while not self._stopping.is_set():
            try:
                process = await WorkerProcess.start(
                    self._setup(seat.index),
                    [shared.fd for shared in self._shared],
                    self._listeners,
                )
            except OSError as error:
                seat.ended = f"could not be started: {error}"
                seat.short_lives += 1
                seat.failed_starts += 1
            else:
                seat.process = process
                try:
                    await self._converse(process)
                    seat.ended = await self._end_of(process)
                finally:
                    process.kill()
                    seat.process = None
                self._bury(seat, process)
            self._changed()
            if self._stopping.is_set():
                return
            if not self._has_opened and seat.failed_starts >= plan.DEATHS_AT_START:
                raise StartError(f"worker {seat.index} {seat.ended}, {seat.failed_starts} times in a row at the start")
            delay = plan.restart_delay(max(seat.short_lives - 1, 0))
            logger.error("Worker %d %s; it is restarted%s", seat.index, seat.ended, f" in {delay:g} s" * (delay > 0))
            seat.restarts += 1
            await self._stopped_within(delay)

    async def _converse(self, process: WorkerProcess) -> None:
        """Handle a process's messages until the process closes the channel.

        Raises:
            StartError: The process cannot go on, and the server has not opened its ports yet.
        """
        if self._stopping.is_set():  # The stop came while the process started.
            process.kill()
        process.channel.send(self._configs)
        self._changed()
        try:
            async for message in process.channel:
                process.heard = asyncio.get_running_loop().time()
                self._hear(process, message)
        except StartError:
            raise
        except Exception:
            logger.exception("what worker %d said cannot be followed; it is killed", process.index)
            process.kill()

    async def _end_of(self, process: WorkerProcess) -> str:
        """Wait for the end of a process after the process closed the channel; normally the process has ended."""
        try:
            async with asyncio.timeout(END_PATIENCE):
                return await process.ended()
        except TimeoutError:
            process.kill()
            return f"hung up and did not end; it {await process.ended()}"

    def _bury(self, seat: _Seat, process: WorkerProcess) -> None:
        for counts in self.connections:
            counts.set(seat.index, None)
        self.suspects.died(self.hands.take(seat.index))
        since = process.serving_since
        if since is not None and asyncio.get_running_loop().time() - since >= plan.STEADY:
            seat.short_lives = 0
        # A version that ends processes fails its own load. The version neither ends the start nor delays the next
        # process.
        if not self.rollout.died(process, f"worker {seat.index} {seat.ended}"):
            seat.short_lives += 1
            seat.failed_starts += 1
        self._hooks.buried(process)

    async def _stopped_within(self, delay: float) -> None:
        await self.changes.wait_until(self._stopping.is_set, delay)

    async def _watch(self) -> None:
        """Kill workers after too long a silence: a hanging worker holds requests."""
        loop = asyncio.get_running_loop()
        looked_before = loop.time()
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            now = loop.time()
            for process in self.processes():
                limit = self._worker_timeout if process.up else max(self._worker_timeout, START_PATIENCE)
                if plan.silent(now, looked_before, process.heard, limit):
                    logger.error("Worker %d has been silent for %g s; it is killed", process.index, now - process.heard)
                    process.kill()
            looked_before = now

    def kill(self) -> None:
        """End every worker at once."""
        for process in self.processes():
            process.kill()

    # What workers say.

    def _hear(self, process: WorkerProcess, message: object) -> None:
        match message:
            case Alive(cells):
                process.cells = cells
                return
            case Up():
                process.up = True
            case Loaded():
                process.has_loaded(message)
            case Failed(None, failure):
                self._failed_to_go_on(process, failure)
            case Failed(Key() as key, failure):
                process.failed[key] = failure
                if self.rollout.failed(process, key, failure):
                    self._cannot_catch_up(process, key, failure)
            case Dropped(key):
                process.dropped(key)
            case Stuck():
                process.stuck = message
            case Opened(rest, grpc):
                process.opened = Open(rest, grpc)
            case Measured(number, cells):
                process.measured, process.cells = number, cells
            case Ask():
                task = asyncio.get_running_loop().create_task(self._answer(process, message))
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
                return
        self._changed()

    async def _answer(self, process: WorkerProcess, ask: Ask) -> None:
        value: object
        try:
            value = await self._hooks.answer(ask.question)
        except ServingError as error:
            value = Failure.of(error)
        except Exception:
            logger.exception("a bug in answering %r", ask.question)
            value = Failure(Code.INTERNAL, "internal error")
        process.channel.send(Answer(ask.number, value))

    def _failed_to_go_on(self, process: WorkerProcess, failure: Failure) -> None:
        logger.error("Worker %d cannot go on: %s", process.index, failure.message)
        if not self._has_opened:
            raise StartError(failure.message, code=failure.code)

    def _cannot_catch_up(self, process: WorkerProcess, key: Key, failure: Failure) -> None:
        """Kill a new worker that failed to load a published version; the version is lost when no worker serves.

        A new process retries the load while serving workers answer.
        """
        logger.error("Worker %d cannot load %s again: %s", process.index, key, failure.message)
        if any(other.serving for other in self.processes()):
            process.kill()
        else:
            self._hooks.lost(key)

    def _changed(self) -> None:
        """Let new workers catch up and open ports; replace a worker in trouble."""
        for process in self.processes():
            caught_up = self.rollout.catch_up(process)
            if caught_up and (self._ports.rest or self._ports.grpc):
                process.open(self._ports, asyncio.get_running_loop().time())
        self._replace_who_is_in_trouble()
        self.changes.notify()

    def _replace_who_is_in_trouble(self) -> None:
        if self._stopping.is_set() or not self._has_opened:
            return
        views = [plan.WorkerView(seat.index) if seat.process is None else seat.process.view() for seat in self._seats]
        index = plan.next_to_replace(views)
        if index is not None and (process := self._seats[index].process) is not None:
            logger.error("Worker %d is replaced: %s", index, process.stuck.trouble)
            process.drain()

    def stuck_in(self) -> dict[str, list[int]]:
        """Models refused because of stuck runs, with the indices of the refusing workers."""
        found: dict[str, list[int]] = {}
        for process in self.processes():
            for name in process.stuck.models:
                found.setdefault(name, []).append(process.index)
        return found

    # What the owner decides.

    def open(self, *, rest: bool, grpc: bool) -> None:
        """Order all workers with the published versions to open the given ports, now and after a restart."""
        self._ports = Open(rest, grpc)
        self._changed()

    async def opened(self) -> None:
        """Wait until every worker has opened the ports."""

        def opened() -> bool:
            return all(seat.process is not None and seat.process.opened == self._ports for seat in self._seats)

        await self.changes.wait_until(opened)
        self._has_opened = True

    def set_configs(self, models: dict[str, ModelConfig]) -> None:
        """Send the models' configurations to every worker, now and after a restart."""
        self._configs = Configs(models)
        self._tell_all(self._configs)

    def post(self, serving_table: ServingTable) -> None:
        """Let the versions in the table answer from now on; every worker has loaded the versions."""
        self.serving_table.post(serving_table)
        self._tell_all(Look())

    def _tell_all(self, message: object) -> None:
        for process in self.processes():
            process.channel.send(message)

    async def measure(self) -> None:
        """Ask every worker for metrics, and wait at most `MEASURE_PATIENCE` seconds."""
        number = next(self._measures)
        asked = [process for process in self.processes() if process.up]
        for process in asked:
            process.channel.send(Measure(number))

        def measured() -> bool:
            running = self.processes()
            return all(process.measured >= number for process in asked if process in running)

        await self.changes.wait_until(measured, MEASURE_PATIENCE)

    async def drain(self, drain_timeout: float) -> None:
        """End the workers in order: a worker finishes requests while the next workers still answer.

        Each worker has `drain_timeout` seconds. After `drain_timeout / count` seconds the next worker begins to drain
        too.
        """
        self._stopping.set()
        self.rollout.close()
        limit = drain_timeout + END_PATIENCE
        async with asyncio.TaskGroup() as tasks:
            for seat in self._seats:
                if (process := seat.process) is None:
                    continue
                if not process.serving:
                    process.kill()
                    continue
                process.drain()
                end = tasks.create_task(self._ended(seat, process, limit))
                await asyncio.wait({end}, timeout=drain_timeout / len(self._seats))

    async def _ended(self, seat: _Seat, process: WorkerProcess, limit: float) -> None:
        if not await self.changes.wait_until(lambda: seat.process is not process, limit):
            logger.error("Worker %d has not ended after %g s; it is killed", process.index, limit)
            process.kill()
