"""A worker's addition to the REST API: `GET /-/workers`.

The page lists processes, states, the answering worker, and suspect requests of dead workers. Any worker answers for all
workers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import orjson

from embedserve.asgi.listening import RegistryListening

if TYPE_CHECKING:
    from embedserve.asgi.calls import Receive, Scope, Send
    from embedserve.http.direct import DirectCall
    from embedserve.http.heads import RequestHead
    from embedserve.rest.app import RestApp
    from embedserve.rest.sagemaker import SageMakerApp
    from embedserve.server.workers.worker_registry import WorkerRegistry

__all__ = ["PATH", "WorkerApp"]

# Path of the page; `/-/` cannot collide with TensorFlow Serving's paths.
PATH = "/-/workers"


class WorkerApp(RegistryListening):
    """ASGI application: serves `/-/workers`, and passes all else to the REST API."""

    _registry: WorkerRegistry

    def __init__(self, app: RestApp | SageMakerApp, registry: WorkerRegistry, index: int) -> None:
        self._app = app
        self._registry = registry
        self._index = index

    def __repr__(self) -> str:
        return f"<WorkerApp of worker {self._index}>"

    def takes_whole(self, size: int) -> bool:
        """As the REST API's."""
        return self._app.takes_whole(size)

    def direct(self, head: RequestHead, is_http2: bool) -> DirectCall | None:
        """As the REST API's, which knows no `/-/workers`."""
        return self._app.direct(head, is_http2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI connection."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] in ("GET", "HEAD"):
            await self._page(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _page(self, scope: Scope, send: Send) -> None:
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
