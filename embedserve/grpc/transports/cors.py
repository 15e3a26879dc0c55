"""The web pages of foreign origins that may call, by CORS: headers of answers, and answers to preflight requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from embedserve.grpc.transports.wire import Headers

__all__ = ["Cors"]

_EXPOSED = (b"access-control-expose-headers", b"grpc-status, grpc-message, grpc-encoding, grpc-accept-encoding")
_MAX_AGE = (b"access-control-max-age", b"86400")


class Cors:
    """The permitted origins: any (`True`, `"*"`), none (`False`), or a list, as in `https://app.example`."""

    def __init__(self, origins: bool | str | Iterable[str]) -> None:
        listed = () if isinstance(origins, bool) else (origins,) if isinstance(origins, str) else origins
        # Browsers write no slash after an origin, and no default port.
        self._origins = frozenset(each.rstrip("/").encode() for each in listed)
        self._any = origins is True or b"*" in self._origins

    def __bool__(self) -> bool:
        return self._any or bool(self._origins)

    def headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """Headers of an answer that let the calling page read the answer."""
        allowed = self._allowed(request)
        return [*allowed, _EXPOSED] if allowed else self._vary()

    def preflight(self, request: Mapping[bytes, bytes]) -> Headers:
        """The headers that answer a preflight; without any, the browser makes no call."""
        allowed = self._allowed(request)
        if not allowed:
            return self._vary()
        # The caller chooses the metadata keys, so all requested headers are permitted.
        wanted = request.get(b"access-control-request-headers", b"content-type, x-grpc-web, x-user-agent, grpc-timeout")
        return [
            *allowed,
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-allow-headers", wanted),
            _MAX_AGE,
        ]

    def _allowed(self, request: Mapping[bytes, bytes]) -> Headers:
        origin = request.get(b"origin")
        if origin is None:
            return []
        if self._any:
            return [(b"access-control-allow-origin", b"*")]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), *self._vary()]
        return []

    def _vary(self) -> Headers:
        """Headers for caches, if different origins get different answers."""
        return [] if self._any else [(b"vary", b"origin")]
