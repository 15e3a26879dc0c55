"""The open streams of a connection, and the memory of streams that are over (RFC 9113, section 5.1)."""

from __future__ import annotations

import math
from collections import deque

from embedserve.http.frames import ErrorCode, ProtocolError
from embedserve.http.heads import RequestHead

__all__ = ["Stream", "Streams"]

_GAPS = 64
"""Ranges of skipped stream identifiers that are remembered, so that frames on skipped streams get the right error."""


class Stream:
    """An open stream, from its head until both sides have ended or either side has reset the stream.

    Attributes:
        receive_window: Bytes that the client may still send; below zero while a smaller window takes effect.
        unconsumed: Bytes reported in events and not yet consumed.
        credit: Consumed bytes without a window update so far.
        head_bytes: Bytes of the request's head.
        remaining: Missing bytes of the declared body; None without a declaration.
        remote_ended: The client has ended its side.
        send_window: Bytes that the client takes; below zero after smaller SETTINGS of the client.
        head_sent: The head of the answer was given.
        local_ended: The end of the answer was given.
        queue: Waiting pieces of the answer.
        blocked_since: Time since which a window holds waiting pieces; infinity for no hold.
        trailers: The block of trailers after the waiting pieces.
    """

    __slots__ = (
        "blocked_since",
        "credit",
        "head_bytes",
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
        self, stream_id: int, receive_window: int, send_window: int, head: RequestHead, remote_ended: bool
    ) -> None:
        self.id = stream_id
        self.receive_window = receive_window
        self.send_window = send_window
        self.remaining = head.content_length
        self.head_bytes = head.size
        self.remote_ended = remote_ended
        self.unconsumed = self.credit = 0
        self.head_sent = self.local_ended = False
        self.queue: deque[memoryview] | None = None
        self.trailers: bytes | None = None
        self.blocked_since = math.inf

    def __repr__(self) -> str:
        waiting = sum(map(len, self.queue or ()))
        return f"<Stream {self.id}, {waiting} bytes wait, windows {self.receive_window} in, {self.send_window} out>"


class Streams:
    """The streams of a connection, by identifier.

    Attributes:
        open: Streams that are not over.
        highest: The highest identifier that a client used.
    """

    __slots__ = ("_gaps", "_lingered", "_lingering", "_remembered", "_resets", "highest", "open")

    def __init__(self, remembered: int) -> None:
        self.open: dict[int, Stream] = {}
        self.highest = 0
        self._gaps: deque[range] = deque(maxlen=_GAPS)
        self._resets: dict[int, bool] = {}
        self._lingering: dict[int, int] = {}
        self._lingered: list[int] = []
        self._remembered = remembered

    def stuck(self, now: float, timeout: float, window: int) -> list[Stream]:
        """The streams whose answers the client's windows have held for `timeout` seconds without progress."""
        found = []
        for stream in self.open.values():
            if not stream.queue or (window > 0 and stream.send_window > 0):
                stream.blocked_since = math.inf
            elif stream.blocked_since == math.inf:
                stream.blocked_since = now
            elif now - stream.blocked_since > timeout:
                found.append(stream)
        return found

    def begin(self, stream_id: int) -> None:
        """Note the first use of `stream_id` by the client; all lower unused streams are closed by the use."""
        if stream_id > self.highest + 2:
            self._gaps.append(range((self.highest + 1) | 1, stream_id, 2))
        self.highest = stream_id

    def is_idle(self, stream_id: int) -> bool:
        """Whether the stream never began; streams with even identifiers never begin, because the server pushes none."""
        return stream_id > self.highest or not stream_id & 1

    def was_reset(self, stream_id: int) -> bool:
        """Whether either side is known to have reset the stream."""
        return stream_id in self._resets

    def remember_reset(self, stream_id: int, *, ours: bool) -> None:
        """Note the side that reset a stream.

        After the server's reset, frames of the client may still be on their way. After the client's own reset, no frame
        may follow.
        """
        resets = self._resets
        resets[stream_id] = ours
        if len(resets) > self._remembered:
            # The client may still send on a stream that lingers; as many streams as are remembered may linger.
            oldest = next((each for each in resets if each not in self._lingering), next(iter(resets)))
            del resets[oldest]
            self.linger_no_more(oldest)

    def linger(self, stream_id: int, window: int) -> None:
        """Note an answer before the end of its request.

        Some clients take a reset directly after an answer for a failure of the call, and drop the answer. DATA on its
        way is therefore discarded. The reset is due after half of the window, or after a while (`lingered`).
        """
        self.remember_reset(stream_id, ours=True)
        self._lingering[stream_id] = max(window >> 1, 1)

    def linger_no_more(self, stream_id: int) -> None:
        """Note that the client ended a stream of `linger`, if the stream is one."""
        self._lingering.pop(stream_id, None)

    def lingered(self) -> list[int]:
        """The streams that linger since the call before: their clients wait, some of them for the reset."""
        due = [stream_id for stream_id in self._lingered if self._lingering.pop(stream_id, 0)]
        self._lingered = list(self._lingering)
        return due

    def discard(self, stream_id: int, size: int, ended: int) -> bool:
        """Count DATA on a stream that is not open; True if the stream lingers and its reset is due."""
        left = self._lingering.get(stream_id)
        if left is None:
            return False
        if left > size and not ended:
            self._lingering[stream_id] = left - size
            return False
        del self._lingering[stream_id]
        return not ended

    def judge_closed(self, stream_id: int, what: str) -> bool:
        """Whether to ignore a frame (named `what`) on a closed stream; else the answer is STREAM_CLOSED.

        Raises:
            ProtocolError: The stream never began, or the client had ended the stream.
        """
        ours = self._resets.get(stream_id)
        if ours is not None:
            return ours
        if self.is_idle(stream_id) or any(stream_id in gap for gap in self._gaps):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which never began")
        raise ProtocolError(ErrorCode.STREAM_CLOSED, f"{what} on stream {stream_id}, which has ended")
