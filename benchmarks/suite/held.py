"""Bytes of a server's memory for each idle connection and for each open stream."""

from __future__ import annotations

import http.client
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import hpack

from benchmarks.serving import rss_megabytes
from benchmarks.suite.client import TIMEOUT
from benchmarks.suite.contenders import Contender
from benchmarks.suite.measure import Plan
from benchmarks.suite.swaps import MODEL, serving
from benchmarks.suite.wire import TFS_GRPC
from benchmarks.suite.workloads import Workload

CONNECTIONS = 1000
STREAM_CONNECTIONS, STREAMS = 60, 50
FEW = 10
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, PING, ACK, END_HEADERS = 4, 1, 6, 1, 4


@dataclass(frozen=True)
class Held:
    """Bytes of resident memory of the server's processes; what the kernel holds is not counted.

    Attributes:
        http1: Of an HTTP/1.1 connection that waits for its next request.
        http2: Of an HTTP/2 connection without a stream.
        stream: Of a gRPC call whose request has not come yet, on a connection with others.
    """

    http1: float
    http2: float
    stream: float


def measured(contender: Contender, models: Path, cores: tuple[int, int]) -> Held:
    """Open many of each and compare the server's memory before and after.

    Raises:
        ServerFailed: The server did not start.
        OSError: A connection was refused or closed.
    """
    plan = Plan([contender], [Workload(MODEL, ("rest", "grpc"), (1,))], 0.2, 1, *cores)
    with serving(contender, models, plan) as (entrant, _):
        entrant.check()
        rest, grpc = entrant.place.rest, entrant.place.rest if contender.one_port else entrant.place.grpc

        def growth(count: int, make: Callable[[ExitStack, int], None]) -> float:
            with ExitStack() as first:
                make(first, FEW)  # What comes once comes now.
            with ExitStack() as stack:
                before = resident(entrant.pids)
                make(stack, count)
                return (resident(entrant.pids) - before) / count

        return Held(
            growth(CONNECTIONS, lambda stack, count: idle_http1(stack, rest, count)),
            growth(CONNECTIONS, lambda stack, count: http2(stack, grpc, count, 0)),
            growth(STREAM_CONNECTIONS, lambda stack, count: http2(stack, grpc, count, STREAMS)) / STREAMS,
        )


def resident(pids: list[int]) -> float:
    """Bytes of resident memory, when it has not grown for a moment."""
    found, before = sum(map(rss_megabytes, pids)), 0.0
    while found > before:
        time.sleep(0.3)
        found, before = sum(map(rss_megabytes, pids)), found
    return found * 2**20


def idle_http1(stack: ExitStack, port: int, count: int) -> None:
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        stack.callback(connection.close)
        connection.request("GET", f"/v1/models/{MODEL}")
        connection.getresponse().read()


def http2(stack: ExitStack, port: int, count: int, streams: int) -> None:
    """Connections with so many unfinished calls each; a PING's answer says that all of them came."""
    head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", TFS_GRPC.path(MODEL)),
        (":authority", "127.0.0.1"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        stack.callback(connection.close)
        encoder = hpack.Encoder()
        calls = [frame(HEADERS, END_HEADERS, 2 * n + 1, encoder.encode(head)) for n in range(streams)]
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + b"".join(calls) + frame(PING, 0, 0, b"answered"))
        read = bytearray()
        while frame(PING, ACK, 0, b"answered") not in read:
            received = connection.recv(65536)
            if not received:
                raise OSError("the server closed an HTTP/2 connection")
            read += received


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
