"""The transports of RPCs: grpcio's server, or an ASGI application with gRPC and gRPC-Web."""
