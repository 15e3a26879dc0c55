"""MLServer: a custom runtime around a model's signature, for the open inference protocol over REST and gRPC.

python mlserver_runtime.py MODELS PORT GRPC_PORT     (in an empty directory, which becomes the model repository)

As its documentation on adaptive batching says: `max_batch_size` and `max_batch_time` per model; inference in the
server's own process (`parallel_workers: 0`), for on one core workers only add a hop; gzip, metrics' own port and debug
output off.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

MAX_BATCH_SIZE = 64
MAX_BATCH_TIME = 0.002


class SignatureModel(MLModel):
    async def load(self) -> bool:
        self.signature: Any = tf.saved_model.load(self.settings.parameters.uri).signatures["serving_default"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        outputs = self.signature(x=tf.constant(rows, tf.float32))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="y", payload=outputs["y"].numpy())]
        )


def write_repository(models: Path, port: int, grpc_port: int) -> None:
    settings = {
        "http_port": port,
        "grpc_port": grpc_port,
        "grpc_max_message_length": 1 << 30,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "gzip_enabled": False,
        "debug": False,
    }
    Path("settings.json").write_text(json.dumps(settings))
    for path in models.glob("*/1"):
        model = {
            "name": path.parent.name,
            "implementation": "mlserver_runtime.SignatureModel",
            "max_batch_size": MAX_BATCH_SIZE,
            "max_batch_time": MAX_BATCH_TIME,
            "parameters": {"uri": str(path)},
        }
        Path(path.parent.name).mkdir()
        Path(path.parent.name, "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    write_repository(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", "."])
