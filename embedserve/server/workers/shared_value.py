"""One value that one process posts and others read, in shared memory: what is posted holds everywhere from that moment.

This is how a switch of versions reaches every worker at once: a reader compares one number per request, and reads the
value only when it has changed. Knows nothing of what is posted.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import tempfile
import zlib
from typing import Any

from embedserve.errors import ServingError

__all__ = ["SharedValue", "shared_file"]

# Address space, not memory: a page counts once it has been written.
_SLOT_BYTES = 32 * 2**20
_HEADER_BYTES = mmap.PAGESIZE
_SLOT_HEADER = struct.Struct("=QQI")


class SharedValue:
    """A numbered value in a shared file without a name, which children inherit by its descriptor.

    Values n and n + 1 lie in different slots, so a reader of n is disturbed by n + 2 at the earliest; a checksum tells
    it so, whatever order the processor makes the writes visible in.

    Args:
        fd: The descriptor of a shared value that another process posts to, or None to make one.
    """

    def __init__(self, fd: int | None = None) -> None:
        size = _HEADER_BYTES + 2 * _SLOT_BYTES
        self._posts = fd is None
        self.fd = shared_file(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size, access=mmap.ACCESS_WRITE if self._posts else mmap.ACCESS_READ)
        self._bytes = memoryview(self._map)
        self._number = self._bytes[:8].cast("Q")

    def __repr__(self) -> str:
        return f"<SharedValue {self.number}>"

    @property
    def number(self) -> int:
        """Counts what was posted; 0 while nothing was."""
        return self._number[0]

    def post(self, value: Any) -> None:
        """Let this value hold, in place of the one before.

        Raises:
            ServingError: It is too large; the one before still holds.
        """
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        number = self.number + 1
        start = self._slot(number)
        if len(data) > _SLOT_BYTES - _SLOT_HEADER.size:
            raise ServingError(f"{len(data)} bytes are more than workers can be told at once")
        _SLOT_HEADER.pack_into(self._map, start, number, len(data), zlib.crc32(data))
        self._bytes[start + _SLOT_HEADER.size :][: len(data)] = data
        self._number[0] = number  # One aligned word, stored at once.

    def read(self) -> tuple[int, Any]:
        """What was posted last, and its number; None while nothing was."""
        while (number := self.number) != 0:
            start = self._slot(number)
            written, length, checksum = _SLOT_HEADER.unpack_from(self._map, start)
            data = bytes(self._bytes[start + _SLOT_HEADER.size :][: min(length, _SLOT_BYTES)])
            if written == number and zlib.crc32(data) == checksum:
                return number, pickle.loads(data)
        return 0, None

    def close(self) -> None:
        """Give the memory and the descriptor back."""
        self._number.release()
        self._bytes.release()
        self._map.close()
        os.close(self.fd)

    @staticmethod
    def _slot(number: int) -> int:
        return _HEADER_BYTES + number % 2 * _SLOT_BYTES


def shared_file(size: int) -> int:
    """The descriptor of a file without a name, of so many zeros; whoever inherits it may map it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("embedserve")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
