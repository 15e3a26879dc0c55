"""Serialises runs that overwrite a variable with values of a request, so that no run reads a foreign value.

The module knows no TensorFlow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from embedserve.errors import DeadlineExceededError
from embedserve.tfs.constants import TIMED_OUT

__all__ = ["OneAtATime"]

T = TypeVar("T")


class OneAtATime:
    """Lets a single run at a time through, among the runs of the signatures `names` of a servable."""

    __slots__ = ("_lock", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._lock = threading.Lock()

    def run(self, call: Callable[[float | None], T], timeout: float | None) -> T:
        """Wait for earlier runs, then call `call` with the remaining seconds of `timeout`.

        Raises:
            DeadlineExceededError: `timeout` passed during the wait.
        """
        started = time.monotonic()
        if not self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            raise DeadlineExceededError(TIMED_OUT)
        try:
            return call(None if timeout is None else timeout - (time.monotonic() - started))
        finally:
            self._lock.release()
