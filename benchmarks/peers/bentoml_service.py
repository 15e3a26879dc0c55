"""BentoML: one service with a batchable API for each model.

MODELS=DIRECTORY bentoml serve bentoml_service:Models --port PORT

As its documentation on adaptive batching says: `batchable=True`, the batch along dimension 0, arrays typed so that the
request's lists are read as such. One worker, for one core.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
import tensorflow as tf
from bentoml.validators import DType, Shape

MODELS = Path(os.environ["MODELS"])
BATCHES = {"max_batch_size": 64, "max_latency_ms": 10_000}

HalfRows = Annotated[np.ndarray, Shape((-1, 1)), DType("float32")]
MlpRows = Annotated[np.ndarray, Shape((-1, 784)), DType("float32")]
Images = Annotated[np.ndarray, Shape((-1, 224, 224, 3)), DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 128}, metrics={"enabled": False})
class Models:
    def __init__(self) -> None:
        self.signatures: dict[str, Any] = {}
        for path in MODELS.glob("*/1"):
            self.signatures[path.parent.name] = tf.saved_model.load(str(path)).signatures["serving_default"]

    def run(self, name: str, rows: np.ndarray) -> np.ndarray:
        answer: np.ndarray = self.signatures[name](x=tf.constant(rows))["y"].numpy()
        return answer

    @bentoml.api(route="/half", batchable=True, batch_dim=0, **BATCHES)
    def half(self, instances: HalfRows) -> np.ndarray:
        return self.run("half", instances)

    @bentoml.api(route="/mlp", batchable=True, batch_dim=0, **BATCHES)
    def mlp(self, instances: MlpRows) -> np.ndarray:
        return self.run("mlp", instances)

    @bentoml.api(route="/mobilenet", batchable=True, batch_dim=0, **BATCHES)
    def mobilenet(self, instances: Images) -> np.ndarray:
        return self.run("mobilenet", instances)
