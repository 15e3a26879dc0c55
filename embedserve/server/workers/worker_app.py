"""A worker's additions to the REST API: `GET /-/workers`, and an end to surplus connections.

The page lists processes, states, the answering worker, and suspect requests of dead workers. Any worker answers for all
workers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

if TYPE_CHECKING:
    from embedserve.rest.app import RestApp
    from embedserve.server.workers.accepting import Acceptor
    from embedserve.server.workers.worker_registry import WorkerRegistry

__all__ = ["PATH", "WorkerApp"]

# Path of the page; `/-/` cannot collide with TensorFlow Serving's paths.
PATH = "/-/workers"

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]


class WorkerApp:
    """ASGI application: serves `/-/workers`, and passes all else to the REST API.

    Attributes:
        acceptor: Knows the surplus of connections; None before the port is open.
    """

    def __init__(self, app: RestApp, registry: WorkerRegistry, index: int) -> None:
        self.acceptor: Acceptor | None = None
        self._app = app
        self._registry = registry
        self._index = index

    def __repr__(self) -> str:
        return f"<WorkerApp of worker {self._index}>"

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Send,
    ) -> None:
        """Answer an ASGI connection."""
        if self.acceptor is not None and self.acceptor.surplus > 0:
            self.acceptor.surplus -= 1
            send = _closing(send)
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] in ("GET", "HEAD"):
            await self._page(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _page(self, scope: Mapping[str, Any], send: Send) -> None:
        whole = self._registry.whole
        workers = [asdict(worker) for worker in whole.workers]
        suspects = [{**request._asdict(), "deaths": deaths} for request, deaths in whole.suspects]
        body = orjson.dumps({"answered_by": self._index, "workers": workers, "suspects": suspects})
        headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _closing(send: Send) -> Send:
    """Wrap `send` so that the client reconnects after the answer."""

    async def closing(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            event = event | {"headers": [*event["headers"], (b"connection", b"close")]}
        await send(event)

    return closing
