"""The URL of a remote model store: the difference from a path, the reading package, and the text without credentials.

The module opens no connection; `remote` finds out at the registry's entry whether the store answers.
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
# Up to the last `@`: a password may hold a `/`. A path with an `@` is cut too, because the two cases look alike.
_USER = re.compile(r"(?<=://)\S+@")
_QUERY = re.compile(r"(://[^\s?#]*[?#])[^\s'\"<>)]+")
_LOCAL = ("file", "local")
_WEB = ("http", "https")
# Stores whose URLs name a bucket or host; URLs of further stores may begin with a path.
_NAMED = ("s3", "s3a", "gs", "gcs", *_WEB)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


def is_url(text: str) -> bool:
    """Whether a base path is a URL, of a local file or of a store."""
    return _SCHEME.match(text) is not None


def redacted(text: str) -> str:
    """Return a text without possible credentials in URLs: user, password, query (a signature), fragment.

    The text before the last `@` of a URL counts as user and password: a password may hold a `/` or an `@`.
    """
    return _QUERY.sub(r"\1***", _USER.sub("***@", text))


@dataclass(frozen=True, repr=False)
class StoreUrl:
    """A directory in a remote store. The text form has no credentials; `full` has the credentials.

    Raises:
        ConfigError: The URL has no bucket or host, a query, or a chain of file systems.
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
        """Bucket or host, without credentials; stores of the same host share a limit of requests."""
        return self.full.partition("://")[2].partition("/")[0].rpartition("@")[2]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.full.partition("://")[2].rpartition("/")[2]

    @property
    def is_web(self) -> bool:
        """Whether directories are web pages with links."""
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
    """Return the reason if user and password cannot be told from the path; only a port may follow a host."""
    authority, slash, path = full.partition("://")[2].partition("/")
    _, at, host = authority.rpartition("@")
    if slash and not at and "@" in path and ":" in host and not host.rpartition(":")[2].isdigit():
        return "the password before the host holds a `/`, which a URL writes as %2F"
    return None


def local_path(text: str) -> str | None:
    """Return the path of a file:// URL; None for URLs of another scheme.

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
    """Find a missing package at the configuration of a store, before the first access. Imports no file system.

    Raises:
        ConfigError: UNIMPLEMENTED; the message names the extra or package to install.
    """
    extra = f"pip install 'embedserve[{_EXTRAS.get(url.scheme, 'remote')}]'"
    if importlib.util.find_spec("fsspec") is None:
        raise ConfigError(f"{url}: remote stores are read with fsspec: {extra}", code=Code.UNIMPLEMENTED)
    from fsspec import available_protocols
    from fsspec.registry import known_implementations, registry

    if url.scheme not in available_protocols():
        raise ConfigError(f"{url}: fsspec knows no file system for {url.scheme}://", code=Code.UNIMPLEMENTED)
    if url.scheme in registry or url.scheme not in known_implementations:
        return  # Imported already, or registered by another package.
    known = known_implementations[url.scheme]
    package = "aiohttp" if url.is_web else known["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        remedy = extra if url.scheme in _EXTRAS else known.get("err", f"install {package}")
        raise ConfigError(f"{url}: {url.scheme}:// is read with {package}: {remedy}", code=Code.UNIMPLEMENTED)
