"""Calls of known Predict requests on the direct way: a whole body to a submission, and the outcome to an answer.

The module decides which requests may go without a coroutine. `known_predict` holds the method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from embedserve.call_record import TIMING_KEY
from embedserve.errors import CUT_SHORT, Code, InvalidInputError
from embedserve.grpc.errors import status_of
from embedserve.grpc.known_predict import KnownPredict, KnownPredicts
from embedserve.grpc.transports.frames import PREFIX_BYTES, frame, too_large
from embedserve.grpc.transports.wire import OK_TRAILERS, read_timeout, refusal
from embedserve.http.direct import Answer, Started, Tell
from embedserve.http.heads import Field
from embedserve.priority import PRIORITY_KEY, PriorityName, sent_priority

__all__ = ["KnownCall", "known_calls"]


class Application(Protocol):
    """The limits of an application, and the state of its calls.

    Attributes:
        active: Calls under way.
        is_cut: Whether cancelled calls are refused, because the time of a drain is over.
        limit, send_limit: Bytes of the largest message in and out.
        max_calls: Calls under way at the most; None for any number.
    """

    active: int
    is_cut: bool
    limit: int
    max_calls: int | None
    send_limit: int


def known_calls(
    app: Application, predicts: KnownPredicts | None, headers: Mapping[bytes, bytes], fields: tuple[Field, ...]
) -> Callable[[float, bytes, Tell], KnownCall | None] | None:
    """The way without a coroutine, for heads without a fault; its call gives None for all but good requests.

    Args:
        app: The application of the calls.
        predicts: The known requests of the method; None for a method without any.
        headers: Of the request.
        fields: Of the answer's head.
    """
    if predicts is None or TIMING_KEY.encode() in headers:
        return None
    try:
        sent = headers.get(PRIORITY_KEY.encode())
        priority: PriorityName = "normal" if sent is None else sent_priority(sent)
        value = headers.get(b"grpc-timeout")
        timeout = None if value is None else read_timeout(value)
    except InvalidInputError:
        return None
    find, limit, most = predicts.find, app.limit, app.max_calls

    def start(began: float, body: bytes, tell: Tell) -> KnownCall | None:
        size = len(body) - PREFIX_BYTES
        if body[:1] != b"\0" or size != int.from_bytes(body[1:PREFIX_BYTES], "big") or size > limit:
            return None
        message = body[PREFIX_BYTES:]
        request = find(message)
        if request is None or (most is not None and app.active >= most):
            return None
        left = None if timeout is None else max(began + timeout - asyncio.get_running_loop().time(), 0.0)
        call = KnownCall(predicts, left, priority)
        call.app, call.fields, call.tell = app, fields, tell
        app.active += 1
        call.submit(request, message)
        return call

    return start


class KnownCall(KnownPredict, Started):
    """A call of a known request under way: turns the outcome into an answer, and counts the call until its end."""

    __slots__ = ("app", "fields", "tell")

    app: Application
    fields: tuple[Field, ...]
    tell: Tell

    def stop(self) -> Answer | None:
        """As `http.direct.Started.stop`: calls that a drain has cut are refused."""
        if not self.give_up():
            return None
        self.app.active -= 1
        return refusal(self.fields, Code.UNAVAILABLE, CUT_SHORT) if self.app.is_cut else None

    def finished(self, message: bytes) -> None:
        """As `KnownPredict.finished`."""
        if len(message) > self.app.send_limit:
            self.held.release()
            self.refused(*status_of(too_large(len(message), self.app.send_limit, "Sent")))
        else:
            self.tell(Answer(200, self.fields, frame(message), OK_TRAILERS, self._sent))

    def refused(self, code: Code, text: str) -> None:
        """As `KnownPredict.refused`."""
        self.app.active -= 1
        self.tell(refusal(self.fields, code, text))

    def _sent(self) -> None:
        self.app.active -= 1
        self.held.release()
