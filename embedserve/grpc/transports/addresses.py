"""Where a gRPC server listens: TCP addresses, the life of a Unix socket's path, and why an address could not be had.

Knows no service and no registry.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat

__all__ = ["UnixSocket", "bind_error", "tcp_address"]

# Longest socket path of Linux, without its NUL.
MAX_SOCKET_PATH = 107


def tcp_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


class UnixSocket:
    """The path of one Unix socket: bound under a name of its own, then renamed into place.

    So the path always leads to a live server, the last one to start wins, and a server that stops later (gRPC removes
    the path that it bound) does not take away its successor's. Every method touches the file system.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._bound = f"{self.path}.{secrets.token_hex(3)}"
        self._inode: int | None = None
        if len(os.fsencode(self._bound)) > MAX_SOCKET_PATH:
            longest = MAX_SOCKET_PATH - (len(self._bound) - len(self.path))
            raise OSError(errno.ENAMETOOLONG, f"the socket path must not be longer than {longest} bytes", self.path)
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EEXIST, "the socket path is taken by something that is not a socket", self.path)

    def __repr__(self) -> str:
        return f"<UnixSocket {self.path}{'' if self._inode is None else ' (published)'}>"

    @property
    def address(self) -> str:
        """What gRPC binds."""
        return f"unix:{self._bound}"

    def publish(self) -> None:
        """Move the bound socket to its path, over whichever socket was there."""
        self._inode = os.lstat(self._bound).st_ino
        os.replace(self._bound, self.path)

    def remove(self) -> None:
        """Remove the path, unless another server has taken it over."""
        path = self._bound if self._inode is None else self.path
        try:
            if self._inode is None or os.lstat(path).st_ino == self._inode:
                os.unlink(path)
        except FileNotFoundError:
            pass


def bind_error(place: str, port: int | None, *, secure: bool) -> OSError:
    """The reason why gRPC could not bind, found by binding a plain socket to the same place.

    Args:
        place: Host, or path of the Unix socket when `port` is None.
        port: TCP port.
        secure: Whether TLS material may be the reason.
    """
    if port is None:
        directory = os.path.dirname(os.path.abspath(place))
        if not os.path.isdir(directory):
            return FileNotFoundError(errno.ENOENT, "no such directory for the gRPC socket", directory)
        if not os.access(directory, os.W_OK):
            return PermissionError(errno.EACCES, "no permission to make the gRPC socket", place)
    else:
        try:
            _try_to_bind(place, port)
        except OSError as error:
            number = error.errno or errno.EIO
            reason = error.strerror or str(error)
            if number == errno.EADDRINUSE:
                reason = "already in use"
            return OSError(number, f"gRPC cannot listen on port {port} of {place}: {reason}")
    where = f"socket {place}" if port is None else f"port {port} of {place}"
    if secure:
        return OSError(errno.EINVAL, f"gRPC cannot listen on {where}: the TLS key or certificate is not usable")
    return OSError(errno.EADDRNOTAVAIL, f"gRPC cannot listen on {where}")


def _try_to_bind(host: str, port: int) -> None:
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as trial:
            if os.name == "posix":
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            # Without listening, a port that is only listened on by others with SO_REUSEADDR could be bound.
            trial.listen(1)
