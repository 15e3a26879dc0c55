"""Converts the hosts of a command line to IP addresses. Knows no port."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from embedserve.errors import ConfigError
from embedserve.http.sockets import EVERY_IPV4, EVERY_IPV6, NOT_HERE, bound_sockets

__all__ = ["addresses"]


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
        bound_sockets([address], 0)[0].close()
    except OSError as error:
        return error.errno not in NOT_HERE
    return True
