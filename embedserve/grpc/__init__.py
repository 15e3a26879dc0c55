"""TensorFlow Serving's gRPC API over a registry: on grpc.aio in the registry's own loop, or as an ASGI application.

The package imports grpc and no TensorFlow. Calls of `serve`, `GrpcApp` and `GrpcMiddleware` import TensorFlow for the
messages.
"""

from embedserve.config import Access
from embedserve.grpc.transports.asgi import GrpcApp, GrpcMiddleware
from embedserve.grpc.transports.server import GrpcServer, TlsConfig, serve

__all__ = ["Access", "GrpcApp", "GrpcMiddleware", "GrpcServer", "TlsConfig", "serve"]
