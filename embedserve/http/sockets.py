"""Bound sockets for listeners: TCP at addresses, Unix sockets at paths, and TLS contexts. Knows no protocol.

Bound sockets do not listen yet: a taken port is known before a server has anything to answer with.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import ssl
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

__all__ = [
    "ALPN_PROTOCOLS",
    "EVERY_IPV4",
    "EVERY_IPV6",
    "NOT_HERE",
    "UnixSocket",
    "addresses_of",
    "bound_socket",
    "bound_sockets",
    "bracketed",
    "dual_stack_socket",
    "is_unix",
    "tls_context",
]

Address: TypeAlias = tuple[str, int | None]

EVERY_IPV4, EVERY_IPV6 = "0.0.0.0", "::"

ALPN_PROTOCOLS = ["h2", "http/1.1"]

NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Errors of a bind to an address that is not the machine's."""

MAX_SOCKET_PATH = 107
"""Bytes of Linux's longest socket path, without its NUL."""


def bracketed(host: str) -> str:
    """An address as written before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


# TCP.


def bound_sockets(hosts: Sequence[str], port: int, *, shared: bool = False) -> list[socket.socket]:
    """A bound socket for each address of `hosts`, not listening; without hosts a single socket for all interfaces.

    With port 0 the first address takes a free port, and the rest take the same port. With `shared`, further sockets
    bound with `shared` may have the same port.

    Raises:
        OSError: The port is taken or not allowed, or an address is not this machine's; `filename` is the place.
    """
    if not hosts:
        try:
            return [dual_stack_socket(port, shared=shared)]
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"port {port}") from None
    with contextlib.ExitStack() as stack:
        bound: list[socket.socket] = []
        for host in hosts:
            try:
                number = bound[0].getsockname()[1] if bound else port
                found = bound_socket(_family(host), host, number, shared=shared)
            except OSError as error:
                reason = "it is no address of this machine" if error.errno in NOT_HERE else error.strerror
                raise OSError(error.errno, reason, f"{bracketed(host)} port {port}") from None
            bound.append(stack.enter_context(found))
        stack.pop_all()
    return bound


def dual_stack_socket(port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket of IPv6 and IPv4, not listening; of IPv4 alone where IPv6 is missing.

    Raises:
        OSError: The port is taken or not allowed.
    """
    if socket.has_dualstack_ipv6():
        try:
            return bound_socket(socket.AF_INET6, EVERY_IPV6, port, shared=shared)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return bound_socket(socket.AF_INET, EVERY_IPV4, port, shared=shared)


def bound_socket(family: socket.AddressFamily, host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound TCP socket, not listening; `shared` with further sockets bound with `shared`.

    Raises:
        OSError: The port is taken or not allowed.
    """
    ((*_, address),) = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# Unix sockets.


class UnixSocket:
    """The path of a Unix socket: bound under a temporary name, then renamed into place.

    The path therefore always leads to a live server, and the last server to start wins. A server that removes the path
    of its socket removes only the temporary name. Every method touches the file system.

    Attributes:
        path: The absolute path.
        bound_path: The temporary name, to bind to.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.bound_path = f"{self.path}.{secrets.token_hex(3)}"
        self._inode: int | None = None
        if len(os.fsencode(self.bound_path)) > MAX_SOCKET_PATH:
            longest = MAX_SOCKET_PATH - (len(self.bound_path) - len(self.path))
            raise OSError(errno.ENAMETOOLONG, f"the socket path must not be longer than {longest} bytes", self.path)
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EEXIST, "the socket path is taken by something that is not a socket", self.path)

    def __repr__(self) -> str:
        return f"<UnixSocket {self.path}{'' if self._inode is None else ' (published)'}>"

    def bind(self) -> socket.socket:
        """A socket bound to the temporary name, not listening.

        Raises:
            OSError: The directory is missing, or does not allow a socket.
        """
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(self.bound_path)
        except OSError as error:
            bound.close()
            raise self.bind_error() or error from None
        return bound

    def bind_error(self) -> OSError | None:
        """The reason for a failed bind, or None for an unknown reason."""
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            return FileNotFoundError(errno.ENOENT, "no such directory for the socket", directory)
        if not os.access(directory, os.W_OK):
            return PermissionError(errno.EACCES, "no permission to make the socket", self.path)
        return None

    def publish(self) -> None:
        """Move the bound socket to its path, over any older socket."""
        self._inode = os.lstat(self.bound_path).st_ino
        os.replace(self.bound_path, self.path)

    def remove(self) -> None:
        """Remove the path, unless the socket of another server is there by now."""
        path = self.bound_path if self._inode is None else self.path
        try:
            if self._inode is None or os.lstat(path).st_ino == self._inode:
                os.unlink(path)
        except FileNotFoundError:
            pass


# Connections.


def addresses_of(transport: asyncio.BaseTransport) -> tuple[Address | None, Address | None]:
    """The addresses of the server and of the client, as ASGI has them: host and port, or a Unix path and None."""
    return _address(transport.get_extra_info("sockname")), _address(transport.get_extra_info("peername"))


def is_unix(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection came over a Unix socket."""
    found = transport.get_extra_info("socket")
    return found is not None and found.family == socket.AF_UNIX


def _address(found: object) -> Address | None:
    if isinstance(found, tuple):
        return str(found[0]), int(found[1])
    return (found, None) if isinstance(found, str) and found else None


# TLS.


def tls_context(
    cert: Path | str | bytes,
    key: Path | str | bytes,
    client_ca: Path | str | bytes | None = None,
    *,
    verify_clients: bool = False,
) -> ssl.SSLContext:
    """A server's TLS context for HTTP/2 and HTTP/1.1.

    Args:
        cert, key: Certificate chain and private key: paths of PEM files, or PEM text.
        client_ca: Certificates that clients' certificates must be signed by; the system's roots if empty.
        verify_clients: Require a certificate of every client.

    Raises:
        OSError: A file is missing, or a key or certificate is not usable (`ssl.SSLError`).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embedserve-")))
        context.load_cert_chain(_file(cert, directory / "cert"), _file(key, directory / "key"))
        if client_ca:
            context.load_verify_locations(_file(client_ca, directory / "ca"))
        elif verify_clients:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if verify_clients:
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(ALPN_PROTOCOLS)
    return context


def _file(given: Path | str | bytes, path: Path) -> Path:
    """The path of a file with the given content: Python reads certificate chains and keys from files alone."""
    if isinstance(given, Path):
        return given
    path.touch(0o600)
    path.write_bytes(given.encode() if isinstance(given, str) else given)
    return path
