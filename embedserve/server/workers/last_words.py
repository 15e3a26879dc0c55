"""What a worker does between a kernel's abort and its end: every request that it has is answered with an error.

TensorFlow's checks call `abort` in the thread that runs the kernel. A handler of that signal keeps that thread for a
moment, while the event loop answers what is in flight on every transport; then the process ends by the same signal.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

__all__ = ["PATIENCE", "answer_before_an_abort"]

# Seconds that the loop has for its last answers; then the process ends whatever the loop does.
PATIENCE = 2.0
# What kernels end a process by on purpose, or by a division. After a bad access to memory nothing is to be trusted.
_SIGNALS = (signal.SIGABRT, signal.SIGFPE)

_kept: list[Any] = []
"""The C function that the signals call, for as long as the process lives."""


def answer_before_an_abort(speak: Callable[[], Awaitable[None]]) -> None:
    """Have `speak` awaited on the running loop once a thread aborts; the process ends when it returns, or at PATIENCE.

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
        for each in _SIGNALS:
            set_handler(each, None)  # SIG_DFL
        if threading.get_ident() != own:
            with suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(begin, number)
                time.sleep(PATIENCE)
        end(number)

    speaking: list[asyncio.Task[None]] = []
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborting)
    _kept.append(handler)
    for number in _SIGNALS:
        set_handler(number, ctypes.cast(handler, ctypes.c_void_p))
