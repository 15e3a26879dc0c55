"""The URLs of servers: `grpc://host:8500`, `grpcs://`, `http://host:8501`, `https://`, `grpc+unix:///path`."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from embedserve_client.errors import InvalidInputError

__all__ = ["Address", "address_of"]

_PORTS = {"grpc": 8500, "grpcs": 443, "http": 8501, "https": 443, "grpc+unix": 0}


class Address(NamedTuple):
    """A server.

    Attributes:
        url: As the caller wrote the URL, without a slash at the end.
        protocol: `grpc` or `http`.
        secure: Whether the connection is encrypted.
        host, port: Where the server listens; empty for a Unix socket.
        path: The path of a Unix socket, or the prefix of the REST API's paths; else empty.
    """

    url: str
    protocol: str
    secure: bool
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        """The scheme of HTTP."""
        return "https" if self.secure else "http"

    @property
    def authority(self) -> str:
        """Host and port as in a header."""
        if not self.host:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def address_of(url: str) -> Address:
    """Read a URL; without a port, 8500 for gRPC, 8501 for REST, and 443 with TLS.

    Raises:
        InvalidInputError: No such scheme, no host, or parts that no server has.
    """
    told = f"expects grpc://host:8500, grpcs://, http://host:8501, https:// or grpc+unix:///path, got {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, AttributeError):
        raise InvalidInputError(told) from None
    scheme, path = parts.scheme.lower(), parts.path.rstrip("/")
    unix = scheme == "grpc+unix"
    wrong = scheme not in _PORTS or parts.query or parts.fragment or parts.username is not None
    if wrong or bool(parts.hostname) == unix or (unix and not path) or (scheme in ("grpc", "grpcs") and path):
        raise InvalidInputError(told)
    host = parts.hostname or ""
    protocol = "http" if scheme.startswith("http") else "grpc"
    return Address(url.rstrip("/"), protocol, scheme.endswith("s"), host, port or _PORTS[scheme], path)
