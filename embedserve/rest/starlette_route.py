"""A Starlette route that takes exactly the requests of the REST application, and leaves the rest to the host.

The module is the only part of REST that needs Starlette.
"""

from __future__ import annotations

from typing import Any, Protocol

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

__all__ = ["RestRoute"]


class RestCallable(Protocol):
    """The part of the REST application that a route needs."""

    def takes(self, scope: Scope) -> bool:
        """Whether the application answers the request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""


class RestRoute(BaseRoute):
    """Matches on the raw target: path patterns cannot see escaped slashes in model names."""

    def __init__(self, app: RestCallable) -> None:
        self.app = app

    def __repr__(self) -> str:
        return f"<RestRoute to {self.app!r}>"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Full or no match; the application decides about methods, and never answers 405."""
        if scope["type"] == "http" and self.app.takes(scope):
            return Match.FULL, {"endpoint": self.app}
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """Raise NoMatchFound, because the routes have no names."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self.app(scope, receive, send)
