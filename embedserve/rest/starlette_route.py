"""One Starlette route that takes exactly what the REST application answers, and leaves the rest to the host.

A module of its own because it is the only part of REST that needs Starlette.
"""

from __future__ import annotations

from typing import Any, Protocol

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

__all__ = ["RestRoute"]


class RestCallable(Protocol):
    """The REST application, as far as a route knows it."""

    def takes(self, scope: Scope) -> bool:
        """Whether the request is one for the application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


class RestRoute(BaseRoute):
    """Matches on the raw target: model names may hold escaped slashes, which path patterns cannot see."""

    def __init__(self, app: RestCallable) -> None:
        self.app = app

    def __repr__(self) -> str:
        return f"<RestRoute to {self.app!r}>"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Full or no match; methods are the application's business, which never answers 405."""
        if scope["type"] == "http" and self.app.takes(scope):
            return Match.FULL, {"endpoint": self.app}
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """The routes have no names."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.app(scope, receive, send)
