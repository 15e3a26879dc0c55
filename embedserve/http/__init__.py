"""HTTP/1.1 and HTTP/2 for servers as state machines of bytes in, events and bytes out, and a protocol for uvicorn.

Decides what is valid on the wire and what a client may cost. Only `protocol` and `asgi_request` know the event loop;
nothing here knows a model.
"""
