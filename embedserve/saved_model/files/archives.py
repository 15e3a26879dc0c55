"""Finds the SavedModel in an archive by the archive's names, in a bounded part of the file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["directories_above_model"]

_MOST_BYTES = 1 << 20
"""Bytes read of an archive, unpacked for a tar file: an archive may be huge, and may unpack to more than a disk."""
_MARKS = (("saved_model.pb", "saved_model.pbtxt", "model.tflite"), ("fingerprint.pb", "variables", "assets"))
"""Names in a SavedModel, the sure names first: the graph may come after gigabytes of variables."""
_STRANGE = {"", "..", "__MACOSX"}
"""Directories of absolute paths, of paths out of the archive, and of the second files that macOS adds."""
_UNREADABLE = (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_OPENERS: dict[str, Callable[[Path], io.BufferedIOBase]] = {
    ".gz": gzip.GzipFile,
    ".tgz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


def directories_above_model(archive: Path) -> tuple[str, ...]:
    """The names of the directories above the first SavedModel in an archive.

    `1/saved_model.pb` gives `("1",)`. The answer is empty for a model at the top, and for an unknown model. A leading
    `.` of a tar file's names remains.

    Args:
        archive: A zip or tar file, compressed as the name's end says.
    """
    names: list[str] = []
    with suppress(*_UNREADABLE):
        names = _zipped(archive) if archive.suffix.lower() == ".zip" else _tarred(archive)
    return _above(names)


def _zipped(archive: Path) -> list[str]:
    """The names of a zip file, whose directory is at the end; none for a longer directory."""
    with archive.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - _MOST_BYTES))
        end = file.read(_MOST_BYTES)
    with zipfile.ZipFile(io.BytesIO(end)) as opened:
        return opened.namelist()


def _plain(archive: Path) -> io.BufferedIOBase:
    return archive.open("rb")


def _tarred(archive: Path) -> list[str]:
    """The names in the first part of a tar file."""
    names: list[str] = []
    opened_as = _OPENERS.get(archive.suffix.lower(), _plain)
    with opened_as(archive) as file:
        start = file.read(_MOST_BYTES)
    with suppress(*_UNREADABLE), tarfile.open(fileobj=io.BytesIO(start), mode="r:") as opened:
        for member in opened:
            names.append(member.name)
    return names


def _above(names: Iterable[str]) -> tuple[str, ...]:
    listed = [name.split("/") for name in names]
    for marks in _MARKS:
        for parts in listed:
            found = next((i for i, part in enumerate(parts) if part in marks), None)
            above = parts[:found]
            if found is not None and _STRANGE.isdisjoint(above):
                return tuple(above)
    return ()
