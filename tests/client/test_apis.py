"""Code against `tensorflow_serving.apis` works with the client's messages and stubs, by a change of the import."""

from __future__ import annotations

import importlib
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2 as official_predict_pb2

from embedserve_client import InvalidInputError
from embedserve_client.apis import (
    classification_pb2,
    example_pb2,
    get_model_status_pb2,
    make_ndarray,
    make_tensor_proto,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    types_pb2,
)


def test_a_predict_by_the_stub_of_the_client(port: int) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.model_spec.version.value = 1
    request.inputs["x"].CopyFrom(make_tensor_proto([[1.0], [2.0]]))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
        assert make_ndarray(response.outputs["y"]).tolist() == [[2.5], [3.0]]
        assert response.model_spec.version.value == 1

        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "half"
        found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=30)
        states = {each.state for each in found.model_version_status}
        assert states == {get_model_status_pb2.ModelVersionStatus.AVAILABLE}


async def test_a_classification_by_the_stub_on_an_asyncio_channel(port: int) -> None:
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "examples"
    request.model_spec.signature_name = "classify_labels"
    example = example_pb2.Example()
    example.features.feature["x"].float_list.value.append(2.0)
    request.input.example_list.examples.append(example)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = await prediction_service_pb2_grpc.PredictionServiceStub(channel).Classify(request, timeout=30)
    assert [each.label for each in response.result.classifications[0].classes] == ["2.0", "-2.0"]


def test_the_modules_can_be_imported_by_name() -> None:
    module = importlib.import_module("embedserve_client.apis.model_management_pb2")
    request = module.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="m").version_labels["a"] = 1
    assert type(request).FromString(request.SerializeToString()) == request
    assert tf.bfloat16.as_datatype_enum == types_pb2.DT_BFLOAT16


VALUES: list[tuple[Any, dict[str, Any]]] = [
    (1.5, {}),
    ([1, 2], {}),
    ([[True], [False]], {}),
    (["a", b"b"], {}),
    (np.arange(6).reshape(2, 3), {}),
    ([1, 2], {"dtype": "float"}),
    ([1, 2], {"dtype": 9}),
    (7, {"shape": [2, 2]}),
    (np.arange(6.0), {"shape": [3, 2]}),
    ([1 + 2j], {"dtype": "DT_COMPLEX64"}),
]


@pytest.mark.parametrize(("values", "options"), VALUES, ids=str)
def test_a_tensor_is_the_one_that_tensorflow_makes(values: Any, options: Any) -> None:
    ours = make_tensor_proto(values, **options)
    named = {"float": tf.float32, 9: tf.int64, "DT_COMPLEX64": tf.complex64}
    theirs = tf.make_tensor_proto(values, dtype=named.get(options.get("dtype")), shape=options.get("shape"))
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(make_ndarray(ours), tf.make_ndarray(theirs))
    np.testing.assert_array_equal(make_ndarray(theirs), tf.make_ndarray(theirs))


def test_values_that_fit_no_dtype_or_shape_are_refused() -> None:
    for values, options in (([1.5], {"dtype": "int32"}), ([1, 2], {"shape": [3]}), ([[1], [1, 2]], {})):
        with pytest.raises(InvalidInputError):
            make_tensor_proto(values, **options)


def test_messages_of_both_packages_exchange_bytes() -> None:
    ours = predict_pb2.PredictRequest(output_filter=["y"])
    ours.inputs["x"].CopyFrom(make_tensor_proto([1.0]))
    theirs = official_predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert tf.make_ndarray(theirs.inputs["x"]).tolist() == [1.0]
    assert predict_pb2.PredictRequest.FromString(theirs.SerializeToString()) == ours
