"""Ray Serve: a deployment for each model, batched by `serve.batch`.

python ray_deployment.py MODELS PORT

As its documentation says: `@serve.batch`, one replica for one core, `max_ongoing_requests` above the batch size,
orjson for bodies, the throughput-optimised mode (RAY_SERVE_THROUGHPUT_OPTIMIZED), no dashboard.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"

import numpy as np
import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class SignatureDeployment:
    def __init__(self, path: str) -> None:
        import tensorflow

        self.tf: Any = tensorflow
        self.signature: Any = tensorflow.saved_model.load(path).signatures["serving_default"]

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def predict(self, rows: list[Any]) -> list[Any]:
        return list(self.signature(x=self.tf.constant(np.concatenate(rows)))["y"].numpy())

    async def __call__(self, request: Request) -> Response:
        rows = np.asarray(orjson.loads(await request.body())["instances"], np.float32)
        answer = {"predictions": [await self.predict(rows)]}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


if __name__ == "__main__":
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    deployment: Any = SignatureDeployment
    for path in Path(sys.argv[1]).glob("*/1"):
        name = path.parent.name
        serve.run(deployment.bind(str(path)), name=name, route_prefix=f"/{name}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
