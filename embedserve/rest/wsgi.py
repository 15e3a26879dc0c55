"""The REST API as a WSGI application: for Flask, Django and other hosts that have threads and no event loop.

The ASGI application runs on the registry's loop. A thread of the host reads the body and writes the answer. The module
knows no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from embedserve.asgi.sending import PIECE
from embedserve.errors import RegistryStateError
from embedserve.rest.errors import error_response

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from embedserve.asgi.calls import Scope
    from embedserve.rest.app import RestApp

__all__ = ["WsgiApp"]

Event: TypeAlias = "tuple[dict[str, Any], asyncio.Future[Any] | None]"

# Hosts keep the connection, and WSGI forbids applications to name it.
_OF_THE_HOST = frozenset({b"connection"})


class WsgiApp:
    """WSGI application over the REST application of a registry.

    The process that answers enters the registry after its fork: `registry.ensure_started_sync()`. Before the start,
    requests get 503 with the same advice. `SCRIPT_NAME` sets the prefix of a mounted application.

    WSGI reports a lost client only while the answer is written, so the run of a client that has gone continues.

    Args:
        app: The result of `create_app(registry)`.
    """

    def __init__(self, app: RestApp) -> None:
        self._app = app

    def __repr__(self) -> str:
        return f"<WsgiApp of {self._app!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        """Answer a request; the host iterates the pieces of the answer, and closes the iterator as WSGI demands."""
        registry = self._app.registry
        try:
            registry.check_reachable()
        except RegistryStateError:  # A loop for a single answer lets the application report the state.
            exchange = _Exchange(environ)
            asyncio.run(self._app(_scope_of(environ), exchange.receive, exchange.send))
            exchange.end()
        else:
            assert registry.loop is not None
            exchange = _Exchange(environ)
            exchange.run_on(registry.loop, self._app, _scope_of(environ))
        return exchange.answer(start_response)


class _Exchange:
    """A request: coroutines of the loop on one side, the host's thread on the other, events between the two."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._input = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH") or ""
        # Without a length the host may mark the end of the body; else the body is empty.
        self._left = int(length) if length.isdigit() else None if environ.get("wsgi.input_terminated") else 0
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._call: Future[None] | None = None
        self._body_ended = False
        # Reading a small body before the call saves two changes of threads.
        self._first = self._read() if self._left is not None and self._left <= PIECE else None

    def run_on(self, loop: asyncio.AbstractEventLoop, app: RestApp, scope: Scope) -> None:
        """Begin the call."""
        self._call = asyncio.run_coroutine_threadsafe(app(scope, self.receive, self.send), loop)
        self._call.add_done_callback(lambda _: self.end())

    def end(self) -> None:
        """Tell the host's thread that the call has ended."""
        self._events.put(None)

    # On the loop.

    async def receive(self) -> dict[str, Any]:
        message, self._first = self._first, None
        if message is None:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if not self._body_ended:
                self._events.put(({"type": "read"}, future))
            message = await future  # Past the body the future stays open: WSGI reports no disconnect.
        self._body_ended = not message.get("more_body", False)
        return message

    async def send(self, message: dict[str, Any]) -> None:
        if not message.get("more_body", False):
            self._events.put((message, None))
            return
        written: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._events.put((message, written))
        await written

    # In the thread.

    def answer(self, start_response: StartResponse) -> Iterator[bytes]:
        """Serve the loop's events in the host's thread, and give the pieces of the answer."""
        started = False
        try:
            while (event := self._events.get()) is not None:
                message, asked = event
                result = None
                if message["type"] == "read":
                    result = self._read()
                elif message["type"] == "http.response.start":
                    started = True
                    start_response(_status_line(message["status"]), _headers_of(message["headers"]))
                elif message["body"]:
                    yield message["body"]
                if asked is not None:
                    with suppress(RuntimeError):  # The loop has ended, and the call with the loop.
                        asked.get_loop().call_soon_threadsafe(_resolve, asked, result)
            if self._call is not None and self._call.cancelled():
                raise RegistryStateError("the registry was left before this request was answered")
            if self._call is not None:
                self._call.result()
        except RegistryStateError as error:
            if started:
                raise
            refused = error_response(error)
            start_response(_status_line(refused.status), _headers_of(list(refused.headers)))
            yield refused.body
        finally:
            if self._call is not None:
                self._call.cancel()  # A call that is still running has lost its client.

    def _read(self) -> dict[str, Any]:
        size = PIECE if self._left is None else min(PIECE, self._left)
        try:
            piece = self._input.read(size) if size else b""
        except OSError:
            return {"type": "http.disconnect"}
        if self._left is None:
            return {"type": "http.request", "body": piece, "more_body": bool(piece)}
        self._left -= len(piece)
        if self._left and not piece:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": self._left > 0}


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _scope_of(environ: WSGIEnvironment) -> dict[str, Any]:
    root = _text(environ.get("SCRIPT_NAME", ""))
    # The raw target, if the host keeps it: gunicorn and werkzeug as RAW_URI, uWSGI and mod_wsgi as REQUEST_URI.
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    headers = [
        (name.removeprefix("HTTP_").lower().replace("_", "-").encode("latin-1"), value.encode("latin-1"))
        for name, value in environ.items()
        if (name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")) and value
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": environ.get("SERVER_PROTOCOL", "HTTP/1.1").partition("/")[2],
        "method": environ["REQUEST_METHOD"],
        "scheme": environ.get("wsgi.url_scheme", "http"),
        "path": root + _text(environ.get("PATH_INFO", "")) or "/",
        "raw_path": raw.partition("?")[0].encode("latin-1", "replace"),
        "root_path": root,
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "headers": headers,
        "client": (environ["REMOTE_ADDR"], 0) if environ.get("REMOTE_ADDR") else None,
    }


def _text(path: str) -> str:
    """A path from WSGI's form, with a latin-1 character per byte."""
    return path.encode("latin-1").decode("utf-8", "replace")


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def _headers_of(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode("latin-1")) for name, value in headers if name not in _OF_THE_HOST]
