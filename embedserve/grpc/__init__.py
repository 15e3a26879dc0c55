"""TensorFlow Serving's gRPC API over a registry: on a port of its own, or as an ASGI application.

The package imports no TensorFlow. Calls of `serve`, `GrpcApp` and `GrpcMiddleware` import TensorFlow for the
messages.
"""

from embedserve.config import Access
from embedserve.grpc.transports.asgi import GrpcApp, GrpcMiddleware
from embedserve.grpc.transports.serving import GrpcServer, TlsConfig, serve

__all__ = ["Access", "GrpcApp", "GrpcMiddleware", "GrpcServer", "TlsConfig", "serve"]
