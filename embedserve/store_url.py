"""The URL of a remote model store: what tells it from a path, which package reads it, how it is shown.

Used by `config` for base paths. Whether the store answers is asked by `remote`, when a registry is entered.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

from embedserve.errors import Code, ConfigError

__all__ = ["StoreUrl", "check_readable", "is_url", "local_path", "redacted"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Up to the last `@`, though a path may hold one: a password may hold a `/`, and nothing tells which it is.
_USER = re.compile(r"(?<=://)\S+@")
_QUERY = re.compile(r"(://[^\s?#]*[?#])[^\s'\"<>)]+")
_LOCAL = ("file", "local")
_WEB = ("http", "https")
# Stores whose URLs name a bucket or host; others may begin with a path.
_NAMED = ("s3", "s3a", "gs", "gcs", *_WEB)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


def is_url(text: str) -> bool:
    """Whether a base path is a URL, of a local file or of a store."""
    return _SCHEME.match(text) is not None


def redacted(text: str) -> str:
    """A text without what may be a credential in the URLs in it: user, password, query (a signature), fragment.

    What stands before the last `@` of a URL counts as user and password, for a password may hold a `/` or an `@`.
    """
    return _QUERY.sub(r"\1***", _USER.sub("***@", text))


@dataclass(frozen=True, repr=False)
class StoreUrl:
    """A directory in a remote store. As text it has no credentials; `full` has them.

    Raises:
        ConfigError: It cannot be one: no bucket or host, a query, a chain of file systems.
    """

    full: str

    def __post_init__(self) -> None:
        scheme, separator, path = self.full.partition("://")
        object.__setattr__(self, "full", f"{scheme}{separator}{path.rstrip('/')}")
        _check_form(self)

    def __str__(self) -> str:
        return _USER.sub("***@", self.full)  # A key may hold a question mark.

    def __repr__(self) -> str:
        return f"StoreUrl({str(self)!r})"

    def __truediv__(self, name: str) -> Self:
        return type(self)(f"{self.full}/{name}")

    @property
    def scheme(self) -> str:
        """`s3`, `gs`, `http`..., in lower case."""
        return self.full.partition("://")[0].lower()

    @property
    def host(self) -> str:
        """Bucket or host, without credentials; stores of one host share what a host can bear."""
        return self.full.partition("://")[2].partition("/")[0].rpartition("@")[2]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.full.partition("://")[2].rpartition("/")[2]

    @property
    def is_web(self) -> bool:
        """Whether directories are web pages that list links."""
        return self.scheme in _WEB


def _check_form(url: StoreUrl) -> None:
    if (problem := _credentials_problem(url.full)) is not None:
        raise ConfigError(f"{url}: {problem}")
    if "::" in url.full or any(character < " " for character in url.full):
        raise ConfigError(f"{url} is not the URL of one store; fsspec's chained URLs are not read")
    if url.scheme in _NAMED and not url.host:
        raise ConfigError(f"{url} names no bucket or host; expected {url.scheme}://NAME/PATH")
    if url.is_web and ("?" in url.full or "#" in url.full):
        shown = re.split("[?#]", redacted(url.full))[0]
        raise ConfigError(f"{shown}: a base path has no query; credentials go to storage_options")


def _credentials_problem(full: str) -> str | None:
    """Why a URL's user and password cannot be told from its path; a host may be followed by a port, and by no more."""
    authority, slash, path = full.partition("://")[2].partition("/")
    _, at, host = authority.rpartition("@")
    if slash and not at and "@" in path and ":" in host and not host.rpartition(":")[2].isdigit():
        return "the password before the host holds a `/`, which a URL writes as %2F"
    return None


def local_path(text: str) -> str | None:
    """The path that a file:// URL means; None for other URLs.

    Raises:
        ConfigError: The URL names another host.
    """
    url = urlsplit(text)
    if url.scheme.lower() not in _LOCAL:
        return None
    if url.netloc not in ("", "localhost"):
        raise ConfigError(f"{redacted(text)} is a file of another host; mount it, or serve it over http://")
    return unquote(url.path)


def check_readable(url: StoreUrl) -> None:
    """Find a missing package when a store is configured, not when it is first asked. Imports no file system.

    Raises:
        ConfigError: UNIMPLEMENTED; which extra or package to install.
    """
    extra = f"pip install 'embedserve[{_EXTRAS.get(url.scheme, 'remote')}]'"
    if importlib.util.find_spec("fsspec") is None:
        raise ConfigError(f"{url}: remote stores are read with fsspec: {extra}", code=Code.UNIMPLEMENTED)
    from fsspec import available_protocols
    from fsspec.registry import known_implementations, registry

    if url.scheme not in available_protocols():
        raise ConfigError(f"{url}: fsspec knows no file system for {url.scheme}://", code=Code.UNIMPLEMENTED)
    if url.scheme in registry or url.scheme not in known_implementations:
        return  # Imported already, or brought by a package of its own.
    known = known_implementations[url.scheme]
    package = "aiohttp" if url.is_web else known["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        remedy = extra if url.scheme in _EXTRAS else known.get("err", f"install {package}")
        raise ConfigError(f"{url}: {url.scheme}:// is read with {package}: {remedy}", code=Code.UNIMPLEMENTED)
