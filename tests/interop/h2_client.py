"""A client of HTTP/2 over a plain socket, by the h2 package: requests side by side, as large as they like."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.settings

WINDOW = 2**31 - 1


class _Stream:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.trailers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.ended = False


class H2Connection:
    """One connection; use as a context, which closes it.

    Args:
        port: On this machine.
        timeout: Seconds that the server may be silent.
    """

    def __init__(self, port: int, timeout: float) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        # The answers of the tests fit into one window, so none has to be handed out as they come.
        self._h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW}
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW - 65535)
        self._streams: dict[int, _Stream] = {}
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def request(self, path: str, headers: Iterable[tuple[str, str]], body: bytes | None) -> int:
        """Begin a request, and end it where it has a body; gives the number of its stream."""
        stream = self._h2.get_next_available_stream_id()
        self._streams[stream] = _Stream()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "127.0.0.1")]
        self._h2.send_headers(stream, [*pseudo, *headers])
        self._flush()
        if body is not None:
            self.send(stream, body, end=True)
        return stream

    def send(self, stream: int, body: bytes, *, end: bool) -> None:
        """Send a part of a body, as fast as the server's windows let it."""
        view = memoryview(body)
        while view:
            self.until(lambda: self._h2.local_flow_control_window(stream) > 0 or self._streams[stream].ended)
            if self._streams[stream].ended:
                return
            size = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(view))
            self._h2.send_data(stream, bytes(view[:size]))
            view = view[size:]
            self._flush()
        if end:
            self._h2.end_stream(stream)
            self._flush()

    def reset(self, stream: int) -> None:
        """Give a request up."""
        self._h2.reset_stream(stream, 8)
        self._flush()

    def until(self, condition: Callable[[], bool]) -> None:
        """Read on until something is so."""
        while not condition():
            data = self._socket.recv(1 << 20)
            assert data, "the server closed the connection"
            for event in self._h2.receive_data(data):
                self._take(event)
            self._flush()

    def until_ended(self, stream: int) -> None:
        self.until(lambda: self._streams[stream].ended)

    def body(self, stream: int) -> bytes:
        return b"".join(self._streams[stream].body)

    def trailers(self, stream: int) -> Mapping[bytes, bytes]:
        return self._streams[stream].trailers

    def status_headers(self, stream: int) -> Mapping[bytes, bytes]:
        """Where the status is: the trailers, or the headers of an answer that is nothing else."""
        found = self._streams[stream]
        return found.trailers or found.headers

    def _take(self, event: h2.events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            stream.headers = dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            stream.body.append(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        else:
            assert not isinstance(event, h2.events.StreamReset), "the server reset the stream"

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())
