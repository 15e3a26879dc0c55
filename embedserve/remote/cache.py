"""The local directory that versions are fetched into: whole or not there, bounded, shared between processes.

    <root>/<store>/url                what the directory caches, without credentials
    <root>/<store>/<version>-<digest>       a whole version; never written again
    <root>/<store>/<version>-<digest>.part  one that is being fetched

A directory that is in use has a shared `flock`, one that is being fetched or removed an exclusive one, so that several
processes may share a cache and none takes away what another serves; the locks of a process that dies go with it.
Every function blocks and is called in threads. Knows no store, no policy and no loop.
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
from typing import Any

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
_RESERVED = ".reserved"  # In a part, as large as the version will be: others count on it.
_LOCK = ".lock"
_URL = "url"
# Left free on the disk whatever the bound of the cache is: a full disk harms the whole machine.
SPARE_BYTES = 64 * 2**20


def cache_key(url: StoreUrl, options: Mapping[str, Any]) -> str:
    """The directory of a store's versions: readable, and another one for another endpoint of the same URL."""
    told = json.dumps([str(url), _without_secrets(options)], sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(url).partition("://")[2])[-60:].strip("-.")
    return f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    """A rotated credential must not lose the cache."""
    return {
        name: _without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if not is_secret(name)
    }


@dataclass(frozen=True)
class CachedVersion:
    """A whole version in the cache; `used` is when it was last taken into use, in nanoseconds."""

    version: int
    digest: str
    path: Path
    used: int


@dataclass
class Part:
    """A version that is being fetched.

    Attributes:
        path: Where its files are put.
        lock: Exclusive, held as long as this object is of use.
        contents: What it will hold.
        missing: Files that are not there yet.
    """

    path: Path
    lock: Lock
    contents: RemoteVersion
    missing: tuple[RemoteFile, ...]


class Cache:
    """One cache directory, for any number of stores.

    Args:
        root: Made if it is not there; local, for locks of network file systems are not to be trusted.
        max_bytes: Bound of all files in it, or None for what the disk has.
    """

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._sizes: dict[Path, int] = {}  # Of whole versions, which never change.

    def __repr__(self) -> str:
        return f"<Cache {self.root}>"

    def open(self) -> None:
        """Make the directory, readable by this user alone: whoever can write a model can run code.

        Raises:
            StoreError: It cannot be written to; which option names another one.
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
        """One process at a time decides what goes and what may come."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(self.root / _LOCK):
            yield

    # What is there.

    def path(self, key: str, version: int, digest: str) -> Path:
        """Where a version of a store is, or will be."""
        return self.root / key / f"{version}-{digest}"

    def whole(self, key: str) -> tuple[CachedVersion, ...]:
        """The whole versions of a store."""
        found = []
        try:
            with os.scandir(self.root / key) as entries:
                for entry in entries:
                    name = _WHOLE.fullmatch(entry.name)
                    if name is not None and entry.is_dir(follow_symlinks=False):
                        with suppress(FileNotFoundError):  # Removed meanwhile.
                            used = entry.stat(follow_symlinks=False).st_mtime_ns
                            found.append(CachedVersion(int(name[1]), name[2], self.root / key / entry.name, used))
        except OSError:  # Not there yet; what else is wrong with it, `open` tells.
            pass
        return tuple(found)

    def names_below(self, root: StoreUrl, options: Mapping[str, Any]) -> list[str]:
        """Names of the models directly under a store's root that have a whole version here."""
        names = []
        for folder in self._folders():
            with suppress(OSError, UnicodeDecodeError, ConfigError):
                name = (folder / _URL).read_text().removeprefix(f"{root}/")
                if "/" not in name and folder.name == cache_key(root / name, options) and self.whole(folder.name):
                    names.append(name)
        return sorted(names)

    def take(self, path: Path) -> tuple[Lock, Fingerprint] | None:
        """Keep a whole version from being removed, and say what its files are; None if it is not whole, or gone."""
        try:
            lock = Lock.take(path, exclusive=False)
        except (BusyError, OSError):
            return None
        if missing(path) is not None:  # After a crash of the machine, or by hand.
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
        if path.exists():  # Else it may have been removed before the last file was seen.
            self._sizes[path] = size
        return size

    # What comes.

    def begin(
        self, key: str, url: StoreUrl, version: int, contents: RemoteVersion, previous: Part | None
    ) -> Part | None:
        """Make room and a place for a version; None if it is there already.

        Args:
            key: Of the store.
            url: Of the store.
            version: Its number.
            contents: What it holds.
            previous: A part for earlier contents of the same version, whose equal files are taken over. It is of no use
                any more afterwards.

        Raises:
            NoRoomError: It does not fit. Nothing has gone but what there was of it.
            BusyError: Another process is fetching it.
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
        """Turn a part into one for other contents: what differs goes before the name changes."""
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
        """Remove other parts of this version that nobody fetches any more."""
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
        """What nobody uses or fetches, least recently used first."""
        unused = []
        for path in self._everything():
            with suppress(BusyError, OSError):
                unused.append((path, Lock.take(path, exclusive=True)))
        return unused

    def _folders(self) -> list[Path]:
        return [url.parent for url in self.root.glob(f"*/{_URL}")]

    def place(self, part: Part, file: RemoteFile, fetched: Path) -> None:
        """Put a fetched file where it belongs, once it is on the disk.

        Raises:
            StoreError: It has another size than the listing said.
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
        """Judge a part whose files are all there, and make a whole version of it, which the part's lock then keeps.

        Returns:
            What the version lacks: a text with paths below `part.path`. The part then stays as it is.

        Raises:
            StoreError: A file is not there after all; the part is to be begun again.
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
                self.remove(whole)  # It is not as it was, or it would have been found.
            part.path.rename(whole)
            part.lock.share()
        return None

    # What goes.

    def remove(self, path: Path) -> bool:
        """Remove a version or part that nobody uses; whether it is gone."""
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
        """Out of the way by one rename: nobody finds half a version, whatever happens meanwhile."""
        gone = path.with_name(f"{_GONE}{secrets.token_hex(8)}")
        path.rename(gone)
        self._sizes.pop(path, None)
        shutil.rmtree(gone, ignore_errors=True)

    def abandon(self, part: Part) -> None:
        """Remove a part that is not wanted any more."""
        part.lock.release()
        self.remove(part.path)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _written(part: Path) -> int:
    """Bytes of the disk that a part has taken so far; nearly none for its reservation."""
    written = 0
    for folder, _, names in os.walk(part):
        for name in names:
            with suppress(OSError):
                written += os.stat(os.path.join(folder, name), follow_symlinks=False).st_blocks * 512
    return written


def _remove_file(path: Path, top: Path) -> None:
    """And the directories that it leaves empty: what was one may be a file now."""
    path.unlink(missing_ok=True)
    for above in path.relative_to(top).parents:
        if above.parts:
            with suppress(OSError):
                (top / above).rmdir()


def _drop_hidden(part: Path) -> None:
    """Remove the reservation, and files that were being fetched when their process died."""
    for path in part.glob(".*"):
        path.unlink()


def _readable(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
