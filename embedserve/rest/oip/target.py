"""The operation and the model of a target below `/v2`. All functions are pure, and know no body and no registry."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from embedserve.errors import Code, ServableNotFoundError, ServingError, UnsupportedError

__all__ = ["Operation", "WrongMethodError", "asks_nothing", "is_health", "is_oip", "operation"]

_READS = ("GET", "HEAD")
_FIXED = {
    "/v2": "server",
    "/v2/": "server",
    "/v2/health/live": "live",
    "/v2/health/ready": "ready",
    "/v2/models/stats": "stats",
}
_INDEX = "/v2/repository/index"
# A model's name may have slashes, which clients leave as they are.
_NAME = r"([^/]+(?:/[^/]+)*?)"
_MODEL = re.compile(rf"/v2/models/{_NAME}(?:/versions/([^/]+))?(?:/(infer|ready|config|stats))?")
_CHANGE = re.compile(rf"/v2/repository/models/{_NAME}/(load|unload)")
_REFUSED = (
    (re.compile(r"/v2/(?:system|cuda)sharedmemory(?:/.*)?"), "shared memory is"),
    (re.compile(rf"/v2/(?:models/{_NAME}(?:/versions/[^/]+)?/)?trace/setting"), "trace settings are"),
    (re.compile(r"/v2/logging"), "log settings are"),
    (re.compile(rf"/v2/models/{_NAME}(?:/versions/[^/]+)?/(?:generate|generate_stream)"), "text generation is"),
)


class WrongMethodError(ServingError):
    """A known path was asked for with a method that the path does not have."""

    code = Code.UNIMPLEMENTED

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Operation:
    """The operation of a request.

    Attributes:
        action: `server`, `live`, `ready`, `stats`, `index`, `load`, `unload`; or of a model `metadata`, `infer`,
            `model_ready`, `config`, `stats`.
        name: The model; empty for operations of the server.
        version: Digits or a label; empty for the latest version.
        signature_name: From the query, for `metadata` and `config`; empty means `serving_default`.
    """

    action: str
    name: str = ""
    version: str = ""
    signature_name: str = ""


def is_oip(target: str) -> bool:
    """Whether the protocol answers for the target, even with an error."""
    return target[:4] == "/v2/" or target == "/v2" or target[:4] == "/v2?"


def is_health(target: str) -> bool:
    """Whether the target asks for the health of the process, which answers even if the registry's loop hangs."""
    return _FIXED.get(target.partition("?")[0], "") in ("live", "ready")


def asks_nothing(target: str) -> bool:
    """Whether the answer depends on no address of the client: all but the change of models."""
    return target[:15] != "/v2/repository/"


@functools.lru_cache(maxsize=1024)
def operation(method: str, target: str) -> Operation:
    """The operation of a raw target.

    Raises:
        ServableNotFoundError: The protocol has no such path.
        UnsupportedError: A path of an extension that is not supported.
        WrongMethodError: The path has other methods.
    """
    path, _, query = target.partition("?")
    for pattern, what in _REFUSED:
        if pattern.fullmatch(path):
            raise UnsupportedError(f"{what} not supported: {method} {path}")
    found = _found(path, query)
    if found is None:
        raise ServableNotFoundError(f"the Open Inference Protocol has no path {path}")
    wants_post = found.action in ("infer", "index", "load", "unload")
    if (method != "POST") if wants_post else (method not in _READS):
        allowed = "POST" if wants_post else "GET, HEAD"
        raise WrongMethodError(f"{path} takes {allowed}, and {method} came", allowed)
    return found


def _found(path: str, query: str) -> Operation | None:
    if path in _FIXED:
        return Operation(_FIXED[path])
    if path == _INDEX:
        return Operation("index")
    change = _CHANGE.fullmatch(path)
    if change is not None:
        return Operation(change[2], unquote(change[1]))
    model = _MODEL.fullmatch(path)
    if model is None:
        return None
    name, version, action = model.groups()
    action = "metadata" if action is None else "model_ready" if action == "ready" else action
    return Operation(action, unquote(name), unquote(version or ""), dict(parse_qsl(query)).get("signature_name", ""))
