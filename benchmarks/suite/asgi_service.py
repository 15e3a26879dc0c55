"""An application of models only, for any ASGI server.

MODELS=DIRECTORY uvicorn --factory benchmarks.suite.asgi_service:make --http embedserve.http:HttpProtocol
"""

from __future__ import annotations

import os

from embedserve import ModelRegistry
from embedserve.grpc import GrpcMiddleware
from embedserve.rest import RestApp, create_app


def make() -> RestApp | GrpcMiddleware:
    """REST and gRPC over the models below `MODELS`, with `gc_freeze=True` as in the standalone server."""
    return create_app(ModelRegistry(os.environ["MODELS"], gc_freeze=True), grpc=True)
