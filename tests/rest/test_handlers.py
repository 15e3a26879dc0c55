"""Status and metadata documents, layout and contents."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from embedserve import AllVersions, ModelConfig, State
from embedserve.errors import ServableNotFoundError
from embedserve.rest.handlers import metadata_document, status_document
from embedserve.rest.target import Route
from embedserve.testing import FakeLoader, FakeRegistry

STATUS = """{
 "model_version_status": [
  {
   "version": "2",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}
"""
READY = STATUS.replace("\n ]\n}", '\n ],\n "ready": true\n}')

METADATA = """{
"model_spec":{
 "name": "m",
 "version": "123",
 "signature_name": ""
}
,
"metadata": {"signature_def": {
 "signature_def": {
  "serving_default": {
   "inputs": {
    "x": {
     "name": "x:0",
     "dtype": "DT_FLOAT",
     "tensor_shape": {
      "dim": [
       {
        "size": "-1",
        "name": ""
       }
      ],
      "unknown_rank": false
     }
    }
   },
   "outputs": {},
   "method_name": "tensorflow/serving/predict",
   "defaults": {}
  }
 }
}
}
}
"""


async def test_status_has_tf_servings_layout() -> None:
    async with FakeRegistry({"m": {2: FakeLoader()}}) as registry:
        assert status_document(registry, Route("status", "m")).decode() == READY
        assert status_document(registry, Route("status", "m", version=2)).decode() == STATUS
        assert status_document(registry, Route("status", "m", label="no such label")).decode() == STATUS


async def test_a_models_status_says_whether_it_is_ready_as_kserve_reads_it() -> None:
    def ready(registry: FakeRegistry, name: str) -> Any:
        return json.loads(status_document(registry, Route("status", name)))["ready"]

    loaders = {"m": {1: FakeLoader()}, "bad": {1: FakeLoader(failures=-1)}}
    async with FakeRegistry(loaders, retry={"max_retries": 0}, start_requires="any") as registry:
        assert (ready(registry, "m"), ready(registry, "bad")) == (True, False)
        await registry.reconfigure([ModelConfig(name="bad", base_path="/fake/bad")])
        assert registry.status("m")["m"], "a model that is gone is still known"
        assert ready(registry, "m") is False
        registry.begin_drain()
        assert ready(registry, "bad") is False


async def test_status_lists_every_version_ever_known_descending() -> None:
    models = [ModelConfig(name="m", base_path="/fake/m", version_policy=AllVersions())]
    loaders = {9: FakeLoader(), 10: FakeLoader(), 11: FakeLoader(failures=-1)}
    async with FakeRegistry({"m": loaders}, models=models, retry={"max_retries": 0}) as registry:
        assert registry._runtime is not None
        monitor = registry._runtime.monitor

        def states(*expected: State) -> Callable[[], bool]:
            return lambda: tuple(status.state for status in registry.status("m")["m"]) == expected

        assert await monitor.wait_until(states(State.END, State.AVAILABLE, State.AVAILABLE), 20)
        await registry.remove("m", 9)
        assert await monitor.wait_until(states(State.END, State.AVAILABLE, State.END), 20)
        listed = json.loads(status_document(registry, Route("status", "m")))["model_version_status"]
        assert [(v["version"], v["state"], v["status"]["error_code"]) for v in listed] == [
            ("11", "END", "DATA_LOSS"),
            ("10", "AVAILABLE", "OK"),
            ("9", "END", "OK"),
        ]
        assert listed[0]["status"]["error_message"] == "the fake loader was told to fail"


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (Route("status", "q"), "Could not find any versions of model q"),
        (Route("status", "q", version=3), "Could not find version 3 of model q"),
        (Route("status", "m", version=3), "Could not find version 3 of model m"),
    ],
)
async def test_status_of_what_was_never_known_is_not_found(route: Route, message: str) -> None:
    async with FakeRegistry({"m": {2: FakeLoader()}}) as registry:
        with pytest.raises(ServableNotFoundError, match=f"^{message}$"):
            status_document(registry, route)


def signature_def(**tensors: Any) -> Any:
    signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for alias, tensor in tensors.items():
        signature.inputs[alias].CopyFrom(tensor)
    return signature


def test_metadata_has_the_contracts_document() -> None:
    x = meta_graph_pb2.TensorInfo(name="x:0", dtype=types_pb2.DT_FLOAT)
    x.tensor_shape.dim.add(size=-1)
    document = metadata_document("m", 123, {"serving_default": signature_def(x=x)}).decode()
    assert json.loads(document) == json.loads(METADATA)
    assert document.startswith(METADATA[: METADATA.index('   "inputs"')])
    assert document.endswith("\n }\n}\n}\n}\n")


def test_metadata_shows_what_is_unset_as_the_original_does() -> None:
    bare = meta_graph_pb2.SignatureDef()
    bare.outputs["__saved_model_init_op"].CopyFrom(meta_graph_pb2.TensorInfo(name="NoOp"))
    default = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"\xff"])
    with_default = signature_def(s=meta_graph_pb2.TensorInfo(name="s:0", dtype=types_pb2.DT_STRING))
    with_default.inputs["s"].tensor_shape.unknown_rank = True
    with_default.defaults["s"].CopyFrom(default)
    document = json.loads(metadata_document("m", 1, {"__saved_model_init_op": bare, "b": with_default}))
    signatures = document["metadata"]["signature_def"]["signature_def"]
    assert signatures["__saved_model_init_op"] == {
        "inputs": {},
        "outputs": {"__saved_model_init_op": {"name": "NoOp", "dtype": "DT_INVALID"}},
        "method_name": "",
        "defaults": {},
    }
    assert signatures["b"]["inputs"]["s"]["tensor_shape"] == {"dim": [], "unknown_rank": True}
    assert signatures["b"]["defaults"]["s"]["string_val"] == ["/w=="]


def test_names_that_are_not_ascii_are_written_as_they_are() -> None:
    assert '"name": "café"'.encode() in metadata_document("café", 1, {})


async def test_a_torn_version_says_why_it_is_not_served() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        assert registry._runtime is not None
        registry._runtime.monitor.set_waiting("torn", {1: "/torn/1/saved_model.pb is missing"})
        (status,) = json.loads(status_document(registry, Route("status", "torn")))["model_version_status"]
        assert status["state"] == "START"
        assert status["status"] == {"error_code": "OK", "error_message": "/torn/1/saved_model.pb is missing"}
        with pytest.raises(
            ServableNotFoundError, match=r"version 1 is not taken yet: /torn/1/saved_model.pb is missing"
        ):
            await registry.predict("torn", {"x": [1.0]})
