"""Converts hosts to IP addresses, and addresses to bound sockets of a standalone server. Knows no protocol."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address

from embedserve.errors import ConfigError

__all__ = ["EVERY_IPV4", "EVERY_IPV6", "addresses", "bound_socket", "bound_sockets", "bracketed", "dual_stack_socket"]

EVERY_IPV4, EVERY_IPV6 = "0.0.0.0", "::"

_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def addresses(hosts: Iterable[str]) -> tuple[str, ...]:
    """The IP addresses of `hosts`, without repetitions, in the order of `hosts`.

    Names are looked up. Of a name's addresses only the machine's own count, unless the machine has none of the
    addresses. `::` covers IPv4 too, so `::` remains alone. `0.0.0.0` leaves only addresses of IPv6 beside it.
    An IPv4 address written as IPv6 (`::ffff:127.0.0.1`) counts as IPv4.

    Args:
        hosts: Addresses, with or without brackets, and names.

    Raises:
        ConfigError: A host is neither an address nor a known name, or an address in a form for the C library alone.
    """
    found = dict.fromkeys(address for host in hosts for address in _addresses_of(host))
    if EVERY_IPV6 in found:
        return (EVERY_IPV6,)
    if EVERY_IPV4 in found:
        return tuple(address for address in found if address == EVERY_IPV4 or ":" in address)
    return tuple(found)


def _addresses_of(host: str) -> list[str]:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not _is_address(bare) and _is_loose_ipv4(bare):
        raise ConfigError(
            f"--host={host} is no IP address, and no name that can be looked up: "
            "write four decimal numbers of 0 to 255, without leading zeros"
        )
    try:
        looked_up = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"--host={host} is no IP address, and no name that can be looked up: {reason}") from None
    found = [_unmapped(socket.getnameinfo(sockaddr, socket.NI_NUMERICHOST)[0]) for *_, sockaddr in looked_up]
    if _is_address(bare):
        return found
    return [address for address in found if _is_here(address)] or found


def _unmapped(address: str) -> str:
    """The IPv4 address of an IPv4-mapped IPv6 address; other addresses as given."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return address if mapped is None else str(mapped)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_loose_ipv4(text: str) -> bool:
    """Whether the C library reads an IPv4 address, also in octal or short: `0127.0.0.1` as 87.0.0.1, `1` as 0.0.0.1."""
    try:
        socket.inet_aton(text)
    except (OSError, UnicodeError):
        return False
    return True


def _is_here(address: str) -> bool:
    try:
        bound_socket(_family(address), address, 0).close()
    except OSError as error:
        return error.errno not in _NOT_HERE
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def bracketed(host: str) -> str:
    """An address as written before a port."""
    return f"[{host}]" if ":" in host else host


def bound_sockets(
    hosts: Sequence[str], port: int, kind: socket.SocketKind = socket.SOCK_STREAM, *, shared: bool = False
) -> list[socket.socket]:
    """A bound socket for each address of `hosts`, not listening; without hosts a single socket for all interfaces.

    With `shared`, further sockets bound with `shared` may have the same port.

    Raises:
        OSError: The port is taken or not allowed, or an address is not this machine's; `filename` is the place.
    """
    if not hosts:
        try:
            return [dual_stack_socket(port, kind)]
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"port {port}") from None
    with contextlib.ExitStack() as stack:
        bound = []
        for host in hosts:
            try:
                found = bound_socket(_family(host), host, port, kind, shared=shared)
            except OSError as error:
                reason = "it is no address of this machine" if error.errno in _NOT_HERE else error.strerror
                raise OSError(error.errno, reason, f"{bracketed(host)} port {port}") from None
            bound.append(stack.enter_context(found))
        stack.pop_all()
    return bound


def dual_stack_socket(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A bound socket of IPv6 and IPv4, not listening; of IPv4 alone where IPv6 is missing.

    Raises:
        OSError: The port is taken or not allowed.
    """
    if socket.has_dualstack_ipv6():
        try:
            return bound_socket(socket.AF_INET6, EVERY_IPV6, port, kind)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return bound_socket(socket.AF_INET, EVERY_IPV4, port, kind)


def bound_socket(
    family: socket.AddressFamily,
    host: str,
    port: int,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    *,
    shared: bool = False,
) -> socket.socket:
    """A bound socket, TCP by default, not listening; `shared` with further sockets bound with `shared`.

    Raises:
        OSError: The port is taken or not allowed.
    """
    ((*_, address),) = socket.getaddrinfo(host, port, family, kind, flags=socket.AI_NUMERICHOST)
    bound = socket.socket(family, kind)
    try:
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        elif kind == socket.SOCK_STREAM:  # With the option two UDP sockets would share the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
