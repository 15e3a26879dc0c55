"""A Flask front end that asks the search model over gRPC and reads the plain `*_val` fields, as clients of old do.

GRPC=localhost:8500 flask --app examples.neighbours.flask_front run
"""

from __future__ import annotations

import os

import grpc
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

app = Flask(__name__)
channel = grpc.insecure_channel(os.environ.get("GRPC", "localhost:8500"))
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

DT_FLOAT, DT_INT32 = 1, 3


@app.post("/similar")
def similar() -> ResponseReturnValue:
    latent, k = request.json["latent"], request.json["k"]
    asked = predict_pb2.PredictRequest()
    asked.model_spec.name = "neighbours"
    target = asked.inputs["target_latent"]
    target.dtype = DT_FLOAT
    target.tensor_shape.dim.add(size=1)
    target.tensor_shape.dim.add(size=len(latent))
    target.float_val.extend(latent)
    k_num = asked.inputs["k_num"]
    k_num.dtype = DT_INT32
    k_num.int_val.append(k)
    try:
        found = stub.Predict(asked, timeout=10).outputs
    except grpc.RpcError as error:
        return jsonify(error=error.details()), 400
    return jsonify(
        filenames=[name.decode() for name in found["filenames"].string_val],
        indices=list(found["indices"].int_val),
        distances=list(found["xvals"].float_val),
    )
