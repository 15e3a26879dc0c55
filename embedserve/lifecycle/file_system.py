"""The real file system behind a scan: listings, stats and checks of directories.

Every call may block and runs in a thread. The module knows no model.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from embedserve.lifecycle.looks import came_back, excused
from embedserve.lifecycle.scan import Listing
from embedserve.saved_model.files.completeness import Look, check, load_messages, look
from embedserve.saved_model.files.misplaced import Child

__all__ = ["FileSystem"]

# Entries of a directory, at most. The limit is far above real counts of models or versions, and a mistaken path soon
# reaches the limit.
MAX_ENTRIES = 20_000

# Seconds that the import of TensorFlow may take until a look counts as hung: far above the slowest import seen, 20 s.
_IMPORT_SECONDS = 300.0


class FileSystem:
    """The real `Disk` (`scan`)."""

    def time(self) -> float:
        return time.monotonic()

    def listing(self, path: Path, follow: bool = True) -> Listing:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            with os.scandir(directory) as entries:
                children = list(_children(entries, path, _leads_to_directory if follow else _may_be_directory))
            status = os.fstat(directory)
        finally:
            os.close(directory)
        came_back()
        return Listing(status.st_dev, status.st_ino, children)

    def leads_nowhere(self, path: Path) -> bool:
        try:
            path.stat()
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False

    def look(self, path: Path) -> Look:
        contents = look(path)
        came_back()
        return contents

    def check(self, path: Path) -> str | None:
        with excused(_IMPORT_SECONDS):
            load_messages()
        finding = check(path)
        came_back()
        return finding


def _children(
    entries: Iterable[os.DirEntry[str]], path: Path, is_directory: Callable[[os.DirEntry[str]], bool | None]
) -> Iterator[Child]:
    for number, entry in enumerate(entries):
        if number == MAX_ENTRIES:
            raise OSError(errno.EFBIG, f"more than {MAX_ENTRIES} entries are in it", str(path))
        try:
            kind = is_directory(entry)
        except OSError:  # The entry exists; a missing entry would count as deleted.
            kind = True
        if kind is not None:
            yield Child(entry.name, kind)


def _leads_to_directory(entry: os.DirEntry[str]) -> bool | None:
    """Tell directories from files; None for a link without a target."""
    if entry.is_dir():
        return True
    return False if entry.is_file() or not entry.is_symlink() else None


def _may_be_directory(entry: os.DirEntry[str]) -> bool | None:
    """Judge by the listing alone, because the target of a link may hang."""
    return entry.is_dir(follow_symlinks=False) or entry.is_symlink()
