"""PyTriton: Triton with Python models that call a signature.

python pytriton_models.py MODELS PORT GRPC_PORT

As its documentation says: the `batch` decorator and a dynamic batcher, which takes what waits and waits for nothing.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

SHAPES = {"half": ((1,), (1,)), "mlp": ((784,), (10,)), "mobilenet": ((224, 224, 3), (1000,))}


def infer(signature: Any) -> Any:
    @batch
    def run(x: Any) -> dict[str, Any]:
        return {"y": signature(x=tf.constant(x))["y"].numpy()}

    return run


if __name__ == "__main__":
    port, grpc_port = int(sys.argv[2]), int(sys.argv[3])
    config = TritonConfig(http_port=port, grpc_port=grpc_port, allow_metrics=False, log_verbose=0)
    batcher = DynamicBatcher(max_queue_delay_microseconds=0)
    with Triton(config=config) as triton:
        for path in Path(sys.argv[1]).glob("*/1"):
            x, y = SHAPES[path.parent.name]
            triton.bind(
                model_name=path.parent.name,
                infer_func=infer(tf.saved_model.load(str(path)).signatures["serving_default"]),
                inputs=[Tensor(name="x", dtype=np.float32, shape=x)],
                outputs=[Tensor(name="y", dtype=np.float32, shape=y)],
                config=ModelConfig(max_batch_size=64, batcher=batcher),
                strict=False,
            )
        triton.serve()
