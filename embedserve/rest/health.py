"""Health of the process and of each model over HTTP, from the snapshots of a registry: on any loop, at any time.

The module knows no listener and no route besides its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import orjson

from embedserve.asgi.hosting import NOT_ENTERED
from embedserve.rest.errors import Response, json_response

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["health_response", "is_health"]


def is_health(path: str) -> bool:
    """Whether the path is `/-/live`, `/-/ready` or `/-/ready/NAME`."""
    return path in ("/-/live", "/-/ready") or (path.startswith("/-/ready/") and len(path) > len("/-/ready/"))


def health_response(registry: ModelRegistry, method: str, path: str) -> Response:
    """Answer a health request with 200, or with 503 and the reason; the process's readiness lists every model.

    The answer reads the registry's snapshots: before the first load has ended, during a drain, and on any loop.
    """
    if method not in ("GET", "HEAD"):
        response = _uncached({"error": f"Method {method} is not allowed for {path}"}, 405)
        return response._replace(headers=(*response.headers, (b"allow", b"GET, HEAD")))
    if path == "/-/live":
        trouble = registry.liveness()
        return (
            _uncached({"status": "live"})
            if trouble is None
            else _uncached({"status": "not live", "reason": trouble}, 503)
        )
    reasons = registry.readiness()
    reason = NOT_ENTERED if registry.loop is None else registry.unready()
    if path == "/-/ready":
        return _readiness(reason is None, reason, reasons)
    name = unquote(path.removeprefix("/-/ready/"))
    leaving = reason if registry.loop is None or registry.draining else None
    if leaving is None and name not in reasons:
        return _uncached({"status": "unknown", "error": f"Could not find model {name}"}, 404)
    of_model = {name: reasons[name]} if name in reasons else {}
    return _readiness(leaving is None and of_model.get(name) is None, leaving, of_model)


def _readiness(ready: bool, reason: str | None, reasons: dict[str, str | None]) -> Response:
    document: dict[str, object] = {"status": "ready" if ready else "not ready"}
    if reason is not None:
        document["reason"] = reason
    document["models"] = {name: why or "ready" for name, why in sorted(reasons.items())}
    return _uncached(document, 200 if ready else 503)


def _uncached(document: dict[str, object], status: int = 200) -> Response:
    response = json_response(orjson.dumps(document), status)
    return response._replace(headers=(*response.headers, (b"cache-control", b"no-store")))
