"""TensorFlow Serving's REST API over a registry, for any ASGI host; imports no web framework until one is needed."""

from __future__ import annotations

from embedserve.rest.app import DEFAULT_METRICS_PATH, RestApp, create_app, routes

__all__ = ["DEFAULT_METRICS_PATH", "RestApp", "create_app", "routes"]
