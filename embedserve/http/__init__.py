"""HTTP/1.1 and HTTP/2 for servers as state machines of bytes in, events and bytes out, and a protocol for uvicorn.

The package decides about validity on the wire and about the costs that a client may cause. Only `protocol` and
`asgi_request` know the event loop; no module knows a model.
"""
