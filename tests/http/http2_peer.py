"""An HTTP/2 client made of frames, right or wrong, for the tests of the server's state machine."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import hpack

from embedserve.http import frames
from embedserve.http.connection import Http2Connection
from embedserve.http.events import Ended, Event, Request, Reset
from embedserve.http.frames import PREFACE, ErrorCode, frame
from embedserve.http.header_blocks import encode_fields
from embedserve.http.limits import Limits

Pairs = Iterable[tuple[bytes, bytes]]

REQUEST = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"host"))
OK = encode_fields([(b":status", b"200")])
STATUS = encode_fields([(b"grpc-status", b"0")])
PING = frame(frames.PING, 0, 0, b"are-you?")
HANDSHAKE = PREFACE + frame(frames.SETTINGS, 0, 0) + frame(frames.SETTINGS, frames.ACK, 0)

END, WHOLE, PADDED, PRIO = frames.END_STREAM, frames.END_HEADERS, frames.PADDED, frames.PRIORITY_FLAG


def block(pairs: Pairs = REQUEST, *more: tuple[bytes, bytes], huffman: bool = True) -> bytes:
    """A header block that neither needs nor changes the dynamic table."""
    return hpack.Encoder().encode([(name, value, True) for name, value in (*pairs, *more)], huffman=huffman)


HEAD = block()


def headers(stream: int, payload: bytes = HEAD, flags: int = END | WHOLE) -> bytes:
    return frame(frames.HEADERS, flags, stream, payload)


def data(stream: int, payload: bytes = b"hello", flags: int = 0) -> bytes:
    return frame(frames.DATA, flags, stream, payload)


def settings(*values: tuple[int, int]) -> bytes:
    return frame(frames.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values))


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def parse(data: bytes) -> list[Frame]:
    """The frames in what a server sent; they are whole."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        assert len(data) >= at + 9 + size
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        found.append(Frame(data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + size]))
        at += 9 + size
    return found


class Peer:
    """A connection after its handshake, and all that was seen of it."""

    def __init__(self, limits: Limits | None = None, *, handshake: bytes = HANDSHAKE) -> None:
        self.server = Http2Connection(limits)
        self.events: list[Event] = []
        self.frames: list[Frame] = []
        self.now = 100.0
        self.send(handshake)
        self.frames.clear()

    def send(self, *pieces: bytes) -> list[Frame]:
        """Bytes to the server; the frames that it answers."""
        for piece in pieces:
            self.events += self.server.receive(piece, self.now)
        return self.take()

    def take(self) -> list[Frame]:
        found: list[Frame] = []
        while self.server.wants_write:
            found += parse(self.server.take())
        self.events += self.server.events()
        self.frames += found
        return found

    def requests(self) -> list[Request]:
        return [event for event in self.events if isinstance(event, Request)]

    def ended(self) -> int | None:
        """The error code with which the connection has ended, after a check that both sides were told the same."""
        told = [event.code for event in self.events if isinstance(event, Ended)]
        sent = [int.from_bytes(f.payload[4:8], "big") for f in self.frames if f.kind == frames.GOAWAY]
        assert told == [code for code in sent if code], (told, sent)
        if not told:
            return None
        assert not self.server.open_streams
        assert self.server.is_over
        return told[0]

    def resets(self) -> list[tuple[int, int]]:
        """The streams that the server has reset, and why."""
        return [(f.stream, int.from_bytes(f.payload, "big")) for f in self.frames if f.kind == frames.RST_STREAM]

    def told_resets(self) -> list[tuple[int, int]]:
        return [(event.stream_id, event.code) for event in self.events if isinstance(event, Reset)]

    def is_alive(self) -> bool:
        """Whether the server answers a PING."""
        pong = self.send(PING)
        return any(f.kind == frames.PING and f.flags & frames.ACK for f in pong)


class Verdict(NamedTuple):
    """What a server has to make of some frames: nothing, a stream error or a connection error."""

    what: str
    code: int = 0
    stream: int = 0

    def check(self, peer: Peer) -> None:
        if self.what == "connection":
            assert peer.ended() == self.code, [str(event) for event in peer.events]
            return
        assert peer.ended() is None, peer.events[-1]
        expected = [] if self.what == "fine" else [(self.stream, self.code)]
        assert peer.resets() == expected
        assert peer.is_alive()


FINE = Verdict("fine")


def stream_error(code: ErrorCode, stream: int = 1) -> Verdict:
    return Verdict("stream", code, stream)


def connection_error(code: ErrorCode) -> Verdict:
    return Verdict("connection", code)
