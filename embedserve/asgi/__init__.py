"""Common parts of the ASGI adapters: the life of a call, the lifespan, compressed bodies. Knows no route or message."""
