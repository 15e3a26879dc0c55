"""A single value in shared memory, posted by one process and read by many; a post takes effect everywhere at once.

A switch of versions reaches every worker through a shared value. A reader compares a number per request and reads the
value only after a change. The module does not know the meaning of the value.
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

# Bytes of address space for each of two values: 32 MiB. A page takes memory only once written.
_SLOT_BYTES = 32 * 2**20
_HEADER_BYTES = mmap.PAGESIZE
_SLOT_HEADER = struct.Struct("=QQI")


class SharedValue:
    """A numbered value in a shared, nameless file; children inherit the file's descriptor.

    Values n and n + 1 lie in different halves of the file, so value n + 2 is the first to overwrite value n. A checksum
    reveals the overwriting, in whatever order the processor makes the writes visible.

    Args:
        fd: The descriptor of a shared value that another process posts to, or None to create a shared value.
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
        """The number of posts so far; 0 before the first."""
        return self._number[0]

    def post(self, value: object) -> None:
        """Replace the value for all readers.

        Raises:
            ServingError: The value is larger than 32 MiB; the previous value stays.
        """
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        number = self.number + 1
        start = self._slot(number)
        if len(data) > _SLOT_BYTES - _SLOT_HEADER.size:
            raise ServingError(f"{len(data)} bytes are more than workers can be told at once")
        _SLOT_HEADER.pack_into(self._map, start, number, len(data), zlib.crc32(data))
        self._bytes[start + _SLOT_HEADER.size :][: len(data)] = data
        self._number[0] = number  # A single store of an aligned word.

    def read(self) -> tuple[int, Any]:
        """The number and the content of the last post; `(0, None)` before the first."""
        while (number := self.number) != 0:
            start = self._slot(number)
            written, length, checksum = _SLOT_HEADER.unpack_from(self._map, start)
            data = bytes(self._bytes[start + _SLOT_HEADER.size :][: min(length, _SLOT_BYTES)])
            if written == number and zlib.crc32(data) == checksum:
                return number, pickle.loads(data)
        return 0, None

    def close(self) -> None:
        """Release the memory and the descriptor."""
        self._number.release()
        self._bytes.release()
        self._map.close()
        os.close(self.fd)

    @staticmethod
    def _slot(number: int) -> int:
        return _HEADER_BYTES + number % 2 * _SLOT_BYTES


def shared_file(size: int) -> int:
    """Create a nameless file of `size` zero bytes for child processes to map; return its descriptor."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("embedserve")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
