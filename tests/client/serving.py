"""A registry behind a real port with REST and gRPC, in a thread of this process, and a server that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import tensorflow as tf
import uvicorn

from embedserve import ModelRegistry
from embedserve.rest import create_app

__all__ = ["Act", "Scripted", "identities", "served"]

# What TensorFlow can pass through a signature.
DTYPES = (
    *("float", "double", "int32", "uint8", "int16", "int8", "string", "complex64", "int64", "bool", "bfloat16"),
    *("uint16", "complex128", "half", "uint32", "uint64"),
)


def identities(path: Path) -> Path:
    """A signature for each dtype, `x` of any rank to `y`, and `serving_default` for float."""

    def identity(name: str) -> Any:
        spec = tf.TensorSpec(None, getattr(tf, {"float": "float32", "double": "float64"}.get(name, name)), name="x")
        return tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec])

    signatures = {name: identity(name) for name in DTYPES}
    tf.saved_model.save(tf.Module(), str(path), signatures=signatures | {"serving_default": identity("float")})
    return path


@contextlib.contextmanager
def served(registry: ModelRegistry, **options: Any) -> Iterator[int]:
    """The port on which REST and gRPC answer for an entered registry."""
    listener = socket.create_server(("127.0.0.1", 0))
    app: Any = create_app(registry, grpc=True)
    config = uvicorn.Config(
        app,
        http="embedserve.http:HttpProtocol",
        lifespan="off",
        ws="none",
        log_config=None,  # Without its access log uvicorn would change a logger of the whole process.
        **options,
    )
    server = uvicorn.Server(config)
    ready = threading.Event()

    async def serve() -> None:
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        ready.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="served")
    thread.start()
    try:
        assert ready.wait(60)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


Act = Literal["answer", "unavailable", "invalid", "refuse", "close", "go away", "go away later", "wait", "html"]


class Scripted:
    """A gRPC server that does with each call what its script says, and answers `reply` after the script.

    Attributes:
        calls: Headers of each call, in order.
        bodies: Bodies of the calls that came whole.
    """

    def __init__(self, *script: Act, reply: bytes = b"", reply_encoding: str = "") -> None:
        self._script = list(script)
        self._reply = reply
        self._encoding = reply_encoding
        self.calls: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self._reset = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def wait_for_reset(self) -> None:
        """Return when a client has given a call up."""
        assert self._reset.wait(60)

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        http2.initiate_connection()
        body: dict[int, bytes] = {}
        # Nothing may be received after a GOAWAY, in the eyes of h2.
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            connection.sendall(http2.data_to_send())
            while data := connection.recv(65536):
                for event in http2.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.calls.append({str(name): str(value) for name, value in event.headers})
                        body[event.stream_id] = b""
                    elif isinstance(event, h2.events.StreamReset):
                        self._reset.set()
                    elif isinstance(event, h2.events.DataReceived):
                        body[event.stream_id] += event.data
                        http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        self.bodies.append(body[event.stream_id])
                        act = self._script.pop(0) if self._script else "answer"
                        if act == "close":
                            connection.close()
                            return
                        self._act(http2, act, event.stream_id)
                connection.sendall(http2.data_to_send())

    def _act(self, http2: h2.connection.H2Connection, act: Act, stream: int) -> None:
        head = [(":status", "200"), ("content-type", "application/grpc")]
        if act in ("unavailable", "invalid"):
            code = "14" if act == "unavailable" else "3"
            http2.send_headers(
                stream, [*head, ("grpc-status", code), ("grpc-message", "as scripted%21")], end_stream=True
            )
        elif act == "refuse":
            http2.reset_stream(stream, error_code=7)
        elif act == "go away":
            http2.close_connection(last_stream_id=0)
        elif act == "html":
            http2.send_headers(stream, [(":status", "502"), ("content-type", "text/html")], end_stream=True)
        elif act in ("answer", "go away later"):
            coded = [("grpc-encoding", self._encoding)] if self._encoding else []
            http2.send_headers(stream, [*head, *coded])
            body = bytes((bool(coded),)) + len(self._reply).to_bytes(4) + self._reply
            http2.send_data(stream, body)
            http2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
            if act == "go away later":
                http2.close_connection(last_stream_id=stream)


def urls(servers: Sequence[Scripted]) -> list[str]:
    """The URLs of several servers."""
    return [server.url for server in servers]
