"""Memory for bytes that come: a body's own `bytes`, filled by the socket itself, and a thread's common memory.

ASGI promises `bytes`, and a `bytes` object made from a buffer is a copy. CPython's C API lets the maker of a new
`bytes` object fill the object before other code sees the object (`PyBytes_FromStringAndSize` with NULL). The module
knows no protocol.
"""

from __future__ import annotations

import ctypes
import threading

__all__ = ["BodyBuffer", "common_memory"]

READ_BYTES = 262_144
"""Bytes of a thread's common memory: asyncio's and uvloop's own size of a read."""

_PyBUF_WRITE = 0x200

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object,)
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.restype, _view.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)

_of_thread = threading.local()


class BodyBuffer:
    """A `bytes` object of a known size that is not filled yet.

    The system gives pages to the memory as the bytes come, so a client's declared length costs no memory by itself.

    Attributes:
        size: Bytes of the whole body.
        filled: Bytes received so far.
    """

    __slots__ = ("_bytes", "_memory", "filled", "size")

    def __init__(self, size: int) -> None:
        """Make room for `size` bytes, at least 2: Python shares shorter objects.

        Raises:
            MemoryError: The system has no address space for the body.
        """
        self.size = size
        self.filled = 0
        self._bytes: bytes = _new_bytes(None, size)
        self._memory: memoryview = _view(_address(self._bytes), size, _PyBUF_WRITE)

    def __repr__(self) -> str:
        return f"<BodyBuffer {self.filled} of {self.size} bytes>"

    def rest(self, most: int) -> memoryview:
        """The memory of the next bytes, at most `most`; valid as long as the object lives."""
        return self._memory[self.filled : self.filled + most]

    def put(self, data: bytes | memoryview) -> None:
        """Copy the next bytes, no more than are missing."""
        self._memory[self.filled : self.filled + len(data)] = data
        self.filled += len(data)

    def take(self) -> bytes:
        """The whole body; the object gives no memory any more.

        Raises:
            ValueError: Bytes are missing.
        """
        if self.filled != self.size:
            raise ValueError(f"{self.filled} of {self.size} bytes came")
        self._memory.release()
        return self._bytes


def common_memory() -> memoryview:
    """Memory for a read whose bytes are copied before the next read of the thread, as loops read one at a time."""
    memory: memoryview | None = getattr(_of_thread, "memory", None)
    if memory is None:
        memory = _of_thread.memory = memoryview(bytearray(READ_BYTES))
    return memory
