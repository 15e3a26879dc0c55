"""Sends images as raw numpy bytes in a TensorProto, several at once, and says how long that took.

python -m examples.resnet.client localhost:8500 --images 32 --at-once 8
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def tensor_proto(array: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """A TensorProto that carries the array's own bytes: no float is touched."""
    request = predict_pb2.PredictRequest()
    tensor = request.inputs["image"]
    tensor.dtype = 1  # DT_FLOAT
    tensor.tensor_content = array.tobytes()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=8)
    arguments = parser.parse_args()

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "resnet"
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    request.inputs["image"].CopyFrom(tensor_proto(image))
    with grpc.insecure_channel(arguments.address) as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        predict(request, timeout=120)
        start = time.perf_counter()
        with ThreadPoolExecutor(arguments.at_once) as threads:
            answers = list(threads.map(lambda _: predict(request, timeout=120), range(arguments.images)))
        seconds = time.perf_counter() - start
    top = {int(np.argmax(answer.outputs["probabilities"].float_val)) for answer in answers}
    print(f"{len(answers)} images, {arguments.at_once} at once: {len(answers) / seconds:.1f} images/s, class", *top)


if __name__ == "__main__":
    main()
