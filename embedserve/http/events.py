"""What a connection tells its user, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from embedserve.http.heads import Field, RequestHead

__all__ = ["ClientLeaves", "Data", "Ended", "Event", "Pong", "Request", "Reset", "Sent", "Trailers"]


@dataclass(slots=True)
class Request:
    """A stream begins. `ended`: no body follows."""

    stream_id: int
    head: RequestHead
    ended: bool


@dataclass(slots=True)
class Data:
    """Bytes of a body. `ended`: the last ones, and no trailers follow. `consume` makes room for as many new ones."""

    stream_id: int
    data: bytes | bytearray
    ended: bool


@dataclass(slots=True)
class Trailers:
    """The fields after a body, which end the request."""

    stream_id: int
    fields: tuple[Field, ...]


@dataclass(slots=True)
class Reset:
    """A stream whose Request was told is over before its end: nothing can be sent on it, and nothing more comes."""

    stream_id: int
    code: int


@dataclass(slots=True)
class Sent:
    """What had to wait of a stream's answer has left. `ended`: with its end, so that the stream is over."""

    stream_id: int
    ended: bool


@dataclass(slots=True)
class Pong:
    """The client answered a PING of `ping`."""

    payload: bytes


@dataclass(slots=True)
class ClientLeaves:
    """The client sent GOAWAY: streams that are open go on, and the client begins no more."""

    code: int


@dataclass(slots=True)
class Ended:
    """The connection is over. What `take` returns still has to be sent, then the transport is to be closed."""

    code: int
    reason: str


Event: TypeAlias = Request | Data | Trailers | Reset | Sent | Pong | ClientLeaves | Ended
