"""The known attacks on HTTP/2 are refused in the protocol's words; honest traffic of the same kind is not."""

from __future__ import annotations

import tracemalloc

import pytest

from embedserve.http import frames
from embedserve.http.events import Ended
from embedserve.http.frames import ErrorCode, Setting, frame
from embedserve.http.limits import Limits, RateLimit
from tests.http.http2_peer import OK, PING, REQUEST, WHOLE, Peer, block, data, headers, settings

CANCEL = b"\0\0\0\x08"
MALFORMED = block([(b"x", b"y")])
OVER_THE_LIMIT = block(REQUEST, *[(b"x", b"y")] * 120)
EMPTY = data(1, b"")


def opened(limits: Limits | None = None) -> Peer:
    peer = Peer(limits)
    peer.send(headers(1, flags=WHOLE))
    return peer


def cancelled(stream: int) -> bytes:
    return headers(stream, flags=WHOLE) + frame(frames.RST_STREAM, 0, stream, CANCEL)


def malformed(stream: int) -> bytes:
    return headers(stream, MALFORMED)


def self_reset(stream: int) -> bytes:
    """A stream that the server is made to reset (CVE-2025-8671)."""
    return headers(stream, flags=WHOLE) + frame(frames.WINDOW_UPDATE, 0, stream, bytes(4))


FLOODS = {
    "rapid reset": [cancelled(stream) for stream in range(1, 3000, 2)],
    "malformed requests": [malformed(stream) for stream in range(1, 3000, 2)],
    "streams that the server resets": [self_reset(stream) for stream in range(1, 3000, 2)],
    "SETTINGS": [settings((4, number)) for number in range(200)],
    "SETTINGS with many entries": [settings(*[(4, 1)] * 33)],
    "PING": [PING] * 3000,
    "answers to PING": [frame(frames.PING, 1, 0, bytes(8))] * 3000,
    "answers to SETTINGS": [frame(frames.SETTINGS, 1, 0)] * 3000,
    "PRIORITY": [frame(frames.PRIORITY, 0, 1, bytes(5))] * 3000,
    "unknown frames": [frame(0xEE, 0, 0)] * 3000,
    "DATA without a byte": [headers(1, flags=WHOLE)] + [EMPTY] * 3000,
    "DATA of padding": [headers(1, flags=WHOLE)] + [data(1, b"\x01\0", frames.PADDED)] * 3000,
    "windows opened by a byte": [frame(frames.WINDOW_UPDATE, 0, 0, b"\0\0\0\1")] * 3000,
    "GOAWAY": [frame(frames.GOAWAY, 0, 0, bytes(8))] * 3000,
    "RST_STREAM of a closed stream": [cancelled(1)] + [frame(frames.RST_STREAM, 0, 1, CANCEL)] * 3000,
    "CONTINUATION without a byte": [headers(1, b"", 0)] + [frame(frames.CONTINUATION, 0, 1)] * 40,
    "CONTINUATION without end": [headers(1, b"", 0)] + [frame(frames.CONTINUATION, 0, 1, bytes(16_384))] * 5,
    "a header block that is too large": [headers(1, bytes(60_000), 0), frame(frames.CONTINUATION, 0, 1, bytes(6_000))],
    "heads over the limit": [headers(s, OVER_THE_LIMIT) for s in range(1, 3000, 2)],
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_ends_the_connection(flood: list[bytes]) -> None:
    peer = Peer()
    peer.send(*flood[:-1])
    for piece in flood[-1:]:
        peer.send(piece)
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM
    assert not peer.server.open_streams


RATES = {
    "resets": (cancelled, Limits(resets_per_second=10, resets_burst=5), 10),
    "malformed": (malformed, Limits(resets_per_second=10, resets_burst=5), 10),
    "pings": (lambda _: PING, Limits(control_frames_per_second=10, control_frames_burst=5), 10),
    "settings": (lambda _: settings(), Limits(settings_per_second=10, settings_burst=5), 10),
}


@pytest.mark.parametrize("kind", RATES)
def test_the_same_frames_at_an_honest_rate_go_on(kind: str) -> None:
    made, limits, rate = RATES[kind]
    peer = Peer(limits)
    for number in range(100):
        peer.now += 1.01 / rate
        peer.send(made(2 * number + 1))
    assert peer.ended() is None
    for number in range(100, 110):
        peer.send(made(2 * number + 1))
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM


def test_work_of_any_rate_is_no_flood() -> None:
    peer = Peer()
    for stream in range(1, 20_001, 2):
        peer.server.receive(headers(stream, flags=WHOLE) + data(stream, b"x" * 40, 1), peer.now)
        assert peer.server.answer(stream, OK, b"")
        peer.server.take()
    assert peer.is_alive()


def test_a_list_over_the_limit_is_answered_and_the_connection_goes_on() -> None:
    peer = Peer(Limits(max_header_bytes=1_000))
    large = block(REQUEST, *[(b"name", b"v" * 100)] * 8)
    peer.send(headers(1, large), headers(3, large[:0] + block(), WHOLE))
    (answer,) = [f for f in peer.frames if f.kind == frames.HEADERS]
    assert answer.stream == 1
    assert b"431" in answer.payload
    assert [event.stream_id for event in peer.requests()] == [3]
    assert not peer.resets()
    peer.send(headers(5, large, WHOLE), *[data(5, bytes(60_000))] * 9)
    assert peer.resets() == [(5, ErrorCode.NO_ERROR)]


def test_the_number_of_fields_is_bounded() -> None:
    peer = Peer(Limits(max_headers=10))
    peer.send(headers(1, block(REQUEST, *[(b"x", b"y")] * 10)), headers(3, block(REQUEST, *[(b"x", b"y")] * 11)))
    assert [event.stream_id for event in peer.requests()] == [1]
    assert any(b"431" in f.payload for f in peer.frames if f.stream == 3)


def test_the_length_of_the_target_is_bounded() -> None:
    peer = Peer(Limits(max_url_bytes=10))
    for stream, path in ((1, b"/" + b"a" * 9), (3, b"/" + b"a" * 10)):
        peer.send(headers(stream, block([*REQUEST[:2], (b":path", path), REQUEST[3]])))
    assert [event.stream_id for event in peer.requests()] == [1]
    assert any(b"414" in f.payload for f in peer.frames if f.stream == 3)


def test_trailers_are_bounded_like_heads() -> None:
    peer = opened(Limits(max_headers=3))
    peer.send(headers(1, block([(b"x", b"y")] * 20)))
    assert peer.resets() == [(1, ErrorCode.ENHANCE_YOUR_CALM)]


def test_a_compressed_list_that_expands_ends_the_connection_before_it_is_made() -> None:
    enters = b"\x40\x01x" + b"\x7f\xa1\x1e" + b"v" * 4_000  # One entry of 4 KB in the table ...
    bomb = b"\xbe" * 60_000  # ... and 60,000 fields that name it: 240 MB.
    peer = Peer()
    peer.send(headers(1, block() + enters))
    assert len(peer.requests()) == 1
    tracemalloc.start()
    try:
        peer.send(headers(3, block() + bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM
    assert peak < 2_000_000


@pytest.mark.slow
def test_remembered_blocks_are_bounded() -> None:
    peer = Peer()
    tracemalloc.start()
    try:
        for number in range(3_000):
            stream = 2 * number + 1
            peer.server.receive(headers(stream, block(REQUEST, (b"x-id", b"%d" % number * 50))), 0.0)
            peer.server.answer(stream, OK, b"")
            peer.server.take()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000


def test_answers_for_a_client_with_a_zero_window_are_bounded() -> None:
    peer = Peer(Limits(max_queued_bytes=10_000))
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 0)), *[headers(stream) for stream in range(1, 41, 2)])
    for stream in range(1, 41, 2):
        assert not peer.server.answer(stream, OK, bytes(4_000))
    peer.take()
    assert peer.server.queued_bytes <= 14_000
    dropped = [stream for stream, code in peer.told_resets() if code == ErrorCode.ENHANCE_YOUR_CALM]
    assert dropped == list(range(7, 41, 2))
    assert [stream for stream, _ in peer.resets()] == dropped
    assert peer.ended() is None


def test_one_answer_may_be_larger_than_all_that_may_wait() -> None:
    peer = Peer(Limits(max_queued_bytes=10_000))
    peer.send(headers(1))
    assert not peer.server.answer(1, OK, bytes(200_000))
    peer.take()
    assert not peer.told_resets()


def test_answers_to_control_frames_that_nobody_reads_are_bounded() -> None:
    peer = Peer(Limits(control_frames_burst=10**6))
    for _ in range(10_000):
        peer.events += peer.server.receive(PING, 0.0)
    sent = peer.server.take()
    assert len(sent) < 70_000
    ended = peer.events[-1]
    assert isinstance(ended, Ended)
    assert ended.code == ErrorCode.ENHANCE_YOUR_CALM


def test_one_turn_of_a_client_that_does_not_read_is_bounded() -> None:
    peer = Peer()
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 2**31 - 1)), frame(frames.WINDOW_UPDATE, 0, 0, b"\x7f\0\0\0"))
    peer.send(*[headers(stream) for stream in range(1, 401, 2)])
    for stream in range(1, 401, 2):
        peer.server.answer(stream, OK, bytes(10_000))
    assert len(peer.server.take()) < 400_000
    assert peer.server.queued_bytes > 1_000_000


def test_what_a_stream_leaves_behind_is_bounded() -> None:
    limits = Limits(max_streams=10, resets_per_second=1e9)
    peer = Peer(limits)
    tracemalloc.start()
    try:
        for stream in range(1, 20_001, 8):
            peer.now += 1.0
            peer.server.receive(cancelled(stream), peer.now)
            peer.server.take()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


@pytest.mark.parametrize(
    "wrong", [{"max_streams": 0}, {"stream_window": 2**31}, {"connection_window": 1}, {"max_frame_bytes": 1}]
)
def test_limits_that_the_protocol_cannot_say_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Limits(**wrong)


def test_a_rate_limit_gains_with_time() -> None:
    rate = RateLimit(2.0, 3)
    assert [rate.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [rate.take(10.5), rate.take(10.5), rate.take(12.0), rate.take(12.0)] == [True, False, True, True]
    assert "of 3" in repr(rate)


def test_a_client_may_return_the_windows_of_small_answers_at_any_rate() -> None:
    peer = Peer()
    for stream in range(1, 8001, 2):
        peer.send(headers(stream, flags=WHOLE))
        peer.server.answer(stream, OK, b"short")
        returned = [frame(frames.WINDOW_UPDATE, 0, number, b"\0\0\0\5") for number in (stream, 0)]
        peer.send(*returned)
        peer.take()
    assert peer.ended() is None
    peer.send(*[frame(frames.WINDOW_UPDATE, 0, 0, b"\0\0\0\1")] * 5000)
    assert peer.ended() == ErrorCode.ENHANCE_YOUR_CALM, "answers of the past are no licence"
