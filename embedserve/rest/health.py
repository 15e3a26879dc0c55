"""Health over HTTP: is the process alive, are its models ready.

Answered from the registry's snapshots, so it works before the first load has ended, while it drains, and on any loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import orjson

from embedserve.asgi.hosting import NOT_ENTERED
from embedserve.rest.errors import Response, json_response

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["answer", "is_health_path"]


def is_health_path(path: str) -> bool:
    """Whether the path is one of `/-/live`, `/-/ready` and `/-/ready/NAME`."""
    return path in ("/-/live", "/-/ready") or (path.startswith("/-/ready/") and len(path) > len("/-/ready/"))


def answer(registry: ModelRegistry, method: str, path: str) -> Response:
    """Answer a health request: 200, or 503 with the reason for each model that is not ready."""
    if method not in ("GET", "HEAD"):
        response = _json({"error": f"Method {method} is not allowed for {path}"}, 405)
        return response._replace(headers=(*response.headers, (b"allow", b"GET, HEAD")))
    if path == "/-/live":
        return _json({"status": "live"})
    reasons = registry.readiness()
    reason = None
    if registry.loop is None:
        reason = NOT_ENTERED
    elif registry.draining:
        reason = "the registry is draining: shutdown has begun"
    if path == "/-/ready":
        if reason is None and not reasons:
            reason = "no model has been found yet"
        return _readiness(reason, reasons)
    name = unquote(path.removeprefix("/-/ready/"))
    if reason is None and name not in reasons:
        return _json({"status": "unknown", "error": f"Could not find model {name}"}, 404)
    return _readiness(reason, {name: reasons[name]} if name in reasons else {})


def _readiness(reason: str | None, reasons: dict[str, str | None]) -> Response:
    ready = reason is None and not any(reasons.values())
    document: dict[str, object] = {"status": "ready" if ready else "not ready"}
    if reason is not None:
        document["reason"] = reason
    document["models"] = {name: why or "ready" for name, why in sorted(reasons.items())}
    return _json(document, 200 if ready else 503)


def _json(document: dict[str, object], status: int = 200) -> Response:
    response = json_response(orjson.dumps(document), status)
    return response._replace(headers=(*response.headers, (b"cache-control", b"no-store")))
