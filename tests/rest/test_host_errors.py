"""A `ServingError` of a host's own route gets its status, in the real frameworks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from embedserve import InvalidInputError, OverloadedError, QueueFullError, ServableNotFoundError, ServingError
from embedserve.errors import Code, DeadlineExceededError, InferenceError
from embedserve.rest import DjangoErrors, exception_handlers, flask_error

ERRORS: dict[str, tuple[Exception, int]] = {
    "input": (InvalidInputError("input 'x' is wrong"), 400),
    "model": (ServableNotFoundError("no model m"), 404),
    "full": (QueueFullError("the queue is full"), 503),
    "overload": (OverloadedError("too long"), 429),
    "late": (DeadlineExceededError("too late"), 504),
    "cancelled": (InferenceError("the run was cancelled", code=Code.CANCELLED), 499),
    "bug": (ServingError("internal error"), 500),
}


def body_of(error: Exception) -> dict[str, str]:
    late = isinstance(error, DeadlineExceededError)
    return {"error": f"Timed out waiting for notification: {error}" if late else str(error)}


def raised(name: str) -> str:
    raise ERRORS[name][0]


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
async def test_routes_of_fastapi_and_starlette_answer_with_the_status_of_an_error(framework: str, name: str) -> None:
    from fastapi import FastAPI
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    async def failing(request: Request) -> None:
        raised(request.path_params["name"])

    routes = [Route("/{name}", failing)]
    handlers = exception_handlers()
    app: Starlette
    if framework == "fastapi":
        app = FastAPI(routes=[*routes], exception_handlers=handlers)
    else:
        app = Starlette(routes=routes, exception_handlers=handlers)
    error, status = ERRORS[name]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client:
        answer = await client.get(f"/{name}")
    assert (answer.status_code, answer.json()) == (status, body_of(error))
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", ERRORS)
def test_views_of_flask_answer_with_the_status_of_an_error(name: str) -> None:
    from flask import Flask

    app = Flask("host")
    app.register_error_handler(ServingError, flask_error)
    app.add_url_rule("/<name>", view_func=raised)
    error, status = ERRORS[name]
    answer = app.test_client().get(f"/{name}")
    assert (answer.status_code, answer.json) == (status, body_of(error))
    assert answer.content_type == "application/json"


@pytest.fixture(scope="module")
def django() -> Any:
    import django
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def view(request: HttpRequest, name: str) -> HttpResponse:
        raised(name)
        return HttpResponse()

    async def async_view(request: HttpRequest, name: str) -> HttpResponse:
        raised(name)
        return HttpResponse()

    urls: Any = type(sys)("urls_of_the_test")
    urls.urlpatterns = [path("sync/<name>", view), path("async/<name>", async_view)]
    settings.configure(
        ROOT_URLCONF=urls, MIDDLEWARE=["embedserve.rest.DjangoErrors"], ALLOWED_HOSTS=["*"], SECRET_KEY="x"
    )
    django.setup()
    return django


@pytest.mark.may_block
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("view", ["sync", "async"])
@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_views_of_django_answer_with_the_status_of_an_error(django: Any, server: str, view: str, name: str) -> None:
    from django.test import AsyncClient, Client

    error, status = ERRORS[name]
    if server == "wsgi":
        answer: Any = Client().get(f"/{view}/{name}")
    else:
        answer = asyncio.run(AsyncClient().get(f"/{view}/{name}"))
    assert (answer.status_code, answer.json()) == (status, body_of(error))
    assert answer["content-type"] == "application/json"


def test_another_error_is_left_to_the_host() -> None:
    def get_response(request: Any) -> None:
        raise AssertionError

    process: Callable[[Any, Exception], Any] = DjangoErrors(get_response).process_exception
    assert process(None, ValueError("the host's own")) is None
    (handled,) = exception_handlers()
    assert handled is ServingError
