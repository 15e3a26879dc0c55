"""HTTP/1.1 and HTTP/2 for servers as state machines of bytes in, events and bytes out, and a protocol for uvicorn.

`uvicorn --http embedserve.http:HttpProtocol` serves HTTP/1.x and HTTP/2 on a port, with the trailers that gRPC needs.
The package decides about validity on the wire and about the costs that a client may cause. `connection` and `http1`
with their parts know no event loop; no module knows a model. The import of the package loads no uvicorn.
"""

from embedserve.http.limits import Limits
from embedserve.http.protocol import HttpProtocol

__all__ = ["HttpProtocol", "Limits"]
