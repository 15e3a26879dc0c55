"""mosec: a route for each model, its front in Rust.

python mosec_worker.py --port PORT       (MODELS in the environment)

As its documentation says: dynamic batching with `max_batch_size` and `max_wait_time`, orjson in place of json in
`deserialize` and `serialize`, one worker process for each model.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tensorflow as tf
from mosec import Runtime, Server, Worker

MODELS = Path(os.environ["MODELS"])
MAX_BATCH_SIZE = 64
MAX_WAIT_MILLISECONDS = 1


class SignatureWorker(Worker):
    name = ""

    def __init__(self) -> None:
        self.signature: Any = tf.saved_model.load(str(MODELS / self.name / "1")).signatures["serving_default"]

    def deserialize(self, data: bytes) -> Any:
        return np.asarray(orjson.loads(data)["instances"], np.float32)

    def forward(self, data: list[Any]) -> list[Any]:
        return list(self.signature(x=tf.constant(np.concatenate(data)))["y"].numpy())

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps({"predictions": [data]}, option=orjson.OPT_SERIALIZE_NUMPY)


class Half(SignatureWorker):
    name = "half"


class Mlp(SignatureWorker):
    name = "mlp"


class Mobilenet(SignatureWorker):
    name = "mobilenet"


if __name__ == "__main__":
    workers = [worker for worker in (Half, Mlp, Mobilenet) if (MODELS / worker.name).exists()]
    server = Server()
    server.register_runtime(
        {
            f"/{worker.name}": [
                Runtime(worker, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_WAIT_MILLISECONDS)
            ]
            for worker in workers
        }
    )
    server.run()
