"""The client's address behind proxies: only what a known proxy wrote counts."""

from __future__ import annotations

import pytest

from embedserve.errors import ConfigError
from embedserve.forwarded import TrustedProxies

PROXIES = ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.1", [], "198.51.100.1"),
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),  # A stranger's word does not count.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # The client may have sent a first entry itself.
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9, 10.2.3.4"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("2001:db8::1", ["[2001:dead::2]:80"], "2001:dead::2"),
        ("2001:db8::1", ["2001:dead::2"], "2001:dead::2"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("192.0.2.7", ["203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
        ("not an address", ["203.0.113.9"], "not an address"),
    ],
)
def test_the_client_is_the_last_address_that_no_known_proxy_has(peer: str, forwarded: list[str], client: str) -> None:
    assert TrustedProxies(PROXIES).client(peer, forwarded) == client


def test_a_proxy_at_a_unix_socket_is_known_by_name() -> None:
    assert TrustedProxies(["unix"]).client("", ["203.0.113.9"]) == "203.0.113.9"
    assert TrustedProxies(["unix"]).client("10.0.0.1", ["203.0.113.9"]) == "10.0.0.1"


def test_without_proxies_there_is_nothing_to_ask() -> None:
    assert not TrustedProxies()
    assert TrustedProxies(["unix"])
    assert TrustedProxies(["10.0.0.0/8"])


def test_a_proxy_that_is_no_address_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"trusted_proxies: 'proxy\.example' is no address"):
        TrustedProxies(["10.0.0.1", "proxy.example"])
