"""Locks on directories, between processes and within a process: removal and use of a directory exclude each other.

A `flock` belongs to an open file, so the end of a process, however sudden, releases the process's locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedserve.remote.errors import BusyError

__all__ = ["Lock", "alone"]


class Lock:
    """An open directory with a `flock`, until the release."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, exclusive: bool) -> Lock:
        """Lock a directory at once.

        Raises:
            BusyError: Another process, or another part of the present process, holds the lock.
            FileNotFoundError: The directory is missing.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _flock(descriptor, exclusive=exclusive, wait=False)
            if not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise FileNotFoundError(path)  # The directory was replaced between the two calls.
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise BusyError(f"{path} is in use") from None
            raise
        return cls(descriptor)

    def share(self) -> None:
        """Turn an exclusive lock into a shared lock."""
        _flock(self._descriptor, exclusive=False, wait=False)

    def __del__(self) -> None:
        self.release()  # For locks taken for a cancelled caller.

    def release(self) -> None:
        """Let go; a second call has no effect."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait for the exclusive lock on `file`, and hold the lock within the context."""
    with file.open("w") as opened:
        _flock(opened.fileno(), exclusive=True, wait=True)
        yield


def _flock(descriptor: int, *, exclusive: bool, wait: bool) -> None:
    import fcntl  # Windows has no `fcntl`, and lacks only the models in stores.

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
