"""Asks a running server about an image, over plain HTTP and with the official gRPC stub.

python -m embedserve models/                                        in one terminal
python -m examples.mobilenet.client labels                          in another
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

Image = npt.NDArray[np.uint8]


def picture(height: int, width: int) -> Image:
    """A colour gradient [height, width, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)


def over_http(address: str, body: object, version: int | None = None) -> list[Any]:
    """POST to `:predict` of the default version, or of one version, and return its `predictions`."""
    where = f"/versions/{version}" if version is not None else ""
    request = urllib.request.Request(
        f"http://{address}/v1/models/mobilenet{where}:predict", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request) as response:
        predictions: list[Any] = json.load(response)["predictions"]
        return predictions


def over_grpc(address: str, image: Image, version: int | None = None) -> list[str]:
    """`label` of one image."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mobilenet"
    if version is not None:
        request.model_spec.version.value = version
    tensor = request.inputs["image"]
    tensor.dtype = 4  # DT_UINT8
    tensor.tensor_content = image.tobytes()
    for size in (1, *image.shape):
        tensor.tensor_shape.dim.add(size=size)
    with grpc.insecure_channel(address) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    print("answered by version", response.model_spec.version.value)
    return [label.decode() for label in response.outputs["label"].string_val]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ask", choices=["numbers", "labels"], help="numbers: version 1; labels: version 2")
    parser.add_argument("--rest", default="localhost:8501")
    parser.add_argument("--grpc", default="localhost:8500")
    arguments = parser.parse_args()

    if arguments.ask == "numbers":
        # The bare network wants exactly 224x224, already scaled.
        scaled = picture(224, 224) / 127.5 - 1.0
        (numbers,) = over_http(arguments.rest, {"instances": [scaled.round(4).tolist()]})
        print("class", int(np.argmax(numbers)), "of", len(numbers))
        return

    image = picture(300, 200)
    print("REST:", over_http(arguments.rest, {"instances": [{"image": image.tolist()}]}))
    print("REST, versions/2:", over_http(arguments.rest, {"instances": [{"image": image.tolist()}]}, version=2))
    print("gRPC:", over_grpc(arguments.grpc, image))
    print("gRPC, version 2:", over_grpc(arguments.grpc, image, version=2))


if __name__ == "__main__":
    main()
