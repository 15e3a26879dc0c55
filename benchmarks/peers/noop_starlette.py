"""The ceiling of REST: a Starlette route that reads its body and answers the same bytes, on embedserve's uvicorn.

python noop_starlette.py ANSWERS PORT [PROTOCOL]        (ANSWERS holds MODEL.rest; PROTOCOL is httptools by default)
"""

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def route(name: str, answer: bytes) -> Route:
    async def predict(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return Route(f"/v1/models/{name}:predict", predict, methods=["POST"])


if __name__ == "__main__":
    app = Starlette(routes=[route(path.stem, path.read_bytes()) for path in Path(sys.argv[1]).glob("*.rest")])
    uvicorn.run(
        app,
        port=int(sys.argv[2]),
        loop="uvloop",
        http=sys.argv[3] if len(sys.argv) > 3 else "httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
