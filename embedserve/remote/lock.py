"""Locks on directories, between processes and within one: what is in use is not removed, what is removed is not used.

Used by `cache`. A `flock` belongs to an open file, so a process that dies, however it does, lets go of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedserve.remote.errors import BusyError

__all__ = ["Lock", "alone"]


class Lock:
    """An open directory with a `flock` on it, until it is released."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, exclusive: bool) -> Lock:
        """Lock a directory at once.

        Raises:
            BusyError: Another process, or another part of this one, has it locked.
            FileNotFoundError: It is not there (any more).
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _flock(descriptor, exclusive=exclusive, wait=False)
            if not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise FileNotFoundError(path)  # It was replaced between the two.
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise BusyError(f"{path} is in use") from None
            raise
        return cls(descriptor)

    def share(self) -> None:
        """Make an exclusive lock a shared one."""
        _flock(self._descriptor, exclusive=False, wait=False)

    def __del__(self) -> None:
        self.release()  # Of a lock that was taken for a caller who was cancelled.

    def release(self) -> None:
        """Let go; does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until nobody else is in here with this file."""
    with file.open("w") as opened:
        _flock(opened.fileno(), exclusive=True, wait=True)
        yield


def _flock(descriptor: int, *, exclusive: bool, wait: bool) -> None:
    import fcntl  # Not on Windows, where only the models in stores are missing.

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
