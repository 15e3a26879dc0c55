"""Answers a host's own routes with the status of a `ServingError`: for FastAPI, Starlette, Flask and Django.

The status and the body are the REST API's. The module knows no registry, and imports a framework when its handler is
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from embedserve.errors import ServingError
from embedserve.rest.errors import error_response

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["DjangoErrors", "exception_handlers", "flask_error"]


def exception_handlers() -> dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]:
    """Handlers for FastAPI and Starlette: `FastAPI(exception_handlers=exception_handlers())`.

    An uncaught `ServingError` of a route becomes `{"error": "..."}` with the status of the REST API: 400 for bad input,
    404 for an unknown model, 429 or 503 for a full queue, 504 after the timeout.

    Returns:
        A handler by exception class, for `exception_handlers=` or `add_exception_handler`.
    """
    from starlette.responses import Response

    async def answer(request: Request, error: ServingError) -> Response:
        status, body, headers = _answer(error)
        return Response(body, status, headers)

    return {ServingError: answer}


def flask_error(error: ServingError) -> tuple[bytes, int, dict[str, str]]:
    """Handler for Flask and Quart: `app.register_error_handler(ServingError, flask_error)`.

    Returns:
        Body, status and headers, as `exception_handlers` answers.
    """
    status, body, headers = _answer(error)
    return body, status, headers


class DjangoErrors:
    """Middleware for Django, synchronous and asynchronous: `MIDDLEWARE = [..., "embedserve.rest.DjangoErrors"]`.

    An uncaught `ServingError` of a view becomes the answer that `exception_handlers` gives.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        from asgiref.sync import iscoroutinefunction, markcoroutinefunction

        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)  # Django awaits the result of `__call__`.

    def __call__(self, request: HttpRequest) -> Any:
        """Pass the request on; the result is awaitable where `get_response` is a coroutine function."""
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer a `ServingError`; None leaves any further exception to Django."""
        if not isinstance(exception, ServingError):
            return None
        from django.http import HttpResponse

        status, body, headers = _answer(exception)
        return HttpResponse(body, status=status, headers=headers)


def _answer(error: ServingError) -> tuple[int, bytes, dict[str, str]]:
    found = error_response(error)
    return found.status, found.body, {name.decode(): value.decode() for name, value in found.headers}
