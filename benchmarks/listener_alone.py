"""What the listener alone costs: bytes per idle connection and open stream, and processor time per body.

python -m benchmarks.listener_alone [--connections 1000] [--streams 200]

The server is uvicorn on uvloop with an application that answers `/` and never answers `/wait`, so no model is part of
the figures. Memory is the growth of the process's resident memory over the number of connections or streams, after a
first round of the same kind, without the system's own socket buffers. Processor time is the loop thread's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hpack
import uvicorn
import uvloop

from embedserve.concurrency.inflight import InflightBytes
from embedserve.http import frames

PROTOCOLS = {"HttpProtocol": "embedserve.http:HttpProtocol", "httptools": "httptools"}
GET = b"GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"
WAITING = b"GET /wait HTTP/1.1\r\nHost: h\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"
HANDSHAKE = frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0) + frames.frame(frames.SETTINGS, frames.ACK, 0)


def headers(path: bytes, stream: int) -> bytes:
    """A request without a body, as a gRPC client heads its calls."""
    pairs = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"127.0.0.1:8500"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-python/1.80.0 grpc-c/52.0.0 (linux; chttp2)"),
        (b"te", b"trailers"),
    )
    block = hpack.Encoder().encode([(name, value, True) for name, value in pairs])
    return frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, block)


class App:
    """Answers with the number of waiting requests, or waits for the client's end; reads bodies as a whole."""

    def __init__(self) -> None:
        self.waiting = 0
        self.bytes = InflightBytes(None, 1 << 30)

    def account(self) -> InflightBytes:
        """The account of the listener's bytes."""
        return self.bytes

    def takes_whole(self, size: int) -> bool:
        """As the registry's applications."""
        return True

    def refused(self, reason: str) -> None:
        """Nothing is refused here."""
        raise AssertionError(reason)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
        if scope["path"] == "/wait":
            self.waiting += 1
            await receive()
            return
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        body = b"%dok" % (self.waiting or len(whole))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


def serve(protocol: str) -> None:
    """Serve on a free port and print the port."""
    raise_limit()
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        print(listening.getsockname()[1], flush=True)
        http: Any = PROTOCOLS[protocol]
        config = uvicorn.Config(
            App(), http=http, lifespan="off", log_level="critical", access_log=False, timeout_keep_alive=600
        )
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


def raise_limit() -> None:
    """Allow as many files as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def server(protocol: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and process id."""
    command = [sys.executable, "-m", "benchmarks.listener_alone", "--serve", protocol]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def connect(port: int, sent: bytes) -> socket.socket:
    """A connection with a first request."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(sent)
    return client


def until_answered(clients: list[socket.socket]) -> None:
    """Read the answers to the first requests."""
    for client in clients:
        seen = b""
        while b"ok" not in seen:
            seen += client.recv(65_536)


def until_waiting(port: int, count: int) -> None:
    """Wait until as many requests wait."""
    seen = b""
    while b"\r\n\r\n%dok" % count not in seen:
        with connect(port, GET) as client:
            seen = client.recv(65_536)


def idle(protocol: str, first: bytes, count: int) -> float:
    """Bytes per connection after an answered request."""
    with server(protocol) as (port, pid), contextlib.ExitStack() as stack:
        sizes = []
        for number in (100, count):
            clients = [stack.enter_context(connect(port, first)) for _ in range(number)]
            until_answered(clients)
            sizes.append(resident(pid))
        return (sizes[1] - sizes[0]) / count


def busy(protocol: str, first: bytes, later: list[bytes], count: int) -> float:
    """Bytes per waiting request: `count` connections begin with `first`, and send each item of `later`."""
    with server(protocol) as (port, pid), contextlib.ExitStack() as stack:
        sizes, waits = [], 0
        for number in (max(1, count // 10), count):
            clients = [stack.enter_context(connect(port, first)) for _ in range(number)]
            for client in clients:
                for sent in later:
                    client.sendall(sent)
            waits += number * len(later)
            until_waiting(port, waits)
            sizes.append(resident(pid))
        return (sizes[1] - sizes[0]) / (count * len(later))


def per_body(protocol: str, size: int, count: int) -> float:
    """Seconds of the loop's thread per body, one after another on a connection; the best of three rounds."""
    sent = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    with server(protocol) as (port, pid), connect(port, GET) as client:
        until_answered([client])
        rounds = []
        for _ in range(3):
            before = spent(pid)
            for _ in range(count):
                client.sendall(sent)
                until_answered([client])
            rounds.append((spent(pid) - before) / count)
        return min(rounds)


def spent(pid: int) -> float:
    """Seconds of processor time of a process's main thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


BODIES = {"100 B": (100, 2_000), "16 KB": (16_000, 2_000), "100 KB": (100_000, 1_000), "3 MB": (3 << 20, 100)}


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listener_alone", description=__doc__)
    parser.add_argument("--connections", type=int, default=1_000, help="idle connections")
    parser.add_argument("--streams", type=int, default=200, help="open streams on each of ten connections")
    parser.add_argument("--serve", choices=PROTOCOLS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    raise_limit()
    connections = arguments.connections
    streams = [headers(b"/wait", 2 * number + 1) for number in range(arguments.streams)]
    first = HANDSHAKE + headers(b"/", 1)
    rows = [
        ("idle HTTP/1.1 connection, httptools", idle("httptools", GET, connections)),
        ("idle HTTP/1.1 connection", idle("HttpProtocol", GET, connections)),
        ("idle HTTP/2 connection", idle("HttpProtocol", first, connections)),
        ("HTTP/1.1 connection whose request waits, httptools", busy("httptools", b"", [WAITING], connections)),
        ("HTTP/1.1 connection whose request waits", busy("HttpProtocol", b"", [WAITING], connections)),
        ("HTTP/2 stream whose request waits", busy("HttpProtocol", HANDSHAKE, streams, 10)),
    ]
    print("| body | " + " | ".join(PROTOCOLS) + " |\n" + "| --- " * (1 + len(PROTOCOLS)) + "|")
    for name, (size, count) in BODIES.items():
        cells = [f"{per_body(protocol, size, count) * 1e6:,.0f} µs" for protocol in PROTOCOLS]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| what | KiB |\n| --- | --- |")
    for what, held in rows:
        print(f"| {what} | {held / 1024:.1f} |")


if __name__ == "__main__":
    main()
