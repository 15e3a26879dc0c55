"""TFRecord files of a prefix: the newest is written, the oldest are deleted, and a bound holds for all together.

Every method blocks. Knows no record's contents.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from pathlib import Path
from typing import Any

__all__ = ["RecordTooLargeError", "RotatingFiles"]

# Bytes around a record: the length, the length's checksum and the record's checksum.
FRAME_BYTES = 16

_NUMBERS = itertools.count(1)


class RecordTooLargeError(Exception):
    """A record larger than a file may be."""


class RotatingFiles:
    """Files named `<prefix>-<UTC time>-<process>-<number>.tfrecord`, uncompressed.

    The bound holds for all files of the prefix, including files of earlier runs; files with another name are left
    alone. Several processes may share a prefix: each process makes room among the files of all.

    Args:
        prefix: Directory and beginning of the names.
        max_file_bytes: Size at which the next file begins.
        max_total_bytes: Size of all files together.
    """

    def __init__(self, prefix: Path, max_file_bytes: int, max_total_bytes: int) -> None:
        self.prefix = prefix
        self._max_file_bytes = min(max_file_bytes, max_total_bytes)
        self._max_total_bytes = max_total_bytes
        self._name = re.compile(re.escape(prefix.name) + r"-\d{8}T\d{6}\.\d{6}Z-\d+-\d+\.tfrecord")
        self._writer: Any = None
        self._path = prefix
        self._size = 0
        self._first_size = 0

    def __repr__(self) -> str:
        return f"<RotatingFiles {self.prefix}-*.tfrecord>"

    def prepare(self) -> None:
        """Make the directory.

        Raises:
            OSError: The directory cannot be made or written to.
        """
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.prefix.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{self.prefix.parent} is not writable")

    def write(self, record: bytes) -> None:
        """Append a record, to a new file if the present file has no room.

        Raises:
            RecordTooLargeError: The record is larger than a file may be.
            Exception: The system's or TensorFlow's error; the next record goes to a new file.
        """
        size = len(record) + FRAME_BYTES
        if size > self._max_file_bytes:
            raise RecordTooLargeError(f"a record of {len(record)} bytes does not fit a file of {self._max_file_bytes}")
        if self._writer is None or self._size + size > self._max_file_bytes:
            self._begin_file()
        try:
            self._writer.write(record)
        except BaseException:
            self._abandon_file()
            raise
        self._first_size = self._first_size or size
        self._size += size

    def flush(self) -> None:
        """Let readers see every record."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except BaseException:
            self._abandon_file()
            raise

    def close(self) -> None:
        """End the present file; a later record begins another file."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except BaseException:
            self._abandon_file()
            raise

    def _begin_file(self) -> None:
        import tensorflow as tf

        self.close()
        self.prepare()
        self._make_room()
        now = time.time_ns()
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9))
        name = f"{self.prefix.name}-{moment}.{now // 1000 % 10**6:06}Z-{os.getpid()}-{next(_NUMBERS):06}.tfrecord"
        self._path = self.prefix.with_name(name)
        self._size = self._first_size = 0
        self._writer = tf.io.TFRecordWriter(str(self._path))

    def _abandon_file(self) -> None:
        """End a file after a failed write.

        A file with a whole record stays for readers, even with half a record at the end. A file without any whole
        record is removed, because every attempt on a full disk would leave a file.
        """
        with contextlib.suppress(Exception):
            self.close()
        with contextlib.suppress(OSError):
            if not self._first_size or self._path.stat().st_size < self._first_size:
                self._path.unlink()

    def _make_room(self) -> None:
        """Delete the oldest files until a whole new file fits."""
        files = []
        for path in self.prefix.parent.iterdir():
            if self._name.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # Another process makes room as well.
                    status = path.stat()
                    files.append((status.st_mtime_ns, path, status.st_size))
        total = sum(size for _, _, size in files)
        for _, path, size in sorted(files):
            if total <= self._max_total_bytes - self._max_file_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
