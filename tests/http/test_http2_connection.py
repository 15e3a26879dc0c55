"""Answers, windows, back-pressure, resets and the drain of an HTTP/2 connection."""

from __future__ import annotations

import pytest

from embedserve.http import frames
from embedserve.http.connection import Http2Connection
from embedserve.http.events import ClientLeaves, Pong, Reset, Sent
from embedserve.http.frames import ErrorCode, Setting, frame
from embedserve.http.header_blocks import encode_fields
from embedserve.http.limits import Limits
from tests.http.http2_peer import END, OK, REQUEST, STATUS, WHOLE, Peer, block, data, headers, parse, settings

CONTINUE = encode_fields([(b":status", b"100")])
ENDED = (frames.END_STREAM, frames.END_HEADERS | frames.END_STREAM)


def update(stream: int, increment: int) -> bytes:
    return frame(frames.WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def body_of(peer: Peer, stream: int = 1) -> bytes:
    return b"".join(f.payload for f in peer.frames if f.kind == frames.DATA and f.stream == stream)


def ends(peer: Peer, stream: int = 1) -> int:
    """How often the server has ended a stream; more than once is an error of ours."""
    return sum(f.stream == stream and f.kind in (0, 1) and f.flags & frames.END_STREAM for f in peer.frames)


def asked(*more: bytes, limits: Limits | None = None) -> Peer:
    """A connection whose streams 1, 3, ... have whole requests."""
    peer = Peer(limits)
    peer.send(headers(1), *more)
    return peer


def test_an_answer_with_trailers_is_three_frames() -> None:
    peer = asked()
    assert peer.server.answer(1, OK, b"body", STATUS)
    sent = [(f.kind, f.flags, f.payload) for f in peer.take()]
    assert sent == [
        (frames.HEADERS, WHOLE, b"\x20" + OK),
        (frames.DATA, 0, b"body"),
        (frames.HEADERS, WHOLE | END, STATUS),
    ]
    assert not peer.server.open_streams
    peer.send(headers(3))
    assert peer.server.answer(3, OK, b"more")
    assert [(f.kind, f.flags, f.payload) for f in peer.take()] == [
        (frames.HEADERS, WHOLE, OK),
        (frames.DATA, END, b"more"),
    ], "the table's size is told once"


@pytest.mark.parametrize("body", [b"", b"x", bytes(16_384), bytes(16_385), bytes(65_535)])
@pytest.mark.parametrize("trailers", [b"", STATUS])
def test_an_answer_is_the_same_in_one_call_and_in_parts(body: bytes, trailers: bytes) -> None:
    at_once, in_parts = asked(headers(3)), asked(headers(3))
    for peer in (at_once, in_parts):
        peer.server.answer(3, OK, b"")  # The slow way is the first answer's; stream 1 takes the short one.
        peer.take()
    at_once.server.answer(1, OK, body, trailers)
    in_parts.server.send_head(1, OK)
    in_parts.server.send_data(1, body, ended=not trailers)
    if trailers:
        in_parts.server.send_trailers(1, trailers)
    for peer in (at_once, in_parts):
        peer.take()
        assert body_of(peer) == body
        assert ends(peer) == 1
        assert peer.frames[-1].flags in ENDED
        assert not peer.server.open_streams


def test_a_head_alone_is_an_answer() -> None:
    peer = asked()
    peer.server.send_head(1, OK, ended=True)
    (head,) = peer.take()
    assert head.flags == WHOLE | END
    assert not peer.server.open_streams


def test_informational_heads_come_before_the_answers_own() -> None:
    peer = asked()
    peer.server.send_informational(1, CONTINUE)
    peer.server.send_informational(1, CONTINUE)
    peer.server.answer(1, OK, b"x")
    assert [f.kind for f in peer.take()] == [frames.HEADERS] * 3 + [frames.DATA]


def test_misuse_is_an_error_of_the_caller() -> None:
    peer = asked(headers(3))
    with pytest.raises(RuntimeError, match="no head"):
        peer.server.send_data(1, b"x")
    peer.server.send_head(1, OK)
    with pytest.raises(RuntimeError, match="has a head"):
        peer.server.send_head(1, OK)
    with pytest.raises(RuntimeError, match="has a head"):
        peer.server.answer(1, OK, b"")
    with pytest.raises(RuntimeError, match="has a head"):
        peer.server.send_informational(1, CONTINUE)
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 0)))
    assert not peer.server.send_data(1, b"waits", ended=True)
    with pytest.raises(RuntimeError, match="has ended"):
        peer.server.send_data(1, b"x")
    with pytest.raises(ValueError, match="consumed"):
        peer.server.consume(3, 1)


def test_what_is_sent_on_a_stream_that_is_over_is_dropped() -> None:
    peer = Peer()
    peer.send(headers(1, flags=WHOLE), frame(frames.RST_STREAM, 0, 1, bytes(4)))
    server = peer.server
    server.send_informational(1, CONTINUE)
    server.send_head(1, OK)
    assert server.send_data(1, b"x")
    assert server.send_trailers(1, STATUS)
    assert server.answer(1, OK, b"x")
    server.consume(1, 5)
    server.reset(1)
    assert not peer.take()


# Windows of the client.


def test_an_answer_waits_for_the_streams_window() -> None:
    peer = Peer()
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 3)), headers(1))
    assert not peer.server.answer(1, OK, b"0123456789", STATUS)
    peer.take()
    assert (body_of(peer), peer.server.queued_bytes) == (b"012", 7)
    peer.send(update(1, 4))
    assert body_of(peer) == b"0123456"
    assert Sent(1, True) not in peer.events
    peer.send(update(1, 100))
    assert body_of(peer) == b"0123456789"
    assert peer.frames[-1][:2] == (frames.HEADERS, WHOLE | END)
    assert peer.events[-1] == Sent(1, True)
    assert not peer.server.queued_bytes
    assert not peer.server.open_streams


def test_an_answer_waits_for_the_connections_window() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 1 << 20)))
    assert not peer.server.answer(1, OK, bytes(100_000))
    peer.take()
    assert len(body_of(peer)) == 65_535
    assert not peer.server.wants_write
    peer.send(update(0, 34_464))
    assert len(body_of(peer)) == 99_999
    peer.send(update(0, 1))
    assert len(body_of(peer)) == 100_000
    assert ends(peer) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_small_answers_fill_the_connections_window_and_no_more(number: int) -> None:
    peer = Peer()
    streams = [1 + 2 * at for at in range(7 * number)]
    peer.send(*[headers(stream) for stream in streams])
    sent = [peer.server.answer(stream, OK, bytes(10_000 // number)) for stream in streams]
    peer.take()
    assert sum(len(f.payload) for f in peer.frames if f.kind == frames.DATA) == 65_535
    assert sent.count(False) == 1
    assert peer.server.queued_bytes == 70_000 - 65_535
    peer.send(update(0, 70_000))
    assert not peer.server.open_streams


def test_settings_change_the_windows_of_open_streams_below_zero() -> None:
    peer = asked()
    peer.server.send_head(1, OK)
    assert peer.server.send_data(1, bytes(1000))
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 500)))
    assert not peer.server.send_data(1, b"x" * 10, ended=True)
    peer.send(update(1, 500))
    assert len(body_of(peer)) == 1000, "the window is zero"
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 505)))
    assert len(body_of(peer)) == 1005
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 0)), update(1, 1000))
    assert body_of(peer) == bytes(1000) + b"x" * 10
    assert ends(peer) == 1


def test_a_stream_whose_window_is_taken_while_it_waits_its_turn_sends_nothing() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 1 << 20)))
    peer.server.answer(1, OK, bytes(200_000))
    peer.take()
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 0)))
    peer.send(update(0, 100_000))
    assert len(body_of(peer)) == 65_535
    peer.send(update(0, 200_000), update(1, 400_000))
    assert len(body_of(peer)) == 200_000


def test_frames_are_no_larger_than_the_client_takes() -> None:
    peer = asked()
    peer.server.answer(1, OK, bytes(40_000))
    assert {len(f.payload) for f in peer.take() if f.kind == frames.DATA} == {16_384, 40_000 - 2 * 16_384}
    peer.send(settings((Setting.MAX_FRAME_SIZE, 20_000), (Setting.INITIAL_WINDOW_SIZE, 1 << 20)), update(0, 1 << 20))
    peer.send(headers(3))
    peer.server.answer(3, OK, bytes(40_000))
    assert [len(f.payload) for f in peer.take() if f.kind == frames.DATA] == [20_000, 20_000]


def test_a_large_head_is_cut_into_continuations() -> None:
    peer = asked()
    large = encode_fields([(b":status", b"200"), (b"x", b"v" * 40_000)])
    peer.server.answer(1, large, b"", encode_fields([(b"y", b"v" * 20_000)]))
    sent = peer.take()
    assert [(f.kind, f.flags & WHOLE) for f in sent] == [(1, 0), (9, 0), (9, 4), (1, 0), (9, 4)]
    assert b"".join(f.payload for f in sent[:3]) == b"\x20" + large
    assert sent[3].flags & END


def test_streams_take_turns() -> None:
    peer = Peer()
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 1 << 24)), update(0, 1 << 24))
    peer.send(headers(1), headers(3), headers(5))
    for stream in (1, 3, 5):
        peer.server.answer(stream, OK, bytes(1 << 20))
    first = parse_streams(peer.server.take())
    assert first[:6] == [1, 3, 5, 1, 3, 5]
    assert len(first) < 20, "one turn is bounded"
    peer.take()
    assert {stream: ends(peer, stream) for stream in (1, 3, 5)} == {1: 1, 3: 1, 5: 1}


def parse_streams(sent: bytes) -> list[int]:
    return [f.stream for f in parse(sent) if f.kind == frames.DATA]


def test_small_answers_pass_a_large_one() -> None:
    peer = Peer()
    peer.send(settings((Setting.INITIAL_WINDOW_SIZE, 1 << 24)), update(0, 1 << 24), headers(1), headers(3))
    assert not peer.server.answer(1, OK, bytes(1 << 22))
    assert peer.server.answer(3, OK, b"small")
    assert 3 in parse_streams(peer.server.take())


def test_order_is_kept_within_a_stream() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 2)))
    peer.server.send_head(1, OK)
    for piece in (b"ab", b"cd", b"", b"ef"):
        peer.server.send_data(1, piece)
    peer.server.send_trailers(1, STATUS)
    for _ in range(4):
        peer.send(update(1, 1))
    assert body_of(peer) == b"abcdef"
    assert [f.kind for f in peer.frames].count(frames.HEADERS) == 2
    assert peer.frames[-1][:2] == (frames.HEADERS, WHOLE | END)
    assert [event for event in peer.events if isinstance(event, Sent)] == [Sent(1, True)]


def test_sent_tells_that_more_may_be_given() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 2)))
    peer.server.send_head(1, OK)
    assert not peer.server.send_data(1, b"abc")
    peer.send(update(1, 10))
    assert peer.events[-1] == Sent(1, False)
    assert peer.server.send_data(1, b"d", ended=True)


# Windows of the server.


def test_what_is_consumed_may_be_sent_again() -> None:
    peer = Peer(Limits(stream_window=100_000, connection_window=200_000))
    peer.send(headers(1, flags=WHOLE))
    for _ in range(40):
        peer.send(data(1, bytes(50_000)))
        peer.server.consume(1, 50_000)
    peer.take()
    assert peer.ended() is None
    assert not peer.resets()


def test_the_windows_of_the_server_are_given_back_however_a_stream_ends() -> None:
    peer = Peer(Limits(stream_window=65_535, connection_window=65_535))
    for number in range(30):
        stream = 1 + 2 * number
        peer.send(headers(stream, flags=WHOLE), data(stream, bytes(30_000)))
        if number % 3 == 0:
            peer.send(frame(frames.RST_STREAM, 0, stream, bytes(4)))
        elif number % 3 == 1:
            peer.server.reset(stream)
            peer.send(data(stream, bytes(5_000)))
        else:
            peer.send(data(stream, b"\xffx" + bytes(255), END | frames.PADDED))
            peer.server.answer(stream, OK, b"")
    assert peer.ended() is None
    told = sum(int.from_bytes(f.payload, "big") for f in peer.frames if f.kind == frames.WINDOW_UPDATE)
    assert told > 30 * 30_000 - 65_535


def test_the_windows_are_given_back_of_what_comes_after_the_end() -> None:
    peer = Peer(Limits(stream_window=65_535, connection_window=65_535))
    for stream in (1, 3, 5, 7):
        peer.send(headers(stream), data(stream, bytes(30_000)))
    assert peer.ended() is None
    assert {code for _, code in peer.resets()} == {ErrorCode.STREAM_CLOSED}


def test_padding_is_given_back_at_once() -> None:
    peer = Peer(Limits(stream_window=65_535, connection_window=65_535))
    peer.send(headers(1, flags=WHOLE))
    for _ in range(1_000):
        peer.send(data(1, b"\xffx" + bytes(255), frames.PADDED))
        peer.server.consume(1, 1)
    assert peer.ended() is None
    assert not peer.resets()


def test_a_stream_that_nobody_consumes_is_bounded_by_its_window() -> None:
    peer = Peer(Limits(stream_window=70_000))
    peer.send(headers(1, flags=WHOLE), data(1, bytes(60_000)), data(1, bytes(10_001)))
    assert peer.resets() == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert peer.told_resets() == [(1, ErrorCode.FLOW_CONTROL_ERROR)]


# Ends.


def test_an_early_answer_asks_the_client_to_stop_when_it_goes_on() -> None:
    peer = Peer(Limits(stream_window=100_000))
    peer.send(headers(1, flags=WHOLE), data(1))
    assert peer.server.answer(1, OK, b"enough")
    peer.send(data(1, bytes(40_000)))
    assert not peer.resets(), "a reset with the answer makes some clients drop the answer"
    assert not peer.server.open_streams
    peer.send(data(1, bytes(20_000)))
    assert peer.resets() == [(1, ErrorCode.NO_ERROR)]
    peer.send(data(1, bytes(20_000)), data(1, b"", END))
    assert peer.is_alive()
    assert len(peer.resets()) == 1


def test_an_early_answer_asks_a_waiting_client_to_stop_after_a_while() -> None:
    peer = Peer()
    peer.send(headers(1, block(REQUEST), frames.END_HEADERS))
    peer.server.answer(1, OK, b"no")
    peer.server.drop_stuck(1.0)
    assert not [f for f in peer.take() if f.kind == frames.RST_STREAM]
    peer.server.drop_stuck(2.0)
    assert [(f.stream, f.payload) for f in peer.take() if f.kind == frames.RST_STREAM] == [(1, bytes(4))]
    peer.server.drop_stuck(3.0)
    assert not peer.take()


def test_an_early_answer_to_a_client_that_ends_soon_resets_nothing() -> None:
    peer = Peer()
    peer.send(headers(1, flags=WHOLE))
    peer.server.answer(1, OK, b"enough")
    peer.send(data(1), data(1, b"", END), headers(3))
    assert peer.is_alive()
    assert not peer.resets()


def test_an_early_answer_to_a_client_without_a_window_comes_before_the_reset() -> None:
    peer = Peer(Limits(stream_window=65_535))
    peer.send(headers(1, flags=WHOLE), data(1, bytes(65_535)))
    peer.server.answer(1, OK, b"enough")
    peer.take()
    assert not peer.resets(), "a reset with the answer makes some clients drop the answer"
    peer.server.drop_stuck(1.0)
    peer.server.drop_stuck(2.0)
    peer.take()
    assert peer.resets() == [(1, ErrorCode.NO_ERROR)]


def test_a_reset_drops_what_waits() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 0)))
    peer.server.answer(1, OK, bytes(1000))
    assert peer.server.queued_bytes == 1000
    peer.send(frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08"))
    assert peer.told_resets() == [(1, ErrorCode.CANCEL)]
    assert not peer.server.queued_bytes
    assert not peer.server.open_streams


def test_the_end_of_a_connection_ends_every_stream_once() -> None:
    peer = Peer()
    peer.send(headers(1), headers(3, flags=WHOLE), headers(5))
    peer.server.answer(5, OK, b"")
    peer.send(frame(frames.PING, 0, 1, bytes(8)))
    assert peer.told_resets() == [(1, ErrorCode.PROTOCOL_ERROR), (3, ErrorCode.PROTOCOL_ERROR)]
    assert peer.ended() == ErrorCode.PROTOCOL_ERROR
    assert not peer.server.receive(headers(7), 0.0), "nothing is read after it"
    assert peer.frames[-1].payload[:4] == b"\0\0\0\5"
    assert peer.server.answer(1, OK, b"x")
    assert not peer.take()


def test_a_lost_transport_ends_every_stream_once() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 0)), headers(3))
    peer.server.answer(1, OK, bytes(1000))
    assert peer.server.lost() == [Reset(1, ErrorCode.CANCEL), Reset(3, ErrorCode.CANCEL)]
    assert not peer.server.lost()
    assert (peer.server.queued_bytes, peer.server.open_streams, peer.server.wants_write) == (0, 0, False)
    assert not peer.server.receive(headers(5), 0.0)


def test_a_drain_answers_what_is_open_or_on_its_way() -> None:
    peer = asked()
    peer.server.drain()
    first, ping = peer.take()
    assert (first.kind, first.payload[:8]) == (frames.GOAWAY, b"\x7f\xff\xff\xff\0\0\0\0")
    peer.send(headers(3))
    last = peer.send(frame(frames.PING, 1, 0, ping.payload))
    assert [f.payload[:8] for f in last if f.kind == frames.GOAWAY] == [b"\0\0\0\3\0\0\0\0"]
    peer.send(headers(5, block(REQUEST, (b"x", b"late")), WHOLE), data(5))
    assert [event.stream_id for event in peer.requests()] == [1, 3]
    assert not peer.resets()
    peer.server.answer(1, OK, b"")
    assert not peer.server.is_over
    peer.server.answer(3, OK, b"")
    assert peer.server.is_over
    assert peer.ended() is None


def test_a_second_drain_waits_for_no_answer() -> None:
    peer = Peer()
    peer.server.drain()
    assert not peer.server.is_over
    peer.server.drain()
    peer.server.drain()
    assert [f.payload[:4] for f in peer.take() if f.kind == frames.GOAWAY] == [b"\x7f\xff\xff\xff", bytes(4)]
    assert peer.server.is_over


def test_pings_of_the_server_and_goaway_of_the_client_are_told() -> None:
    peer = Peer()
    peer.server.ping(b"12345678")
    (ping,) = peer.take()
    peer.send(frame(frames.PING, 1, 0, ping.payload), frame(frames.GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0b"))
    assert peer.events[-2:] == [Pong(b"12345678"), ClientLeaves(11)]


def test_equal_blocks_share_a_head_until_the_table_changes() -> None:
    peer = Peer()
    other = block() + b"\x40\x01x\x01y"
    peer.send(headers(1), headers(3), headers(5, other), headers(7), headers(9, other))
    heads = [event.head for event in peer.requests()]
    assert heads[0] is heads[1]
    assert heads[3] is not heads[0]
    assert heads[4].get(b"x") == b"y"


def test_equal_blocks_mean_what_the_table_says_now() -> None:
    peer = Peer()
    uses = block() + b"\xbe"
    peer.send(headers(1, block() + b"\x40\x01x\x01y"), headers(3, uses), headers(5, uses))
    peer.send(headers(7, block() + b"\x40\x01x\x01z"), headers(9, uses))
    assert [event.head.get(b"x") for event in peer.requests()] == [b"y", b"y", b"y", b"z", b"z"]
    peer.send(headers(11, b"\x20" + block()), headers(13, uses))
    assert peer.ended() == ErrorCode.COMPRESSION_ERROR, "a table of size zero holds nothing"


def test_a_block_that_replaces_an_entry_by_another_is_not_remembered() -> None:
    peer = Peer()
    enters = block() + b"\x40\x01x\x01z"
    peer.send(headers(1, b"\x3f\x31" + block() + b"\x40\x01x\x01w"), headers(3, block() + b"\x40\x01x\x01y"))
    peer.send(headers(5, enters), headers(7, enters), headers(9, block() + b"\xbf"))
    assert [event.head.get(b"x") for event in peer.requests()] == [b"w", b"y", b"z", b"z", b"z"]


def test_the_fields_of_answers_are_made_valid_or_refused() -> None:
    found = encode_fields([(b":status", b"418"), (b"X-Name", b"v"), (b"Connection", b"close")])
    assert b"x-name" in found
    assert b"close" not in found
    for name, value in [(b"x", b"a\r\nb"), (b"x y", b"a"), (b"", b""), (b"x", b"a\0")]:
        with pytest.raises(Exception, match=r"field|value"):
            encode_fields([(name, value)])
    for name, value in [(b":status", b"20"), (b":path", b"/")]:
        with pytest.raises(ValueError, match="no status"):
            encode_fields([(name, value)])


def test_reprs_show_the_state() -> None:
    peer = asked(settings((Setting.INITIAL_WINDOW_SIZE, 0)))
    peer.server.answer(1, OK, bytes(10))
    assert repr(peer.server) == "<Http2Connection open, 1 streams, 10 bytes wait>"
    assert "POST" in repr(peer.requests()[0].head)
    assert "0 streams" in repr(Http2Connection())
