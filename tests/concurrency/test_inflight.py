"""The bound on request bytes."""

from __future__ import annotations

import pytest

from embedserve import Code, RequestTooLargeError
from embedserve.concurrency.inflight import GROWTH_FACTOR, MAX_GROWTH, InflightBytes, Reservation, default_limit


def test_reservations_are_refused_over_the_limit_and_given_back() -> None:
    inflight = InflightBytes(100, 80)
    inflight.reserve(60)
    with pytest.raises(RequestTooLargeError, match="60 bytes; 41 more would be over max_inflight_bytes, 100") as caught:
        inflight.reserve(41)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    inflight.release(60)
    inflight.reserve(100)
    inflight.release(100)
    assert inflight.reserved == 0
    inflight.check_request(80)
    with pytest.raises(RequestTooLargeError, match="max_request_bytes is 80"):
        inflight.check_request(81)
    assert default_limit() > 1 << 28


def test_a_request_becomes_only_so_much_more_than_was_sent() -> None:
    account = InflightBytes(1 << 40, 1 << 40)
    with Reservation(account) as held:
        held.receive(1000, "the body")
        held.grow(MAX_GROWTH, "filled")  # A few bytes may become 256 MiB,
        held.grow(GROWTH_FACTOR * 1000 - 1000, "read")  # and each byte sent 128 more.
        with pytest.raises(RequestTooLargeError, match="inflated: the request has 1000 bytes and would become"):
            held.grow(1, "inflated")
        held.add(1 << 32, "the answer")  # Which is as large as the model makes it.
    assert account.reserved == 0
