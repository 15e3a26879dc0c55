"""A worker process: a registry under the supervisor's orders, and the ports that all workers share.

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
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from embedserve.errors import Code, ServingError, StartError
from embedserve.events import present_actor
from embedserve.metrics import Metrics
from embedserve.observer import Observer
from embedserve.oip.repository import Repository
from embedserve.server import tensorflow_setup
from embedserve.server.log import configure_logging
from embedserve.server.observing import make_observers
from embedserve.server.ports import Bound, Port, Services, make_ports
from embedserve.server.serving import drain
from embedserve.server.standalone import exit_now, first_failure, leave
from embedserve.server.workers.accepting import Acceptor, ConnectionCounts
from embedserve.server.workers.channel import Channel
from embedserve.server.workers.hands import Hands, Places
from embedserve.server.workers.messages import (
    Alive,
    Answer,
    Ask,
    Change,
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
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    from embedserve.rest.app import RestApp
    from embedserve.rest.sagemaker import SageMakerApp
    from embedserve.server.config import ServerConfig

__all__ = ["run_worker"]


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

# Seconds for the loop's last answers; afterwards the process ends in any case.
ABORT_PATIENCE = 2.0
# Signals of kernels ending a process on purpose or by a division. After a bad memory access no state can be trusted.
_ABORTS = (signal.SIGABRT, signal.SIGFPE)

_handlers_kept: list[object] = []
"""The C signal handler, kept for the life of the process."""


async def run_worker(
    control: int, serving_table: int, status: int, rest: int, grpc: int, hands: int, *listeners: int
) -> int:
    """Load and serve on orders until told to leave, or until the supervisor is gone; return the exit status.

    Args:
        control: Descriptor of the worker's end of the channel.
        serving_table, status: Descriptors of the shared values.
        rest, grpc: Descriptors of the workers' connection counts on either port.
        hands: Descriptor of the notes of the workers' runs.
        listeners: Descriptors of the ports' bound sockets.
    """
    channel = await Channel.over(socket.socket(fileno=control))
    messages = aiter(channel)
    setup = await anext(messages, None)
    if setup is None:
        return 0  # The supervisor has gone at once.
    configure_logging(setup.index, json=setup.config.observing.log_format == "json")
    worker = _Worker(
        setup,
        channel,
        SharedValue(serving_table),
        SharedValue(status),
        {"rest": ConnectionCounts(setup.workers, rest), "grpc": ConnectionCounts(setup.workers, grpc)},
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

    async def page(self, *, openmetrics: bool = False) -> bytes:
        """The page with the supervisor's sums.

        Raises:
            ServingError: The supervisor is gone, or does not answer within `PAGE_PATIENCE` seconds.
        """
        try:
            async with asyncio.timeout(PAGE_PATIENCE):
                page: bytes = await self._ask(MetricsPage(openmetrics))
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
        connections: Mapping[str, ConnectionCounts],
        places: Places,
        listeners: list[socket.socket],
    ) -> None:
        self.status = 0
        self._setup = setup
        self._config = setup.config
        self._channel = channel
        self._connections = connections
        self._bound = _sorted(listeners, self._config)
        self._stop = asyncio.Event()
        self._opening = asyncio.Lock()
        self._ports: dict[str, Port] = {}
        self._opened: dict[str, Port] = {}
        self._failure: Exception | None = None
        self._asks = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._orders: set[asyncio.Task[None]] = set()
        self._alone = False  # The supervisor is gone.
        self._told = Stuck()
        counts = self._config.rest.port is not None and self._config.rest.metrics_path is not None
        self._metrics = _Supervised(self._ask) if counts else None
        observers: list[Observer] = make_observers(self._config.observing)
        if self._metrics is not None:
            observers.append(self._metrics)
        self._acceptors: list[Acceptor] = []
        self.registry = WorkerRegistry(
            self._config.options, serving_table, status, channel.send, observers, places=places
        )

    async def run(self, messages: AsyncIterator[object]) -> None:
        """Live from the import of TensorFlow to the last answer.

        Raises:
            ServingError, OSError: In a group; a port cannot be opened.
        """
        with self._stopped_by_signals():
            async with asyncio.TaskGroup() as background:
                beating = background.create_task(self._beat())
                await asyncio.to_thread(tensorflow_setup.apply, self._config.session_config)
                await self.registry.start(wait=False)
                answer_before_an_abort(self._answer_the_last)
                metric = None if self._metrics is None else self._metric
                repository = Repository(self.registry, self._change)
                services = Services(self._reload, self._metrics, metric, self._with_page, repository)
                accept = {name: partial(self._accept, name) for name in self._connections}
                self._ports = await make_ports(self.registry, self._config, self._bound, services, accept)
                self._channel.send(Up())
                listening = background.create_task(self._listen(messages))
                await self._stop.wait()
                await drain(self.registry, self._opened.values())
                for task in (beating, listening, *self._orders):
                    task.cancel()
                if self._failure is not None:
                    raise self._failure

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

    async def _listen(self, messages: AsyncIterator[object]) -> None:
        async for message in messages:
            self._hear(message)
        if not self._stop.is_set():
            logger.error("The supervisor is gone: finishing the requests in flight")
        self._alone = True
        self._stop.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(_GONE)

    def _hear(self, message: object) -> None:
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
                self._start(self._open(message))
            case Measure(number):
                self._channel.send(Measured(number, self._cells()))
            case Answer(number, value):
                if (answer := self._answers.get(number)) is not None and not answer.done():
                    answer.set_result(value)
            case Drain():
                self._stop.set()

    def _start(self, order: Coroutine[object, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(order)
        self._orders.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._orders.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("a bug in following an order: this worker ends", exc_info=error)
            exit_now(1)

    async def _open(self, wanted: Open) -> None:
        async with self._opening:
            try:
                for name, port in self._ports.items():
                    if getattr(wanted, name) and name not in self._opened:
                        self._opened[name] = port
                        await port.open()
            except (ServingError, OSError) as error:
                self._failure = error
                self._stop.set()
            else:
                self._channel.send(Opened(wanted.rest, wanted.grpc))

    def _accept(self, name: str, *port: Any) -> Acceptor:
        acceptor = Acceptor(self._connections[name], self._setup.index, *port)
        self._acceptors.append(acceptor)
        return acceptor

    def _with_page(self, app: RestApp | SageMakerApp) -> WorkerApp:
        return WorkerApp(app, self.registry, self._setup.index)

    async def _answer_the_last(self) -> None:
        """Before a kernel's abort: leave queued connections to another worker, and fail the remaining requests."""
        logger.critical("TensorFlow aborts this process: requests in flight are answered with UNAVAILABLE")
        for acceptor in self._acceptors:
            acceptor.abandon()
        await self.registry.orders.fail_all(LAST_ANSWERS)
        await asyncio.sleep(LAST_BYTES)

    # Questions to the supervisor.

    async def _ask(self, question: object) -> Any:
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

    async def _reload(self, config: ModelServerConfig) -> None:
        await self._ask(Reload(config.SerializeToString(), present_actor()))

    async def _change(self, name: str, served: bool) -> None:
        await self._ask(Change(name, served, present_actor()))

    async def _metric(self, name: str) -> int:
        return int(await self._ask(MetricOf(name)))


def _sorted(sockets: Sequence[socket.socket], config: ServerConfig) -> Bound:
    """The inherited sockets by port."""
    unix = [each for each in sockets if each.family == socket.AF_UNIX]
    by_port: dict[int, list[socket.socket]] = {}
    for each in sockets:
        if each not in unix:
            by_port.setdefault(each.getsockname()[1], []).append(each)
    return Bound(by_port.get(config.rest.port or 0, ()), by_port.get(config.grpc.port or 0, ()), unix)


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
