"""Compressed bodies are decompressed in bounded steps, within the account of bytes in flight."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from embedserve.asgi.gunzip import gunzip
from embedserve.concurrency.inflight import InflightBytes, Reservation
from embedserve.concurrency.off_loop import ZIP_FIRST_STEP, ZIP_STEP
from embedserve.errors import RequestTooLargeError

TEXT = b"embedserve " * 1_000_000


class Thread:
    """Runs at once, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        self.calls += 1
        return call(*args)


def held(limit: int = 1 << 30) -> Reservation:
    return Reservation(InflightBytes(limit, limit))


def accept(size: int) -> None:
    assert size > 0


async def test_a_small_body_stays_on_the_loop_and_a_large_one_leaves_it() -> None:
    thread = Thread()
    assert await gunzip(gzip.compress(b"small"), held(), accept, thread.run) == b"small"
    assert thread.calls == 0
    assert await gunzip(gzip.compress(TEXT), held(), accept, thread.run) == TEXT
    assert thread.calls > len(TEXT) // ZIP_STEP


async def test_the_account_holds_what_is_left_when_the_pieces_are_one() -> None:
    account = held()
    assert await gunzip(gzip.compress(TEXT), account, accept, Thread().run) == TEXT
    assert account.size == len(TEXT)


async def test_a_body_with_a_huge_content_is_refused_before_it_is_made() -> None:
    sizes: list[int] = []

    def check(size: int) -> None:
        sizes.append(size)
        if size > 100_000:
            raise RequestTooLargeError(str(size))

    bomb = gzip.compress(bytes(100_000_000))
    with pytest.raises(RequestTooLargeError):
        await gunzip(bomb, held(), check, Thread().run)
    assert max(sizes) <= ZIP_FIRST_STEP + ZIP_STEP
    with pytest.raises(RequestTooLargeError, match="the message, decompressed"):
        await gunzip(bomb, held(limit=1 << 20), accept, Thread().run, what="message")


async def test_torn_bytes_are_an_error_and_zlibs_format_is_read_where_asked() -> None:
    with pytest.raises(zlib.error):
        await gunzip(gzip.compress(TEXT)[:-1], held(), accept, Thread().run)
    with pytest.raises(zlib.error):
        await gunzip(zlib.compress(b"x"), held(), accept, Thread().run)
    assert await gunzip(zlib.compress(b"x"), held(), accept, Thread().run, or_zlib=True) == b"x"
