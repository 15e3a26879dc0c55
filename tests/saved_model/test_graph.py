"""What the graph alone tells about a signature."""

from __future__ import annotations

import pytest

from embedserve.saved_model.files.graph import GraphReader, Operations
from embedserve.saved_model.files.meta_graph import read_meta_graph, read_signatures
from tests.saved_model.conftest import ModelPath


def operations(model: ModelPath, name: str, signature_name: str = "serving_default") -> Operations:
    meta_graph = read_meta_graph(model(name), ["serve"])
    signature = read_signatures(meta_graph)[signature_name]
    return GraphReader(meta_graph).operations(
        [spec.tensor_name for spec in signature.outputs.values()],
        [spec.tensor_name for spec in signature.inputs.values()],
    )


@pytest.mark.parametrize(
    ("name", "signature_name", "found"),
    [
        ("half_plus_two", "serving_default", {}),
        ("dense", "serving_default", {}),
        ("counter", "serving_default", {"writes": "AssignAddVariableOp"}),
        ("counter", "read", {}),
        ("tf1_counter", "serving_default", {"writes": "AssignAdd"}),
        ("tf1_ref_variables", "serving_default", {}),
        ("random_noise", "serving_default", {"random": "RandomUniform"}),
        ("control_flow", "pure", {"loops": True}),
        ("control_flow", "hidden", {"writes": "AssignAddVariableOp"}),
        ("endless", "serving_default", {"loops": True}),
        ("lookup", "serving_default", {}),
        ("tf1_legacy_init", "serving_default", {}),
        ("reads_asset_at_run_time", "serving_default", {"reads_files": True}),
        ("positive_only", "serving_default", {}),
    ],
)
def test_effects_are_found_in_nested_functions_too(
    model: ModelPath, name: str, signature_name: str, found: dict[str, object]
) -> None:
    effects = operations(model, name, signature_name)
    seen = {"writes": effects.writes, "random": effects.random, "loops": effects.loops}
    seen |= {"reads_files": effects.reads_files}
    assert {key: value for key, value in seen.items() if value} == found
    assert effects.stateless is not bool(effects.writes or effects.random)


@pytest.mark.parametrize(
    ("name", "signature_name", "element_wise"),
    [
        ("half_plus_two", "serving_default", True),
        ("strings", "serving_default", True),
        ("several", "free", True),
        ("several", "serving_default", False),  # Sums over a dimension.
        ("identities", "string", True),
        ("dense", "serving_default", False),
        ("conv2d", "serving_default", False),
        ("text_cnn", "serving_default", False),
        ("tf1_examples", "serving_default", True),  # What parses the Example lies before the fed tensor.
        ("tf1_examples", "regress_x_to_y", False),
        ("tf1_ref_variables", "serving_default", False),  # Its variables hold two elements: they set a shape.
    ],
)
def test_element_wise_means_every_operation_and_single_constants(
    model: ModelPath, name: str, signature_name: str, element_wise: bool
) -> None:
    assert operations(model, name, signature_name).element_wise is element_wise


def test_constants_are_counted_in_functions(model: ModelPath) -> None:
    assert operations(model, "big_constant").constant_bytes >= 4 * 1024 * 1024
    assert operations(model, "dense").constant_bytes < 1000


@pytest.mark.parametrize("name", ["examples", "tf1_examples"])
def test_parsers_are_found_with_their_features(model: ModelPath, name: str) -> None:
    assert operations(model, name, "classify_x_to_y").features == {"x": (1, 1)}
    meta_graph = read_meta_graph(model(name), ["serve"])
    signatures, graph = read_signatures(meta_graph), GraphReader(meta_graph)
    assert graph.is_parsed(signatures["classify_x_to_y"].inputs["inputs"].tensor_name)
    assert not graph.is_parsed(signatures["serving_default"].inputs["x"].tensor_name)


def test_what_saves_a_checkpoint_is_unsafe(model: ModelPath) -> None:
    graph = GraphReader(read_meta_graph(model("tf1_ref_variables"), ["serve"]))
    assert graph.operations(["save/SaveV2"]).unsafe == "SaveV2"
    assert graph.operations(["save/control_dependency"]).unsafe == "SaveV2"
