"""Judges whether a version directory is whole, and whether the directory has changed.

The files of a directory name further files that must exist. No file records the length of an asset, so only time can
tell whether an asset is whole: see the source's settle window. The module knows no loop, no clock and no policy; every
function blocks.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from embedserve.saved_model.files.misplaced import Child, in_version

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

__all__ = ["FileStamp", "Fingerprint", "Look", "check", "fingerprint", "load_messages", "look", "missing"]

_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")
_TFLITE_FILE = "model.tflite"
_SAVED_MODEL_PARTS = ("variables", "assets", "fingerprint.pb", "keras_metadata.pb", "debug")
# Bytes up to which a fingerprint includes a file's contents. Graphs and `variables.index` are mostly smaller. The index
# holds a checksum of every variable, so size and time suffice for the large shards.
_DIGEST_BYTES = 8 * 2**20
# Bounds of a walk through a version directory: far above any model, and soon reached behind a link to `/`.
MAX_FILES = 20_000
MAX_DEPTH = 32
_SHARD = re.compile(r"variables\.data-(\d{5,})-of-(\d{5,})")


class FileStamp(NamedTuple):
    """Distinguishes two contents of a file; `path` is relative to the version directory, `mtime_ns` in nanoseconds.

    `digest` covers the contents of a small file, and is empty for a large file. The stamp excludes the inode: on some
    mounts (rclone, goofys, mergerfs) the inode of a file changes at any time.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str


Fingerprint: TypeAlias = tuple[FileStamp, ...]
"""The stamps of every file of a version directory, sorted by path; a fingerprint identifies a generation."""


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a version directory.

    Attributes:
        fingerprint: The files that a load may read.
        activity: Equal for two looks only if the directory was untouched in between. Includes change times, and the
            hidden temporary files in which rsync and editors prepare the next contents.
    """

    fingerprint: Fingerprint
    activity: tuple[tuple[FileStamp, int], ...]


def look(path: Path) -> Look:
    """Stamp every file below `path`, through symlinks. A missing or unreadable path gives an empty fingerprint.

    `path` may be a link to anywhere. Below `path`, a link to a directory is followed within the version, and once out
    of the version; a link back to an ancestor of the walk is not followed.

    A small file is read when the file is new or its status has changed, and not again while the process remembers the
    file.

    The fingerprint omits names that begin with a dot: temporary files, the file system's own (`.nfs0001`) or
    Kubernetes' (`..data`, whose files the links in the directory show).

    Raises:
        OSError: The directory has more than `MAX_FILES`, or `path` is a link to a directory that holds the link.
    """
    activity = tuple(sorted(itertools.islice(_stamps_below(os.fspath(path)), MAX_FILES + 1)))
    if len(activity) > MAX_FILES:
        raise OSError(errno.EFBIG, f"more than {MAX_FILES} files are in it, so it is no version", os.fspath(path))
    return Look(tuple(stamp for stamp, _ in activity if stamp.size >= 0 and not _is_hidden(stamp.path)), activity)


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a version directory; empty for a missing directory or for too many files."""
    try:
        return look(path).fingerprint
    except OSError:
        return ()


def _is_hidden(relative: str) -> bool:
    return relative.startswith(".") or f"{os.sep}." in relative


class _Way(NamedTuple):
    """The way of a walk to a directory.

    Attributes:
        tree: The version directory, or the directory behind a link out of the version.
        outside: Whether the walk followed a link out of the version.
        hops: Real paths of the directories whose links the walk followed.
    """

    tree: str
    outside: bool = False
    hops: tuple[str, ...] = ()


def _stamps_below(path: str) -> Iterator[tuple[FileStamp, int]]:
    """Stamp and change time of each file below a version directory, through links."""
    if os.path.islink(path) and _holds(os.path.realpath(path), os.path.realpath(os.path.dirname(path))):
        raise OSError(errno.ELOOP, "it is a link to a directory that holds it", path)
    return _stamps(path, "", False, _Way(path))


def _stamps(path: str, relative: str, is_link: bool, way: _Way) -> Iterator[tuple[FileStamp, int]]:
    """Yield stamps; an unreadable file, or a link that is not followed, has the size -1 and an errno as digest."""
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            digest = "" if _is_hidden(relative) else _digest_of(path, status)
            yield FileStamp(relative, status.st_size, status.st_mtime_ns, digest), status.st_ctime_ns
            return
        if is_link:
            way = _through_link(path, way)
        if relative.count(os.sep) >= MAX_DEPTH:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        with os.scandir(path) as entries:
            children = [(entry.name, entry.is_symlink()) for entry in entries]
    except OSError as error:
        yield FileStamp(relative, -1, 0, str(error.errno)), 0
        return
    for name, child_is_link in children:
        yield from _stamps(os.path.join(path, name), os.path.join(relative, name), child_is_link, way)


def _through_link(path: str, way: _Way) -> _Way:
    """The way through a link to a directory. A link may lead out of the version once, and never back.

    Paths are compared, because inodes change on some mounts.

    Raises:
        OSError: The link leads back, or out for a second time.
    """
    here, target = os.path.realpath(os.path.dirname(path)), os.path.realpath(path)
    hops = (*way.hops, here)
    inside = _holds(os.path.realpath(way.tree), target)
    if any(_holds(target, hop) for hop in hops) or (way.outside and not inside):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return _Way(way.tree if inside else target, way.outside or not inside, hops)


def _holds(directory: str, path: str) -> bool:
    """Whether a real path equals the directory, or lies below the directory."""
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def _digest_of(path: str, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _DIGEST_BYTES:
        return ""
    return _digest(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=8192)
def _digest(path: str, device: int, inode: int, size: int, mtime_ns: int, ctime_ns: int) -> str:
    """The digest of a file's first `size` bytes; the remaining arguments are the key of the cached answer."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        return hashlib.blake2b(file.read(size), digest_size=16).hexdigest()


def _read(file: Path) -> bytes:
    """The contents of a regular file; a read of a pipe or a device could wait without end."""
    with open(file, "rb", opener=_open_without_waiting) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(errno.EINVAL, "a regular file is expected, and this is none", str(file))
        return opened.read()


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file without a wait, even for a pipe in place of a regular file."""
    return os.open(path, flags | os.O_NONBLOCK)


def missing(path: Path) -> str | None:
    """The obstacle to a load of a version directory, as a text that names the file; None for a whole directory."""
    try:
        return check(path)
    except OSError as error:
        return f"{error.filename or path} cannot be read: {error.strerror or error}"


def load_messages() -> None:
    """Import TensorFlow, or wait until another thread has: a check reads TensorFlow's messages.

    The first import of a message module beside an import of TensorFlow in another thread breaks both imports.
    """
    import tensorflow  # noqa: F401


def check(path: Path) -> str | None:
    """As `missing`, for callers that distinguish a torn directory from a temporarily unreadable directory.

    Raises:
        OSError: A file exists but cannot be read; a later call may succeed.
    """
    if not path.exists():
        return f"{path} is not there"
    if not path.is_dir():
        return f"{path} is a regular file; a version is a directory that holds saved_model.pb"
    names = set(os.listdir(path))
    graph_file = next((path / name for name in _GRAPH_FILES if name in names), None)
    if graph_file is None:
        return _check_without_graph(path, names)
    load_messages()
    saved_model = _parse(graph_file)
    if isinstance(saved_model, str):
        return saved_model
    return _check_variables(path, saved_model) or _check_assets(path, saved_model) or _check_tflite(path, names)


def _check_without_graph(path: Path, names: set[str]) -> str | None:
    parts = sorted(names.intersection(_SAVED_MODEL_PARTS))
    if _TFLITE_FILE in names and not parts:
        return _check_tflite(path, names)
    visible = sorted(name for name in names if not name.startswith("."))
    found = (
        f"found {', '.join(visible[:8])}{', ...' if len(visible) > 8 else ''}" if visible else "the directory is empty"
    )
    instead = in_version(path, _children(path), _children)
    return f"{path / _GRAPH_FILES[0]} is missing ({found}){f': {instead}' if instead else ''}"


def _children(path: Path) -> list[Child]:
    try:
        with os.scandir(path) as entries:
            return [Child(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        return []


def _check_tflite(path: Path, names: set[str]) -> str | None:
    if _TFLITE_FILE not in names:
        return None
    from embedserve.saved_model.files.flatbuffer import torn

    data = _read(path / _TFLITE_FILE)
    finding = torn(data)
    return None if finding is None else f"{path / _TFLITE_FILE} is torn or still being written: {finding}"


def _parse(file: Path) -> SavedModel | str:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel()
    try:
        data = _read(file)
    except FileNotFoundError:  # A dangling link, or a file that is gone since the listing of the directory.
        return f"{file} is missing"
    try:
        if file.suffix == ".pb":
            saved_model.ParseFromString(data)
        else:
            text_format.Parse(data, saved_model)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        return f"{file} is torn or still being written: its {len(data)} bytes do not parse as a SavedModel ({error})"
    if not saved_model.meta_graphs:
        return f"{file} is torn or still being written: its {len(data)} bytes hold no meta graph"
    return saved_model


def _check_variables(path: Path, saved_model: SavedModel) -> str | None:
    directory = path / "variables"
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    index = directory / "variables.index"
    if index.name not in names:
        if shards or any(_restores_variables(graph) for graph in saved_model.meta_graphs):
            return f"{index} is missing"
        return None
    return _check_shard_names(directory, shards) or _check_shard_sizes(directory, index, shards)


def _restores_variables(graph: MetaGraphDef) -> bool:
    """Whether a load reads `variables/`: a model stores a saver exactly if the model has variables to restore."""
    return bool(graph.saver_def.restore_op_name) or any(
        node.WhichOneof("kind") == "variable" for node in graph.object_graph_def.nodes
    )


def _shard_name(number: int, count: int) -> str:
    return f"variables.data-{number:05}-of-{count:05}"


def _check_shard_names(directory: Path, shards: list[str]) -> str | None:
    for count in sorted({int(name.rpartition("-")[2]) for name in shards}):
        for number in range(count):
            if _shard_name(number, count) not in shards:
                return f"{directory / _shard_name(number, count)} is missing"
    return None


def _check_shard_sizes(directory: Path, index: Path, shards: list[str]) -> str | None:
    from embedserve.saved_model.files.bundle_index import TornIndexError, shard_sizes

    try:
        sizes = shard_sizes(_read(index))
    except FileNotFoundError:
        return f"{index} is missing"
    except TornIndexError as error:
        return f"{index} is torn or still being written: {error}"
    if sizes is None:  # Only TensorFlow can read a compressed index; the names of the shards must suffice.
        return None if shards else f"{directory / _shard_name(0, 1)} is missing"
    for number, size in enumerate(sizes):
        shard = directory / _shard_name(number, len(sizes))
        try:
            given = shard.stat().st_size
        except FileNotFoundError:
            return f"{shard} is missing"
        if given < size:
            return f"{shard} is torn or still being written: it has {given} of {size} bytes"
    return None


def _check_assets(path: Path, saved_model: SavedModel) -> str | None:
    for graph in saved_model.meta_graphs:
        for name in _asset_names(graph):
            asset = path / "assets" / name
            if not asset.exists():
                return f"{asset} is missing"
            if not asset.is_file() and not asset.is_dir():
                return f"{asset} is no regular file"
    return None


def _asset_names(graph: MetaGraphDef) -> Iterator[str]:
    """Paths below `assets/`: in a field of their own, or in a collection, as TensorFlow 1 stores the paths."""
    from tensorflow.core.protobuf import meta_graph_pb2

    for asset in graph.asset_file_def:
        yield asset.filename
    if "saved_model_assets" in graph.collection_def:
        for packed in graph.collection_def["saved_model_assets"].any_list.value:
            asset = meta_graph_pb2.AssetFileDef()
            if packed.Unpack(asset):
                yield asset.filename
