"""Signatures as stored, and load errors in TensorFlow Serving's words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from embedserve.errors import Code, LoadError
from embedserve.saved_model.meta_graph import has_object_graph, read_meta_graph, read_signatures
from tests import saved_models
from tests.saved_model.conftest import ModelPath


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
    assert "'x' is no dense tensor (coo_sparse)" in caplog.text
    assert "'a' is a resource" in caplog.text
