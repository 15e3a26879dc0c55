"""The duties of RFC 9113 and RFC 7541 as tables: what is sent after the handshake, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from embedserve.http import frames
from embedserve.http.connection import Http2Connection
from embedserve.http.events import Data, Request, Trailers
from embedserve.http.frames import PREFACE, ErrorCode, Setting, frame
from embedserve.http.limits import Limits
from tests.http.http2_peer import (
    END,
    FINE,
    HANDSHAKE,
    OK,
    PADDED,
    PRIO,
    REQUEST,
    WHOLE,
    Peer,
    Verdict,
    block,
    connection_error,
    data,
    headers,
    parse,
    settings,
    stream_error,
)

PROTOCOL_ERROR = connection_error(ErrorCode.PROTOCOL_ERROR)
FRAME_SIZE_ERROR = connection_error(ErrorCode.FRAME_SIZE_ERROR)
FLOW_CONTROL_ERROR = connection_error(ErrorCode.FLOW_CONTROL_ERROR)
COMPRESSION_ERROR = connection_error(ErrorCode.COMPRESSION_ERROR)
STREAM_CLOSED = connection_error(ErrorCode.STREAM_CLOSED)
CALM = connection_error(ErrorCode.ENHANCE_YOUR_CALM)
MALFORMED = stream_error(ErrorCode.PROTOCOL_ERROR)
CLOSED = stream_error(ErrorCode.STREAM_CLOSED)

# Every frame type in every state of a stream (RFC 9113, section 5.1).


def idle(peer: Peer) -> None:
    """Stream 1 was never used."""


def is_open(peer: Peer) -> None:
    peer.send(headers(1, flags=WHOLE))


def half_closed(peer: Peer) -> None:
    peer.send(headers(1))


def closed(peer: Peer) -> None:
    peer.send(headers(1))
    assert peer.server.answer(1, OK, b"answer")
    peer.take()


def reset_by_client(peer: Peer) -> None:
    peer.send(headers(1, flags=WHOLE), frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08"))


def reset_by_server(peer: Peer) -> None:
    peer.send(headers(1, flags=WHOLE))
    peer.server.reset(1)
    peer.take()


STATES: tuple[Callable[[Peer], None], ...] = (idle, is_open, half_closed, closed, reset_by_client, reset_by_server)

SENT = {
    "DATA": data(1),
    "HEADERS": headers(1, block()),
    "TRAILERS": headers(1, block([(b"x-sum", b"1")])),
    "PRIORITY": frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    "RST_STREAM": frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08"),
    "SETTINGS": frame(frames.SETTINGS, 0, 1),
    "PUSH_PROMISE": frame(frames.PUSH_PROMISE, WHOLE, 1, b"\0\0\0\x02" + block()),
    "PING": frame(frames.PING, 0, 1, bytes(8)),
    "GOAWAY": frame(frames.GOAWAY, 0, 1, bytes(8)),
    "WINDOW_UPDATE": frame(frames.WINDOW_UPDATE, 0, 1, b"\0\0\x10\0"),
    "CONTINUATION": frame(frames.CONTINUATION, WHOLE, 1, block()),
    "unknown": frame(0xBB, 0xFF, 1, b"whatever"),
}

IN_STATE: dict[str, tuple[Verdict, ...]] = {
    "DATA": (PROTOCOL_ERROR, FINE, CLOSED, STREAM_CLOSED, CLOSED, FINE),
    "HEADERS": (FINE, MALFORMED, MALFORMED, STREAM_CLOSED, CLOSED, FINE),
    "TRAILERS": (MALFORMED, FINE, CLOSED, STREAM_CLOSED, CLOSED, FINE),
    "PRIORITY": (FINE,) * 6,
    "RST_STREAM": (PROTOCOL_ERROR, *(FINE,) * 5),
    "SETTINGS": (PROTOCOL_ERROR,) * 6,
    "PUSH_PROMISE": (PROTOCOL_ERROR,) * 6,
    "PING": (PROTOCOL_ERROR,) * 6,
    "GOAWAY": (PROTOCOL_ERROR,) * 6,
    "WINDOW_UPDATE": (PROTOCOL_ERROR, *(FINE,) * 5),
    "CONTINUATION": (PROTOCOL_ERROR,) * 6,
    "unknown": (FINE,) * 6,
}


@pytest.mark.parametrize(
    ("kind", "state", "verdict"),
    [(kind, state, row[at]) for kind, row in IN_STATE.items() for at, state in enumerate(STATES)],
    ids=[f"{kind}-{state.__name__}" for kind in IN_STATE for state in STATES],
)
def test_every_frame_type_in_every_state_of_a_stream(
    kind: str, state: Callable[[Peer], None], verdict: Verdict
) -> None:
    peer = Peer()
    state(peer)
    peer.frames.clear()
    peer.send(SENT[kind])
    verdict.check(peer)


# Everything else: section, what is checked, the bytes, the verdict. Streams 1, 3, ... are new.

BODY = headers(1, flags=WHOLE)
LENGTH_5 = headers(1, block(REQUEST, (b"content-length", b"5")), WHOLE)
CUT = block()
BIG = (1 << 31) - 1


def padded(payload: bytes, padding: int) -> bytes:
    return bytes([padding]) + payload + bytes(padding)


def bad_field(name: bytes, value: bytes) -> bytes:
    return headers(1, block(REQUEST, (name, value)))


def request(**changed: bytes | None) -> bytes:
    """A request whose pseudo-headers differ from the usual; None leaves one out."""
    pairs = {name[1:].decode(): value for name, value in REQUEST}
    wanted = {**pairs, **changed}
    return headers(1, block([(b":" + name.encode(), value) for name, value in wanted.items() if value is not None]))


def update(stream: int, increment: int) -> bytes:
    return frame(frames.WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


CASES: dict[str, tuple[bytes, Verdict]] = {
    # 4.1, 4.2: frames and their sizes.
    "4.1 the reserved bit of a stream identifier is ignored": (
        frame(frames.PING, 0, 0x80000000, bytes(8)),
        FINE,
    ),
    "4.1 unknown flags are ignored": (headers(1, flags=END | WHOLE | 0xD2 & ~0x28), FINE),
    "4.1 an unknown type without payload is ignored": (frame(0x16, 0, 0), FINE),
    "4.2 the largest frame is taken": (BODY + data(1, bytes(65_536)), FINE),
    "4.2 DATA over the announced size": (BODY + data(1, bytes(65_537)), FRAME_SIZE_ERROR),
    "4.2 HEADERS over the announced size": (headers(1, bytes(65_537)), FRAME_SIZE_ERROR),
    "4.2 an unknown type over the announced size": (frame(0x77, 0, 0, bytes(65_537)), FRAME_SIZE_ERROR),
    # 4.3, 6.10: header blocks.
    "4.3 a block that is no HPACK": (headers(1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
    "4.3 a block in two frames": (
        headers(1, CUT[:5], END) + frame(frames.CONTINUATION, WHOLE, 1, CUT[5:]),
        FINE,
    ),
    "4.3 a block in three frames, one empty": (
        headers(1, CUT[:5], END)
        + frame(frames.CONTINUATION, 0, 1, b"")
        + frame(frames.CONTINUATION, WHOLE, 1, CUT[5:]),
        FINE,
    ),
    "4.3 a block that begins with an empty HEADERS": (
        headers(1, b"", END) + frame(frames.CONTINUATION, WHOLE, 1, CUT),
        FINE,
    ),
    "6.10 DATA between HEADERS and CONTINUATION": (headers(1, CUT, 0) + data(1), PROTOCOL_ERROR),
    "6.10 PING between HEADERS and CONTINUATION": (
        headers(1, CUT, 0) + frame(frames.PING, 0, 0, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "6.10 PRIORITY between HEADERS and CONTINUATION": (
        headers(1, CUT, 0) + frame(frames.PRIORITY, 0, 1, bytes(5)),
        PROTOCOL_ERROR,
    ),
    "6.10 HEADERS of another stream between": (headers(1, CUT, 0) + headers(3), PROTOCOL_ERROR),
    "6.10 an unknown frame between": (headers(1, CUT, 0) + frame(0x20, 0, 0), PROTOCOL_ERROR),
    "6.10 CONTINUATION of another stream": (
        headers(1, CUT, 0) + frame(frames.CONTINUATION, WHOLE, 3, b""),
        PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION on stream 0": (frame(frames.CONTINUATION, WHOLE, 0, CUT), PROTOCOL_ERROR),
    "6.10 CONTINUATION after the end of a block": (
        headers(1) + frame(frames.CONTINUATION, WHOLE, 1, CUT),
        PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION after DATA": (
        BODY + data(1) + frame(frames.CONTINUATION, WHOLE, 1, CUT),
        PROTOCOL_ERROR,
    ),
    "6.10 trailers in two frames": (
        BODY + headers(1, b"", END) + frame(frames.CONTINUATION, WHOLE, 1, block([(b"x", b"y")])),
        FINE,
    ),
    # 5.1.1, 5.1.2: stream identifiers, how many.
    "5.1.1 an even stream": (headers(2), PROTOCOL_ERROR),
    "5.1.1 a stream lower than one that was used": (headers(5) + headers(3), PROTOCOL_ERROR),
    "5.1.1 DATA on a skipped stream": (headers(5) + data(3), PROTOCOL_ERROR),
    "5.1.1 the first stream may have any odd number": (headers(7) + headers(9) + headers(101), FINE),
    "5.1.1 the highest stream": (headers(BIG), FINE),
    "5.1.1 WINDOW_UPDATE on a stream of the server": (update(2, 1000), PROTOCOL_ERROR),
    "5.1.1 RST_STREAM on a stream of the server": (frame(frames.RST_STREAM, 0, 2, bytes(4)), PROTOCOL_ERROR),
    # 6.1: DATA.
    "6.1 DATA on stream 0": (data(0), PROTOCOL_ERROR),
    "6.1 padded DATA": (BODY + data(1, padded(b"hello", 9), END | PADDED), FINE),
    "6.1 DATA that is all padding": (BODY + data(1, padded(b"", 255), PADDED), FINE),
    "6.1 padding of no bytes": (BODY + data(1, padded(b"hello", 0), PADDED), FINE),
    "6.1 padding as long as the payload": (BODY + data(1, b"\x05hello", PADDED), FINE),
    "6.1 padding longer than the payload": (BODY + data(1, b"\x06hello", PADDED), PROTOCOL_ERROR),
    "6.1 padded DATA without a byte": (BODY + data(1, b"", PADDED), FRAME_SIZE_ERROR),
    "6.1 DATA without a byte ends a stream": (BODY + data(1, b"", END), FINE),
    "6.1 DATA after the end": (BODY + data(1, b"a", END) + data(1), CLOSED),
    # 6.2: HEADERS.
    "6.2 HEADERS on stream 0": (headers(0), PROTOCOL_ERROR),
    "6.2 padded HEADERS": (headers(1, padded(block(), 8), END | WHOLE | PADDED), FINE),
    "6.2 HEADERS with priority": (headers(1, b"\0\0\0\0\x10" + block(), END | WHOLE | PRIO), FINE),
    "6.2 padded HEADERS with priority": (
        headers(1, b"\x03\0\0\0\0\x10" + block() + bytes(3), END | WHOLE | PADDED | PRIO),
        FINE,
    ),
    "6.2 a priority on itself is ignored": (headers(1, b"\0\0\0\1\x10" + block(), END | WHOLE | PRIO), FINE),
    "6.2 HEADERS too short for their priority": (headers(1, bytes(4), END | WHOLE | PRIO), FRAME_SIZE_ERROR),
    "6.2 padded HEADERS without a byte": (headers(1, b"", END | WHOLE | PADDED), FRAME_SIZE_ERROR),
    "6.2 padding longer than the block": (headers(1, b"\xff" + block(), END | WHOLE | PADDED), PROTOCOL_ERROR),
    "6.2 padding that leaves no priority": (
        headers(1, b"\x09" + bytes(5) + bytes(8), END | WHOLE | PADDED | PRIO),
        PROTOCOL_ERROR,
    ),
    # 6.3, 6.4: PRIORITY, RST_STREAM.
    "6.3 PRIORITY on stream 0": (frame(frames.PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "6.3 PRIORITY of 4 bytes on an open stream": (
        BODY + frame(frames.PRIORITY, 0, 1, bytes(4)),
        stream_error(ErrorCode.FRAME_SIZE_ERROR),
    ),
    "6.3 PRIORITY of 6 bytes on an idle stream": (frame(frames.PRIORITY, 0, 1, bytes(6)), FRAME_SIZE_ERROR),
    "6.4 RST_STREAM on stream 0": (frame(frames.RST_STREAM, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "6.4 RST_STREAM of 3 bytes": (BODY + frame(frames.RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "6.4 RST_STREAM of 5 bytes": (BODY + frame(frames.RST_STREAM, 0, 1, bytes(5)), FRAME_SIZE_ERROR),
    "6.4 RST_STREAM with an unknown code": (BODY + frame(frames.RST_STREAM, 0, 1, b"\xff" * 4), FINE),
    # 6.5: SETTINGS.
    "6.5 SETTINGS of 5 bytes": (frame(frames.SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "6.5 an answer to SETTINGS with a payload": (frame(frames.SETTINGS, 1, 0, bytes(6)), FRAME_SIZE_ERROR),
    "6.5 unknown settings are ignored": (settings((0xFF, 1), (0x7777, BIG)), FINE),
    "6.5 the same setting twice": (settings((4, 100), (4, 200)), FINE),
    "6.5.2 ENABLE_PUSH of 0": (settings((Setting.ENABLE_PUSH, 0)), FINE),
    "6.5.2 ENABLE_PUSH of 2": (settings((Setting.ENABLE_PUSH, 2)), PROTOCOL_ERROR),
    "6.5.2 the widest window": (settings((Setting.INITIAL_WINDOW_SIZE, BIG)), FINE),
    "6.5.2 a window over 2**31 - 1": (settings((Setting.INITIAL_WINDOW_SIZE, BIG + 1)), FLOW_CONTROL_ERROR),
    "6.5.2 the smallest MAX_FRAME_SIZE": (settings((Setting.MAX_FRAME_SIZE, 16_384)), FINE),
    "6.5.2 a MAX_FRAME_SIZE under 16384": (settings((Setting.MAX_FRAME_SIZE, 16_383)), PROTOCOL_ERROR),
    "6.5.2 the largest MAX_FRAME_SIZE": (settings((Setting.MAX_FRAME_SIZE, 2**24 - 1)), FINE),
    "6.5.2 a MAX_FRAME_SIZE over 2**24 - 1": (settings((Setting.MAX_FRAME_SIZE, 2**24)), PROTOCOL_ERROR),
    "6.5.2 any table size and list size": (settings((1, 2**32 - 1), (6, 2**32 - 1), (3, 0), (1, 0)), FINE),
    "6.5.3 an answer to SETTINGS nobody sent": (frame(frames.SETTINGS, 1, 0), FINE),
    # 6.7, 6.8: PING, GOAWAY.
    "6.7 PING of 7 bytes": (frame(frames.PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "6.7 PING of 9 bytes": (frame(frames.PING, 0, 0, bytes(9)), FRAME_SIZE_ERROR),
    "6.7 an answer to a PING nobody sent": (frame(frames.PING, 1, 0, bytes(8)), FINE),
    "6.8 GOAWAY of 7 bytes": (frame(frames.GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "6.8 GOAWAY with words": (frame(frames.GOAWAY, 0, 0, bytes(8) + b"so long"), FINE),
    "6.8 requests that were sent before GOAWAY are answered": (headers(1) + frame(frames.GOAWAY, 0, 0, bytes(8)), FINE),
    # 6.9: WINDOW_UPDATE and flow control.
    "6.9 WINDOW_UPDATE of 3 bytes": (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE of 5 bytes": (frame(frames.WINDOW_UPDATE, 0, 0, b"\0\0\0\1\0"), FRAME_SIZE_ERROR),
    "6.9 the connection's window by zero": (update(0, 0), PROTOCOL_ERROR),
    "6.9 a stream's window by zero": (BODY + update(1, 0), MALFORMED),
    "6.9 the reserved bit of an increment is ignored": (update(0, 0x80000001), FINE),
    "6.9.1 the widest connection window": (update(0, BIG - 65_535), FINE),
    "6.9.1 the connection's window over 2**31 - 1": (update(0, BIG - 65_534), FLOW_CONTROL_ERROR),
    "6.9.1 the widest stream window": (BODY + update(1, BIG - 65_535), FINE),
    "6.9.1 a stream's window over 2**31 - 1": (
        BODY + update(1, BIG - 65_534),
        stream_error(ErrorCode.FLOW_CONTROL_ERROR),
    ),
    "6.9.2 SETTINGS widen a stream's window over 2**31 - 1": (
        BODY + update(1, BIG - 65_535) + settings((Setting.INITIAL_WINDOW_SIZE, 65_536)),
        FLOW_CONTROL_ERROR,
    ),
    "6.9.1 DATA over the stream's window": (
        BODY + data(1, bytes(65_536)) * 16 + data(1, b"x"),
        stream_error(ErrorCode.FLOW_CONTROL_ERROR),
    ),
    "6.9.1 DATA that fill the stream's window": (BODY + data(1, bytes(65_536)) * 16, FINE),
    "6.9.1 DATA over the connection's window": (
        b"".join(headers(1 + 2 * at, flags=WHOLE) + data(1 + 2 * at, bytes(65_536)) * 16 for at in range(16))
        + headers(33, flags=WHOLE)
        + data(33, b"x"),
        FLOW_CONTROL_ERROR,
    ),
    # 8.1: the parts of a request.
    "8.1 a request without a body": (headers(1), FINE),
    "8.1 a request with body and trailers": (BODY + data(1) + headers(1, block([(b"x-sum", b"1")])), FINE),
    "8.1 trailers without an end": (BODY + headers(1, block([(b"x", b"y")]), WHOLE), MALFORMED),
    "8.1 trailers after the end": (BODY + data(1, b"", END) + headers(1, block([(b"x", b"y")])), CLOSED),
    "8.1 a pseudo-header in trailers": (BODY + headers(1, block([(b":path", b"/b")])), MALFORMED),
    "8.1 a connection's field in trailers": (BODY + headers(1, block([(b"connection", b"close")])), MALFORMED),
    "8.1 empty trailers": (BODY + headers(1, b""), FINE),
    # 8.1.1: content-length.
    "8.1.1 the declared length": (LENGTH_5 + data(1, b"hel") + data(1, b"lo", END), FINE),
    "8.1.1 padding is no content": (LENGTH_5 + data(1, padded(b"hello", 50), END | PADDED), FINE),
    "8.1.1 too short a body": (LENGTH_5 + data(1, b"hell", END), MALFORMED),
    "8.1.1 too long a body": (LENGTH_5 + data(1, b"hello!", END), MALFORMED),
    "8.1.1 too long a body that goes on": (LENGTH_5 + data(1, b"hello") + data(1, b"!"), MALFORMED),
    "8.1.1 trailers after too short a body": (LENGTH_5 + data(1, b"hell") + headers(1, b""), MALFORMED),
    "8.1.1 no body though one is declared": (bad_field(b"content-length", b"5"), MALFORMED),
    "8.1.1 a declared length of zero": (bad_field(b"content-length", b"0"), FINE),
    "8.1.1 a signed length": (bad_field(b"content-length", b"+0"), MALFORMED),
    "8.1.1 a length in words": (bad_field(b"content-length", b"none"), MALFORMED),
    "8.1.1 two lengths that differ": (
        headers(1, block(REQUEST, (b"content-length", b"5"), (b"content-length", b"6")), WHOLE),
        MALFORMED,
    ),
    "8.1.1 the same length twice": (
        headers(1, block(REQUEST, (b"content-length", b"5"), (b"content-length", b"5")), WHOLE),
        MALFORMED,
    ),
    # 8.2: fields.
    "8.2.1 a name in upper case": (bad_field(b"X-Name", b"v"), MALFORMED),
    "8.2.1 an empty name": (bad_field(b"", b"v"), MALFORMED),
    "8.2.1 a space in a name": (bad_field(b"x name", b"v"), MALFORMED),
    "8.2.1 a colon in a name": (bad_field(b"x:name", b"v"), MALFORMED),
    "8.2.1 a byte over 0x7f in a name": (bad_field(b"x\xff", b"v"), MALFORMED),
    "8.2.1 a NUL in a value": (bad_field(b"x", b"a\0b"), MALFORMED),
    "8.2.1 a line feed in a value": (bad_field(b"x", b"a\nb: c"), MALFORMED),
    "8.2.1 a carriage return in a value": (bad_field(b"x", b"a\rb"), MALFORMED),
    "8.2.1 a space before a value": (bad_field(b"x", b" a"), MALFORMED),
    "8.2.1 a tab after a value": (bad_field(b"x", b"a\t"), MALFORMED),
    "8.2.1 bytes over 0x7f in a value": (bad_field(b"x", b"\xc3\xa4"), FINE),
    "8.2.1 an empty value": (bad_field(b"x", b""), FINE),
    "8.2.2 connection": (bad_field(b"connection", b"close"), MALFORMED),
    "8.2.2 keep-alive": (bad_field(b"keep-alive", b"timeout=5"), MALFORMED),
    "8.2.2 proxy-connection": (bad_field(b"proxy-connection", b"close"), MALFORMED),
    "8.2.2 transfer-encoding": (bad_field(b"transfer-encoding", b"chunked"), MALFORMED),
    "8.2.2 upgrade": (bad_field(b"upgrade", b"h2c"), MALFORMED),
    "8.2.2 te: trailers": (bad_field(b"te", b"trailers"), FINE),
    "8.2.2 te: gzip": (bad_field(b"te", b"trailers, gzip"), MALFORMED),
    # 8.3: pseudo-headers.
    "8.3 an unknown pseudo-header": (bad_field(b":colour", b"red"), MALFORMED),
    "8.3 a pseudo-header after a field": (headers(1, block([*REQUEST[:3], (b"x", b"y"), REQUEST[3]])), MALFORMED),
    "8.3 a pseudo-header of answers": (headers(1, block([*REQUEST, (b":status", b"200")])), MALFORMED),
    "8.3.1 :protocol without extended CONNECT": (headers(1, block([*REQUEST, (b":protocol", b"ws")])), MALFORMED),
    "8.3.1 no :method": (request(method=None), MALFORMED),
    "8.3.1 no :scheme": (request(scheme=None), MALFORMED),
    "8.3.1 no :path": (request(path=None), MALFORMED),
    "8.3.1 an empty :path": (request(path=b""), MALFORMED),
    "8.3.1 a :path without a slash": (request(path=b"a"), MALFORMED),
    "8.3.1 a :path with a space": (request(path=b"/a b"), MALFORMED),
    "8.3.1 a :path of * for OPTIONS": (request(method=b"OPTIONS", path=b"*"), FINE),
    "8.3.1 a :path of * for POST": (request(path=b"*"), MALFORMED),
    "8.3.1 an empty :method": (request(method=b""), MALFORMED),
    "8.3.1 a :method that is no token": (request(method=b"GE T"), MALFORMED),
    "8.3.1 an empty :scheme": (request(scheme=b""), MALFORMED),
    "8.3.1 no :authority": (request(authority=None), FINE),
    "8.3.1 a user in :authority": (request(authority=b"me@host"), MALFORMED),
    "8.3.1 :method twice": (headers(1, block([REQUEST[0], *REQUEST])), MALFORMED),
    "8.3.1 :path twice": (headers(1, block([*REQUEST, REQUEST[2]])), MALFORMED),
    "8.3.1 host as :authority": (bad_field(b"host", b"HOST"), FINE),
    "8.3.1 host other than :authority": (bad_field(b"host", b"other"), MALFORMED),
    "8.5 CONNECT": (request(method=b"CONNECT", scheme=None, path=None), FINE),
    "8.5 CONNECT with a :path": (request(method=b"CONNECT", scheme=None), MALFORMED),
    "8.5 CONNECT without :authority": (
        request(method=b"CONNECT", scheme=None, path=None, authority=None),
        MALFORMED,
    ),
    # RFC 7541.
    "7541 2.3.3 index zero": (headers(1, b"\x80" + block()), COMPRESSION_ERROR),
    "7541 2.3.3 an index after both tables": (headers(1, block() + b"\xfe"), COMPRESSION_ERROR),
    "7541 3.2 a field by its name's index": (headers(1, block() + b"\x0f\x10\x03a/b"), FINE),
    "7541 4.2 a table size of zero": (headers(1, b"\x20" + block()), FINE),
    "7541 4.2 two table sizes": (headers(1, b"\x20\x3f\xe1\x1f" + block()), FINE),
    "7541 4.2 a table size after a field": (headers(1, block() + b"\x20"), COMPRESSION_ERROR),
    "7541 4.2 a table size over the announced one": (headers(1, b"\x3f\xe2\x1f" + block()), COMPRESSION_ERROR),
    "7541 5.1 an integer that never ends": (headers(1, block() + b"\xff" + b"\x80" * 20 + b"\x01"), COMPRESSION_ERROR),
    "7541 5.2 a string longer than the block": (headers(1, block() + b"\x00\x01x\x7fy"), COMPRESSION_ERROR),
    "7541 5.2 Huffman padding of more than 7 bits": (
        headers(1, block() + b"\x00\x01x\x82\x1f\xff"),
        COMPRESSION_ERROR,
    ),
    "7541 5.2 Huffman padding of zeros": (headers(1, block() + b"\x00\x01x\x81\x18"), COMPRESSION_ERROR),
    "7541 5.2 the end of a string as Huffman code": (
        headers(1, block() + b"\x00\x01x\x84\xff\xff\xff\xff"),
        COMPRESSION_ERROR,
    ),
    "7541 6.2.1 a field that enters the table is found there": (
        headers(1, block() + b"\x40\x01x\x01y") + headers(3, block() + b"\xbe"),
        FINE,
    ),
    "7541 a block cut in a field": (headers(1, block() + b"\x40\x01"), COMPRESSION_ERROR),
    "7541 an error in a block of a refused stream ends the connection": (
        headers(1, block([(b"x", b"y")]) + b"\x80"),
        COMPRESSION_ERROR,
    ),
}


@pytest.mark.parametrize(("sent", "verdict"), CASES.values(), ids=CASES)
def test_duty(sent: bytes, verdict: Verdict) -> None:
    peer = Peer()
    peer.send(sent)
    verdict.check(peer)


@pytest.mark.parametrize("size", [1, 7, 9, 10, 1000])
@pytest.mark.parametrize(
    "name",
    ["6.2 padded HEADERS with priority", "8.1.1 padding is no content", "4.3 a block in three frames, one empty"],
)
def test_the_size_of_the_pieces_does_not_matter(name: str, size: int) -> None:
    sent, verdict = CASES[name]
    whole, cut = Peer(), Peer(handshake=b"")
    whole.send(sent)
    everything = HANDSHAKE + sent
    cut.send(*[everything[at : at + size] for at in range(0, len(everything), size)])
    verdict.check(cut)
    assert [str(event) for event in cut.requests()] == [str(event) for event in whole.requests()]


# 3.4: the preface.

PREFACES: dict[str, tuple[bytes, Verdict]] = {
    "another protocol": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", PROTOCOL_ERROR),
    "a preface that goes wrong at its end": (PREFACE[:-1] + b"x", PROTOCOL_ERROR),
    "no SETTINGS first": (PREFACE + headers(1), PROTOCOL_ERROR),
    "PING first": (PREFACE + frame(frames.PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "an answer to SETTINGS first": (PREFACE + frame(frames.SETTINGS, 1, 0), PROTOCOL_ERROR),
    "SETTINGS with values": (PREFACE + settings((4, 1 << 20), (3, 100)), FINE),
}


@pytest.mark.parametrize(("sent", "verdict"), PREFACES.values(), ids=PREFACES)
def test_preface(sent: bytes, verdict: Verdict) -> None:
    peer = Peer(handshake=b"")
    peer.send(sent)
    verdict.check(peer)


def test_the_server_begins_with_its_settings() -> None:
    first = parse(Http2Connection(Limits(max_streams=7, stream_window=99_000)).take())[0]
    assert (first.kind, first.flags, first.stream) == (frames.SETTINGS, 0, 0)
    told = {first.payload[at : at + 2]: first.payload[at + 2 : at + 6] for at in range(0, len(first.payload), 6)}
    assert int.from_bytes(told[b"\0\x03"], "big") == 7
    assert int.from_bytes(told[b"\0\x04"], "big") == 99_000


def test_settings_and_pings_are_answered_in_their_order() -> None:
    peer = Peer()
    answers = peer.send(settings((3, 5)) + frame(frames.PING, 0, 0, b"12345678") + settings())
    assert [(f.kind, f.flags, f.payload) for f in answers] == [
        (frames.SETTINGS, 1, b""),
        (frames.PING, 1, b"12345678"),
        (frames.SETTINGS, 1, b""),
    ]


def test_a_request_is_told_in_full() -> None:
    peer = Peer()
    cookies = (b"cookie", b"a=1"), (b"cookie", b"b=2")
    peer.send(headers(1, block(REQUEST, *cookies, (b"content-length", b"7")), WHOLE))
    peer.send(data(1, padded(b"abc", 4), PADDED), data(1, b"defg"), headers(1, block([(b"x-sum", b"1")])))
    (request_, *rest) = peer.events
    assert isinstance(request_, Request)
    head = request_.head
    assert (head.method, head.scheme, head.authority, head.target) == (b"POST", b"http", b"host", b"/a")
    assert head.fields == ((b"content-length", b"7"), (b"cookie", b"a=1; b=2"))
    assert (head.content_length, request_.ended, request_.stream_id) == (7, False, 1)
    assert rest == [Data(1, b"abc", False), Data(1, b"defg", False), Trailers(1, ((b"x-sum", b"1"),))]


def test_a_stream_over_the_announced_number_is_refused_and_leaves_the_table_right() -> None:
    peer = Peer(Limits(max_streams=1))
    peer.send(headers(1, flags=WHOLE), headers(3, block() + b"\x40\x01x\x01y"))
    assert peer.resets() == [(3, ErrorCode.REFUSED_STREAM)]
    peer.server.reset(1)
    peer.send(headers(5, block() + b"\xbe"))
    assert [event.stream_id for event in peer.requests()] == [1, 5]
    assert peer.requests()[-1].head.get(b"x") == b"y"


def test_a_window_smaller_than_the_protocols_counts_from_the_clients_answer_on() -> None:
    peer = Peer(Limits(stream_window=1000), handshake=PREFACE + settings())
    peer.send(headers(1, flags=WHOLE), data(1, bytes(2000)))
    assert not peer.resets(), "the client may not have seen the SETTINGS yet"
    peer.send(frame(frames.SETTINGS, 1, 0), headers(3, flags=WHOLE), data(3, bytes(1001)))
    assert peer.resets() == [(3, ErrorCode.FLOW_CONTROL_ERROR)]
    late = Peer(Limits(stream_window=1000), handshake=PREFACE + settings())
    late.send(headers(1, flags=WHOLE), frame(frames.SETTINGS, 1, 0), data(1, bytes(1001)))
    assert late.resets() == [(1, ErrorCode.FLOW_CONTROL_ERROR)], "streams that are open are narrowed too"


def test_trailers_of_a_stream_that_the_server_has_reset_leave_the_table_right() -> None:
    peer = Peer()
    peer.send(headers(1, flags=WHOLE))
    peer.server.reset(1)
    peer.send(headers(1, b"\x40\x01x\x01y"), headers(3, block() + b"\xbe"))
    assert peer.requests()[-1].head.get(b"x") == b"y"


def test_what_the_server_has_reset_is_remembered_for_as_many_streams_as_may_be_open() -> None:
    peer = Peer(Limits(max_streams=3))
    for stream in (1, 3, 5, 7):
        peer.send(headers(stream, flags=WHOLE))
        peer.server.reset(stream)
    peer.send(data(3), data(7))
    assert peer.is_alive()
    peer.send(data(1))
    assert peer.ended() == ErrorCode.STREAM_CLOSED
