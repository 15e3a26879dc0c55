"""Listening sockets for hosts as gRPC takes them: names, addresses with or without brackets, and wildcards."""

from __future__ import annotations

import contextlib
import errno
import socket

from embedserve.http.sockets import EVERY_IPV4, EVERY_IPV6, bound_socket, dual_stack_socket

__all__ = ["resolved_sockets"]


def resolved_sockets(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """A listening socket for each address of a host; the wildcards stand for IPv4 and IPv6, as in gRPC.

    With port 0 the first address takes a free port, and the rest take the same port.

    Raises:
        OSError: The port is taken or not allowed, or the host is not known; the message names the place.
    """
    with contextlib.ExitStack() as stack:
        try:
            bare, found = host.strip("[]"), list[socket.socket]()
            if bare in (EVERY_IPV4, EVERY_IPV6):
                found.append(stack.enter_context(dual_stack_socket(port, shared=shared)))
            else:
                for family, *_, address in socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM):
                    number = found[0].getsockname()[1] if found else port
                    each = bound_socket(family, str(address[0]), number, shared=shared)
                    found.append(stack.enter_context(each))
            for each in found:
                each.listen()
        except OSError as error:
            reason = "already in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise OSError(error.errno or errno.EIO, f"gRPC cannot listen on port {port} of {host}: {reason}") from None
        stack.pop_all()
    return found
