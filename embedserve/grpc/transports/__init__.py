"""How RPCs come in: over grpcio's server, or as an ASGI application with gRPC and gRPC-Web."""
