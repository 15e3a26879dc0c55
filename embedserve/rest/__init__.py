"""TensorFlow Serving's REST API for any ASGI or WSGI host; imports no web framework before the first need."""

from __future__ import annotations

from embedserve.rest.api_document import openapi
from embedserve.rest.app import DEFAULT_METRICS_PATH, RestApp, create_app, routes
from embedserve.rest.host_errors import DjangoErrors, exception_handlers, flask_error
from embedserve.rest.wsgi import WsgiApp

__all__ = [
    "DEFAULT_METRICS_PATH",
    "DjangoErrors",
    "RestApp",
    "WsgiApp",
    "create_app",
    "exception_handlers",
    "flask_error",
    "openapi",
    "routes",
]
