"""Steps of every standalone server process: make the registry, start, report, stop, leave.

The module knows no port and no transport.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

from embedserve.config import RegistryOptions
from embedserve.errors import Code, ServingError, StartError, one_line
from embedserve.logs.access import flush_access_logs
from embedserve.registry import ModelRegistry
from embedserve.server.config import RestConfig, ServerConfig
from embedserve.server.hangups import outlive_hangups
from embedserve.server.observing import make_observers

if TYPE_CHECKING:
    from embedserve.metrics import Metrics

__all__ = [
    "EXIT_FAILED_START",
    "UNLOAD_GRACE",
    "announce_ready",
    "exit_now",
    "first_failure",
    "leave",
    "make_metrics",
    "make_registry",
    "obey_hangups",
    "report_failed_start",
    "run",
    "stop_on_signals",
    "wait_until_ready",
]

logger = logging.getLogger("embedserve")

T = TypeVar("T")

# Exit status of a failed start, as in TensorFlow Serving (-1).
EXIT_FAILED_START = 255
# Seconds between log lines about models that the start still waits for.
WAITING_LOG_INTERVAL = 10.0
# Seconds for unloading in addition to `drain_timeout`.
UNLOAD_GRACE = 10.0
YOUNG_OBJECTS = 5_000
"""Objects made and not freed yet before the garbage collector looks at them: some batches of requests, whose objects
all die without the collector. Python's 700 are less than one batch, and cost 5 % of a small request's time."""


def run(life: Coroutine[object, None, T]) -> T:
    """Run a process's life on the fastest installed event loop, and return the result."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        return _run_fast(life)
    finally:
        gc.set_threshold(*before)


def _run_fast(life: Coroutine[object, None, T]) -> T:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(life)
    return uvloop.run(life)


def make_registry(config: ServerConfig, metrics: Metrics | None) -> ModelRegistry:
    """Make the registry of a configuration, not entered yet."""
    options = {name: getattr(config.options, name) for name in RegistryOptions.model_fields}
    observers = make_observers(config.observing)
    if metrics is not None:
        observers.append(metrics)
    return ModelRegistry(config.root, models=config.models, observers=observers, **options)


def make_metrics(config: RestConfig) -> Metrics | None:
    """Metrics for the observers, or None without a metrics page."""
    if config.port is None or config.metrics_path is None:
        return None
    from embedserve.metrics import Metrics

    return Metrics()


# Start.


async def wait_until_ready(registry: ModelRegistry, stop: asyncio.Event) -> bool:
    """Wait for the first load of the models in `start_requires`; False when a signal came before.

    Raises:
        StartError: A required model did not load; the message is in TensorFlow Serving's words.
    """
    ready, stopped = asyncio.ensure_future(registry.wait_until_ready()), asyncio.ensure_future(stop.wait())
    try:
        while not (ready.done() or stopped.done()):
            await asyncio.wait({ready, stopped}, timeout=WAITING_LOG_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            for name, reason in registry.readiness().items():
                if reason is not None and not (ready.done() or stopped.done()):
                    logger.info("Still waiting for model %s: %s", name, reason)
        if stopped.done():
            return False
        ready.result()
        for name, reason in registry.readiness().items():
            if reason is not None:
                logger.error("Serving without model %s, which is tried again in the background: %s", name, reason)
        return True
    except StartError as error:
        raise _start_error(registry, error) from None
    finally:
        for waiting in (ready, stopped):
            waiting.cancel()
        await asyncio.wait({ready, stopped})


def announce_ready() -> None:
    """Log a line known to tools, and notify systemd: the models serve."""
    logger.info("[evhttp_server.cc : 250] NET_LOG: Entering the event loop ...")
    notify("READY=1")


def notify(state: str) -> None:
    """Send systemd a state (`Type=notify`) as a datagram, as in sd_notify(3); without NOTIFY_SOCKET do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # A full queue of systemd must not block the loop.
            sender.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def _start_error(registry: ModelRegistry, error: StartError) -> StartError:
    """List the failed versions as TensorFlow Serving does (server_core.cc), each with the registry's message."""
    failed = []
    for name, reason in registry.readiness().items():
        decisive = next((status for status in registry.status(name).get(name, ()) if status.message), None)
        if reason is not None and decisive is not None:
            failed.append(
                f"{{name: {name} version: {decisive.version}}} due to error: {decisive.code.name}: {decisive.message}"
            )
    if not failed:
        return error
    listed = "".join(f"{each}}}, " for each in failed)
    return StartError(f"{len(failed)} servable(s) did not become available: {{{listed}}}")


def report_failed_start(error: Exception) -> int:
    """Print the reason of a failed start, in TensorFlow Serving's place and words; return the exit status."""
    if isinstance(error, ServingError):
        code, message = Code(error.code), error.message
    else:
        code, message = Code.UNKNOWN, str(error)
    print(f"Failed to start server. Error: {code.name}: {one_line(message)}", flush=True)
    return EXIT_FAILED_START


def first_failure(failures: BaseExceptionGroup[BaseException]) -> Exception:
    """The first error of nested groups."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


# Stop.


@contextmanager
def stop_on_signals(at_once: Callable[[], object] = bool) -> Iterator[asyncio.Event]:
    """Give an event set by the first SIGTERM or SIGINT; the second signal calls `at_once` and ends the process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("%s again: leaving at once", number.name)
            at_once()
            exit_now(128 + number)
        logger.info("%s: finishing the requests in flight; a second signal leaves at once", number.name)
        notify("STOPPING=1")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


# SIGHUP.


async def obey_hangups(reread: Callable[[], Awaitable[None]]) -> None:
    """Call `reread` once for all SIGHUPs since the last call, until cancelled; afterwards SIGHUP is ignored."""
    if not hasattr(signal, "SIGHUP"):
        return
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, heard.set)
    try:
        while True:
            await heard.wait()
            heard.clear()
            logger.info("SIGHUP: reading the configuration again, and looking for models and versions")
            await reread()
    finally:
        # Blocked, because removing a handler restores the default action: the end of the process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        loop.remove_signal_handler(signal.SIGHUP)
        outlive_hangups()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def leave(registry: ModelRegistry, status: int) -> None:
    """Unload every model; end the process if a thread is stuck in TensorFlow, because the thread cannot be stopped."""
    leaving = asyncio.ensure_future(registry.aclose())
    limit = registry.options.drain_timeout + UNLOAD_GRACE
    _, pending = await asyncio.wait({leaving}, timeout=limit)
    if pending:
        logger.error("Models are still in use after %g s: leaving without them", limit)
        exit_now(status)
    leaving.result()


def exit_now(status: int) -> NoReturn:
    """End the process after flushing logs and output, without waiting for stuck threads."""
    flush_access_logs()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
