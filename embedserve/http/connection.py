"""The server's side of an HTTP/2 connection (RFC 9113): bytes in, events and bytes out.

The module decides about validity by state, flow control both ways, and the costs that a client may cause. The module
knows no loop, no socket and no clock: callers pass the time. Priorities and unknown frames and settings are ignored.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import NoReturn

from embedserve.http import frames
from embedserve.http.events import ClientLeaves, Data, Ended, Event, Pong, Refused, Request, Reset, Sent, Trailers
from embedserve.http.frame_reader import FrameReader, OnFrame, without_padding
from embedserve.http.frames import (
    ACK,
    DEFAULT_WINDOW,
    END_STREAM,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PADDED,
    ErrorCode,
    ProtocolError,
    Setting,
)
from embedserve.http.header_blocks import BlockReader, encode_fields
from embedserve.http.heads import MalformedError, RequestHead, TooLargeError, trailer_fields
from embedserve.http.limits import Limits, PingLimit, RateLimit
from embedserve.http.outbox import Outbox, greeting
from embedserve.http.streams import Stream, Streams

__all__ = ["Http2Connection"]

_DRAIN_PING = b"embed\0go"
"""Payload of the PING between the two GOAWAY frames of a drain."""

_SMALL_INCREMENT = 256
"""Bytes of a window update below which the frame needs a sent DATA frame, or counts as a control frame."""

_read_settings = struct.Struct(">HI").iter_unpack


class Http2Connection:
    """An HTTP/2 connection: `receive` takes bytes, `take` gives bytes, and the further methods answer requests.

    A stream ends exactly once for the user. The end is the end of an answer (a send that returns True, or `Sent` with
    `ended`), a `Reset`, or a call of `reset`. Streams may end while events wait, so sends on a stream that is over are
    dropped silently.

    Args:
        limits: The costs that the client may cause.

    Attributes:
        reader: The state of what is being received.
    """

    encode_head = staticmethod(encode_fields)
    encode_trailers = staticmethod(encode_fields)

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self._out = Outbox(limits)
        self._blocks = BlockReader(limits)
        self._streams = Streams(limits.max_streams)
        self._open = self._streams.open
        self._events: list[Event] = []
        self._now = 0.0
        self._over = self._draining = False
        self._last_allowed = MAX_STREAM_ID
        self._receive_window = limits.connection_window
        self._credit = self._held = 0  # Held are the heads of open streams, and bodies that are not consumed.
        self._initial_window = max(DEFAULT_WINDOW, limits.stream_window)
        self._settings_rate = RateLimit(limits.settings_per_second, limits.settings_burst)
        self._reset_rate = RateLimit(limits.resets_per_second, limits.resets_burst)
        self._pings = PingLimit(limits)
        self._control_rate = RateLimit(limits.control_frames_per_second, limits.control_frames_burst)
        handlers: dict[int, OnFrame] = {
            frames.DATA: self._on_data,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_rst_stream,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
        }
        self.reader = FrameReader(limits, handlers, self._on_block, self._nuisance)
        self._out.put(greeting(limits))

    def __repr__(self) -> str:
        state = "over" if self._over else "draining" if self._draining else "open"
        return f"<Http2Connection {state}, {len(self._open)} streams, {self._out.queued_bytes} bytes wait>"

    @property
    def open_streams(self) -> int:
        """Streams that are not over."""
        return len(self._open)

    @property
    def queued_bytes(self) -> int:
        """Bytes of answers that wait for the client's windows."""
        return self._out.queued_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that the connection keeps for its client: heads, bodies, unfinished frames and answers."""
        return self._held + self.reader.kept_bytes + self._out.held_bytes

    @property
    def wants_write(self) -> bool:
        """Whether `take` would return bytes."""
        return bool(self._out)

    @property
    def is_over(self) -> bool:
        """Whether only the bytes of `take` are left to send: after an error, or at the end of a drain."""
        return self._over or (self._draining and self._last_allowed != MAX_STREAM_ID and not self._open)

    # Receiving.

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take the client's bytes, in pieces of any size.

        Args:
            data: The bytes; DATA events hold slices of `data`.
            now: Seconds of a steady clock.

        Returns:
            Events in order. Violations are events too; the method raises no error.
        """
        self._now = now
        if not self._over:
            try:
                self.reader.read(data, now)
            except ProtocolError as error:
                self.fail(error.code, str(error))
        return self.events()

    def events(self) -> list[Event]:
        """The events since the last call: `take` and the sending methods can cause events too."""
        events, self._events = self._events, []
        return events

    def _nuisance(self) -> None:
        """Count a frame that brings no request forward."""
        if not self._control_rate.take(self._now):
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring nothing forward")

    # Bodies.

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        length = end - start
        if length > self._receive_window:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "DATA is over the connection's window")
        if flags & PADDED:
            start, end = without_padding(data, start, end, flags, 0)
        stream = self._open.get(stream_id)
        self._receive_window -= length
        if stream is None:
            self._credit_connection(length)
            if self._streams.discard(stream_id, length, flags & END_STREAM):
                self._out.put(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            self._on_closed(stream_id, "DATA")
            return
        size = end - start
        if size != length:
            self._credit_connection(length - size)
            stream.credit += length - size
        if stream.remote_ended:
            self._credit_connection(size)
            self._break_stream(stream_id, ErrorCode.STREAM_CLOSED)
            return
        stream.receive_window -= length
        stream.unconsumed += size
        self._held += size
        ended = flags & END_STREAM
        if stream.receive_window < 0:
            self._break_stream(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.remaining is not None:
            stream.remaining -= size
            if stream.remaining < 0 or (ended and stream.remaining):
                self._break_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
        if ended:
            stream.remote_ended = True
            self._events.append(Data(stream_id, data[start:end], True))
        elif size:
            self._events.append(Data(stream_id, data[start:end], False))
        else:
            self._nuisance()
            self._credit_stream(stream)

    def consume(self, stream_id: int, size: int) -> None:
        """Release `size` bytes of Data events, so that the client may send as many more.

        Raises:
            ValueError: The stream did not bring as many.
        """
        stream = self._open.get(stream_id)
        if stream is None:
            return
        if size > stream.unconsumed:
            raise ValueError(f"{size} bytes consumed, {stream.unconsumed} were received")
        stream.unconsumed -= size
        self._held -= size
        self._credit_connection(size)
        if not stream.remote_ended:
            stream.credit += size
            self._credit_stream(stream)

    def _credit_stream(self, stream: Stream) -> None:
        if stream.credit > self._limits.stream_window >> 1:
            stream.receive_window += stream.credit
            self._out.put(frames.window_update(stream.id, stream.credit))
            stream.credit = 0

    def _credit_connection(self, size: int) -> None:
        self._credit += size
        if self._credit > self._limits.connection_window >> 1 and not self._over:
            self._receive_window += self._credit
            self._out.put(frames.window_update(0, self._credit))
            self._credit = 0

    # Heads and trailers.

    def _on_block(self, stream_id: int, ended: bool, block: bytes) -> None:
        if len(block) > self._limits.max_header_bytes:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of {len(block)} bytes")
        if stream_id <= self._streams.highest:
            self._on_trailers(stream_id, ended, block)
            return
        self._streams.begin(stream_id)
        try:
            head = self._blocks.head(block)
            if ended and head.content_length:
                raise MalformedError(f"content-length is {head.content_length}, and no body comes")
        except MalformedError:
            self._break_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
        except TooLargeError as error:
            self._refuse_head(stream_id, error.status, ended)
        else:
            self._begin(stream_id, head, ended)

    def _begin(self, stream_id: int, head: RequestHead, ended: bool) -> None:
        if stream_id > self._last_allowed:
            self._streams.remember_reset(stream_id, ours=True)
        elif len(self._open) >= self._limits.max_streams:
            self._break_stream(stream_id, ErrorCode.REFUSED_STREAM)
        else:
            self._open[stream_id] = Stream(stream_id, self._initial_window, self._out.initial_window, head, ended)
            self._held += head.size
            self._events.append(Request(stream_id, head, ended))

    def _refuse_head(self, stream_id: int, status: int, ended: bool) -> None:
        """Answer a head that is over a limit; the block was decoded, so the connection goes on."""
        if stream_id > self._last_allowed:
            self._streams.remember_reset(stream_id, ours=True)
            return
        fields = ((b":status", b"%d" % status), (b"content-length", b"0"))
        self._out.headers(stream_id, encode_fields(fields), END_STREAM)
        self._count_reset(str(status))
        if ended:
            self._streams.remember_reset(stream_id, ours=True)
        else:
            self._streams.linger(stream_id, self._initial_window)

    def _on_trailers(self, stream_id: int, ended: bool, block: bytes) -> None:
        stream = self._open.get(stream_id)
        if stream is None:
            if self._streams.was_reset(stream_id):
                self._discard_block(block)
            self._on_closed(stream_id, "HEADERS")
            return
        try:
            fields = trailer_fields(self._blocks.fields(block))
        except MalformedError:
            self._break_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
        except TooLargeError:
            self._break_stream(stream_id, ErrorCode.ENHANCE_YOUR_CALM)
        else:
            if stream.remote_ended:
                self._break_stream(stream_id, ErrorCode.STREAM_CLOSED)
            elif not ended or stream.remaining:
                self._break_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
            else:
                stream.remote_ended = True
                self._events.append(Trailers(stream_id, fields))

    def _discard_block(self, block: bytes) -> None:
        """Decode a block of a stream that is over, for the connection's common table."""
        with suppress(TooLargeError):
            self._blocks.fields(block)

    # The ends of streams.

    def _on_closed(self, stream_id: int, what: str) -> None:
        """Judge a frame on a stream that is not open."""
        if not self._streams.judge_closed(stream_id, what):
            self._break_stream(stream_id, ErrorCode.STREAM_CLOSED)

    def _break_stream(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream for the client's fault."""
        self._count_reset(code.name.lower())
        self._end_early(stream_id, code)
        self._streams.remember_reset(stream_id, ours=True)
        self._out.control(frames.rst_stream(stream_id, code))

    def _end_early(self, stream_id: int, code: int) -> None:
        stream = self._open.get(stream_id)
        if stream is not None:
            self._forget(stream)
            self._events.append(Reset(stream_id, code))

    def _forget(self, stream: Stream) -> None:
        del self._open[stream.id]
        self._held -= stream.unconsumed + stream.head_bytes
        self._out.drop(stream)
        if stream.unconsumed:
            self._credit_connection(stream.unconsumed)

    def _count_reset(self, refused: str = "") -> None:
        if refused:
            self._events.append(Refused(refused))
        if not self._reset_rate.take(self._now):
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are reset")

    def _on_rst_stream(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if end - start != 4:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"RST_STREAM has {end - start} bytes, expected 4")
        if stream_id not in self._open:
            if self._streams.is_idle(stream_id):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which never began")
            self._streams.linger_no_more(stream_id)
            self._nuisance()
            return
        self._count_reset()
        self._end_early(stream_id, int.from_bytes(data[start:end], "big"))
        self._streams.remember_reset(stream_id, ours=False)

    # The connection's own frames.

    def _on_priority(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if not stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if end - start == 5:
            self._nuisance()
        elif stream_id in self._open:
            self._break_stream(stream_id, ErrorCode.FRAME_SIZE_ERROR)
        else:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY has {end - start} bytes, expected 5")

    def _on_push_promise(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> NoReturn:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client sends PUSH_PROMISE")

    def _on_settings(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        size = end - start
        if stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if size % 6 or (flags & ACK and size):
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS have {size} bytes")
        if flags & ACK:
            self._on_settings_ack()
            return
        if size > 6 * self._limits.max_settings or not self._settings_rate.take(self._now):
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many SETTINGS")
        for setting, value in _read_settings(data[start:end]):
            least, most, code = frames.SETTING_RANGES.get(setting, (0, 2**32, ErrorCode.PROTOCOL_ERROR))
            if not least <= value <= most:
                raise ProtocolError(code, f"{Setting(setting).name} is {value}, expected {least} to {most}")
            if setting == Setting.INITIAL_WINDOW_SIZE:
                self._out.set_initial_window(value, self._open.values())
            elif setting == Setting.MAX_FRAME_SIZE:
                self._out.max_frame = value
        self._out.control(frames.frame(frames.SETTINGS, ACK, 0))

    def _on_settings_ack(self) -> None:
        """Apply the server's windows: until the ACK, the client may have used the protocol's defaults."""
        self._nuisance()
        change = self._limits.stream_window - self._initial_window
        if change:
            self._initial_window += change
            for stream in self._open.values():
                stream.receive_window += change

    def _on_ping(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if end - start != 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"PING has {end - start} bytes, expected 8")
        self._nuisance()
        payload = data[start:end]
        if not flags & ACK:
            if not self._pings.take(self._now, self._streams.highest):
                raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")  # gRPC's word for it.
            self._out.control(frames.frame(frames.PING, ACK, 0, payload))
        elif payload == _DRAIN_PING and self._draining:
            self._refuse_new_streams()
        else:
            self._events.append(Pong(payload))

    def _on_goaway(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if end - start < 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY has {end - start} bytes, expected 8 or more")
        self._nuisance()
        self._events.append(ClientLeaves(int.from_bytes(data[start + 4 : start + 8], "big")))

    def _on_window_update(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if end - start != 4:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"WINDOW_UPDATE has {end - start} bytes, expected 4")
        increment = int.from_bytes(data[start:end], "big") & MAX_WINDOW
        if increment < _SMALL_INCREMENT and not self._out.returned():
            self._nuisance()
        if not stream_id:
            self._out.window += increment
            if not increment:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by zero")
            if self._out.window > MAX_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is over 2**31 - 1")
            return
        stream = self._open.get(stream_id)
        if stream is None:
            if self._streams.is_idle(stream_id):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}, which never began")
        elif not increment:
            self._break_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
        elif stream.send_window + increment > MAX_WINDOW:
            self._break_stream(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            stream.send_window += increment
            self._out.widened(stream)

    def fail(self, code: ErrorCode, reason: str) -> None:
        """End the connection for the client's fault."""
        self._over = True
        for stream_id in list(self._open):
            self._end_early(stream_id, code)
        self._out.put(frames.goaway(self._streams.highest, code, reason))
        self._events.append(Ended(code, reason))
        self.reader.clear()

    # Sending.

    def take(self) -> bytes:
        """The bytes that are due, at most some 300 KiB of answers; call again while `wants_write`."""
        if self._out.waiting:
            for stream in self._out.fill():
                ended = stream.local_ended
                if ended:
                    self._finish(stream)
                self._events.append(Sent(stream.id, ended))
        return self._out.take()

    def answer(self, stream_id: int, head: bytes, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole answer.

        Args:
            stream_id: Stream of a Request.
            head: Header block with `:status` (`encode_fields`).
            body: All bytes of the body.
            trailers: Header block of the trailers; empty for none.

        Returns:
            Whether all bytes are due at once. After False, `Sent` or `Reset` follows.
        """
        stream = self._open.get(stream_id)
        if stream is None:
            return True
        if stream.head_sent or not self._out.answer(stream, head, body, trailers):
            self.send_head(stream_id, head)
            return self._send(stream, body, trailers, ended=True)
        self._finish(stream)
        return True

    def send_informational(self, stream_id: int, block: bytes) -> None:
        """Send a head with a 1xx status, before the answer's own head."""
        stream = self._open.get(stream_id)
        if stream is not None:
            if stream.head_sent:
                raise RuntimeError(f"stream {stream_id} has a head already")
            self._out.headers(stream_id, block, 0)

    def send_head(self, stream_id: int, block: bytes, *, ended: bool = False) -> None:
        """Send the head of an answer; with `ended` the head is the whole answer.

        Raises:
            RuntimeError: The stream has a head already.
        """
        stream = self._open.get(stream_id)
        if stream is None:
            return
        if stream.head_sent:
            raise RuntimeError(f"stream {stream_id} has a head already")
        stream.head_sent = True
        self._out.headers(stream_id, block, END_STREAM if ended else 0)
        if ended:
            stream.local_ended = True
            self._finish(stream)

    def send_data(self, stream_id: int, data: bytes | memoryview, *, ended: bool = False) -> bool:
        """Send bytes of an answer's body; the memory must stay unchanged until the bytes have left.

        Returns:
            As `answer`.

        Raises:
            RuntimeError: The answer has no head yet, or has ended.
        """
        stream = self._open.get(stream_id)
        return stream is None or self._send(stream, data, b"", ended=ended)

    def send_trailers(self, stream_id: int, block: bytes) -> bool:
        """End an answer with a header block of trailers.

        Returns:
            As `answer`.

        Raises:
            RuntimeError: As `send_data`.
        """
        stream = self._open.get(stream_id)
        return stream is None or self._send(stream, b"", block, ended=True)

    def _send(self, stream: Stream, data: bytes | memoryview, trailers: bytes, *, ended: bool) -> bool:
        if not stream.head_sent or stream.local_ended:
            raise RuntimeError(f"stream {stream.id} has no head yet, or has ended")
        out = self._out
        if out.queued_bytes > self._limits.max_queued_bytes:
            self._drop_answer(stream)
            return False
        stream.local_ended = ended
        stream.trailers = trailers or None
        sent = out.data(stream, data)
        if sent and ended:
            self._finish(stream)
        return sent

    def _drop_answer(self, stream: Stream) -> None:
        """Drop the answer to a client that does not read."""
        self._events.append(Refused("unread_answer"))
        self._end_early(stream.id, ErrorCode.ENHANCE_YOUR_CALM)
        self._streams.remember_reset(stream.id, ours=True)
        self._out.put(frames.rst_stream(stream.id, ErrorCode.ENHANCE_YOUR_CALM))

    def drop_stuck(self, now: float) -> None:
        """Drop answers that the client's windows have held for `write_timeout` seconds, and end streams that linger."""
        for stream in self._streams.stuck(now, self._limits.write_timeout, self._out.window):
            self._drop_answer(stream)
        for stream_id in self._streams.lingered():
            self._out.put(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))

    def _finish(self, stream: Stream) -> None:
        """Close a stream after its whole answer; the rest of an unfinished request is not wanted."""
        self._forget(stream)
        if not stream.remote_ended:
            self._streams.linger(stream.id, stream.receive_window)

    def reset(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """End a stream early by the server's wish; no event follows."""
        stream = self._open.get(stream_id)
        if stream is not None:
            self._forget(stream)
            self._streams.remember_reset(stream_id, ours=True)
            self._out.put(frames.rst_stream(stream_id, code))

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; `Pong` reports the client's answer."""
        self._out.put(frames.frame(frames.PING, 0, 0, payload))

    def drain(self) -> None:
        """Begin to leave: streams that are open or on their way are answered, later streams are not.

        The first GOAWAY has the highest identifier, so all streams are still welcome. A PING follows. The client's
        answer to the PING, or a second call, sends the GOAWAY with the last stream. `is_over` reports the end.
        """
        if self._over:
            return
        if self._draining:
            self._refuse_new_streams()
            return
        self._draining = True
        self._out.put(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR, "the server leaves"))
        self._out.put(frames.frame(frames.PING, 0, 0, _DRAIN_PING))

    def _refuse_new_streams(self) -> None:
        if self._last_allowed == MAX_STREAM_ID:
            self._last_allowed = self._streams.highest
            self._out.put(frames.goaway(self._streams.highest, ErrorCode.NO_ERROR, "the server leaves"))

    def lost(self) -> list[Event]:
        """End after the transport's loss; returns a `Reset` for each open stream."""
        self._over = True
        for stream_id in list(self._open):
            self._end_early(stream_id, ErrorCode.CANCEL)
        self._out.take()
        return self.events()
