"""The costs that a connection may cause: every limit of the state machines, with unit, meaning and origin."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Limits", "PingLimit", "RateLimit"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a connection; the defaults suit a server that faces unknown clients.

    Attributes:
        max_header_bytes: Bytes of a header list as RFC 9113 counts: names, values and 32 per field. Announced as
            SETTINGS_MAX_HEADER_LIST_SIZE. A larger list is answered with 431. A compressed block of more bytes, or a
            list of more than four times as many, ends the connection. For HTTP/1.1 the bytes of the request's line
            and fields. Origin: uvicorn's and hpack's own bound.
        max_headers: Fields of a request, trailers counted separately; more fields are answered with 431. Origin:
            Envoy's and Apache's default.
        max_url_bytes: Bytes of a request target; a longer target is answered with 414. Origin: RFC 9110 asks for 8,000.
        max_streams: Streams that a client has open at once, announced; further streams get REFUSED_STREAM. Origin: some
            times the largest useful batch.
        stream_window: Bytes of a request body that a client may send ahead of the application. Origin: ten round
            trips of a second's traffic at 10 MB/s.
        connection_window: The same bytes for all streams of a connection together, a bound on the bodies that a client
            makes the server hold. Origin: sixteen bodies at full window.
        max_frame_bytes: Largest frame that a client may send, announced. Origin: a socket is read 64 to 256 KiB at a
            time, and larger frames cost less per byte.
        max_continuations: CONTINUATION frames of a header block. Origin: a block of `max_header_bytes` in frames of
            16 KiB needs 4.
        max_settings: Entries of a SETTINGS frame. Origin: nghttp2.
        settings_per_second: SETTINGS frames; each frame touches every open stream. Origin: clients send one or two
            in a connection's life.
        settings_burst: SETTINGS frames at once, before the rate counts.
        resets_per_second: Streams that the client ends early: by RST_STREAM, or by a violation whose answer is
            RST_STREAM. Origin: six times nghttp2's default, for callers whose deadlines pass.
        resets_burst: Early ends at once, before the rate counts. Origin: nghttp2's default; `max_streams` calls can be
            cancelled together.
        control_frames_per_second: Frames that bring no request forward: PING, PRIORITY, unknown types, DATA without
            bytes, window updates of less than 256 bytes. Origin: a frame costs about a microsecond, and gRPC clients
            send some hundred PING frames per second to measure a connection.
        control_frames_burst: Control frames at once, before the rate counts.
        ping_interval: Seconds between two PING frames of a client without a new request in between; 0 for no rule. The
            default leaves PING to `control_frames_per_second`. Origin: gRPC's servers, which ask for 300.
        max_ping_strikes: PING frames that may come sooner. Origin: gRPC.
        max_unread_control_bytes: Bytes of answers to control frames that wait because the client does not read.
            Origin: some thousand PING answers.
        max_queued_bytes: Bytes of answers that wait for the client's windows. Over the bound, further answers are
            dropped and their streams reset. A single answer may be larger. Origin: a batch of images.
        head_timeout: Seconds from the first byte of a head, or from the connection's begin, to the head's end; then
            408, or GOAWAY for HTTP/2. Origin: Apache's mod_reqtimeout.
        body_timeout: Seconds without a byte of a body, while the application waits; then 408. Origin: as above.
        body_rate: Bytes per second of a body on average after `body_timeout` seconds, while the application waits.
            Origin: as above.
        half_closed_timeout: Seconds that a request goes on after its client's last byte, if a waiting client and a lost
            client cannot be told apart: HTTP/1.0 clients, which know no interim response, or an answer that has begun
            and stalls. Origin: most inferences take less.
        write_timeout: Seconds without progress of answers that the client does not read: then the connection is cut,
            or the HTTP/2 stream that a window holds is reset. Origin: nginx.
        max_connections: Connections of a server at once, bounded besides by three quarters of the process's files; an
            HTTP/1.x client of a further connection gets 503 at once. Origin: some times the clients of a large service.
        max_connections_per_address: The same for one address. A proxy brings all of its clients from one address.
            Origin: half of `max_connections`.
        max_held_bytes: Bytes of heads, bodies and unread answers of all connections of a server, for an application
            without an account of its own; embedserve's applications have `max_inflight_bytes`. Origin: a small machine.
        direct_body_bytes: Bytes of a declared HTTP/1.1 body from which the body gets a single buffer of its size.
            Origin: for a smaller body a join costs less than a second buffer.
    """

    max_header_bytes: int = 65_536
    max_headers: int = 100
    max_url_bytes: int = 8_192
    max_streams: int = 1_000
    stream_window: int = 1 << 20
    connection_window: int = 1 << 24
    max_frame_bytes: int = 65_536
    max_continuations: int = 32
    max_settings: int = 32
    settings_per_second: float = 10.0
    settings_burst: int = 100
    resets_per_second: float = 200.0
    resets_burst: int = 1_000
    control_frames_per_second: float = 1_000.0
    control_frames_burst: int = 2_000
    ping_interval: float = 0.0
    max_ping_strikes: int = 2
    max_unread_control_bytes: int = 65_536
    max_queued_bytes: int = 1 << 26
    head_timeout: float = 20.0
    body_timeout: float = 20.0
    body_rate: float = 500.0
    half_closed_timeout: float = 5.0
    write_timeout: float = 60.0
    max_connections: int = 10_000
    max_connections_per_address: int = 5_000
    max_held_bytes: int = 1 << 30
    direct_body_bytes: int = 16_384

    def __post_init__(self) -> None:
        """Refuse values that the protocols cannot express.

        Raises:
            ValueError: A limit is out of its range.
        """
        ranges = {
            "max_streams": (1, 2**31 - 1),
            "stream_window": (1, 2**31 - 1),
            "connection_window": (65_535, 2**31 - 1),
            "max_frame_bytes": (2**14, 2**24 - 1),
            "max_header_bytes": (1, 2**30),
            "direct_body_bytes": (2, 2**62),
            "max_connections": (1, 2**31),
            "max_connections_per_address": (1, 2**31),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}, expected {least} to {most}")


class RateLimit:
    """A bucket of `burst` tokens that gains `per_second` tokens each second."""

    __slots__ = ("_burst", "_per_second", "_seen", "_tokens")

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = self._tokens = float(burst)
        self._seen = 0.0

    def __repr__(self) -> str:
        return f"<RateLimit {self._tokens:.0f} of {self._burst:.0f}>"

    def take(self, now: float) -> bool:
        """Whether a further event is within the limit; `now` in seconds of any steady clock."""
        gained = (now - self._seen) * self._per_second
        self._seen = now
        self._tokens = min(self._burst, self._tokens + gained) - 1.0
        if self._tokens >= 0.0:
            return True
        self._tokens = 0.0
        return False


class PingLimit:
    """The rule for a client's PING frames: `ping_interval` seconds apart, or `max_ping_strikes` exceptions at most."""

    __slots__ = ("_limits", "_request", "_seen", "_strikes")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen = -math.inf
        self._request = self._strikes = 0

    def __repr__(self) -> str:
        return f"<PingLimit {self._strikes} strikes>"

    def take(self, now: float, request: int) -> bool:
        """Whether a further PING is within the rule.

        Args:
            now: Seconds of any steady clock.
            request: Number of the connection's last request; a new request forgives all strikes.
        """
        if request != self._request:
            self._strikes = 0
        elif now - self._seen < self._limits.ping_interval:
            self._strikes += 1
        self._seen, self._request = now, request
        return self._strikes <= self._limits.max_ping_strikes
