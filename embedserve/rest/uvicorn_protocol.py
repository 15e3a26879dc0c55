"""uvicorn's HTTP/1.1 protocol for the standalone server: an `Upgrade` is ignored, whatever else is uvicorn's.

llhttp ends a request that asks for another protocol at its headers, and takes its body for that protocol. HTTP lets a
server answer as if it had not been asked. A module of its own because nothing else of REST needs uvicorn.
"""

from __future__ import annotations

import logging

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Http1Protocol"]

logger = logging.getLogger("embedserve.rest")

_TLS_HANDSHAKE = b"\x16\x03"


class Http1Protocol(HttpToolsProtocol):
    """One connection; requests that ask for another protocol are read anew without that wish."""

    def data_received(self, data: bytes) -> None:
        """Read what came; a request that is no HTTP is answered 400 and ends the connection."""
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    return  # Nothing follows: the answer, 501, closes the connection.
                data = self._plain_head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                what = "is TLS, and this port is not" if data[:2] == _TLS_HANDSHAKE else "is not HTTP"
                logger.warning("what a client sent %s: answered with status 400", what)
                self.send_400_response("Invalid HTTP request received.")
                return

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the request will be read anew."""
        if not self._is_read_anew():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body, unless the request will be read anew."""
        if not self._is_read_anew():
            super().on_message_complete()

    def _is_read_anew(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _plain_head(self) -> bytes:
        """The request's line and headers without `Upgrade`, and with `Connection: close` where it was said."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [token for token in value.split(b",") if token.strip().lower() in (b"close", b"keep-alive")]
                value = b",".join(kept)
            if value and name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"
