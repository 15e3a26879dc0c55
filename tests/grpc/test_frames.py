"""Messages come out of a body as they went in, however it is cut, and none comes out of a body that is wrong."""

from __future__ import annotations

import asyncio
import base64
import gzip
import tracemalloc
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.asgi.calls import ClientDisconnected, Receive
from embedserve.concurrency.inflight import InflightBytes
from embedserve.errors import Code, RequestTooLargeError, ServingError
from embedserve.grpc.transports.frames import MessageReader, frame

MiB = 1 << 20


class Threads:
    """What a reader asks of a registry; counts what runs in threads."""

    def __init__(self, limit: int = 1 << 31) -> None:
        self.inflight = InflightBytes(limit, limit)
        self.runs = 0

    async def run_in_thread(self, function: Any, *arguments: Any) -> Any:
        self.runs += 1
        return await asyncio.to_thread(function, *arguments)


def receiving(pieces: Iterable[bytes], *, ends: bool = True, empty_end: bool = False) -> Receive:
    """The pieces of a body; without `ends` the client goes after them."""
    events: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not ends:
        events.append({"type": "http.disconnect"})
    elif events and not empty_end:
        events[-1]["more_body"] = False
    else:
        events.append({"type": "http.request"})
    iterator = iter(events)

    async def receive() -> Any:
        return next(iterator)

    return receive


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    """The body in pieces; places may be the same, which makes empty pieces."""
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def reader(body: bytes | Iterable[bytes], limit: int = 1 << 30, **options: Any) -> MessageReader:
    registry: Any = options.pop("registry", None) or Threads()
    how = {name: options.pop(name) for name in ("ends", "empty_end") if name in options}
    pieces = [body] if isinstance(body, bytes) else body
    return MessageReader(registry, receiving(pieces, **how), limit, **options)


async def read(body: bytes | Iterable[bytes], **options: Any) -> list[bytes]:
    with reader(body, **options) as messages:
        return [message async for message in messages.messages()]


async def refusal(body: bytes | Iterable[bytes], **options: Any) -> tuple[Code, str]:
    with pytest.raises(ServingError) as raised, reader(body, **options) as messages:
        await messages.only()
    return raised.value.code, raised.value.message


MESSAGES = st.lists(st.tuples(st.binary(max_size=200), st.booleans()), max_size=5)
PLACES = st.lists(st.integers(0, 5000), max_size=8)


def body_of(messages: Sequence[tuple[bytes, bool]]) -> bytes:
    return b"".join(frame(gzip.compress(message), 1) if zipped else frame(message) for message, zipped in messages)


@given(MESSAGES, PLACES, st.booleans())
@settings(deadline=None)
def test_any_messages_cut_anywhere_arrive_as_they_were(
    messages: Sequence[tuple[bytes, bool]], places: Sequence[int], empty_end: bool
) -> None:
    registry = Threads()
    pieces = cut(body_of(messages), places)
    got = asyncio.run(read(pieces, encoding=b"gzip", registry=registry, empty_end=empty_end))
    assert got == [message for message, _ in messages]
    assert registry.inflight.reserved == 0


@given(MESSAGES, PLACES, PLACES, st.booleans())
@settings(deadline=None)
def test_text_may_be_padded_in_the_middle_and_cut_anywhere(
    messages: Sequence[tuple[bytes, bool]], padded_at: Sequence[int], places: Sequence[int], empty_end: bool
) -> None:
    text = b"".join(base64.b64encode(part) for part in cut(body_of(messages), padded_at))
    got = asyncio.run(read(cut(text, places), encoding=b"gzip", text=True, empty_end=empty_end))
    assert got == [message for message, _ in messages]


@given(st.binary(max_size=60), PLACES, st.booleans())
@settings(deadline=None)
def test_no_body_fails_in_another_way_than_its_errors(body: bytes, places: Sequence[int], text: bool) -> None:
    registry = Threads()
    with suppress(ServingError):
        asyncio.run(read(cut(body, places), encoding=b"gzip", text=text, registry=registry))
    assert registry.inflight.reserved == 0


@pytest.mark.parametrize("pieces", [[b"", frame(b"abc")], [b"\0\0", b"\0\0\3a", b"b", b"c"], [frame(b"abc"), b"", b""]])
async def test_one_message_in_pieces(pieces: list[bytes]) -> None:
    with reader(pieces) as messages:
        assert await messages.only() == b"abc"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ([], Code.UNIMPLEMENTED, "takes one message, none came"),
        (frame(b"a") + frame(b"b"), Code.UNIMPLEMENTED, "takes one message, more than one came"),
        (frame(b"a") + b"\0", Code.UNIMPLEMENTED, "more than one came"),
        (b"\0\0\0", Code.INVALID_ARGUMENT, "ended inside a message: 3 of 5 bytes came"),
        (frame(b"abc")[:-1], Code.INVALID_ARGUMENT, "ended inside a message: 2 of 3 bytes came"),
        (frame(b"abc", 2), Code.INVALID_ARGUMENT, "byte 2 came"),
        (frame(b"abc", 0x80), Code.INVALID_ARGUMENT, "byte 128 came"),
        (frame(gzip.compress(b"abc", mtime=0), 1), Code.INTERNAL, "grpc-encoding does not say how"),
    ],
)
async def test_what_is_no_message(body: Any, code: Code, words: str) -> None:
    assert (await refusal(body))[0] is code
    assert words in (await refusal(body))[1]


@pytest.mark.parametrize("encoding", [b"deflate", b"zstd", b"\xff"])
async def test_an_unknown_compression_is_unimplemented(encoding: bytes) -> None:
    code, message = await refusal(frame(b"abc", 1), encoding=encoding)
    assert code is Code.UNIMPLEMENTED
    assert message == f"grpc-encoding {encoding.decode('latin-1')!r} is none of identity, gzip"


async def test_an_encoding_that_no_message_uses_does_not_matter() -> None:
    assert await read(frame(b"abc"), encoding=b"zstd") == [b"abc"]


@pytest.mark.parametrize(
    "zipped",
    [b"", b"abc", gzip.compress(b"abc", mtime=0)[:-1], gzip.compress(b"abc", mtime=0) + b"x", zlib.compress(b"abc")],
    ids=["empty", "plain", "cut", "more", "zlib"],
)
async def test_what_is_not_whole_gzip(zipped: bytes) -> None:
    code, message = await refusal(frame(zipped, 1), encoding=b"gzip")
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("the message is not whole gzip, as grpc-encoding says: ")


@pytest.mark.parametrize("body", [b"AAAA*AAA", b"AAA", b"=AAA", b"A===", b"AAAAAAAAA", b"AAAAAAE\n", b"AAAAAAFh!"])
async def test_what_is_not_base64(body: bytes) -> None:
    code, message = await refusal(body, text=True)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("the body is not base64, as its content type says: ")


async def test_a_length_over_the_limit_is_refused_before_it_is_read() -> None:
    code, message = await refusal([frame(b"")[:1] + (1001).to_bytes(4, "big")], limit=1000, ends=False)
    assert (code, message) == (Code.RESOURCE_EXHAUSTED, "Received message larger than max (1001 vs. 1000)")
    assert await read(frame(bytes(1000)), limit=1000) == [bytes(1000)]


async def test_the_limit_holds_after_decompression() -> None:
    zipped = frame(gzip.compress(bytes(1001)), 1)
    code, message = await refusal(zipped, limit=1000, encoding=b"gzip")
    assert (code, message) == (Code.RESOURCE_EXHAUSTED, "Received message larger than max (1001 vs. 1000)")
    assert await read(zipped, limit=1001, encoding=b"gzip") == [bytes(1001)]


@pytest.mark.slow
async def test_a_gzip_bomb_is_found_out_before_it_fills_the_memory() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = frame(b"".join([*(packer.compress(bytes(MiB)) for _ in range(256)), packer.flush()]), 1)
    assert len(bomb) < MiB
    tracemalloc.start()
    try:
        code, _ = await refusal(bomb, limit=16 * MiB, encoding=b"gzip")
        assert tracemalloc.get_traced_memory()[1] < 32 * MiB
    finally:
        tracemalloc.stop()
    assert code is Code.RESOURCE_EXHAUSTED


async def test_bytes_in_flight_are_bounded_while_they_come_and_while_they_grow() -> None:
    registry = Threads(limit=1000)
    with pytest.raises(RequestTooLargeError):
        await read([frame(bytes(2000))[:600], bytes(600), bytes(805)], registry=registry)
    assert registry.inflight.reserved == 0
    with pytest.raises(RequestTooLargeError):
        await read(frame(gzip.compress(bytes(2000)), 1), encoding=b"gzip", registry=registry)
    assert registry.inflight.reserved == 0


async def test_what_was_read_is_given_back_message_by_message() -> None:
    registry = Threads(limit=1000)
    with reader([frame(bytes(600))] * 5, registry=registry) as messages:
        async for message in messages.messages():
            assert len(message) == 600
    assert registry.inflight.reserved == 0


async def test_one_message_stays_reserved_until_the_reader_ends() -> None:
    registry = Threads()
    with reader(frame(bytes(600)), registry=registry) as messages:
        await messages.only()
        assert registry.inflight.reserved >= 600
    assert registry.inflight.reserved == 0


@pytest.mark.parametrize("pieces", [[], [b"\0\0"], [frame(b"abc")[:-1]], [frame(b"abc")]])
async def test_a_client_that_goes_before_its_end_is_no_bad_request(pieces: list[bytes]) -> None:
    with reader(pieces, ends=False) as messages:
        with pytest.raises(ClientDisconnected):
            await messages.only()
        assert messages.disconnected


async def test_large_messages_are_decompressed_in_threads() -> None:
    registry = Threads()
    large = bytes(9 * MiB)
    assert await read(frame(gzip.compress(large, 1), 1), encoding=b"gzip", registry=registry) == [large]
    assert registry.runs >= 2
    small = Threads()
    assert await read(frame(gzip.compress(b"abc"), 1), encoding=b"gzip", registry=small) == [b"abc"]
    assert small.runs == 0
