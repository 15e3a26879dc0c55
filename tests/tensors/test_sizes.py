"""Estimates of memory count as `bytes.count` does, however long the body is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.tensors import sizes


@pytest.mark.parametrize("chunk", [7, 2**18])
@pytest.mark.parametrize("short", [0, 1024])
@given(text=st.text(alphabet='a,"[{é', max_size=60), times=st.integers(1, 30))
def test_bytes_of_a_document_are_those_of_plain_counts(chunk: int, short: int, text: str, times: int) -> None:
    body = (text * times).encode()
    expected = (5 if body.isascii() else 8) * len(body)
    expected += 64 * body.count(b",") + 56 * body.count(b'"') + 128 * body.count(b"[") + 232 * body.count(b"{")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_CHUNK", chunk)
        patch.setattr(sizes, "_SHORT", short)
        assert sizes.json_document_bytes(body) == expected
