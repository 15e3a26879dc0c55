"""TensorFlow Serving's gRPC API over a registry: on grpc.aio in the registry's own loop, or as an ASGI application.

Importing it imports grpc and no TensorFlow; `serve`, `GrpcApp` and `GrpcMiddleware` import TensorFlow when they are
called, for its messages.
"""

from embedserve.config import Access
from embedserve.grpc.transports.asgi import GrpcApp, GrpcMiddleware
from embedserve.grpc.transports.server import GrpcServer, TlsConfig, serve

__all__ = ["Access", "GrpcApp", "GrpcMiddleware", "GrpcServer", "TlsConfig", "serve"]
