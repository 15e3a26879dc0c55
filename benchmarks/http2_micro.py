"""What an HTTP/2 state machine costs per unary gRPC call: embedserve's, the h2 package's, and zttp's if there.

python -m benchmarks.http2_micro [--calls 2000] [--rounds 5]

A client of the h2 package talks to each server once, and what it sent is recorded. Then new servers of the same kind
read the record by turns: no socket, no event loop, no client and no model are part of what is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any, Protocol

import h2.config
import h2.connection
import h2.events
from hpack import NeverIndexedHeaderTuple

from embedserve.http.connection import Http2Connection
from embedserve.http.events import Data
from embedserve.http.header_blocks import encode_fields

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tensorflow.serving.PredictionService/Predict"),
    (":authority", "127.0.0.1:8500"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-python/1.80.0 grpc-c/52.0.0 (linux; chttp2)"),
    ("grpc-accept-encoding", "identity, deflate, gzip"),
    ("accept-encoding", "identity"),
]
HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TAIL = [(b"grpc-status", b"0")]
BODIES = {"40 B": 40, "40 B, traced": 40, "3 KB": 3_200, "600 KB": 602_112}
"""Bytes of a request; traced calls have a field of their own each, so that no header block comes twice."""
ANSWER = b"\0\0\0\0\x28" + bytes(40)


class Server(Protocol):
    """A state machine that answers every call that is complete."""

    def serve(self, data: bytes) -> bytes:
        """The bytes that answer `data`."""


class Embedserve:
    """`Http2Connection`."""

    def __init__(self) -> None:
        self.connection = Http2Connection()
        self.head, self.tail = encode_fields(HEAD), encode_fields(TAIL)

    def serve(self, data: bytes) -> bytes:
        """Consume each piece, answer after the last one."""
        connection = self.connection
        for event in connection.receive(data, 0.0):
            if type(event) is Data:
                if event.ended:
                    connection.answer(event.stream_id, self.head, ANSWER, self.tail)
                else:
                    connection.consume(event.stream_id, len(event.data))
        return connection.take()


class H2:
    """`h2.connection.H2Connection`."""

    def __init__(self) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.connection.initiate_connection()

    def serve(self, data: bytes) -> bytes:
        """As above."""
        connection = self.connection
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
            elif isinstance(event, h2.events.StreamEnded):
                stream = event.stream_id
                assert stream is not None
                connection.send_headers(stream, HEAD)
                connection.send_data(stream, ANSWER)
                connection.send_headers(stream, TAIL, end_stream=True)
        return connection.data_to_send()


class Zttp:
    """`zttp.H2Connection`."""

    def __init__(self) -> None:
        self.zttp: Any = importlib.import_module("zttp")
        self.connection = self.zttp.Connection(self.zttp.SERVER, protocol=self.zttp.HTTP2)
        self.connection.initiate_connection()

    def serve(self, data: bytes) -> bytes:
        """As above."""
        connection, zttp = self.connection, self.zttp
        connection.receive_data(data)
        while (event := connection.next_event()) is not zttp.NEED_DATA:
            if isinstance(event, zttp.EndOfMessage):
                stream = connection.stream(event.stream_id)
                stream.send_response(200, HEAD[1:])
                stream.send_data(ANSWER)
                stream.end_message(TAIL)
        sent: bytes = connection.data_to_send()
        return sent


def record(server: Server, size: int, calls: int, group: int, traced: bool) -> tuple[list[bytes], int]:
    """What a client sends in `calls` calls, `group` at once, and how many were answered."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    sent: list[bytes] = []
    answered = started = 0

    def exchange() -> None:
        nonlocal answered
        while data := client.data_to_send():
            sent.append(data)
            for event in client.receive_data(server.serve(data)):
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
                elif isinstance(event, h2.events.StreamEnded):
                    answered += 1

    exchange()
    while started < calls and answered == started:
        waiting = []
        for _ in range(group):
            stream = client.get_next_available_stream_id()
            trace = NeverIndexedHeaderTuple("traceparent", f"00-{stream:032x}-00f067aa0ba902b7-01")
            client.send_headers(stream, [*REQUEST, trace] if traced else REQUEST)
            waiting.append((stream, memoryview(bytes(size))))
        started += group
        while waiting:
            stream, rest = waiting.pop(0)
            room = min(len(rest), client.local_flow_control_window(stream), client.max_outbound_frame_size)
            client.send_data(stream, rest[:room].tobytes(), end_stream=room == len(rest))
            if room < len(rest):
                waiting.append((stream, rest[room:]))
                exchange()
                if not room and not client.local_flow_control_window(stream):
                    return sent, answered
        try:
            exchange()
        except Exception:  # A server that ends its connection, each in its own words.
            break
    return sent, answered


def replay(server: Server, sent: list[bytes]) -> float:
    """Seconds that a server takes to read the record and answer."""
    serve, begin = server.serve, time.perf_counter()
    for data in sent:
        serve(data)
    return time.perf_counter() - begin


def main() -> None:
    """Print a table: the best of some rounds for each server, body and number of calls at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http2_micro", description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000, help="calls per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the fastest counts")
    arguments = parser.parse_args()
    servers: dict[str, Callable[[], Server]] = {"embedserve": Embedserve, "h2": H2}
    if importlib.util.find_spec("zttp"):
        servers["zttp"] = Zttp
    print("| body | calls at once | " + " | ".join(servers) + " |")
    print("| --- " * (2 + len(servers)) + "|")
    for name, size in BODIES.items():
        for group in (1, 16):
            calls = arguments.calls if size < 10_000 else 16
            records = {server: record(make(), size, calls, group, "traced" in name) for server, make in servers.items()}
            best = dict.fromkeys(servers, float("inf"))
            for _ in range(arguments.rounds):
                for server, make in servers.items():
                    best[server] = min(best[server], replay(make(), records[server][0]))
            cells = [f"{best[server] / max(1, done) * 1e6:.1f} µs" for server, (_, done) in records.items()]
            print(f"| {name} | {group} | " + " | ".join(cells) + " |", flush=True)
            for server, (_, done) in records.items():
                if done < calls:
                    print(f"{server} ended the connection after {done} calls")


if __name__ == "__main__":
    main()
