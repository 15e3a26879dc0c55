"""Keeps worker processes alive, tells them what to do and hears what they say, and drains them one by one.

One coroutine per worker is its life, restarts included (`_keep`); what comes next is decided in `plan`. Runs on the
supervisor's loop. Which versions they load is `rollout`'s business.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

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

# Seconds between two looks for silent workers.
WATCH_INTERVAL = 1.0
# Seconds that workers may take to say what they have counted; who is busy for longer counts with what it said last.
MEASURE_PATIENCE = 1.0
# Seconds in which a process must end after it has hung up, and beyond `drain_timeout` when it drains.
END_PATIENCE = 15.0
# Seconds of silence in which a process may import TensorFlow, which stops all else in it.
START_PATIENCE = 300.0


@dataclass
class _Seat:
    """The place of one worker, whichever process has it."""

    index: int
    process: WorkerProcess | None = None
    restarts: int = 0
    short_lives: int = 0
    failed_starts: int = 0
    ended: str = ""


@dataclass(frozen=True)
class FleetHooks:
    """What a fleet asks of its owner.

    Attributes:
        answer: Answers a worker's question for all.
        lost: A published version cannot be loaded again, and nobody serves it any more.
        buried: A process has ended, with all it had counted.
    """

    answer: Callable[[Any], Awaitable[Any]]
    lost: Callable[[Key], None]
    buried: Callable[[WorkerProcess], None]


class Fleet:
    """The worker processes of one server.

    Args:
        setup: What worker number `index` is told first.
        count: How many there are.
        listeners: The REST port, bound at each address; none without REST.
        worker_timeout: Seconds of silence after which a worker is killed.
        hooks: What is asked of the owner.
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
        self.connections = ConnectionCounts(count)
        self.hands = Hands(count)
        self.suspects = Suspects()
        self._shared = (self.serving_table, self.status, self.connections, self.hands)
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
        """Those that run now."""
        return [seat.process for seat in self._seats if seat.process is not None]

    def workers(self) -> tuple[WorkerStatus, ...]:
        """Every worker's state."""
        return tuple(
            WorkerStatus(seat.index, None, "restarting", seat.restarts, seat.ended)
            if (process := seat.process) is None
            else WorkerStatus(seat.index, process.pid, process.state, seat.restarts, seat.ended)
            for seat in self._seats
        )

    async def run(self) -> None:
        """Keep every worker alive until `drain`.

        Raises:
            StartError: Workers end again and again, or cannot have their ports, before the ports have ever been open.
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
        """One worker's life: a process after the other."""
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
        """Hear what a process says until it hangs up.

        Raises:
            StartError: It cannot go on, and the start not without it.
        """
        if self._stopping.is_set():  # Since it was begun.
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
        """It has hung up: normally because it has ended."""
        try:
            async with asyncio.timeout(END_PATIENCE):
                return await process.ended()
        except TimeoutError:
            process.kill()
            return f"hung up and did not end; it {await process.ended()}"

    def _bury(self, seat: _Seat, process: WorkerProcess) -> None:
        self.connections.set(seat.index, None)
        self.suspects.died(self.hands.take(seat.index))
        since = process.serving_since
        if since is not None and asyncio.get_running_loop().time() - since >= plan.STEADY:
            seat.short_lives = 0
        # A version that ends processes is given up by itself; it neither ends the start nor delays the next process.
        if not self.rollout.died(process, f"worker {seat.index} {seat.ended}"):
            seat.short_lives += 1
            seat.failed_starts += 1
        self._hooks.buried(process)

    async def _stopped_within(self, delay: float) -> None:
        await self.changes.wait_until(self._stopping.is_set, delay)

    async def _watch(self) -> None:
        """Kill whoever is silent for too long: it hangs, and holds what was sent to it."""
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

    def _hear(self, process: WorkerProcess, message: Any) -> None:
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
        value: Any
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
        """What the others answer with cannot be had any more: it is tried in a new process while others serve."""
        logger.error("Worker %d cannot load %s again: %s", process.index, key, failure.message)
        if any(other.serving for other in self.processes()):
            process.kill()
        else:
            self._hooks.lost(key)

    def _changed(self) -> None:
        """Let workers that come up catch up, and open their ports when they have."""
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
        """Models that workers refuse for their stuck runs, and which workers those are."""
        found: dict[str, list[int]] = {}
        for process in self.processes():
            for name in process.stuck.models:
                found.setdefault(name, []).append(process.index)
        return found

    # What the owner decides.

    def open(self, *, rest: bool, grpc: bool) -> None:
        """Have these ports opened by every worker that has what is published, now and after a restart."""
        self._ports = Open(rest, grpc)
        self._changed()

    async def opened(self) -> None:
        """Wait until every worker has opened its ports."""

        def opened() -> bool:
            return all(seat.process is not None and seat.process.opened == self._ports for seat in self._seats)

        await self.changes.wait_until(opened)
        self._has_opened = True

    def set_configs(self, models: dict[str, ModelConfig]) -> None:
        """Tell every worker, now and after a restart, how models are configured."""
        self._configs = Configs(models)
        self._tell_all(self._configs)

    def post(self, serving_table: ServingTable) -> None:
        """Let these versions answer from now on; every one of them has been loaded."""
        self.serving_table.post(serving_table)
        self._tell_all(Look())

    def _tell_all(self, message: Any) -> None:
        for process in self.processes():
            process.channel.send(message)

    async def measure(self) -> None:
        """Have every worker say what it has counted."""
        number = next(self._measures)
        asked = [process for process in self.processes() if process.up]
        for process in asked:
            process.channel.send(Measure(number))

        def measured() -> bool:
            running = self.processes()
            return all(process.measured >= number for process in asked if process in running)

        await self.changes.wait_until(measured, MEASURE_PATIENCE)

    async def drain(self, drain_timeout: float) -> None:
        """End every worker in order: one finishes what it has in flight while the others still answer.

        Each has `drain_timeout` seconds; one that takes longer than its part of that is not waited for by the next.
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
