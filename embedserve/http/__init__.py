"""HTTP/1.1 and HTTP/2 for servers as state machines: bytes in, events and bytes out.

Decides what is valid on the wire and what a client may cost. Knows no event loop, no socket, no clock and no model.
"""
