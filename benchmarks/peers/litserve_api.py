"""LitServe: an API for each model, batched.

python litserve_api.py MODELS PORT

As its documentation says: `max_batch_size` and a short `batch_timeout`, one worker per API and one API server for one
core, `fast_queue` (ZeroMQ between them) where the version offers it.
"""

import sys
from pathlib import Path
from typing import Any, cast

import litserve as ls
import numpy as np
import tensorflow as tf
from fastapi import Request, Response


class SignatureAPI(ls.LitAPI):
    def __init__(self, path: Path) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.002, api_path=f"/{path.parent.name}")
        self.model_path = str(path)

    def setup(self, device: str) -> None:
        self.signature: Any = tf.saved_model.load(self.model_path).signatures["serving_default"]

    # LitServe reads the annotations: these are what it has without any, for its own JSON.
    def decode_request(self, request: Request) -> Any:
        return np.asarray(request["instances"], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        return np.concatenate(inputs)

    def predict(self, batch: Any) -> Any:
        return self.signature(x=tf.constant(batch))["y"].numpy()

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> Response:
        return cast(Response, {"predictions": [output.tolist()]})


if __name__ == "__main__":
    apis = [SignatureAPI(path) for path in sorted(Path(sys.argv[1]).glob("*/1"))]
    server = ls.LitServer(apis, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning")
