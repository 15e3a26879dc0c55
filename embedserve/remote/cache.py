"""The local directory for fetched versions: whole versions only, bounded, shared between processes.

    <root>/<store>/url                           the cached URL, without credentials
    <root>/<store>/<version>-<digest>            a whole version; never written again
    <root>/<store>/<version>-<digest>.part       a version that is being fetched

A directory in use has a shared `flock`; a directory being fetched or removed has an exclusive `flock`. Several
processes may therefore share a cache without removing each other's served versions. The locks of a dead process go with
the process. Every function blocks and runs in threads. Knows no store, no policy and no loop.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from embedserve.errors import ConfigError
from embedserve.remote.contents import RemoteFile, RemoteVersion
from embedserve.remote.errors import BusyError, NoRoomError, StoreError, is_secret
from embedserve.remote.lock import Lock, alone
from embedserve.saved_model.files.completeness import Fingerprint, fingerprint, missing
from embedserve.store_url import StoreUrl

__all__ = ["Cache", "CachedVersion", "Part", "cache_key"]

_WHOLE = re.compile(r"([0-9]+)-([0-9a-f]{16})")
_PART = ".part"
_GONE = ".gone-"
_RESERVED = ".reserved"  # In a part, as large as the finished version: other processes count the size as taken.
_LOCK = ".lock"
_URL = "url"
# Bytes left free on the disk, whatever the cache's bound: a full disk harms the whole machine.
SPARE_BYTES = 64 * 2**20


def cache_key(url: StoreUrl, options: Mapping[str, object]) -> str:
    """Name the directory of a store's versions: readable, and different for another endpoint of the same URL."""
    told = json.dumps([str(url), _without_secrets(options)], sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(url).partition("://")[2])[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _without_secrets(options: Mapping[str, object]) -> dict[str, object]:
    """Drop the secrets: a rotated credential must not lose the cache."""
    return {
        name: _without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if not is_secret(name)
    }


@dataclass(frozen=True)
class CachedVersion:
    """A whole version in the cache; `used` is the time of the last use, in nanoseconds since 1970."""

    version: int
    digest: str
    path: Path
    used: int


@dataclass
class Part:
    """A version that is being fetched.

    Attributes:
        path: The directory for the files.
        lock: Exclusive, held as long as the part is in use.
        contents: The files of the finished version.
        missing: Files still to fetch.
    """

    path: Path
    lock: Lock
    contents: RemoteVersion
    missing: tuple[RemoteFile, ...]


class Cache:
    """A cache directory for any number of stores.

    Args:
        root: Made if missing; must be local, because locks of network file systems are unreliable.
        max_bytes: Bound of all files together; None for the whole disk.
    """

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._sizes: dict[Path, int] = {}  # Of whole versions; the sizes never change.

    def __repr__(self) -> str:
        return f"<Cache {self.root}>"

    def open(self) -> None:
        """Make the directory, readable by the present user alone: a writer of models can run code.

        Raises:
            StoreError: The directory cannot be written to; the text names the option for another directory.
        """
        try:
            with self._alone():
                for gone in self.root.glob(f"*/{_GONE}*"):
                    shutil.rmtree(gone, ignore_errors=True)
        except ImportError:
            raise StoreError("remote stores need a system that locks files by flock, such as Linux") from None
        except OSError as error:
            raise StoreError(
                f"the cache directory {self.root} cannot be used ({error.strerror or error}); remote_cache_dir names "
                "another one"
            ) from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Enter alone among all processes, to decide removals and additions."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(self.root / _LOCK):
            yield

    # Present versions.

    def path(self, key: str, version: int, digest: str) -> Path:
        """The directory of a store's version, present or not."""
        return self.root / key / f"{version}-{digest}"

    def whole(self, key: str) -> tuple[CachedVersion, ...]:
        """The whole versions of a store."""
        found = []
        try:
            with os.scandir(self.root / key) as entries:
                for entry in entries:
                    name = _WHOLE.fullmatch(entry.name)
                    if name is not None and entry.is_dir(follow_symlinks=False):
                        with suppress(FileNotFoundError):  # Removed in the meantime.
                            used = entry.stat(follow_symlinks=False).st_mtime_ns
                            found.append(CachedVersion(int(name[1]), name[2], self.root / key / entry.name, used))
        except OSError:  # The directory is missing; `open` reports all other faults.
            pass
        return tuple(found)

    def names_below(self, root: StoreUrl, options: Mapping[str, object]) -> list[str]:
        """Names of the models directly under a store's root with a whole version in the cache."""
        names = []
        for folder in self._folders():
            with suppress(OSError, UnicodeDecodeError, ConfigError):
                name = (folder / _URL).read_text().removeprefix(f"{root}/")
                if "/" not in name and folder.name == cache_key(root / name, options) and self.whole(folder.name):
                    names.append(name)
        return sorted(names)

    def take(self, path: Path) -> tuple[Lock, Fingerprint] | None:
        """Protect a whole version from removal.

        Returns:
            The lock and the files' fingerprint; None if the version is incomplete or gone.
        """
        try:
            lock = Lock.take(path, exclusive=False)
        except (BusyError, OSError):
            return None
        if missing(path) is not None:  # After a crash of the machine, or after manual changes.
            lock.release()
            self.remove(path)
            return None
        os.utime(path)
        return lock, fingerprint(path)

    def size(self, key: str) -> int:
        """Bytes of a store's whole versions."""
        return sum(self._size(found.path) for found in self.whole(key))

    def _size(self, path: Path) -> int:
        if path in self._sizes:
            return self._sizes[path]
        size = sum(stamp.size for stamp in fingerprint(path))
        if path.exists():  # A directory removed during the count has a wrong sum.
            self._sizes[path] = size
        return size

    # Additions.

    def begin(
        self, key: str, url: StoreUrl, version: int, contents: RemoteVersion, previous: Part | None
    ) -> Part | None:
        """Make room and a directory for a version; None if the version is already present.

        Args:
            key: The store's key.
            url: The store's URL.
            version: The version's number.
            contents: The version's files.
            previous: A part with earlier contents of the same version. Equal files are taken over, and the part becomes
                useless.

        Raises:
            NoRoomError: The version does not fit. Only the version's own part was removed.
            BusyError: Another process is fetching the version.
        """
        folder = self.root / key
        whole = self.path(key, version, contents.digest)
        path = folder / f"{whole.name}{_PART}"
        with self._alone():
            if not (folder / _URL).exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                (folder / _URL).write_text(str(url))
            if whole.is_dir():
                if previous is not None:
                    self.abandon(previous)
                return None
            if previous is not None:
                lock = self._carry_over(previous, path, contents)
            else:
                path.mkdir(mode=0o700, exist_ok=True)
                lock = Lock.take(path, exclusive=True)
            try:
                self._sweep(folder, version, path)
                _drop_hidden(path)
                absent = tuple(file for file in contents.files if not _is_there(path / file.path, file.size))
                self._make_room(contents.size, sum(file.size for file in absent), path)
                with (path / _RESERVED).open("wb") as reserved:
                    reserved.truncate(contents.size)
            except BaseException as error:
                lock.release()
                if isinstance(error, NoRoomError):
                    self.remove(path)
                raise
        return Part(path, lock, contents, absent)

    def _carry_over(self, previous: Part, path: Path, contents: RemoteVersion) -> Lock:
        """Turn a part into a part for other contents: differing files go before the name changes."""
        if previous.path != path:
            kept = set(contents.files)
            for file in previous.contents.files:
                if file not in kept:
                    _remove_file(previous.path / file.path, previous.path)
            if path.exists():
                self.remove(path)
            previous.path.rename(path)
        return previous.lock

    def _sweep(self, folder: Path, version: int, keep: Path) -> None:
        """Remove abandoned other parts of the version."""
        for part in folder.glob(f"{version}-*{_PART}"):
            if part != keep:
                self.remove(part)

    def _make_room(self, size: int, absent: int, part: Path) -> None:
        others = [path for path in self._everything() if path != part]
        used = sum(map(self._occupied, others))
        over = 0 if self.max_bytes is None else used + size - self.max_bytes
        coming = sum(self._occupied(path) - _written(path) for path in others if path.name.endswith(_PART))
        over = max(over, absent + coming + SPARE_BYTES - shutil.disk_usage(self.root).free)
        if over <= 0:
            return
        unused = self._lock_unused()
        try:
            spare = {path: self._occupied(path) for path, _ in unused}
            if over > sum(spare.values()):
                bound = "" if self.max_bytes is None else f" of {_readable(self.max_bytes)} (remote_cache_max_bytes)"
                raise NoRoomError(
                    f"it needs {_readable(size)}, which {self.root} has not: {_readable(used - sum(spare.values()))}"
                    f"{bound} are in use"
                )
            for path in spare:
                if over > 0:
                    over -= spare[path]
                    self._remove_locked(path)
        finally:
            for _, lock in unused:
                lock.release()

    def _everything(self) -> list[Path]:
        """Whole versions and parts of all stores, least recently used first."""
        found = [(version.used, version.path) for folder in self._folders() for version in self.whole(folder.name)]
        found += [(0, path) for path in self.root.glob(f"*/*{_PART}")]
        return [path for _, path in sorted(found)]

    def _occupied(self, path: Path) -> int:
        if not path.name.endswith(_PART):
            return self._size(path)
        try:
            return (path / _RESERVED).stat().st_size
        except OSError:
            return 0

    def _lock_unused(self) -> list[tuple[Path, Lock]]:
        """Unused versions and abandoned parts, least recently used first, locked."""
        unused = []
        for path in self._everything():
            with suppress(BusyError, OSError):
                unused.append((path, Lock.take(path, exclusive=True)))
        return unused

    def _folders(self) -> list[Path]:
        return [url.parent for url in self.root.glob(f"*/{_URL}")]

    def place(self, part: Part, file: RemoteFile, fetched: Path) -> None:
        """Sync a fetched file to the disk, then move the file to the final place.

        Raises:
            StoreError: The size differs from the listing.
        """
        size = fetched.stat().st_size
        if size != file.size:
            raise StoreError(f"{file.path} has {size} bytes instead of the {file.size} that were listed")
        with fetched.open("rb") as written:
            os.fsync(written.fileno())
        target = part.path / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched.rename(target)

    def finish(self, part: Part) -> str | None:
        """Judge a complete part, and turn the part into a whole version under the part's lock.

        Returns:
            The missing pieces of the version: a text with paths below `part.path`. The part then stays unchanged.

        Raises:
            StoreError: A file is missing after all; begin the part again.
        """
        for file in part.contents.files:
            if not _is_there(part.path / file.path, file.size):
                raise StoreError(f"{file.path} has gone from the cache, or has another size")
        lacking = missing(part.path)
        if lacking is not None:
            return lacking
        whole = part.path.with_name(part.path.name.removesuffix(_PART))
        os.utime(part.path)
        with self._alone():
            _drop_hidden(part.path)
            if whole.exists():
                self.remove(whole)  # A damaged version; an intact version would have been found.
            part.path.rename(whole)
            part.lock.share()
        return None

    # Removals.

    def remove(self, path: Path) -> bool:
        """Remove an unused version or part; return whether the directory is gone."""
        try:
            lock = Lock.take(path, exclusive=True)
            try:
                self._remove_locked(path)
            finally:
                lock.release()
        except FileNotFoundError:
            return True
        except (BusyError, OSError):
            return False
        return True

    def _remove_locked(self, path: Path) -> None:
        """Rename first, then delete: no reader finds half a version, even after a crash."""
        gone = path.with_name(f"{_GONE}{secrets.token_hex(8)}")
        path.rename(gone)
        self._sizes.pop(path, None)
        shutil.rmtree(gone, ignore_errors=True)

    def abandon(self, part: Part) -> None:
        """Remove an unwanted part."""
        part.lock.release()
        self.remove(part.path)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _written(part: Path) -> int:
    """Bytes of the disk that a part has taken so far; the sparse reservation takes nearly none."""
    written = 0
    for folder, _, names in os.walk(part):
        for name in names:
            with suppress(OSError):
                written += os.stat(os.path.join(folder, name), follow_symlinks=False).st_blocks * 512
    return written


def _remove_file(path: Path, top: Path) -> None:
    """Remove a file and the directories left empty: the new contents may hold a file in place of a directory."""
    path.unlink(missing_ok=True)
    for above in path.relative_to(top).parents:
        if above.parts:
            with suppress(OSError):
                (top / above).rmdir()


def _drop_hidden(part: Path) -> None:
    """Remove the reservation, and half-fetched files of a dead process."""
    for path in part.glob(".*"):
        path.unlink()


def _readable(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
