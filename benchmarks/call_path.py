"""Processor time of a call from the bytes of a connection to the bytes of its answer, and the part of each layer.

python -m benchmarks.call_path [--model half] [--protocol grpc] [--callers 64] [--seconds 2] [--parts]

Registry, application and `HttpProtocol` are real; sockets and clients are not. A turn of the loop brings the requests
of all callers, up to eight streams on a connection of HTTP/2. The next turn begins when each is answered. The time is
the loop thread's, so other work on the machine disturbs it little. Runs stay on the loop, however long the machine
holds them up. `--parts` takes a sample of the stack each millisecond of processor time, for the share of each layer.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import hpack
import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks.suite.wire import TFS_GRPC, TFS_REST, framed
from benchmarks.suite.workloads import examples_of, models_directory
from embedserve import ModelRegistry
from embedserve.http import HttpProtocol, frames
from embedserve.metrics import Metrics
from embedserve.rest import create_app

STREAMS = 8
SAMPLE_SECONDS = 0.001
SHOWN = 40
PACKAGE = Path(sys.modules[ModelRegistry.__module__].__file__ or "").parent

PARTS = {
    "http/protocol.py": "connection: reads, events and writes",
    "http/direct.py": "connection: reads, events and writes",
    "http/": "HTTP as a state machine",
    "grpc/": "gRPC: request and answer",
    "rest/": "REST: request and answer",
    "tensors/": "numbers and bytes",
    "batching/": "batches",
    "concurrency/threads.py": "batches",
    "concurrency/dispatch_delay.py": "batches",
    "concurrency/inflight.py": "account of bytes",
    "saved_model/": "the run",
    "observer.py": "observers and metrics",
    "metrics.py": "observers and metrics",
    "signature.py": "registry, handle, checks of inputs",
}
"""Layers by the first part of the innermost frame's path in the package; the first match counts."""


class Transport(asyncio.Transport):
    """A connection without a socket: counts answers by the end of their bytes."""

    def __init__(self, end: bytes) -> None:
        super().__init__()
        self._end = end
        self.answered = 0
        self.seen = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        self.seen = data
        self.answered += bytes(data).count(self._end)


def requests(protocol: str, model: str, callers: int) -> list[tuple[bytes, ...]]:
    """For each connection its first bytes, and the parts of a request; gRPC's streams get their numbers later."""
    rows = examples_of(models_directory([model]), model).x[:1]
    if protocol == "rest":
        body = TFS_REST.encode(model, rows)
        head = f"POST {TFS_REST.path(model)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return [(b"", f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)] * callers
    body = framed(TFS_GRPC.encode(model, rows))
    pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", TFS_GRPC.path(model)),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    block = hpack.Encoder().encode([(name, value, True) for name, value in pairs])
    windows = {frames.Setting.INITIAL_WINDOW_SIZE: 1 << 24}
    first = frames.PREFACE + frames.settings_frame(windows) + frames.window_update(0, 1 << 30)
    count = -(-callers // STREAMS)
    return [(first, block, body)] * count


class Connection:
    """A client's side: the bytes of each turn."""

    def __init__(self, protocol: HttpProtocol, streams: int, first: bytes, *request: bytes) -> None:
        self._streams, self._request = streams, request
        self._stream = 1
        self._protocol = protocol
        self.transport = Transport(b"grpc-status\x010" if len(request) > 1 else b"HTTP/1.1 200 OK")
        protocol.connection_made(self.transport)
        if first:
            self._feed(first)

    def _feed(self, data: bytes) -> None:
        self._protocol.get_buffer(-1)[: len(data)] = data
        self._protocol.buffer_updated(len(data))

    def prepare(self) -> bytes:
        """The bytes of the next turn; made outside of the measured time."""
        if len(self._request) == 1:
            return self._request[0]
        block, body = self._request
        pieces = []
        for _ in range(self._streams):
            pieces.append(frames.frame(frames.HEADERS, frames.END_HEADERS, self._stream, block))
            pieces.append(frames.frame(frames.DATA, frames.END_STREAM, self._stream, body))
            self._stream += 2
        window = frames.window_update(0, 1 << 16)
        return window + b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Bring the bytes of a turn."""
        self._feed(data)


class Sampler:
    """Samples of the loop thread's stack, by processor time."""

    def __init__(self) -> None:
        self.parts: collections.Counter[str] = collections.Counter()
        self.functions: collections.Counter[str] = collections.Counter()
        self.on = False

    def take(self, _: int, frame: FrameType | None) -> None:
        """A sample."""
        if not self.on:
            return
        code = None if frame is None else frame.f_code
        self.functions["" if code is None else f"{Path(code.co_filename).name} {code.co_qualname}"] += 1
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE):
                name = file.relative_to(PACKAGE).as_posix()
                named = next((part for start, part in PARTS.items() if name.startswith(start)), None)
                self.parts[named or "registry, handle, checks of inputs"] += 1
                return
            frame = frame.f_back
        self.parts["the loop itself"] += 1


async def measure(options: argparse.Namespace) -> tuple[list[float], Sampler]:
    """Seconds of processor time per call in each turn."""
    sampler = Sampler()
    models = models_directory([options.model])
    path = models / options.model
    registry = ModelRegistry(models=[str(path)], observers=[Metrics()], loop_run_limit=0.01, gc_freeze=True)
    async with registry:
        app = create_app(registry, grpc=True)
        http: Any = HttpProtocol
        config = uvicorn.Config(app, http=http, log_level="critical", access_log=False)
        config.load()
        state = ServerState()
        given = requests(options.protocol, options.model, options.callers)
        streams = min(STREAMS, options.callers)
        connections = [Connection(HttpProtocol(config, state, {}), streams, *each) for each in given]
        calls = len(given) * (streams if options.protocol == "grpc" else 1)
        found: list[float] = []
        if options.parts:
            signal.signal(signal.SIGPROF, sampler.take)
            signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
        end = time.perf_counter() + options.seconds + 0.5
        while (left := end - time.perf_counter()) > 0:
            prepared = [connection.prepare() for connection in connections]
            due = sum(connection.transport.answered for connection in connections) + calls
            sampler.on = left < options.seconds
            began = time.thread_time()
            for connection, data in zip(connections, prepared, strict=True):
                connection.send(data)
            while sum([connection.transport.answered for connection in connections]) < due:
                await asyncio.sleep(0)
            spent = time.thread_time() - began
            if sampler.on:
                found.append(spent / calls)
            sampler.on = False
        if options.parts:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return found, sampler


def main() -> None:
    """Print the median, and with `--parts` two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.call_path", description=__doc__)
    parser.add_argument("--model", default="half", help="half or mlp")
    parser.add_argument("--protocol", choices=("grpc", "rest"), default="grpc")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--parts", action="store_true", help="sample the stack; the samples themselves cost time")
    options = parser.parse_args()
    found, sampler = uvloop.run(measure(options))
    found.sort()
    middle, least = found[len(found) // 2], found[len(found) // 20]
    what = f"{options.protocol}, {options.model}, {options.callers} callers"
    print(f"{what}: {middle * 1e6:.1f} µs of processor time per call (a twentieth below {least * 1e6:.1f})")
    if not options.parts:
        return
    total = sum(sampler.parts.values())
    for counts, width in ((sampler.parts, len(sampler.parts)), (sampler.functions, SHOWN)):
        print()
        for name, count in counts.most_common(width):
            print(f"{100 * count / total:5.1f} %  {middle * 1e6 * count / total:5.1f} µs  {name}")


if __name__ == "__main__":
    main()
