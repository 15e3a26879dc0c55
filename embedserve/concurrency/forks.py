"""Whether TensorFlow had run in the parent before the fork; TensorFlow does not survive a fork.

Imported with the package, as the only module: the host may fork before the first use of a name.
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
    """Notes, at each fork of the process, whether TensorFlow had run before.

    A fork costs 30 µs more after an import of TensorFlow, and no time before.
    """

    def __init__(self) -> None:
        self.ran_in: int | None = None
        """The forked parent in which TensorFlow had run; None without such a parent."""
        self._running: int | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_child=self._in_child)

    def _before(self) -> None:
        self._running = os.getpid() if _tensorflow_has_run() else None

    def _in_child(self) -> None:
        self.ran_in = self._running or self.ran_in


def _tensorflow_has_run() -> bool:
    """Return whether TensorFlow has started threads; a forked child has none. An import alone starts no thread."""
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
        RegistryStateError: TensorFlow had run in the parent before the fork.
    """
    if _forks.ran_in is not None:
        raise RegistryStateError(
            f"TensorFlow had run in process {_forks.ran_in} before that forked this one (process {os.getpid()}), where "
            f"it would hang: {FORK_REMEDY}"
        )
