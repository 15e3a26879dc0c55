"""The TFLite rows of TensorFlow Serving's own integration tests, named after the tests there."""

from __future__ import annotations

import pytest
from tensorflow_serving.apis import get_model_metadata_pb2

from tests.conformance.conftest import VERSION, Serve, Serving, verify_predict
from tests.support.programs import fetch
from tests.support.tflite_models import half_plus_two, signature_def, with_signature_defs, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FLAGS = ("--prefer_tflite_model=true", "--model_name=default")


@pytest.fixture(scope="module")
def plain(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    base = tmp_path_factory.mktemp("half_plus_two_tflite")
    write(base / VERSION, half_plus_two())
    return serve(*FLAGS, f"--model_base_path={base}", "--num_tflite_pools=2")


@pytest.fixture(scope="module")
def signed(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """Tensor names as SavedModels have them, which this file's tensors do not; and batching."""
    base = tmp_path_factory.mktemp("half_plus_two_tflite_with_sigdef")
    definition = signature_def({"x": "x:0"}, {"y": "y:0"})
    write(base / VERSION, with_signature_defs(half_plus_two(), {"serving_default": definition}))
    return serve(*FLAGS, f"--model_base_path={base}", "--enable_batching")


def test_predict_on_tflite(plain: Serving) -> None:
    verify_predict(plain, "default", 3.0)
    verify_predict(plain, "default", 3.0, rows=True, only="y")


def test_predict_with_signature_def_on_tflite(signed: Serving) -> None:
    verify_predict(signed, "default", 3.0)
    verify_predict(signed, "default", 3.0, rows=True, signature_name="serving_default")


def test_rest_on_tflite(plain: Serving, signed: Serving) -> None:
    for serving in (plain, signed):
        status, answer = fetch(serving.url("/v1/models/default:predict"), {"instances": [1.0, 2.0, 5.0]})
        assert (status, answer) == (200, {"predictions": [2.5, 3.0, 4.5]})


def test_metadata_on_tflite(plain: Serving) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "default"
    with plain.stubs() as (stub, _):
        response = stub.GetModelMetadata(request, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "x"
