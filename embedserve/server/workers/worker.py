"""A worker process: a registry that does what the supervisor says, and both adapters on ports that it shares.

`run_worker` reads from top to bottom as the process lives. Called by `python -m embedserve.server.workers`.
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
# Seconds for which a run is stuck before the worker asks to be replaced, for the sake of the model that is refused.
REPLACED_AFTER = 60.0
# Seconds that the supervisor may take to put a metrics page together.
PAGE_PATIENCE = 10.0

# Seconds in which the requests that a dying process has must be answered, and then for the bytes to leave.
LAST_ANSWERS = 0.5
LAST_BYTES = 0.1

_GONE = Failure(Code.UNAVAILABLE, "the supervisor of the workers is gone")

# Above most connections of a worker, and cheap to reach.
_HIGH_DESCRIPTOR = 4096
# What has to fit below the limit.
_DESCRIPTORS_ABOVE = 128

# Seconds that the loop has for its last answers; then the process ends whatever the loop does.
ABORT_PATIENCE = 2.0
# What kernels end a process by on purpose, or by a division. After a bad access to memory nothing is to be trusted.
_ABORTS = (signal.SIGABRT, signal.SIGFPE)

_handlers_kept: list[Any] = []
"""The C function that the signals call, for as long as the process lives."""


async def run_worker(
    control: int, serving_table: int, status: int, connections: int, hands: int, *listeners: int
) -> int:
    """Load and serve as told until told to leave, or until the supervisor is gone; return the exit status.

    Args:
        control: Descriptor of this end of the channel.
        serving_table, status: Descriptors of the shared values.
        connections: Descriptor of the workers' numbers of connections.
        hands: Descriptor of what the workers' run threads have in their hands.
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
    """Counts for this process; the page is the whole server's."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self._ask = ask

    async def page(self) -> bytes:
        """The supervisor's sums.

        Raises:
            ServingError: There is no supervisor any more, or it does not answer.
        """
        try:
            async with asyncio.timeout(PAGE_PATIENCE):
                page: bytes = await self._ask(MetricsPage())
                return page
        except TimeoutError:
            raise ServingError("the supervisor does not answer", code=Code.UNAVAILABLE) from None


class _Worker:
    """What the process has; `run` is its life."""

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
        """From the import of TensorFlow to the last answer.

        Raises:
            ServingError: In a group; a port cannot be had.
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
        """SIGTERM ends this worker in order, and the supervisor replaces it; SIGINT is the supervisor's business."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    async def _beat(self) -> None:
        """Show that the loop turns, and what it has counted, which is lost when the process is killed."""
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

    # What the supervisor says.

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
        runtime = self.registry.runtime
        match message:
            case Look():
                runtime.adopt()
            case Load():
                self._start(runtime.load(message))
            case Drop(key):
                self._start(runtime.drop(key))
            case Configs():
                runtime.set_configs(message)
            case Open():
                # At once: the supervisor counts this worker among those that answer from here on.
                runtime.follow_routes()
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
        """A kernel aborts this process: leave what has not been taken to others, and answer the rest with an error."""
        logger.critical("TensorFlow aborts this process: requests in flight are answered with UNAVAILABLE")
        if self._acceptor is not None:
            self._acceptor.abandon()
        if self._config.grpc.port is not None:
            stop_listening(self._config.grpc.port)
        await self.registry.runtime.fail_all(LAST_ANSWERS)
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

    # What it asks the supervisor.

    async def _ask(self, question: Any) -> Any:
        """The supervisor's answer, for all workers.

        Raises:
            ServingError: What went wrong there, or UNAVAILABLE when there is no supervisor any more.
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
    """Whatever is opened in the body gets a descriptor above those of most that is opened after it.

    So gRPC's listening sockets close before its connections when the process is killed. Clients whose connection ends
    connect anew at once; a socket that is about to be closed too would reset them, and gRPC clients then fail for a
    second before they try again. Linux closes the descriptors of a process that ends from the highest to the lowest
    (measured).
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
    """Take this process's sockets out of those among which the kernel chooses for a connection to `port`.

    Connections that it has are not touched. Nothing happens where the system does not list descriptors.
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
    """Have `speak` awaited on the running loop once a thread aborts, and end the process when it returns.

    TensorFlow's checks call `abort` in the thread that runs the kernel. A handler of that signal keeps that thread for
    ABORT_PATIENCE at most, while the event loop answers what is in flight on every transport. Then the process ends by
    the same signal.
    A signal that comes while the loop's own thread is in a kernel ends the process at once.
    """
    loop, own = asyncio.get_running_loop(), threading.get_ident()
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def end(number: int) -> None:
        os.kill(os.getpid(), number)  # `os.abort` would wait for the thread that is aborting.

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
