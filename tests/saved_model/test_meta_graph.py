"""Signatures as stored, and load errors in TensorFlow Serving's words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from embedserve.errors import Code, InvalidInputError, LoadError
from embedserve.saved_model.files.meta_graph import has_object_graph, read_meta_graph, read_signatures, why_not_callable
from tests.saved_model.conftest import ModelPath
from tests.support import saved_models


def test_a_directory_without_a_model_says_what_is_in_it(tmp_path: Path) -> None:
    expected = (
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {tmp_path}"
    )
    with pytest.raises(LoadError) as empty:
        read_meta_graph(tmp_path, ["serve"])
    assert (empty.value.code, empty.value.message) == (Code.NOT_FOUND, f"{expected} is empty")
    (tmp_path / "model.h5").touch()
    with pytest.raises(LoadError, match=r"holds model\.h5"):
        read_meta_graph(tmp_path, ["serve"])
    with pytest.raises(LoadError, match="does not exist"):
        read_meta_graph(tmp_path / "2", ["serve"])
    with pytest.raises(LoadError, match="is not a directory"):
        read_meta_graph(tmp_path / "model.h5", ["serve"])


def test_a_session_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.meta").touch()
    with pytest.raises(LoadError, match=r"^Session Bundle is deprecated and removed\.") as raised:
        read_meta_graph(tmp_path, ["serve"])
    assert raised.value.code is Code.UNIMPLEMENTED


def test_a_torn_file_is_data_loss(model: ModelPath, tmp_path: Path) -> None:
    whole = (model("dense") / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="only a part of one") as raised:
        read_meta_graph(tmp_path, ["serve"])
    assert raised.value.code is Code.DATA_LOSS


def test_unknown_tags_name_those_there_are(model: ModelPath) -> None:
    with pytest.raises(LoadError) as raised:
        read_meta_graph(model("dense"), ["tpu", "serve"])
    assert raised.value.code is Code.NOT_FOUND
    assert raised.value.message.startswith(
        "Could not find meta graph def matching supplied tags: { serve tpu }. To inspect available tag-sets in the "
        "SavedModel, please use the SavedModel CLI: `saved_model_cli`"
    )
    assert "has { serve }: set saved_model_tags" in raised.value.message


def test_the_meta_graph_of_exactly_these_tags_is_read(model: ModelPath, tmp_path: Path) -> None:
    saved = SavedModel.FromString((model("dense") / "saved_model.pb").read_bytes())
    saved.meta_graphs.add().CopyFrom(saved.meta_graphs[0])
    saved.meta_graphs[1].meta_info_def.tags.append("gpu")
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert list(read_meta_graph(tmp_path, ["serve"]).meta_info_def.tags) == ["serve"]
    assert sorted(read_meta_graph(tmp_path, ["gpu", "serve"]).meta_info_def.tags) == ["gpu", "serve"]


def test_a_text_saved_model_is_read(model: ModelPath, tmp_path: Path) -> None:
    saved = SavedModel.FromString((model("dense") / "saved_model.pb").read_bytes())
    (tmp_path / "saved_model.pbtxt").write_text(text_format.MessageToString(saved))
    assert list(read_signatures(read_meta_graph(tmp_path, ["serve"]))) == ["serving_default"]


def test_only_tensorflow_2_models_have_an_object_graph(model: ModelPath) -> None:
    assert has_object_graph(read_meta_graph(model("dense"), ["serve"]))
    assert not has_object_graph(read_meta_graph(model("tf1_examples"), ["serve"]))


def test_signatures_leave_out_tensorflows_own(model: ModelPath) -> None:
    meta_graph = read_meta_graph(model("several"), ["serve"])
    assert "__saved_model_init_op" in meta_graph.signature_def
    signatures = read_signatures(meta_graph)
    assert [str(signature) for signature in signatures.values()] == [
        "free(x: float of unknown rank) -> y: float of unknown rank",
        "scalars(a: float [], b: float []) -> larger: bool [], product: float []",
        "serving_default(left: float [?,3], right: int32 [?,3]) -> doubled: int32 [?,3], row_sum: float [?], "
        "total: float [?,3]",
    ]
    assert signatures["scalars"].inputs["a"].tensor_name == "scalars_a:0"


def test_reference_dtypes_and_method_names_are_read(model: ModelPath) -> None:
    signatures = read_signatures(read_meta_graph(model("tf1_examples"), ["serve"]))
    assert signatures["classify_x_to_y"].method_name == "tensorflow/serving/classify"
    assert signatures["classify_x_to_y"].inputs["inputs"].dtype.name == "string"


def test_defaults_are_read(model: ModelPath, tmp_path: Path) -> None:
    path = Path(shutil.copytree(model("half_plus_two"), tmp_path / "1"))
    saved_models.set_default(path, "serving_default", "x", [[4.0]])
    signature = read_signatures(read_meta_graph(path, ["serve"]))["serving_default"]
    assert signature.bind({})["x"].tolist() == [[4]]


def test_a_signature_without_dense_tensors_is_left_out(
    model: ModelPath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copytree(model("several"), tmp_path / "1"))
    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    definitions["free"].inputs["x"].coo_sparse.values_tensor_name = "x:0"
    definitions["scalars"].inputs["a"].dtype = 20
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert list(read_signatures(read_meta_graph(path, ["serve"]))) == ["serving_default"]
    assert "'x' is a sparse tensor, and only dense tensors can be sent" in caplog.text
    assert "'a' is a resource, which has no values" in caplog.text
    assert (
        why_not_callable("free", definitions["free"])
        == "input 'x' is a sparse tensor, and only dense tensors can be sent"
    )
    assert why_not_callable("serving_default", definitions["serving_default"]) is None


def test_an_output_that_is_no_dense_tensor_leaves_the_others(model: ModelPath) -> None:
    signature = read_signatures(read_meta_graph(model("composite_outputs"), ["serve"]))["serving_default"]
    parts = {alias: dict(composite.parts) for alias, composite in signature.composites.items()}
    assert {alias: list(found) for alias, found in parts.items()} == {
        "letters": ["flat_values", "row_splits_0", "row_splits_1"],
        "ragged": ["flat_values", "row_splits"],
        "sparse": ["indices", "values", "dense_shape"],
    }
    assert {"count"} | {name for found in parts.values() for name in found.values()} == set(signature.outputs)
    assert str(signature.outputs[parts["sparse"]["indices"]]) == "int64 [?,2]"
    with pytest.raises(InvalidInputError, match=r"'ragged' is a ragged tensor, .* flat_values 'PartitionedCall:"):
        signature.pick(["ragged"])


def test_a_signature_whose_outputs_have_no_values_cannot_be_called(model: ModelPath) -> None:
    definition = read_meta_graph(model("dense"), ["serve"]).signature_def["serving_default"]
    definition.outputs["scores"].dtype = 21
    assert (
        why_not_callable("s", definition)
        == "output 'scores' is a variant, which has no values, which no answer can carry"
    )


def test_a_tensor_name_without_an_index_means_the_first_output(model: ModelPath) -> None:
    meta_graph = read_meta_graph(model("dense"), ["serve"])
    info = meta_graph.signature_def["serving_default"].inputs["features"]
    info.name = info.name.removesuffix(":0")
    assert read_signatures(meta_graph)["serving_default"].inputs["features"].tensor_name == f"{info.name}:0"


def test_two_inputs_that_are_one_tensor_are_refused_and_two_such_outputs_are_not(model: ModelPath) -> None:
    definition = read_meta_graph(model("several"), ["serve"]).signature_def["scalars"]
    definition.outputs["again"].CopyFrom(definition.outputs["product"])
    assert why_not_callable("scalars", definition) is None
    definition.inputs["again"].CopyFrom(definition.inputs["a"])
    definition.inputs["again"].name = definition.inputs["a"].name.removesuffix(":0")
    reason = "inputs 'a' and 'again' are the same tensor 'scalars_a:0', which takes one value"
    assert why_not_callable("scalars", definition) == reason
