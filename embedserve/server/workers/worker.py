"""A worker process: a registry under the supervisor's orders, and both adapters on shared ports.

`run_worker` reads from top to bottom as the process lives.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from embedserve.errors import Code, ServingError, StartError
from embedserve.metrics import Metrics
from embedserve.server import tensorflow_setup
from embedserve.server.log import configure_logging
from embedserve.server.process import enter, serve_grpc
from embedserve.server.rest_port import serve_rest
from embedserve.server.standalone import exit_now, first_failure, leave
from embedserve.server.workers.accepting import Acceptor, ConnectionCounts
from embedserve.server.workers.channel import Channel
from embedserve.server.workers.hands import Hands, Places
from embedserve.server.workers.messages import (
    Alive,
    Answer,
    Ask,
    Configs,
    Drain,
    Drop,
    Failed,
    Failure,
    Load,
    Look,
    Measure,
    Measured,
    MetricOf,
    MetricsPage,
    Open,
    Opened,
    Reload,
    Setup,
    Stuck,
    Up,
)
from embedserve.server.workers.shared_value import SharedValue
from embedserve.server.workers.worker_app import WorkerApp
from embedserve.server.workers.worker_registry import WorkerRegistry

if TYPE_CHECKING:
    from embedserve.rest.app import RestApp

__all__ = ["high_descriptors", "run_worker", "stop_listening"]


logger = logging.getLogger("embedserve")

# Seconds between two signs of life.
BEAT = 1.0
# Seconds of a stuck run before the worker asks to be replaced, because the run's model is refused meanwhile.
REPLACED_AFTER = 60.0
# Seconds for the supervisor to make a metrics page.
PAGE_PATIENCE = 10.0

# Seconds to answer the requests of a dying process, and then to send the bytes.
LAST_ANSWERS = 0.5
LAST_BYTES = 0.1

_GONE = Failure(Code.UNAVAILABLE, "the supervisor of the workers is gone")

# A descriptor number above most connections of a worker, and cheap to reach.
_HIGH_DESCRIPTOR = 4096
# Descriptor numbers kept free below the system's limit.
_DESCRIPTORS_ABOVE = 128

# Seconds for the loop's last answers; afterwards the process ends in any case.
ABORT_PATIENCE = 2.0
# Signals of kernels ending a process on purpose or by a division. After a bad memory access no state can be trusted.
_ABORTS = (signal.SIGABRT, signal.SIGFPE)

_handlers_kept: list[Any] = []
"""The C signal handler, kept for the life of the process."""


async def run_worker(
    control: int, serving_table: int, status: int, connections: int, hands: int, *listeners: int
) -> int:
    """Load and serve on orders until told to leave, or until the supervisor is gone; return the exit status.

    Args:
        control: Descriptor of the worker's end of the channel.
        serving_table, status: Descriptors of the shared values.
        connections: Descriptor of the workers' connection counts.
        hands: Descriptor of the notes of the workers' runs.
        listeners: Descriptors of the REST port, bound at each address.
    """
    channel = await Channel.over(socket.socket(fileno=control))
    messages = aiter(channel)
    setup = await anext(messages, None)
    if setup is None:
        return 0  # The supervisor has gone at once.
    configure_logging(f"worker {setup.index}: ")
    worker = _Worker(
        setup,
        channel,
        SharedValue(serving_table),
        SharedValue(status),
        ConnectionCounts(setup.workers, connections),
        Places(Hands(setup.workers, hands), setup.index),
        [socket.socket(fileno=listener) for listener in listeners],
    )
    try:
        await worker.run(messages)
    except* (ServingError, OSError) as failures:
        error = first_failure(failures)
        known = error if isinstance(error, ServingError) else StartError(str(error))
        channel.send(Failed(None, Failure.of(known)))
        worker.status = 1
    await leave(worker.registry, worker.status)
    channel.close()
    return worker.status


class _Supervised(Metrics):
    """Metrics of the process; the page is the whole server's."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self._ask = ask

    async def page(self) -> bytes:
        """The page with the supervisor's sums.

        Raises:
            ServingError: The supervisor is gone, or does not answer within `PAGE_PATIENCE` seconds.
        """
        try:
            async with asyncio.timeout(PAGE_PATIENCE):
                page: bytes = await self._ask(MetricsPage())
                return page
        except TimeoutError:
            raise ServingError("the supervisor does not answer", code=Code.UNAVAILABLE) from None


class _Worker:
    """The state of the process; `run` is the process's life."""

    def __init__(
        self,
        setup: Setup,
        channel: Channel,
        serving_table: SharedValue,
        status: SharedValue,
        connections: ConnectionCounts,
        places: Places,
        listeners: list[socket.socket],
    ) -> None:
        self.status = 0
        self._setup = setup
        self._config = setup.config
        self._channel = channel
        self._connections = connections
        self._listeners = listeners
        self._stop = asyncio.Event()
        self._leaving = asyncio.Event()
        self._opening = asyncio.Lock()
        self._opened = Open(rest=False, grpc=False)
        self._asks = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._orders: set[asyncio.Task[None]] = set()
        self._alone = False  # The supervisor is gone.
        self._told = Stuck()
        counts = self._config.rest.port is not None and self._config.rest.metrics_path is not None
        self._metrics = _Supervised(self._ask) if counts else None
        observers = [self._metrics] if self._metrics is not None else []
        self._acceptor: Acceptor | None = None
        self.registry = WorkerRegistry(
            self._config.options, serving_table, status, channel.send, observers, places=places
        )

    async def run(self, messages: AsyncIterator[Any]) -> None:
        """Live from the import of TensorFlow to the last answer.

        Raises:
            ServingError: In a group; a port cannot be opened.
        """
        with self._stopped_by_signals():
            async with asyncio.TaskGroup() as background:
                beating = background.create_task(self._beat())
                await asyncio.to_thread(tensorflow_setup.apply, self._config.session_config)
                await self.registry.start(wait=False)
                answer_before_an_abort(self._answer_the_last)
                self._channel.send(Up())
                async with asyncio.TaskGroup() as ports:
                    listening = background.create_task(self._listen(messages, ports))
                    await self._stop.wait()
                    self.registry.begin_drain()
                    if self._config.grpc.port is not None:
                        stop_listening(self._config.grpc.port)
                    self._leaving.set()
                for task in (beating, listening, *self._orders):
                    task.cancel()

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """SIGTERM ends the worker in order, and the supervisor replaces the worker; SIGINT is for the supervisor."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    async def _beat(self) -> None:
        """Send signs of life and metrics, because unsent metrics are lost when the process is killed."""
        while True:
            if not self._channel.congested:
                self._channel.send(Alive(self._cells()))
                self._tell_of_stuck_runs()
            await asyncio.sleep(BEAT)

    def _tell_of_stuck_runs(self) -> None:
        if self.registry.loop is None:
            return
        runs = self.registry.statistics().stuck_runs
        trouble = self.registry.liveness()
        now = time.monotonic()
        if trouble is None and any(now - run.left_behind >= REPLACED_AFTER for run in runs):
            trouble = f"a run has been stuck for {REPLACED_AFTER:g} s"
        told = Stuck(self.registry.refused(), trouble)
        if told != self._told:
            self._told = told
            self._channel.send(told)

    def _cells(self) -> Any:
        return None if self._metrics is None else self._metrics.cells()

    # Orders of the supervisor.

    async def _listen(self, messages: AsyncIterator[Any], ports: asyncio.TaskGroup) -> None:
        async for message in messages:
            self._hear(message, ports)
        if not self._stop.is_set():
            logger.error("The supervisor is gone: finishing the requests in flight")
        self._alone = True
        self._stop.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(_GONE)

    def _hear(self, message: Any, ports: asyncio.TaskGroup) -> None:
        orders = self.registry.orders
        match message:
            case Look():
                orders.adopt()
            case Load():
                self._start(orders.load(message))
            case Drop(key):
                self._start(orders.drop(key))
            case Configs():
                orders.set_configs(message)
            case Open():
                # At once: from here on the supervisor counts the worker among the serving workers.
                orders.follow_routes()
                self._start(self._open(message, ports))
            case Measure(number):
                self._channel.send(Measured(number, self._cells()))
            case Answer(number, value):
                if (answer := self._answers.get(number)) is not None and not answer.done():
                    answer.set_result(value)
            case Drain():
                self._stop.set()

    def _start(self, order: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(order)
        self._orders.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._orders.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("a bug in following an order: this worker ends", exc_info=error)
            exit_now(1)

    async def _open(self, wanted: Open, ports: asyncio.TaskGroup) -> None:
        async with self._opening:
            if wanted.rest and not self._opened.rest:
                await enter(ports, self._rest(), self._leaving)
            if wanted.grpc and not self._opened.grpc:
                metric = None if self._metrics is None else self._metric
                with high_descriptors():
                    grpc = serve_grpc(self.registry, self._config.grpc, self._reload, metric)
                    await enter(ports, grpc, self._leaving)
            self._opened = wanted
            self._channel.send(Opened(wanted.rest, wanted.grpc))

    async def _answer_the_last(self) -> None:
        """Before a kernel's abort: leave queued connections to another worker, and fail the remaining requests."""
        logger.critical("TensorFlow aborts this process: requests in flight are answered with UNAVAILABLE")
        if self._acceptor is not None:
            self._acceptor.abandon()
        if self._config.grpc.port is not None:
            stop_listening(self._config.grpc.port)
        await self.registry.orders.fail_all(LAST_ANSWERS)
        await asyncio.sleep(LAST_BYTES)

    def _rest(self) -> AbstractAsyncContextManager[None]:
        served: list[WorkerApp] = []

        def wrap(app: RestApp) -> WorkerApp:
            served.append(WorkerApp(app, self.registry, self._setup.index))
            return served[0]

        def accept(*port: Any) -> Acceptor:
            self._acceptor = acceptor = Acceptor(self._connections, self._setup.index, *port)
            served[0].acceptor = acceptor
            return acceptor

        return serve_rest(self.registry, self._config.rest, self._listeners, self._metrics, wrap=wrap, accept=accept)

    # Questions to the supervisor.

    async def _ask(self, question: Any) -> Any:
        """The supervisor's answer, for all workers.

        Raises:
            ServingError: The supervisor's error, or UNAVAILABLE without a supervisor.
        """
        if self._alone:
            raise _GONE.error()
        number = next(self._asks)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Ask(number, question))
        try:
            value = await answer
        finally:
            del self._answers[number]
        if isinstance(value, Failure):
            raise value.error()
        return value

    async def _reload(self, config: Any) -> None:
        await self._ask(Reload(config.SerializeToString()))

    async def _metric(self, name: str) -> int:
        return int(await self._ask(MetricOf(name)))


@contextmanager
def high_descriptors() -> Iterator[None]:
    """Give descriptors opened in the body higher numbers than most descriptors opened later.

    When the process is killed, gRPC's listening sockets then close before gRPC's connections. Clients reconnect at once
    after a lost connection. A listening socket about to close would reset the new connections. gRPC clients would then
    fail for a second before the next attempt. Linux closes the descriptors of an ending process from the highest to the
    lowest (measured).
    """
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = min(_HIGH_DESCRIPTOR, soft - _DESCRIPTORS_ABOVE) if soft != resource.RLIM_INFINITY else _HIGH_DESCRIPTOR
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < high:
            held.append(os.dup(held[0]))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def stop_listening(port: int) -> None:
    """Remove the process's sockets from the kernel's choice for new connections to `port`.

    Open connections stay. Without a list of descriptors in `/proc/self/fd`, the call does nothing.
    """
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                _stop_listening(int(name), port)


def _stop_listening(descriptor: int, port: int) -> None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return
    with socket.socket(fileno=os.dup(descriptor)) as each:
        listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and each.family != socket.AF_UNIX and each.getsockname()[1] == port:
            each.shutdown(socket.SHUT_RD)


def answer_before_an_abort(speak: Callable[[], Awaitable[None]]) -> None:
    """Await `speak` on the running loop once a thread aborts, and end the process when `speak` returns.

    TensorFlow's checks call `abort` in the thread of the kernel. The signal's handler keeps the thread for at most
    `ABORT_PATIENCE` seconds, while the event loop answers requests in flight on every transport. Then the process ends
    by the same signal. A signal during a kernel in the loop's own thread ends the process at once.
    """
    loop, own = asyncio.get_running_loop(), threading.get_ident()
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def end(number: int) -> None:
        os.kill(os.getpid(), number)  # `os.abort` would wait for the aborting thread.

    async def speak_and_end(number: int) -> None:
        try:
            await speak()
        finally:
            end(number)

    def begin(number: int) -> None:
        speaking.append(loop.create_task(speak_and_end(number)))

    def aborting(number: int) -> None:
        for each in _ABORTS:
            set_handler(each, None)  # SIG_DFL
        if threading.get_ident() != own:
            with suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(begin, number)
                time.sleep(ABORT_PATIENCE)
        end(number)

    speaking: list[asyncio.Task[None]] = []
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborting)
    _handlers_kept.append(handler)
    for number in _ABORTS:
        set_handler(number, ctypes.cast(handler, ctypes.c_void_p))
