"""A remote directory through fsspec: subdirectories, the contents of versions, the bytes of files.

Methods run on the loop. The file system's coroutines run on fsspec's thread, where timeouts and cancellation work. The
module is imported only for remote models. Knows no policy and no cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

from fsspec import get_filesystem_class
from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import Callback
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from embedserve.remote.concurrency_limit import QUESTIONS, TRANSFERS, ConcurrencyLimit
from embedserve.remote.contents import MAX_FILES, RemoteFile, RemoteVersion, tag_of, version_of
from embedserve.remote.errors import MissingError, StoreError, without_secrets
from embedserve.store_url import StoreUrl

__all__ = ["Store", "open_store"]

T = TypeVar("T")

# Directories of a version, at most: a walk needs a request for each.
_MAX_DIRECTORIES = 200


def open_store(url: StoreUrl, options: Mapping[str, object], timeout: float, limit: ConcurrencyLimit) -> Store:
    """Import and make the file system; call in a thread, because both steps may take long.

    Args:
        url: The directory.
        options: fsspec's storage options; override the options in the URL.
        timeout: Seconds without an answer, or without a byte, after which the store counts as down.
        limit: Shared by all stores of a host.

    Raises:
        StoreError: The options do not make a file system.
    """
    try:
        implementation = get_filesystem_class(url.scheme)
        given = _merged(_defaults(url, timeout), {**implementation._get_kwargs_from_urls(url.full), **options})
        if issubclass(implementation, AsyncFileSystem):
            given.setdefault("use_listings_cache", False)
        file_system = implementation(**given)
        if not file_system.async_impl:
            file_system = AsyncFileSystemWrapper(file_system, asynchronous=False)
        return Store(url, file_system, implementation._strip_protocol(url.full).rstrip("/"), options, timeout, limit)
    except Exception as error:
        raise StoreError(without_secrets(f"{url} cannot be opened: {type(error).__name__}: {error}", options)) from None


def _defaults(url: StoreUrl, timeout: float) -> dict[str, Any]:
    """Defaults for a store with repeated queries and transfers of hours."""
    if url.scheme in ("s3", "s3a"):
        # Parallel parts would hold a whole file in memory; and retries are the fetcher's task.
        config = {"retries": {"max_attempts": 1}, "max_pool_connections": QUESTIONS + TRANSFERS}
        return {"max_concurrency": 1, "config_kwargs": config}
    if url.is_web or url.scheme in ("gs", "gcs"):
        from aiohttp import ClientTimeout  # aiohttp's own limit is five minutes for a whole file.

        patient = {"timeout": ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)}
        return {"client_kwargs" if url.is_web else "session_kwargs": patient}
    return {}


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Let given options override the defaults, also inside nested options."""
    merged = {**defaults, **given}
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(given.get(name), Mapping):
            merged[name] = {**default, **given[name]}
    return merged


class Store:
    """A directory of versions, or of models. Loop only; needs no close."""

    def __init__(
        self,
        url: StoreUrl,
        file_system: Any,
        path: str,
        options: Mapping[str, object],
        timeout: float,
        limit: ConcurrencyLimit,
    ) -> None:
        self.url = url
        self._file_system = file_system
        self._path = path
        self._options = options
        self._timeout = timeout
        self._questions = limit.questions
        self._transfers = limit.transfers()
        # Object stores list a whole version in one request; a walk needs a request per directory.
        self._lists_trees = type(file_system)._find is not AsyncFileSystem._find

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    async def directories(self, name: str = "") -> list[str]:
        """Names of the directories in the store's directory, or in the subdirectory `name`.

        Raises:
            MissingError: The directory is missing; object stores have no empty directories.
            StoreError: The store did not answer, or refused.
        """
        children = await self._children(f"{self._path}/{name}" if name else self._path)
        return [path for path, is_directory, _ in children if is_directory and "/" not in path]

    async def look(self, name: str) -> RemoteVersion:
        """The present contents of the version directory `name`.

        Raises:
            StoreError: The store did not answer, or refused.
        """
        top = f"{self._path}/{name}"
        try:
            found = await (self._tree(top) if self._lists_trees else self._walk(top))
            if len(found) > MAX_FILES:
                return RemoteVersion(lacking=f"it holds more than {MAX_FILES} files")
            missing_sizes = [path for path, info in found.items() if info.get("size") is None]
            infos = await asyncio.gather(*(self._info(found[path]["name"]) for path in missing_sizes))
        except MissingError as error:
            return RemoteVersion(lacking=str(error))
        found |= dict(zip(missing_sizes, infos, strict=True))
        return version_of((path, info.get("size"), tag_of(info), info["name"]) for path, info in found.items())

    async def _tree(self, top: str) -> dict[str, Mapping[str, Any]]:
        self._file_system.invalidate_cache()
        listed = await self._ask(lambda: self._file_system._find(top, detail=True))
        found = {}
        for info in listed.values():
            path = self._below(top, info)
            if path and info.get("type") != "directory" and not path.endswith("/"):
                found[path] = info
        return found

    async def _walk(self, top: str) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        directories = [""]
        for directory in directories:
            if len(found) > MAX_FILES:
                break
            if len(directories) > _MAX_DIRECTORIES:
                raise MissingError(f"it holds more than {_MAX_DIRECTORIES} directories")
            for path, is_directory, info in await self._children(f"{top}/{directory}" if directory else top):
                below = f"{directory}/{path}" if directory else path
                if not is_directory:
                    found[below] = info
                elif not path.startswith(".") and "/" not in path:
                    directories.append(below)
        return found

    async def _children(self, path: str) -> list[tuple[str, bool, Mapping[str, Any]]]:
        """List name below `path`, kind and information of each entry."""
        self._file_system.invalidate_cache()
        listed = await self._ask(
            lambda: self._file_system._ls(f"{path}/" if self.url.is_web else path or "/", detail=True)
        )
        if len(listed) > MAX_FILES:
            raise StoreError(f"{self.url} is not a base path: it holds more than {MAX_FILES} entries")
        children = []
        for info in listed:
            name = self._below(path, info)
            is_directory = info.get("type") == "directory"
            if name and (is_directory or not name.endswith("/")):  # Other names belong to markers, i.e. empty objects.
                children.append((name.rstrip("/") if is_directory else name, is_directory, info))
        return children

    def _below(self, top: str, info: Mapping[str, Any]) -> str | None:
        """An entry's path below a directory; None for a link to another place."""
        name = str(info["name"])
        if not name.startswith(f"{top}/"):
            return None
        path = name[len(top) + 1 :]
        if not self.url.is_web:
            return path
        # Links are no keys: a link is quoted, may point up, and may sort the page.
        path = path.removeprefix("./")
        if "?" in path or "#" in path or path.startswith(("/", "../")) or path in ("", ".", ".."):
            return None
        return unquote(path)

    async def _info(self, source: str) -> dict[str, Any]:
        info = await self._ask(lambda: self._file_system._info(source))
        return {**info, "name": source}

    async def fetch(self, file: RemoteFile, to: Path) -> None:
        """Write a file's bytes to a new local file.

        Raises:
            StoreError: The file is unreadable, changed in length, or sent no byte within the timeout.
        """
        progress = _Progress(file.size)
        async with self._transfers:
            reading = asyncio.ensure_future(
                self._on_io(self._file_system._get_file(file.source, str(to), callback=progress))
            )
            try:
                while not reading.done():
                    # Some file systems report no progress, but each writes a file.
                    seen = progress.reports, await asyncio.to_thread(_last_write, to)
                    await asyncio.wait([reading], timeout=self._timeout)
                    if not reading.done() and seen == (progress.reports, await asyncio.to_thread(_last_write, to)):
                        raise StoreError(f"{self.url}: no byte of {file.path} came for {self._timeout:g} s")
                reading.result()
            except (StoreError, asyncio.CancelledError):
                raise
            except Exception as error:
                self._fail(f"{file.path} cannot be fetched from {self.url}", error)
            finally:
                reading.cancel()

    async def _ask(self, request: Callable[[], Coroutine[object, None, T]]) -> T:
        async with self._questions:
            try:
                async with asyncio.timeout(self._timeout) as limit:
                    return await self._on_io(request())
            except TimeoutError as error:
                if limit.expired():
                    raise StoreError(f"{self.url} did not answer within {self._timeout:g} s") from None
                self._fail(f"{self.url} cannot be read", error)
            except Exception as error:
                self._fail(f"{self.url} cannot be read", error)

    def _fail(self, what: str, error: Exception) -> NoReturn:
        """Raise a request's failure, in words without a secret."""
        cause = error.__cause__
        if self.url.is_web and isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
            # fsspec raises FileNotFoundError for every failed look at a file, even for a server that is down.
            error = error if 400 <= getattr(cause, "status", 0) < 500 else cause
        text = without_secrets(f"{what}: {type(error).__name__}: {error}", self._options)
        raise (MissingError if isinstance(error, FileNotFoundError) else StoreError)(text) from None

    async def _on_io(self, work: Coroutine[object, None, T]) -> T:
        """Run a coroutine on the file system's own loop."""
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._file_system.loop))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Otherwise the caller would seem to be cancelled, and would end without a word.
            raise ConnectionAbortedError("the file system gave the request up") from None


class _Progress(Callback):  # type: ignore[misc]
    """Counts bytes on fsspec's thread, and ends a transfer with more bytes than listed."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.value = 0
        self.reports = 0
        self._limit = limit

    def set_size(self, size: int | None) -> None:
        self.value = 0  # A file system begins anew on a retry.

    def relative_update(self, inc: int = 1) -> None:
        self.reports += 1
        self.value += inc
        if self.value > self._limit:
            raise ValueError(f"there are more than the {self._limit} bytes that were listed")


def _last_write(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
