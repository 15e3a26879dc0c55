"""HTTP/1.x: which requests are read, which are refused, how answers are framed, and what is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.http.events import Data, Ended, Event, Request, Reset, Trailers
from embedserve.http.heads import RequestHead
from embedserve.http.http1 import Http1Connection
from embedserve.http.http1_heads import encode_head, encode_trailers
from embedserve.http.limits import Limits

OK = encode_head([(b":status", b"200"), (b"content-type", b"text/plain")])
CONTINUE = encode_head([(b":status", b"100")])
GET = b"GET /a?b=1 HTTP/1.1\r\nHost: h\r\n\r\n"


class Client:
    """A connection and all that was seen of it; requests are answered when they are complete, unless told otherwise."""

    def __init__(self, limits: Limits | None = None, *, answers: bool = True, whole: bool = False) -> None:
        self.asked: list[RequestHead] = []
        self.server = Http1Connection(limits, wants_whole=lambda head: not self.asked.append(head) and whole)  # type: ignore[func-returns-value]
        self.events: list[Event] = []
        self.answers = answers
        self.sent = b""

    def send(self, *pieces: bytes) -> bytes:
        """Bytes to the server; the bytes that it answers."""
        for piece in pieces:
            self.saw(self.server.receive(piece))
        return self.take()

    def saw(self, events: list[Event]) -> None:
        while events:
            self.events += events
            for event in events:
                ended = isinstance(event, Trailers) or (isinstance(event, Request | Data) and event.ended)
                if ended and self.answers:
                    self.server.answer(event.stream_id, OK, b"fine")  # type: ignore[union-attr]
            events = self.server.events()

    def take(self) -> bytes:
        found = self.server.take()
        self.sent += found
        return found

    def requests(self) -> list[Request]:
        return [event for event in self.events if isinstance(event, Request)]

    def body(self, number: int = 1) -> bytes:
        events = [event for event in self.events if isinstance(event, Request | Data) and event.stream_id == number]
        return b"".join(event.data if isinstance(event, Data) else event.body for event in events)

    def refused(self) -> int | None:
        codes = [event.code for event in self.events if isinstance(event, Ended)]
        return codes[0] if codes else None


def post(*fields: bytes, body: bytes = b"abc", line: bytes = b"POST /a HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", body])


CHUNKED = b"Transfer-Encoding: chunked"
L3 = b"Content-Length: 3"

# What is sent, and the status with which the protocol itself refuses it; None: the request is told with the body `abc`.
FRAMING: dict[str, tuple[bytes, int | None]] = {
    "a length": (post(L3), None),
    "chunks": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n"), None),
    "chunks in upper case": (post(b"TRANSFER-ENCODING: CHUNKED", body=b"3\r\nabc\r\n0\r\n\r\n"), None),
    "several chunks": (post(CHUNKED, body=b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), None),
    "a size with zeros": (post(CHUNKED, body=b"0003\r\nabc\r\n000\r\n\r\n"), None),
    "a chunk extension": (post(CHUNKED, body=b'3;a=b;c="d"\r\nabc\r\n0;x\r\n\r\n'), None),
    "trailers": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"), None),
    "a length and chunks": (post(L3, CHUNKED), 400),
    "chunks and a length": (post(CHUNKED, L3), 400),
    "a length of zero and chunks": (post(b"Content-Length: 0", CHUNKED, body=b"0\r\n\r\n"), 400),
    "two equal lengths": (post(L3, L3), 400),
    "two different lengths": (post(L3, b"Content-Length: 4"), 400),
    "a list of lengths": (post(b"Content-Length: 3, 3"), 400),
    "a positive length": (post(b"Content-Length: +3"), 400),
    "a negative length": (post(b"Content-Length: -3"), 400),
    "a hexadecimal length": (post(b"Content-Length: 0x3"), 400),
    "an empty length": (post(b"Content-Length:"), 400),
    "a length of 20 digits": (post(b"Content-Length: 99999999999999999999"), 400),
    "a space within a length": (post(b"Content-Length: 3 3"), 400),
    "an unknown coding": (post(b"Transfer-Encoding: xchunked"), 400),
    "another coding and chunks": (post(b"Transfer-Encoding: gzip, chunked"), 501),
    "chunks twice": (post(b"Transfer-Encoding: chunked, chunked"), 400),
    "chunks in two fields": (post(CHUNKED, CHUNKED), 400),
    "chunks and then another coding": (post(b"Transfer-Encoding: chunked, gzip"), 400),
    "a coding with a vertical tab": (post(b"Transfer-Encoding: \x0bchunked"), 400),
    "a coding in a folded line": (post(b"Transfer-Encoding:\r\n chunked"), 400),
    "a space before a colon": (post(b"Content-Length : 3"), 400),
    "a folded field": (post(L3, b"X: a\r\n b"), 400),
    "a field that begins with a space": (post(b" X: a", L3), 400),
    "a bare line feed in a field": (post(L3, b"X: a\nY: b"), 400),
    "a bare carriage return in a field": (post(L3, b"X: a\rY: b"), 400),
    "a NUL in a field": (post(L3, b"X: a\0b"), 400),
    "a name that is no token": (post(L3, b"X(: a"), 400),
    "a line without a colon": (post(L3, b"X"), 400),
    "lines that end with a line feed": (b"POST / HTTP/1.1\nHost: h\nContent-Length: 3\n\nabc", 400),
    "a size with a sign": (post(CHUNKED, body=b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "a size with 0x": (post(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "a size with a space before it": (post(CHUNKED, body=b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "a size with an underscore": (post(CHUNKED, body=b"0_3\r\nabc\r\n0\r\n\r\n"), 400),
    "no size": (post(CHUNKED, body=b"\r\nabc\r\n0\r\n\r\n"), 400),
    "a size over 60 bits": (post(CHUNKED, body=b"1" + b"0" * 15 + b"\r\n"), 400),
    "a size that ends with a line feed": (post(CHUNKED, body=b"3\nabc\r\n0\r\n\r\n"), 400),
    "a chunk that ends with a line feed": (post(CHUNKED, body=b"3\r\nabc\n0\r\n\r\n"), 400),
    "a chunk longer than its size": (post(CHUNKED, body=b"2\r\nabc\r\n0\r\n\r\n"), 400),
    "a line feed in a chunk extension": (post(CHUNKED, body=b"3;a\nabc\r\n0\r\n\r\n"), 400),
    "a chunk extension without end": (post(CHUNKED, body=b"3;" + b"a" * 400), 400),
    "a trailer without a colon": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\nX\r\n\r\n"), 400),
    "a folded trailer": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\nX: a\r\n b: c\r\n\r\n"), 400),
    "chunks with HTTP/1.0": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n", line=b"POST / HTTP/1.0"), 400),
    "no host": (post(L3, host=b""), 400),
    "two hosts": (post(L3, b"Host: g"), 400),
    "a host with a slash": (post(L3, host=b"Host: a/b"), 400),
    "a user in the host": (post(L3, host=b"Host: me@h"), 400),
    "an empty host": (post(L3, host=b"Host:"), None),
    "no host with HTTP/1.0": (post(L3, host=b"", line=b"POST / HTTP/1.0"), None),
    "a URL": (post(L3, line=b"POST http://x/a HTTP/1.1"), None),
    "a URL of another scheme": (post(L3, line=b"POST ftp://x/a HTTP/1.1"), 400),
    "a target without a slash": (post(L3, line=b"POST a HTTP/1.1"), 400),
    "a star": (post(L3, line=b"POST * HTTP/1.1"), 400),
    "a star with OPTIONS": (post(L3, line=b"OPTIONS * HTTP/1.1"), None),
    "a space in the target": (post(L3, line=b"POST /a b HTTP/1.1"), 400),
    "a byte over 0x7f in the target": (post(L3, line=b"POST /\xff HTTP/1.1"), 400),
    "two spaces in the line": (post(L3, line=b"POST  /a HTTP/1.1"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/2.0": (post(L3, line=b"POST / HTTP/2.0"), 505),
    "HTTP/1.2": (post(L3, line=b"POST / HTTP/1.2"), 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "an unknown method": (post(L3, line=b"BREW / HTTP/1.1"), 501),
    "empty lines before the request": (b"\r\n\r\n" + post(L3), None),
    "Upgrade: h2c": (
        post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", L3),
        None,
    ),
    "Upgrade: TLS/1.2": (post(b"Connection: Upgrade", b"Upgrade: TLS/1.2", L3), None),
    "Upgrade: websocket": (post(b"Connection: Upgrade", b"Upgrade: websocket", L3), None),
    "Upgrade and chunks": (
        post(b"Connection: Upgrade", b"Upgrade: h2c", CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n"),
        None,
    ),
}


@pytest.mark.parametrize(("sent", "status"), FRAMING.values(), ids=FRAMING)
@pytest.mark.parametrize("size", [1, 10_000])
def test_framing(sent: bytes, status: int | None, size: int) -> None:
    client = Client()
    client.send(*[sent[at : at + size] for at in range(0, len(sent), size)])
    assert client.refused() == status
    if status is None:
        assert client.body() == b"abc"
        assert client.sent.startswith(b"HTTP/1.1 200 OK\r\n")
        client.send(post(L3))
        assert len(client.requests()) == (1 if b"HTTP/1.0" in sent else 2), "what follows is a request of its own"
    else:
        assert client.sent.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in client.sent
        assert client.server.is_over
        assert not client.send(GET), "nothing is read after it"
    assert len(client.sent.split(b"HTTP/1.1 ")) - 1 <= max(1, len(client.requests()))


def test_a_request_is_told_in_full() -> None:
    client = Client(answers=False)
    client.send(post(b"X-Name:  v ", CHUNKED, body=b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", line=b"POST /a?b#c HTTP/1.1"))
    request, *rest = client.events
    assert isinstance(request, Request)
    head = request.head
    assert (head.method, head.scheme, head.authority, head.target) == (b"POST", b"http", b"h", b"/a?b")
    assert head.fields == ((b"host", b"h"), (b"x-name", b"v"), (b"transfer-encoding", b"chunked"))
    assert (head.content_length, request.ended) == (None, False)
    assert rest == [Data(1, b"abc", False), Trailers(1, ((b"x-sum", b"1"),))]


def test_a_url_says_whom_is_asked() -> None:
    client = Client()
    client.send(
        b"GET http://x:8/a?b HTTP/1.1\r\nHost: other\r\n\r\n", b"GET http://x?b HTTP/1.1\r\nHost: other\r\n\r\n"
    )
    assert [(r.head.authority, r.head.target) for r in client.requests()] == [(b"x:8", b"/a?b"), (b"x", b"/?b")]


def test_equal_heads_are_read_once() -> None:
    client = Client()
    client.send(GET, GET)
    first, second = client.requests()
    assert first.head is second.head


LIMITS: dict[str, tuple[Limits, bytes, int]] = {
    "head": (Limits(max_header_bytes=500), b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"v" * 500, 431),
    "whole head": (Limits(max_header_bytes=500), b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"v" * 500 + b"\r\n\r\n", 431),
    "fields": (Limits(max_headers=5), b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: v\r\n" * 5 + b"\r\n", 431),
    "line": (Limits(max_url_bytes=100), b"GET /" + b"a" * 200, 414),
    "target": (Limits(max_url_bytes=100), b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "trailers": (Limits(max_headers=3), post(CHUNKED, body=b"0\r\n" + b"X: v\r\n" * 4 + b"\r\n"), 431),
    "trailer bytes": (Limits(max_header_bytes=500), post(CHUNKED, body=b"0\r\nX: " + b"v" * 600), 431),
}


@pytest.mark.parametrize(("limits", "sent", "status"), LIMITS.values(), ids=LIMITS)
def test_limits(limits: Limits, sent: bytes, status: int) -> None:
    client = Client(limits)
    client.send(*[sent[at : at + 50] for at in range(0, len(sent), 50)])
    assert client.refused() == status
    assert client.sent.startswith(b"HTTP/1.1 %d " % status)


# Keep-alive.

KEPT = {
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n": None,
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n": b"connection: close",
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Close\r\n\r\n": b"connection: close",
    b"GET / HTTP/1.0\r\n\r\n": b"connection: close",
    b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n": b"connection: keep-alive",
    b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n": b"connection: close",
}


@pytest.mark.parametrize(("sent", "said"), KEPT.items())
def test_keep_alive(sent: bytes, said: bytes | None) -> None:
    client = Client()
    answer = client.send(sent)
    assert (said or b"connection") in answer or said is None
    assert (b"connection" in answer) == (said is not None)
    assert client.server.is_over == (said == b"connection: close")


def test_pipelined_requests_are_told_one_after_the_other_and_bounded() -> None:
    client = Client(Limits(max_header_bytes=1_000), answers=False)
    client.send(GET * 20)
    assert len(client.requests()) == 1
    assert client.server.wants_read
    client.send(GET * 20)
    assert not client.server.wants_read
    for number in range(1, 41):
        assert client.server.answer(number, OK, b"%d" % number)
        client.saw(client.server.events())
    assert client.take().count(b"HTTP/1.1 200") == 40
    assert client.server.wants_read
    assert client.server.is_idle


def test_a_half_closed_client_gets_its_answers() -> None:
    client = Client(answers=False)
    client.send(GET * 2)
    client.saw(client.server.eof())
    client.server.answer(1, OK, b"one")
    assert not client.server.is_over
    client.saw(client.server.events())
    client.server.answer(2, OK, b"two")
    assert client.take().endswith(b"two")
    assert client.server.is_over


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET])
def test_the_end_of_an_idle_connection_is_no_error(sent: bytes) -> None:
    client = Client()
    client.send(sent)
    client.saw(client.server.eof())
    assert client.server.is_over
    assert not any(isinstance(event, Reset | Ended) for event in client.events)


def test_a_request_that_is_cut_off_ends_once() -> None:
    client = Client()
    client.send(post(b"Content-Length: 10"))
    client.saw(client.server.eof())
    client.saw(client.server.lost())
    assert [event for event in client.events if isinstance(event, Reset)] == [Reset(1, 400)]
    assert client.server.is_over
    assert client.server.answer(1, OK, b"x")
    assert not client.take()


def test_a_lost_transport_ends_a_request_once() -> None:
    client = Client(answers=False)
    client.send(GET)
    client.saw(client.server.lost())
    client.saw(client.server.lost())
    assert [event for event in client.events if isinstance(event, Reset)] == [Reset(1, 400)]


def test_a_drain_lets_the_request_end() -> None:
    idle, busy = Client(), Client(answers=False)
    idle.server.drain()
    assert idle.server.is_over
    busy.send(GET)
    busy.server.drain()
    assert not busy.server.is_over
    busy.server.answer(1, OK, b"x")
    assert b"connection: close" in busy.take()
    assert busy.server.is_over


# Bodies.


def test_expect_is_answered_when_the_body_is_wanted() -> None:
    client = Client(answers=False)
    client.send(post(b"Expect: 100-continue", L3, body=b""))
    assert client.requests()
    client.server.send_informational(1, CONTINUE)
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.answers = True
    client.send(b"abc")
    assert client.body() == b"abc"
    assert not client.server.is_over


def test_a_refusal_before_an_expected_body_ends_the_connection() -> None:
    client = Client(answers=False)
    client.send(post(b"Expect: 100-continue", L3, body=b""))
    client.server.answer(1, OK, b"no")
    assert b"connection: close" in client.take()
    assert client.server.is_over


def test_an_early_answer_reads_over_the_rest_of_the_body() -> None:
    client = Client(answers=False)
    client.send(post(b"Content-Length: 10"))
    client.server.answer(1, OK, b"enough")
    assert b"connection: close" in client.take()
    assert not client.server.is_over, "closing now could cost the client the answer"
    client.send(b"defghij" + GET)
    assert client.server.is_over
    assert client.body() == b"abc"
    assert len(client.requests()) == 1


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_requests_with_equal_heads_are_the_same_requests_in_any_pieces(size: int) -> None:
    client = Client()
    sent = (post(L3) + GET) * 3 + post(L3, CHUNKED)
    client.send(*[sent[at : at + size] for at in range(0, len(sent), size)])
    assert [client.body(number) for number in range(1, 7)] == [b"abc", b""] * 3
    assert client.refused() == 400
    assert client.sent.count(b"fine") == 6


def test_a_known_head_with_its_whole_body_is_one_event() -> None:
    client = Client()
    client.send(post(L3))
    (first,) = client.events
    client.send(post(L3, body=b"xyz"))
    assert client.events == [first, Request(2, client.requests()[0].head, True, b"xyz")]
    assert client.requests()[1].head is client.requests()[0].head


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
@pytest.mark.parametrize("status", [b"200", b"204", b"304"])
@pytest.mark.parametrize("fields", [(), (b"Connection: close",)])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_declared_length_changes_no_answer(
    method: bytes, status: bytes, fields: tuple[bytes, ...], version: bytes
) -> None:
    answers = []
    for length in ((), ((b"content-length", b"4"),)):
        client = Client(answers=False)
        client.send(post(L3, *fields, line=b"%b /a HTTP/%b" % (method, version)))
        client.server.answer(1, encode_head(((b":status", status), *length)), b"fine")
        head, empty, body = client.take().partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
        answers.append((lines, empty, body, client.server.is_over))
    assert answers[0] == answers[1]
    assert answers[0][2] == (b"fine" if (method, status) == (b"POST", b"200") else b"")


def test_a_large_body_is_received_into_one_buffer_of_its_size() -> None:
    client = Client(Limits(direct_body_bytes=1_000), answers=False, whole=True)
    body = bytes(range(256)) * 400
    client.send(post(b"Content-Length: %d" % len(body), body=body[:500]))
    assert [head.content_length for head in client.asked] == [len(body)], "asked before a byte is held"
    assert not client.body()
    at = 500
    while (buffer := client.server.body_buffer()) is not None:
        size = min(len(buffer), 30_000)
        buffer[:size] = body[at : at + size]
        at += size
        client.saw(client.server.body_filled(size))
    (data,) = [event for event in client.events if isinstance(event, Data)]
    assert type(data.data) is bytes
    assert data.ended
    assert data.data == body
    client.server.answer(1, OK, b"x")
    client.send(post(L3))
    assert client.body(2) == b"abc"
    assert len(client.asked) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_large_body_may_come_any_way(whole: bool) -> None:
    client = Client(Limits(direct_body_bytes=1_000), whole=whole)
    body = bytes(range(256)) * 400
    sent = post(b"Content-Length: %d" % len(body), body=body) + GET
    client.send(*[sent[at : at + 777] for at in range(0, len(sent), 777)])
    assert client.body() == body
    assert len(client.requests()) == 2
    assert len([event for event in client.events if isinstance(event, Data)]) == 1 or not whole


def test_an_early_answer_to_a_body_in_one_buffer() -> None:
    client = Client(Limits(direct_body_bytes=10), answers=False, whole=True)
    client.send(post(b"Content-Length: 100"))
    buffer = client.server.body_buffer()
    assert buffer is not None
    client.server.answer(1, OK, b"enough")
    assert client.server.body_buffer() is None
    client.saw(client.server.body_filled(len(buffer)))
    assert client.server.is_over


def test_a_body_that_nobody_consumes_stops_the_reading() -> None:
    client = Client(Limits(stream_window=1_000), answers=False)
    client.send(post(b"Content-Length: 5000", body=bytes(1_001)))
    assert not client.server.wants_read
    client.server.consume(1, 1_001)
    assert client.server.wants_read


# Answers.

FRAMED: dict[str, tuple[bytes, bytes]] = {
    "whole": (GET, b"content-length: 4\r\n\r\nfine"),
    "HEAD": (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", b"content-length: 4\r\n\r\n"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", b"content-length: 4\r\nconnection: close\r\n\r\nfine"),
}


@pytest.mark.parametrize(("sent", "end"), FRAMED.values(), ids=FRAMED)
def test_a_whole_answer_has_a_length(sent: bytes, end: bytes) -> None:
    assert Client().send(sent) == OK + end


PARTS: dict[str, tuple[bytes, bytes, bytes]] = {
    "HTTP/1.1": (GET, OK, b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", OK, b"connection: close\r\n\r\nabc"),
    "HEAD": (b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", OK, b"transfer-encoding: chunked\r\n\r\n"),
    "204": (GET, encode_head([(b":status", b"204")]), b"\r\n"),
    "304": (GET, encode_head([(b":status", b"304"), (b"etag", b"x")]), b"\r\n"),
    "length": (GET, encode_head([(b":status", b"200"), (b"Content-Length", b"3")]), b"\r\nabc"),
}


@pytest.mark.parametrize(("sent", "head", "end"), PARTS.values(), ids=PARTS)
def test_an_answer_in_parts_is_framed(sent: bytes, head: bytes, end: bytes) -> None:
    client = Client(answers=False)
    client.send(sent)
    client.server.send_head(1, head)
    for piece in (b"ab", b"", b"c"):
        client.server.send_data(1, piece)
    client.server.send_data(1, b"", ended=True)
    assert client.take() == head + end
    assert client.server.is_over == (b"HTTP/1.0" in sent)


def test_trailers_need_chunks() -> None:
    trailers = encode_trailers([(b"Grpc-Status", b"0")])
    client = Client(answers=False)
    client.send(GET)
    client.server.answer(1, OK, b"x", trailers)
    assert client.take() == OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\ngrpc-status: 0\r\n\r\n"
    client.send(GET)
    client.server.send_head(2, OK)
    client.server.send_trailers(2, trailers)
    assert client.take().endswith(b"0\r\ngrpc-status: 0\r\n\r\n")
    old = Client(answers=False)
    old.send(b"GET / HTTP/1.0\r\n\r\n")
    old.server.answer(1, OK, b"x", trailers)
    assert old.take().endswith(b"\r\n\r\nx")


def test_misuse_is_an_error_of_the_caller() -> None:
    client = Client(answers=False)
    client.send(GET)
    server = client.server
    with pytest.raises(RuntimeError, match="no head"):
        server.send_data(1, b"x")
    with pytest.raises(RuntimeError, match="no head"):
        server.send_trailers(1, b"\r\n")
    server.send_head(1, encode_head([(b":status", b"200"), (b"content-length", b"3")]))
    with pytest.raises(RuntimeError, match="has a head"):
        server.send_head(1, OK)
    with pytest.raises(RuntimeError, match="has a head"):
        server.answer(1, OK, b"")
    with pytest.raises(RuntimeError, match="has a head"):
        server.send_informational(1, CONTINUE)
    with pytest.raises(RuntimeError, match="longer"):
        server.send_data(1, b"abcd")


def test_an_answer_shorter_than_it_says_ends_the_connection() -> None:
    client = Client(answers=False)
    client.send(GET)
    client.server.answer(1, encode_head([(b":status", b"200"), (b"content-length", b"9")]), b"x")
    assert client.server.is_over


def test_a_broken_off_answer_ends_the_connection() -> None:
    client = Client(answers=False)
    client.send(GET * 2)
    client.server.send_head(1, OK)
    client.server.reset(1)
    assert client.server.is_over
    assert b"0\r\n\r\n" not in client.take(), "the client must not take it for whole"
    assert len(client.requests()) == 1


def test_an_error_in_a_body_ends_its_request_once() -> None:
    client = Client(answers=False)
    client.send(post(CHUNKED, body=b"3\r\nabc\r\nxyz\r\n"))
    assert client.events[-2:] == [Reset(1, 400), Ended(400, "the size of a chunk is b'xyz'")]
    assert client.sent.startswith(b"HTTP/1.1 400")
    begun = Client(answers=False)
    begun.send(post(CHUNKED, body=b"3\r\nabc\r\n"))
    begun.server.send_head(1, OK)
    begun.take()
    assert not begun.send(b"xyz\r\n"), "a second answer would be taken for the first one's body"
    assert begun.server.is_over


@pytest.mark.parametrize("field", [(b"x", b"a\r\nb: c"), (b"x y", b"a"), (b"", b"a"), (b"x", b"\0")])
def test_fields_of_answers_cannot_split_them(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(Exception, match="forbidden"):
        encode_head([(b":status", b"200"), field])
    with pytest.raises(Exception, match="forbidden"):
        encode_trailers([field])


def test_the_connection_decides_its_own_fields() -> None:
    head = encode_head(
        [(b":status", b"299"), (b"Transfer-Encoding", b"chunked"), (b"Connection", b"close"), (b"X", b"y")]
    )
    assert head == b"HTTP/1.1 299 \r\nx: y\r\n"
    with pytest.raises(ValueError, match=":status"):
        encode_head([(b"x", b"y")])
    assert "idle" in repr(Http1Connection())


PIECES = st.one_of(
    st.sampled_from([s for s, _ in FRAMING.values()] + [GET, b"\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", CHUNKED]),
    st.binary(max_size=60),
)


@pytest.mark.slow
@given(st.lists(st.tuples(PIECES, st.integers(0, 6)), max_size=20), st.integers(1, 50), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_bytes_in_any_pieces(steps: list[tuple[bytes, int]], size: int, whole: bool) -> None:
    """Nothing raises, every request ends once, and what is kept is bounded."""
    limits = Limits(max_header_bytes=400, direct_body_bytes=3)
    server = Http1Connection(limits, wants_whole=lambda _: whole)
    live: set[int] = set()
    begun = over = 0

    def saw(events: list[Event]) -> None:
        nonlocal begun, over
        for event in events:
            assert not over
            if isinstance(event, Request):
                begun += 1
                assert event.stream_id == begun
                assert not live, "one request at a time"
                live.add(event.stream_id)
            elif isinstance(event, Reset):
                live.remove(event.stream_id)
            elif isinstance(event, Data):
                assert event.stream_id in live
            over += isinstance(event, Ended)

    for sent, action in steps:
        for at in range(0, len(sent), size):
            if server.wants_read:
                saw(server.receive(sent[at : at + size]))
        if live and action <= 1:
            server.answer(begun, OK, b"x" * action)
            live.discard(begun)
            saw(server.events())
        elif live and action == 2:
            server.reset(begun)
            live.discard(begun)
        if action == 3:
            server.take()
        assert len(server._buffer) <= limits.max_header_bytes + size
    saw(server.eof())
    saw(server.lost())
    assert not live
    assert server.is_over
