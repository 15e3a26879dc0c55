"""The ceiling of both protocols under pyvoy: an ASGI application that reads its body and answers the same bytes.

ANSWERS=DIRECTORY PORT=NUMBER python noop_pyvoy.py        (DIRECTORY holds MODEL.rest, MODEL.grpc and requests.json)
"""

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

ANSWERS = Path(os.environ["ANSWERS"])
REST = {f"/v1/models/{path.stem}:predict": path.read_bytes() for path in ANSWERS.glob("*.rest")}
SIZES = json.loads((ANSWERS / "requests.json").read_text())
# The model is told by the size of the request, so that no message need be parsed.
GRPC = {
    SIZES[path.stem] + 5: b"\0" + struct.pack(">I", len(message)) + message
    for path in ANSWERS.glob("*.grpc")
    if (message := path.read_bytes())
}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    answer = REST.get(scope["path"])
    if answer is not None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        return
    headers = [(b"content-type", b"application/grpc")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": GRPC[size]})
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})


if __name__ == "__main__":
    command = [str(Path(sys.executable).with_name("pyvoy")), "--port", os.environ["PORT"], "--no-lifespan"]
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.execv(command[0], [*command, "noop_pyvoy:app"])
