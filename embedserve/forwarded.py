"""Whose request it is behind proxies: the client's address out of `X-Forwarded-For`, as far as known proxies wrote it.

Any client can send the header. An address counts only if a known proxy has added it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from embedserve.errors import ConfigError

__all__ = ["TrustedProxies"]

Network: TypeAlias = IPv4Network | IPv6Network

UNIX = "unix"
"""The name of the peers at Unix sockets, which have no address."""


class TrustedProxies:
    """The proxies whose word counts.

    Args:
        proxies: Addresses and networks, `10.0.0.0/8`; `unix` is every peer at a Unix socket.

    Raises:
        ConfigError: An entry is neither an address nor a network.
    """

    def __init__(self, proxies: Iterable[str] = ()) -> None:
        self._networks: list[Network] = []
        self._unix = False
        for each in proxies:
            if each == UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ip_network(each, strict=False))
            except ValueError:
                raise ConfigError(
                    f"trusted_proxies: {each!r} is no address or network; write 10.0.0.1, 10.0.0.0/8 or {UNIX}"
                ) from None

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __repr__(self) -> str:
        return f"<TrustedProxies {[*([UNIX] if self._unix else []), *map(str, self._networks)]}>"

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address of the client: the last address that no known proxy has.

        Args:
            peer: The address at the other end of the connection; empty at a Unix socket.
            forwarded: The values of `X-Forwarded-For`, in order of arrival.
        """
        client = peer
        hops = [hop.strip() for value in forwarded for hop in value.split(",")]
        while hops and self._knows(client):
            address = _address_in(hops.pop())
            if address is None:
                break  # Garbage is nobody's address; the proxy that passed it on is the last known place.
            client = address
        return client

    def _knows(self, address: str) -> bool:
        if not address:
            return self._unix
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None) or found
        return any(mapped in network for network in self._networks)


def _address_in(hop: str) -> str | None:
    """The address in an entry, without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ip_address(hop))
    except ValueError:
        return None
