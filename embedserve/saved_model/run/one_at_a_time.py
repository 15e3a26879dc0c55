"""Runs that overwrite a variable with what their request gave: one after the other, so that none reads another's value.

Used by the servables around each run of such a signature. Knows no TensorFlow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from embedserve.errors import DeadlineExceededError
from embedserve.saved_model.status import TIMED_OUT

__all__ = ["OneAtATime"]

T = TypeVar("T")


class OneAtATime:
    """Lets one run at a time go on among those of the signatures `names` of one servable."""

    __slots__ = ("_lock", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._lock = threading.Lock()

    def run(self, call: Callable[[float | None], T], timeout: float | None) -> T:
        """Wait for the runs before, then call with the seconds that are left of `timeout`.

        Raises:
            DeadlineExceededError: `timeout` passed meanwhile.
        """
        started = time.monotonic()
        if not self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            raise DeadlineExceededError(TIMED_OUT)
        try:
            return call(None if timeout is None else timeout - (time.monotonic() - started))
        finally:
            self._lock.release()
