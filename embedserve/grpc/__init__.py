"""TensorFlow Serving's gRPC API over a registry: on grpc.aio in the registry's own loop, or as an ASGI application."""

from embedserve.config import Access
from embedserve.grpc.asgi import GrpcApp, GrpcMiddleware
from embedserve.grpc.server import GrpcServer, TlsConfig, serve

__all__ = ["Access", "GrpcApp", "GrpcMiddleware", "GrpcServer", "TlsConfig", "serve"]
