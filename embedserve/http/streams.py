"""Which streams of a connection are open, and what is remembered of those that are not (RFC 9113, section 5.1)."""

from __future__ import annotations

from collections import deque

from embedserve.http.frames import ErrorCode, ProtocolError

__all__ = ["Stream", "Streams"]

_GAPS = 64
"""Ranges of skipped stream identifiers that are remembered, to say rightly how a frame on one of them is wrong."""


class Stream:
    """One open stream, from its head until both sides have ended it or either has reset it.

    Attributes:
        receive_window: Bytes that the client may still send; below zero while a smaller window takes effect.
        unconsumed: Bytes that were told and not yet consumed.
        credit: Consumed bytes of which the client was not told.
        remaining: Bytes of the declared body that are missing; None where nothing was declared.
        remote_ended: The client has ended its side.
        send_window: Bytes that the client takes; below zero after its SETTINGS made it so.
        head_sent: The head of the answer was given.
        local_ended: The end of the answer was given.
        queue: Pieces of the answer that wait.
        trailers: The block that follows them.
    """

    __slots__ = (
        "credit",
        "head_sent",
        "id",
        "local_ended",
        "queue",
        "receive_window",
        "remaining",
        "remote_ended",
        "send_window",
        "trailers",
        "unconsumed",
    )

    def __init__(
        self, stream_id: int, receive_window: int, send_window: int, remaining: int | None, remote_ended: bool
    ) -> None:
        self.id = stream_id
        self.receive_window = receive_window
        self.send_window = send_window
        self.remaining = remaining
        self.remote_ended = remote_ended
        self.unconsumed = self.credit = 0
        self.head_sent = self.local_ended = False
        self.queue: deque[memoryview] | None = None
        self.trailers: bytes | None = None

    def __repr__(self) -> str:
        waiting = sum(map(len, self.queue or ()))
        return f"<Stream {self.id}, {waiting} bytes wait, windows {self.receive_window} in, {self.send_window} out>"


class Streams:
    """The streams of one connection, by identifier.

    Attributes:
        open: Those that are not over.
        highest: The highest identifier that a client used.
    """

    __slots__ = ("_gaps", "_lingering", "_remembered", "_resets", "highest", "open")

    def __init__(self, remembered: int) -> None:
        self.open: dict[int, Stream] = {}
        self.highest = 0
        self._gaps: deque[range] = deque(maxlen=_GAPS)
        self._resets: dict[int, bool] = {}
        self._lingering: dict[int, int] = {}
        self._remembered = remembered

    def begin(self, stream_id: int) -> None:
        """Note that a client uses `stream_id` for the first time, which closes all lower ones that it did not use."""
        if stream_id > self.highest + 2:
            self._gaps.append(range((self.highest + 1) | 1, stream_id, 2))
        self.highest = stream_id

    def is_idle(self, stream_id: int) -> bool:
        """Whether the stream never began; streams of even identifiers never do, as nothing is pushed."""
        return stream_id > self.highest or not stream_id & 1

    def was_reset(self, stream_id: int) -> bool:
        """Whether either side is known to have reset the stream."""
        return stream_id in self._resets

    def remember_reset(self, stream_id: int, *, ours: bool) -> None:
        """Note who reset a stream. A client cannot know of our reset at once, but knows of its own."""
        resets = self._resets
        resets[stream_id] = ours
        if len(resets) > self._remembered:
            oldest = next(iter(resets))
            del resets[oldest]
            self._lingering.pop(oldest, None)

    def linger(self, stream_id: int, window: int) -> bool:
        """Note that a stream was answered before its request ended; False if it has to be reset at once.

        Some clients take a reset that follows an answer at once for a failure of the call. So what is on its way is
        discarded, and the reset is due when half of the window is used up.
        """
        self.remember_reset(stream_id, ours=True)
        if window > 1:
            self._lingering[stream_id] = window >> 1
        return window > 1

    def discard(self, stream_id: int, size: int, ended: int) -> bool:
        """Count DATA on a stream that is not open; True if the stream lingers and is to be reset now."""
        left = self._lingering.get(stream_id)
        if left is None:
            return False
        if left > size and not ended:
            self._lingering[stream_id] = left - size
            return False
        del self._lingering[stream_id]
        return not ended

    def judge_closed(self, stream_id: int, what: str) -> bool:
        """Whether the frame `what` on a stream that is not open is to be ignored; if not, STREAM_CLOSED answers it.

        Raises:
            ProtocolError: The stream never began, or the client itself had ended it.
        """
        ours = self._resets.get(stream_id)
        if ours is not None:
            return ours
        if self.is_idle(stream_id) or any(stream_id in gap for gap in self._gaps):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which never began")
        raise ProtocolError(ErrorCode.STREAM_CLOSED, f"{what} on stream {stream_id}, which has ended")
