"""The destination of a REST request: the raw request target of an ASGI scope, and the route of a target.

TF Serving matches routes on the target as sent, query included and percent-escapes intact. An ASGI host gives the parts
of the target, below the prefix of a mount. All functions are pure, and know no body and no registry.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from embedserve.asgi.hosting import path_as_sent
from embedserve.errors import InvalidInputError

if TYPE_CHECKING:
    from embedserve.asgi.calls import Scope

__all__ = [
    "METHODS",
    "OPENAPI",
    "READS",
    "Route",
    "is_rest",
    "is_strict_uri",
    "known_route",
    "mount_point",
    "path_of",
    "raw_target",
    "route",
]

READS = frozenset({"GET", "HEAD"})
OPENAPI = "/v1/openapi.json"
METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})

# TF Serving: http_rest_api_handler.cc.
_SPEC = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_POST = re.compile(rf"/v1/models/([^/:]+){_SPEC}:(classify|regress|predict)", re.IGNORECASE | re.ASCII)
_GET = re.compile(rf"/v1/models(?:/([^/:]+))?{_SPEC}(?:/(metadata))?", re.IGNORECASE | re.ASCII)
_STRICT_URI = re.compile(r"(?:[\w\-.~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*", re.ASCII)
_INT64_MAX = 2**63 - 1
_CACHED_TARGET = 256
"""Characters of the longest target whose route is remembered; the bound keeps the cache small."""


@dataclass(frozen=True, slots=True)
class Route:
    """The operation and the model of a request.

    Attributes:
        action: `predict`, `classify`, `regress`, `metadata`, `status`, `list` or `openapi`.
        name: Model name, percent-decoded; empty for `list` and `openapi`.
        version, label: The version by number or by label; never both.
        query: The query of a prediction. TensorFlow Serving takes none, and JSON requests have none here.
    """

    action: str
    name: str
    version: int | None = None
    label: str | None = None
    query: str = ""


def is_strict_uri(target: str) -> bool:
    """Whether the target is made of RFC 3986 characters only: no blanks, braces, quotes or raw non-ASCII."""
    return _STRICT_URI.fullmatch(target) is not None


def is_rest(target: str) -> bool:
    """Whether the REST API answers for the target, even with an error."""
    return target[:4].lower() == "/v1/"


def path_of(target: str) -> str:
    """The target without its query."""
    return target.partition("?")[0]


def raw_target(scope: Scope) -> str:
    """The request target below the application's mount point, as sent: escapes intact, query included.

    `raw_path` counts only if `path` agrees, because hosts and middleware may rewrite `path`. Otherwise the target is
    rebuilt from `path`, and an escaped slash in a model name is lost.
    """
    path, query = scope["path"], scope.get("query_string")
    raw = scope.get("raw_path")
    if raw and not scope.get("root_path") and raw == path.encode("latin-1", "replace") and b"%" not in raw:
        target: str = path
    else:
        target = _below_mount(scope, (raw or b"").partition(b"?")[0].decode("latin-1"))
    return f"{target}?{query.decode('latin-1')}" if query else target


def mount_point(scope: Scope) -> str:
    """The path in front of a request's target: the mount point of the application, behind the prefix of a proxy."""
    path, below = path_as_sent(scope), unquote(path_of(raw_target(scope)))
    return path.removesuffix(below) if path.endswith(below) else ""


def _below_mount(scope: Scope, raw: str) -> str:
    prefixes = tuple(_prefixes(scope))
    below = path = path_as_sent(scope)
    for prefix in prefixes:
        if path == prefix or path.startswith(prefix + "/"):
            below = path[len(prefix) :]
            break
    # Hosts differ: `raw_path` is whole, or cut like `path`.
    for candidate in (*(_cut(raw, prefix) for prefix in prefixes), raw):
        if candidate and unquote(candidate) == below:
            return candidate
    # Litestar cuts `path` and does not name the prefix.
    sent = unquote(raw)
    if len(below) > 1 and sent.endswith(below) and (candidate := _cut(raw, sent[: -len(below)])) is not None:
        return candidate
    return quote(below, safe="/:@!$&'()*+,;=~") or "/"


def _prefixes(scope: Scope) -> Iterator[str]:
    """Mount points at the start of `path`, the longest first."""
    root = scope.get("root_path", "").rstrip("/")
    if root:
        yield root
    # Starlette keeps a proxy's prefix (`FastAPI(root_path=...)`), already cut off `path`, in front of its mounts.
    outer = scope.get("app_root_path", "").rstrip("/")
    if outer and root.startswith(outer + "/"):
        yield root[len(outer) :]


def _cut(raw: str, prefix: str) -> str | None:
    """`raw` without the leading part that percent-decodes to `prefix`; None if `raw` has no such part."""
    at = 0
    for byte in prefix.encode():
        if raw[at : at + 1] == chr(byte):
            at += 1
        elif raw[at : at + 3].upper() == f"%{byte:02X}":
            at += 3
        else:
            return None
    return raw[at:]


def route(method: str, target: str) -> Route:
    """Match a raw `/v1/...` target (section 1.3 of TF Serving's contract: case-insensitive, matched in full).

    Raises:
        InvalidInputError: No route has this method and form, the model name is missing, or the version is no int64.
    """
    if path_of(target) == OPENAPI and method in READS:
        return Route("openapi", "")
    query = ""
    found = _POST.fullmatch(target) if method == "POST" else _GET.fullmatch(target) if method in READS else None
    if found is None and method == "POST":
        path, _, query = target.partition("?")
        found = _POST.fullmatch(path) if query else None
    if found is None:
        hint = ""
        if _POST.fullmatch(target) and method != "POST":
            hint = f"; it takes POST, with the inputs in the body: curl -d '{{\"instances\": [...]}}' URL{target}"
        elif _GET.fullmatch(target) and method not in READS:
            hint = f"; it takes GET. Predictions are asked for by POST {target}:predict" if method == "POST" else ""
        raise InvalidInputError(f"Malformed request: {method} {target}{hint}")
    name, version, label, action = found.groups()
    if name is None:
        if version is None and label is None and action is None:
            return Route("list", "")
        raise InvalidInputError("Missing model name in request.")
    if method == "POST":
        # The pattern ignores case; TF Serving compares the verb with its case.
        if action not in (("predict",) if query else ("predict", "classify", "regress")):
            raise InvalidInputError(f"Malformed request: {method} {target}")
    else:
        action = "metadata" if action == "metadata" else "status"
    return Route(action, unquote(name), _version(version), None if label is None else unquote(label), query)


def known_route(scope: Scope) -> Route | None:
    """The route of a valid request, remembered as a whole: target, strictness, API and route in a single lookup.

    Returns:
        None for an invalid request and for a long target; the caller then takes each step by itself.
    """
    path, query = scope["path"], scope.get("query_string", b"")
    root, outer = scope.get("root_path", ""), scope.get("app_root_path", "")
    if len(path) + len(query) + len(root) + len(outer) > _CACHED_TARGET:
        return None
    raw = scope.get("raw_path") or b""
    return _route_of(scope["method"], path, raw, query, root, outer) if len(raw) <= 3 * _CACHED_TARGET else None


@functools.lru_cache(maxsize=1024)
def _route_of(
    method: str, path: str, raw_path: bytes, query: bytes, root_path: str, app_root_path: str
) -> Route | None:
    target = raw_target(
        {
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": root_path,
            "app_root_path": app_root_path,
        }
    )
    if not is_strict_uri(target) or not is_rest(target):
        return None
    try:
        return route(method, target)
    except InvalidInputError:
        return None


def _version(digits: str | None) -> int | None:
    if digits is None:
        return None
    significant = digits.lstrip("0") or "0"
    # Python has a different error for very long digit strings.
    if len(significant) > len(str(_INT64_MAX)) or int(significant) > _INT64_MAX:
        raise InvalidInputError(f"Failed to convert version: {digits} to numeric.")
    return int(significant)
