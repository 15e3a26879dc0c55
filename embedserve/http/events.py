"""Events of a connection for its user, in the order of their causes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from embedserve.http.heads import Field, RequestHead

__all__ = ["ClientLeaves", "Data", "Ended", "Event", "Pong", "Refused", "Request", "Reset", "Sent", "Trailers"]


@dataclass(slots=True)
class Request:
    """A stream begins. `ended`: nothing follows; `body` is the whole body, and counts as `data` of Data."""

    stream_id: int
    head: RequestHead
    ended: bool
    body: bytes = b""


@dataclass(slots=True)
class Data:
    """Bytes of a body. `ended`: the last bytes, without trailers. `consume` makes room for as many new bytes."""

    stream_id: int
    data: bytes
    ended: bool


@dataclass(slots=True)
class Trailers:
    """The fields after a body; the request ends with the trailers."""

    stream_id: int
    fields: tuple[Field, ...]


@dataclass(slots=True)
class Reset:
    """A stream with a Request is over early: sends are dropped, and no further event of the stream follows."""

    stream_id: int
    code: int


@dataclass(slots=True)
class Sent:
    """The waiting bytes of a stream's answer have left. `ended`: the answer and the stream are over."""

    stream_id: int
    ended: bool


@dataclass(slots=True)
class Pong:
    """The client answered a PING of `ping`."""

    payload: bytes


@dataclass(slots=True)
class ClientLeaves:
    """The client sent GOAWAY: open streams go on, and the client begins no more streams."""

    code: int


@dataclass(slots=True)
class Ended:
    """The connection is over. Send the bytes of `take`, then close the transport."""

    code: int
    reason: str


@dataclass(slots=True)
class Refused:
    """A stream was refused for its client's fault; `reason` is one of a few words."""

    reason: str


Event: TypeAlias = Request | Data | Trailers | Reset | Sent | Pong | Refused | ClientLeaves | Ended
