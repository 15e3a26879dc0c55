"""Bodies: pieces, bounds, gzip; what is reserved is always given back."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.asgi.calls import ClientDisconnected, Receive
from embedserve.asgi.gunzip import Gunzip
from embedserve.concurrency.inflight import InflightBytes, Reservation
from embedserve.errors import InvalidInputError, RequestTooLargeError
from embedserve.rest import body as body_module
from embedserve.rest.body import read_body


def receiving(*pieces: bytes, disconnect: bool = False) -> Receive:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": disconnect or i + 1 < len(pieces)}
        for i, piece in enumerate(pieces)
    ]
    if disconnect:
        messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive


async def in_this_thread(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


async def read(
    receive: Receive, inflight: InflightBytes, *, zipped: bool = False, headers: list[tuple[bytes, bytes]] | None = None
) -> bytes:
    with Reservation(inflight) as held:
        return await read_body(
            [*(headers or []), *([(b"content-encoding", b"gzip")] if zipped else [])],
            receive,
            held,
            check_size=inflight.check_request,
            run_in_thread=in_this_thread,
        )


@pytest.fixture
def inflight() -> InflightBytes:
    return InflightBytes(limit=1000, request_limit=500)


@pytest.mark.parametrize("pieces", [[b""], [b"abc"], [b"a", b"", b"bc"], [b"abc", b""]])
async def test_pieces_make_one_body(pieces: list[bytes], inflight: InflightBytes) -> None:
    assert await read(receiving(*pieces), inflight) == b"".join(pieces)
    assert inflight.reserved == 0


async def test_bytes_are_reserved_while_they_are_held(inflight: InflightBytes) -> None:
    with Reservation(inflight) as held:
        await read_body(
            [], receiving(b"a" * 100, b"b" * 50), held, check_size=inflight.check_request, run_in_thread=in_this_thread
        )
        assert inflight.reserved == 150
    assert inflight.reserved == 0


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [([b"x" * 501], []), ([b"x" * 300, b"x" * 201], []), ([], [(b"content-length", b"501")])],
)
async def test_a_body_over_max_request_bytes_is_refused(
    pieces: list[bytes], headers: list[tuple[bytes, bytes]], inflight: InflightBytes
) -> None:
    with pytest.raises(RequestTooLargeError, match="max_request_bytes is 500"):
        await read(receiving(*pieces), inflight, headers=headers)
    assert inflight.reserved == 0


async def test_a_body_over_max_inflight_bytes_is_refused(inflight: InflightBytes) -> None:
    inflight.reserve(800)
    with pytest.raises(RequestTooLargeError, match="max_inflight_bytes"):
        await read(receiving(b"x" * 150, b"x" * 150), inflight)
    assert inflight.reserved == 800


@pytest.mark.parametrize("length", [b"-1", b"abc", b"", b"9" * 30])
async def test_a_content_length_that_is_no_size_is_ignored(length: bytes, inflight: InflightBytes) -> None:
    assert await read(receiving(b"abc"), inflight, headers=[(b"content-length", length)]) == b"abc"


async def test_a_client_that_leaves_inside_its_body_is_noticed(inflight: InflightBytes) -> None:
    with pytest.raises(ClientDisconnected):
        await read(receiving(b"abc", disconnect=True), inflight)
    assert inflight.reserved == 0


@pytest.mark.parametrize("size", [0, 1, 400])
async def test_gzip_bodies_are_decompressed(size: int, inflight: InflightBytes) -> None:
    assert await read(receiving(gzip.compress(b"x" * size)), inflight, zipped=True) == b"x" * size
    assert inflight.reserved == 0


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"x-gzip", b"deflate, gzip"])
async def test_any_content_encoding_that_says_gzip_is_gzip(encoding: bytes, inflight: InflightBytes) -> None:
    headers = [(b"content-encoding", encoding)]
    assert await read(receiving(gzip.compress(b"abc")), inflight, headers=headers) == b"abc"


async def test_several_gzip_members_are_one_body(inflight: InflightBytes) -> None:
    assert await read(receiving(gzip.compress(b"abc"), gzip.compress(b"def")), inflight, zipped=True) == b"abcdef"


@pytest.mark.parametrize(
    "body",
    [
        b"not gzip",
        gzip.compress(b"abc", mtime=0)[:-1],  # Without the time, which would be in the test's name.
        gzip.compress(b"abc", mtime=0)[:5],
        gzip.compress(b"abc", mtime=0) + b"garbage",
        gzip.compress(b"abc" * 99, mtime=0)[:-6] + b"\0\0\0\0\0\0",
        zlib.compress(b"abc"),
    ],
)
async def test_bad_gzip_is_an_empty_document_with_the_reason(body: bytes, inflight: InflightBytes) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^JSON Parse error: The document is empty: the body is not whole gzip"
    ):
        await read(receiving(body), inflight, zipped=True)
    assert inflight.reserved == 0


async def test_an_empty_gzip_body_is_an_empty_body(inflight: InflightBytes) -> None:
    assert await read(receiving(b""), inflight, zipped=True) == b""


async def test_a_gzip_bomb_is_stopped_at_max_request_bytes() -> None:
    inflight = InflightBytes(limit=1 << 30, request_limit=10 << 20)
    stepped: list[int] = []

    async def counting(call: Callable[..., Any], *args: Any) -> Any:
        stepped.append(1)
        return call(*args)

    bomb = gzip.compress(b"\0" * (64 << 20))
    with Reservation(inflight) as held, pytest.raises(RequestTooLargeError, match="max_request_bytes"):
        await read_body(
            [(b"content-encoding", b"gzip")],
            receiving(bomb),
            held,
            check_size=inflight.check_request,
            run_in_thread=counting,
        )
    assert len(stepped) == 3  # 4 MiB each, in a thread; the third is over 10 MiB.
    assert inflight.reserved == 0


async def test_a_gzip_bomb_is_stopped_at_max_inflight_bytes() -> None:
    inflight = InflightBytes(limit=10 << 20, request_limit=1 << 30)
    with pytest.raises(RequestTooLargeError, match="max_inflight_bytes"):
        await read(receiving(gzip.compress(b"\0" * (64 << 20))), inflight, zipped=True)
    assert inflight.reserved == 0


async def test_over_100_mib_decompressed_is_an_empty_document_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert body_module.MAX_UNZIPPED == 104_857_600
    monkeypatch.setattr(body_module, "MAX_UNZIPPED", 100_000)
    inflight = InflightBytes(limit=1 << 30, request_limit=1 << 30)
    assert len(await read(receiving(gzip.compress(b"\0" * 100_000)), inflight, zipped=True)) == 100_000
    with pytest.raises(InvalidInputError, match=r"^JSON Parse error: The document is empty: .* over 100000 bytes"):
        await read(receiving(gzip.compress(b"\0" * 100_001)), inflight, zipped=True)


@given(
    members=st.lists(st.binary(max_size=2000), min_size=1, max_size=3),
    level=st.integers(0, 9),
    step=st.integers(1, 3000),
    slice_size=st.integers(1, 100),
)
def test_gunzip_in_steps_equals_gunzip_at_once(members: list[bytes], level: int, step: int, slice_size: int) -> None:
    zipped = b"".join(gzip.compress(member, level) for member in members)
    stream = Gunzip(zipped, slice_size)
    pieces = []
    while not stream.done:
        piece = stream.step(step)
        assert len(piece) == step or stream.done
        pieces.append(piece)
    assert b"".join(pieces) == b"".join(members)


@given(st.binary(min_size=1, max_size=300))
def test_gunzip_of_anything_ends(data: bytes) -> None:
    stream = Gunzip(data)

    def read_all() -> None:
        while not stream.done:
            stream.step(100)

    with pytest.raises(zlib.error):
        read_all()
