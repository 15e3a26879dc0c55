"""Any bytes and any sequence of frames: nothing raises, memory is bounded, every stream ends exactly once.

`Watched` holds the invariants after each step. The `h2` package plays valid clients with random interleavings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.http import frames
from embedserve.http.connection import Http2Connection
from embedserve.http.events import Data, Ended, Event, Request, Reset, Sent, Trailers
from embedserve.http.frames import frame
from embedserve.http.limits import Limits
from tests.http.http2_peer import HANDSHAKE, OK, REQUEST, STATUS, block, parse

pytestmark = pytest.mark.slow

SMALL = Limits(
    max_streams=4,
    stream_window=70_000,
    connection_window=100_000,
    max_header_bytes=2_000,
    max_queued_bytes=50_000,
    control_frames_burst=50,
    resets_burst=20,
    settings_burst=10,
)


class Watched:
    """A server that answers at random, and what must hold of it whatever comes."""

    def __init__(self, limits: Limits = SMALL) -> None:
        self.server = Http2Connection(limits)
        self.limits = limits
        self.live: dict[int, bool] = {}  # Whether the request has ended.
        self.begun: set[int] = set()
        self.answered: set[int] = set()
        self.unconsumed: dict[int, int] = {}
        self.over = False
        self.now = 0.0

    def receive(self, data: bytes) -> None:
        self.now += 0.001
        self.saw(self.server.receive(data, self.now))
        self.check()

    def saw(self, events: Sequence[Event]) -> None:
        for event in events:
            assert not self.over, "nothing happens after the end"
            match event:
                case Request(stream_id, _, ended):
                    assert stream_id not in self.begun
                    self.begun.add(stream_id)
                    self.live[stream_id] = ended
                case Data(stream_id, data, ended):
                    assert not self.live[stream_id], "nothing comes after the end of a request"
                    self.live[stream_id] = ended
                    self.unconsumed[stream_id] = self.unconsumed.get(stream_id, 0) + len(data)
                case Trailers(stream_id, _):
                    assert not self.live[stream_id]
                    self.live[stream_id] = True
                case Reset(stream_id, _):
                    self.end(stream_id)
                case Sent(stream_id, ended):
                    assert stream_id in self.live
                    if ended:
                        self.end(stream_id)
                case Ended():
                    self.over = True
                    assert not self.live
                case _:
                    pass

    def end(self, stream_id: int) -> None:
        del self.live[stream_id]
        self.unconsumed.pop(stream_id, None)

    def check(self) -> None:
        """Hold what is held of the server's memory, and that it agrees with what was told."""
        assert self.server.open_streams == len(self.live) <= self.limits.max_streams
        assert self.server.queued_bytes <= self.limits.max_queued_bytes + 40_000
        assert sum(self.unconsumed.values()) <= self.limits.connection_window
        assert all(size <= self.limits.stream_window for size in self.unconsumed.values())

    def answer(self, kind: int, size: int) -> None:
        """Do one thing that an application may do, to the oldest stream that it can be done to."""
        waiting = [stream for stream in self.live if stream not in self.answered]
        if kind == 0:
            for stream, held in list(self.unconsumed.items()):
                self.server.consume(stream, held)
                self.unconsumed[stream] = 0
        elif kind == 1 and waiting:
            self.answered.add(waiting[0])
            if self.server.answer(waiting[0], OK, bytes(size), STATUS if size & 1 else b""):
                self.end(waiting[0])
        elif kind == 2 and waiting:
            self.server.reset(waiting[0])
            self.end(waiting[0])
        elif kind == 3 and waiting:
            self.answered.add(waiting[0])
            self.server.send_head(waiting[0], OK)
            self.server.send_data(waiting[0], bytes(size))
            if self.server.send_data(waiting[0], b"x", ended=True) and waiting[0] in self.live:
                self.end(waiting[0])
        self.saw(self.server.events())
        self.check()

    def take(self) -> bytes:
        sent = b""
        while self.server.wants_write:
            sent += self.server.take()
            self.saw(self.server.events())
        self.check()
        return sent


STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 9, 2, 101])
BLOCKS = st.one_of(
    st.just(block()),
    st.just(block(REQUEST, (b"content-length", b"5"))),
    st.just(block([(b"x", b"y")])),
    st.just(block() + b"\x40\x01x\x01y"),
    st.just(block() + b"\xbe"),
    st.binary(max_size=40),
)
FRAMES = st.one_of(
    st.builds(lambda s, f, p: frame(frames.HEADERS, f, s, p), STREAMS, st.sampled_from([4, 4, 5, 5, 0, 1]), BLOCKS),
    st.builds(lambda s, f, n: frame(frames.DATA, f, s, bytes(n)), STREAMS, st.integers(0, 1), st.integers(0, 60_000)),
    st.builds(lambda s, f, p: frame(frames.DATA, f | 8, s, p), STREAMS, st.integers(0, 1), st.binary(max_size=9)),
    st.builds(lambda s, f, p: frame(frames.CONTINUATION, f, s, p), STREAMS, st.sampled_from([0, 4]), BLOCKS),
    st.builds(lambda s, n: frame(frames.WINDOW_UPDATE, 0, s, n.to_bytes(4, "big")), STREAMS, st.integers(0, 2**32 - 1)),
    st.builds(lambda s: frame(frames.RST_STREAM, 0, s, bytes(4)), STREAMS),
    st.builds(
        lambda k, v: frame(frames.SETTINGS, 0, 0, k.to_bytes(2, "big") + v.to_bytes(4, "big")),
        st.integers(1, 7),
        st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 70_000)),
    ),
    st.builds(lambda k, f, s, p: frame(k, f, s, p), st.integers(0, 12), st.integers(0, 255), STREAMS, st.binary()),
)
ACTIONS = st.tuples(st.integers(0, 4), st.integers(0, 40_000))


@given(st.lists(st.binary(max_size=300), max_size=20), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes(pieces: list[bytes], handshake: bool) -> None:
    watched = Watched()
    if handshake:
        watched.receive(HANDSHAKE)
    for piece in pieces:
        watched.receive(piece)
        parse(watched.take())


@given(st.lists(st.tuples(FRAMES, ACTIONS, st.booleans()), max_size=60), st.integers(1, 200))
@settings(max_examples=400, deadline=None)
def test_any_sequence_of_frames_and_answers(steps: list[tuple[bytes, tuple[int, int], bool]], cut: int) -> None:
    watched = Watched()
    watched.receive(HANDSHAKE)
    rest = b""
    for sent, (kind, size), taken in steps:
        whole = rest + sent
        watched.receive(whole[:-cut])
        rest = whole[-cut:] if len(whole) > cut else whole
        if len(whole) <= cut:
            rest = b""
            watched.receive(whole)
        watched.answer(kind, size)
        if taken:
            parse(watched.take())
    watched.receive(rest)
    watched.saw(watched.server.lost())
    assert not watched.live
    assert not watched.server.queued_bytes


class ValidClient:
    """The `h2` package as a client, driven at random within the protocol."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.watched = Watched(Limits(max_streams=8, stream_window=70_000, connection_window=200_000))
        self.sending: list[int] = []
        self.answers: dict[int, int] = {}
        self.ended: set[int] = set()
        self.gone: set[int] = set()
        self.unread = 0
        self.exchange()

    def exchange(self) -> None:
        """Carry the bytes of both sides until neither has any."""
        while True:
            out = self.h2.data_to_send()
            at = self.data.draw(st.integers(0, len(out))) if out else 0
            for piece in (out[:at], out[at:]):
                self.watched.receive(piece)
            back = self.watched.take()
            if not out and not back:
                return
            for event in self.h2.receive_data(back):
                self.on_event(event)

    def on_event(self, event: h2.events.Event) -> None:
        assert not isinstance(event, h2.events.ConnectionTerminated), event
        if isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            self.answers[event.stream_id] += len(event.data or b"")
            if event.flow_controlled_length:
                self.unread += event.flow_controlled_length
                if self.unread > 20_000:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            assert event.stream_id not in self.ended, "a stream ends once"
            self.ended.add(event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            self.gone.add(event.stream_id or 0)
            self.sending = [stream for stream in self.sending if stream != event.stream_id]

    def step(self) -> None:
        draw = self.data.draw
        choice = draw(st.integers(0, 7))
        if choice <= 1 and self.h2.open_outbound_streams < 8:
            stream = self.h2.get_next_available_stream_id()
            more = [(f"x-{n}", "v" * n) for n in draw(st.lists(st.integers(0, 9), max_size=3))]
            ends = draw(st.booleans())
            self.h2.send_headers(stream, [(n.decode(), v.decode()) for n, v in REQUEST] + more, end_stream=ends)
            self.answers[stream] = 0
            if not ends:
                self.sending.append(stream)
        elif choice in (2, 3) and self.sending:
            stream = draw(st.sampled_from(self.sending))
            size = min(draw(st.integers(0, 30_000)), self.h2.local_flow_control_window(stream), 65_000)
            ends = draw(st.booleans())
            self.h2.send_data(stream, bytes(max(0, size - 10)), ends, pad_length=9 if size >= 10 else None)
            if ends:
                self.sending.remove(stream)
        elif choice == 4 and self.sending:
            stream = draw(st.sampled_from(self.sending))
            self.h2.reset_stream(stream)
            self.sending.remove(stream)
            self.gone.add(stream)
        elif choice == 5:
            window = draw(st.integers(0, 80_000))
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        elif choice == 6:
            self.h2.ping(b"12345678")
        self.exchange()
        self.watched.answer(*draw(ACTIONS))
        self.exchange()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_valid_client_is_served_whatever_the_order(data: Any) -> None:
    client = ValidClient(data)
    for _ in range(data.draw(st.integers(1, 40))):
        client.step()
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    client.h2.increment_flow_control_window(1 << 22)
    for stream in client.sending[:]:
        client.h2.end_stream(stream)
    client.sending.clear()
    client.exchange()
    for _ in range(10):
        client.watched.answer(1, 100)
        client.exchange()
    assert not client.watched.over
    assert not client.watched.live
    assert client.ended | client.gone >= set(client.answers)
    assert not client.watched.server.queued_bytes
