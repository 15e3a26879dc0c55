"""What the ASGI adapters share: the life of a call, the lifespan, compressed bodies. Knows no route and no message."""
