"""The bound on request bytes."""

from __future__ import annotations

import pytest

from embedserve import Code, RequestTooLargeError
from embedserve.inflight import InflightBytes, default_limit


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
