"""The ceiling of gRPC on grpc.aio: a handler without serializers that answers the same bytes.

python noop_grpc.py ANSWERS PORT        (ANSWERS holds MODEL.grpc)

The model is told by the size of the request, so that no message need be parsed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

METHOD = "/tensorflow.serving.PredictionService/Predict"


class Fixed(grpc.GenericRpcHandler):
    def __init__(self, answers: dict[int, bytes]) -> None:
        async def predict(request: bytes, context: Any) -> bytes:
            return answers[len(request)]

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(predict)

    def service(self, details: Any) -> Any:
        return self._handler if details.method == METHOD else None


async def main(answers: Path, port: int) -> None:
    sizes = json.loads((answers / "requests.json").read_text())
    handler = Fixed({sizes[path.stem]: path.read_bytes() for path in answers.glob("*.grpc")})
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2])))
