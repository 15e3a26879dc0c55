"""TensorFlow Serving's gRPC API over a registry, on grpc.aio in the registry's own event loop."""

from embedserve.grpc.server import GrpcServer, TlsConfig, serve

__all__ = ["GrpcServer", "TlsConfig", "serve"]
