"""Judges a remote version by the listing alone: safe names, sizes, a digest.

Plain data and functions. Knows no store and no disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["MAX_FILES", "RemoteFile", "RemoteVersion", "tag_of", "version_of"]

# Files of a version, or entries of a directory, at most; a larger listing shows a mistaken base path.
MAX_FILES = 10_000
# Parts of a path, bytes of all names in a path, and bytes of a name, at most; below the usual limits of file systems.
_MAX_DEPTH = 32
_MAX_PATH_BYTES = 1000
_MAX_NAME_BYTES = 200

_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")

# Where file systems report a mark of the contents; otherwise the time of the last change must do.
_TAGS = ("ETag", "etag", "md5Hash", "generation", "Content-MD5", "content_md5", "content_settings", "checksum")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created", "timeModified")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a version.

    Attributes:
        path: Relative to the version, with `/`; safe to write below a directory.
        size: In bytes.
        tag: Differs for other contents, as far as the store tells.
        source: The file system's name for the file.
    """

    path: str
    size: int
    tag: str = ""
    source: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class RemoteVersion:
    """The listed files of a version, sorted by path, and the fault of the listing, if any."""

    files: tuple[RemoteFile, ...] = ()
    lacking: str | None = None

    @cached_property
    def digest(self) -> str:
        """The name of the contents: 16 hexadecimal digits."""
        listed = json.dumps([(file.path, file.size, file.tag) for file in self.files])
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def tag_of(info: Mapping[str, object]) -> str:
    """Pick the mark that distinguishes a file's contents from a file system's information."""
    for name in _TAGS:
        if info.get(name):
            return str(info[name])
    return " ".join(str(info[name]) for name in _TIMES if info.get(name))


def version_of(listed: Iterable[tuple[str, int | None, str, str]]) -> RemoteVersion:
    """Judge a listing.

    Args:
        listed: Path below the version, size, tag and source of each file, as the store reports.

    Returns:
        The version. Hidden files are left out, as in a local directory. An unsafe name or an unknown size spoils the
        version: the version then has no files and gives the reason.
    """
    files: dict[str, RemoteFile] = {}
    for path, size, tag, source in listed:
        refusal = _refusal(path)
        if refusal is None and path in files:
            refusal = "is listed twice"
        if refusal is not None:
            return RemoteVersion(lacking=f"it is refused: the key {path[:200]!r} {refusal}")
        if any(part.startswith(".") for part in path.split("/")):
            continue
        if size is None or size < 0:
            return RemoteVersion(lacking=f"the store tells no size of {path}, so nobody could tell it from a torn one")
        files[path] = RemoteFile(path, size, tag, source)
        if len(files) > MAX_FILES:
            return RemoteVersion(lacking=f"it holds more than {MAX_FILES} files")
    for path in files:
        above = path.rpartition("/")[0]
        while above:
            if above in files:
                return RemoteVersion(lacking=f"it is refused: {above!r} is a file and a directory")
            above = above.rpartition("/")[0]
    return RemoteVersion(tuple(files[path] for path in sorted(files)), _lacking(files.keys()))


def _refusal(path: str) -> str | None:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "does not lie below the version"
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "is not text"
    if "\0" in path:
        return "is not a file name"
    if max(sizes) > _MAX_NAME_BYTES or sum(sizes) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH:
        return "is too long"
    return None


def _lacking(paths: Iterable[str]) -> str | None:
    """Find the lack of an essential file; the other files are judged after the fetch."""
    names = set(paths)
    if not names:
        return "it holds no file"
    if names.isdisjoint(_GRAPH_FILES):
        return f"{_GRAPH_FILES[0]} is missing"
    return None
