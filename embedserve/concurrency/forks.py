"""Whether TensorFlow had run before this process was forked, which it does not survive.

Imported with the package, when no other part of it is: the host may fork before it uses a name.
"""

from __future__ import annotations

import glob
import os
import sys
from contextlib import suppress

from embedserve.errors import RegistryStateError

__all__ = ["FORK_REMEDY", "check_fork"]

FORK_REMEDY = (
    "enter the registry after the fork (gunicorn's post_fork, Celery's worker_process_init) and run no TensorFlow in "
    "the parent, or start the process by spawn"
)


class _Forks:
    """Notes, at each fork of this process, whether TensorFlow had run before it.

    A fork costs it 30 µs, a process that has not imported TensorFlow nothing.
    """

    def __init__(self) -> None:
        self.ran_in: int | None = None
        """The process that ran TensorFlow and then forked this one; None if there is none."""
        self._running: int | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_child=self._in_child)

    def _before(self) -> None:
        self._running = os.getpid() if _tensorflow_has_run() else None

    def _in_child(self) -> None:
        self.ran_in = self._running or self.ran_in


def _tensorflow_has_run() -> bool:
    """Whether TensorFlow has started its threads, none of which a forked child has. Its mere import starts none."""
    if "tensorflow" not in sys.modules:
        return False
    for path in glob.glob("/proc/self/task/*/comm"):
        with suppress(OSError), open(path, "rb") as file:  # A thread may have ended just now.
            if file.read(3) == b"tf_":
                return True
    return False


_forks = _Forks()


def check_fork() -> None:
    """Refuse to load models where TensorFlow can only hang.

    Raises:
        RegistryStateError: This process was forked from one in which TensorFlow had run.
    """
    if _forks.ran_in is not None:
        raise RegistryStateError(
            f"TensorFlow had run in process {_forks.ran_in} before that forked this one (process {os.getpid()}), where "
            f"it would hang: {FORK_REMEDY}"
        )
