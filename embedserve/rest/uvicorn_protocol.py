"""uvicorn's HTTP/1.1 protocol for the standalone server, except that an `Upgrade` is ignored.

llhttp ends a request for an upgrade after its headers, and takes the body for the new protocol. HTTP lets a server
answer as if the client had not asked for an upgrade. The module is the only part of REST that needs uvicorn.
"""

from __future__ import annotations

import logging

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Http1Protocol"]

logger = logging.getLogger("embedserve.rest")

_TLS_HANDSHAKE = b"\x16\x03"


class Http1Protocol(HttpToolsProtocol):
    """A connection; the parser reads a request for an upgrade a second time, without its `Upgrade` header."""

    def data_received(self, data: bytes) -> None:
        """Feed bytes to the parser; malformed HTTP gets 400 and ends the connection."""
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    return  # The answer, 501, closes the connection.
                data = self._plain_head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                what = "is TLS, and this port is not" if data[:2] == _TLS_HANDSHAKE else "is not HTTP"
                logger.warning("what a client sent %s: answered with status 400", what)
                self.send_400_response("Invalid HTTP request received.")
                return

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the parser is about to read the request again."""
        if not self._is_read_anew():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body, unless the parser is about to read the request again."""
        if not self._is_read_anew():
            super().on_message_complete()

    def _is_read_anew(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _plain_head(self) -> bytes:
        """The request's line and headers without `Upgrade`; of `Connection` only `close` and `keep-alive` stay."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [token for token in value.split(b",") if token.strip().lower() in (b"close", b"keep-alive")]
                value = b",".join(kept)
            if value and name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"
