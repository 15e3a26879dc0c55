from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import Code, DeadlineExceededError, InferenceError, InvalidInputError, LoadError
from embedserve.registry import ModelRegistry
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.saved_model.tflite import servable as tflite
from embedserve.saved_model.tflite.model import read_model
from embedserve.saved_model.tflite.servable import TfliteServable
from embedserve.servable import Cancellation, Servable, ServableId
from embedserve.tensors import dtypes
from tests.support import saved_models
from tests.support.tflite_models import convert, half_plus_two, signature_def, with_signature_defs, write

pytestmark = pytest.mark.slow

Load = Callable[..., Any]

WEIGHTS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def spec(shape: Any, dtype: Any = tf.float32, name: str = "x") -> Any:
    return tf.TensorSpec(shape, dtype, name=name)


@pytest.fixture(scope="module")
def dense() -> bytes:
    return convert(lambda x: tf.nn.softmax(x @ WEIGHTS), spec([None, 4]))


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Load a TFLite model, or what is in the version directory already; unloaded after the test."""
    loaded: list[tuple[SavedModelLoader, Any]] = []

    def load_one(data: bytes | None = None, *, options: dict[str, Any] | None = None, **config: Any) -> Any:
        path = tmp_path / "m" / "1"
        if data is not None:
            write(path, data)
        model = ModelConfig(name="m", base_path=path.parent, prefer_tflite_model=True, **config)
        made = SavedModelLoader(ServableId("m", 1), path, model, RegistryOptions(**(options or {})))
        servable = made.load()
        loaded.append((made, servable))
        return servable

    yield load_one
    for made, servable in loaded:
        made.unload(servable)


def run(servable: Servable, value: Any, name: str = "serving_default", **how: Any) -> Any:
    """The only output, or all."""
    outputs = servable.run(name, servable.signatures[name].bind(value), **how)
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


# Signatures.


def test_a_model_without_signatures_is_called_by_its_tensor_names(load: Load) -> None:
    servable: Servable = load(half_plus_two())
    assert servable.kind == "tflite"
    (signature,) = servable.signatures.values()
    assert (signature.name, signature.method_name) == ("serving_default", "tensorflow/serving/predict")
    assert (list(signature.inputs), list(signature.outputs)) == (["x"], ["y"])
    stored: Any = servable.signature_defs["serving_default"]
    assert stored.inputs["x"].name == "x"
    assert stored.inputs["x"].dtype == 1
    assert [dim.size for dim in stored.inputs["x"].tensor_shape.dim] == [1, 1]


def test_suffixes_of_tensor_names_are_no_part_of_an_alias(dense: bytes) -> None:
    (signature,) = read_model(dense).signatures.values()
    ((alias, made),) = signature.inputs.items()
    assert (alias, made.tensor_name, made.shape) == ("serving_default_x", "serving_default_x:0", (None, 4))


def test_outputs_of_one_function_have_an_alias_each(load: Load) -> None:
    servable = load(convert(lambda x: {"a": x + 1.0, "b": x * 3.0}, spec([None])))
    outputs = run(servable, [2.0])
    assert sorted(outputs) == ["PartitionedCall:0", "PartitionedCall:1"]
    assert sorted(output.tolist() for output in outputs.values()) == [[3.0], [6.0]]


def test_stored_signatures_name_the_tensors(load: Load) -> None:
    definitions = {
        "serving_default": signature_def({"in": "x:0"}, {"out": "y"}),
        "regress": signature_def({"inputs": "x"}, {"outputs": "y:0"}, "regress"),
    }
    servable: Servable = load(with_signature_defs(half_plus_two(), definitions))
    assert list(servable.signatures) == ["regress", "serving_default"]
    assert servable.signatures["regress"].method_name == "tensorflow/serving/regress"
    assert servable.signatures["serving_default"].inputs["in"].shape == (None, 1), "of the tensor, not as stored"
    assert servable.signature_defs == definitions
    assert run(servable, {"in": [2.0]}).tolist() == [3.0]
    assert run(servable, {"inputs": [4.0]}, "regress").tolist() == [4.0]


@pytest.mark.parametrize(
    ("definitions", "code", "words"),
    [
        (
            {"s": signature_def({"a": "nowhere:0"}, {"y": "y"})},
            Code.INTERNAL,
            "Signature input a references an unknown tensor: Unknown tensor 'nowhere:0'.",
        ),
        (
            {"s": signature_def({"x": "x"}, {"b": "x"})},
            Code.INTERNAL,
            "Signature output b references an unknown tensor: Unknown tensor 'x:0'.",
        ),
        (b"no flexbuffer", Code.INVALID_ARGUMENT, "Invalid SignatureDefs found in TfLite model: "),
        (b"", Code.INVALID_ARGUMENT, "Invalid SignatureDefs found in TfLite model: "),
    ],
)
def test_signatures_that_do_not_fit_fail_the_load(load: Load, definitions: Any, code: Code, words: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(with_signature_defs(half_plus_two(), definitions))
    assert str(caught.value).startswith(words)
    assert caught.value.code is code


def test_bytes_that_are_no_model_are_refused() -> None:
    for data in (b"", b"nothing", half_plus_two()[:100]):
        with pytest.raises(LoadError, match=r"^Cannot build FlatBufferModel from buffer\.") as caught:
            read_model(data)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_tensors_without_a_dtype_of_ours_are_named() -> None:
    data = bytearray(half_plus_two())
    assert read_model(bytes(data))
    # INT4 in place of FLOAT32: the type byte is left out where it is 0, so a model of int8 is changed.
    data = bytearray(convert(lambda x: x, spec([1], tf.int8)))
    whole = read_model(bytes(data))
    assert whole.inputs[0].dtype is dtypes.by_name("int8")
    found = []
    for position in [i for i, byte in enumerate(data) if byte == 9]:
        changed = bytearray(data)
        changed[position] = 17
        try:
            read_model(bytes(changed))
        except LoadError as error:
            found.append((str(error), error.code))
        except Exception:  # Some other 9.
            continue
    assert ("Unknown TfLite type: 17", Code.INTERNAL) in found


# Runs.


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (2, 2), (0,), (), (2, 1, 1, 1, 1, 1)])
def test_inputs_of_element_wise_models_are_resized_to_any_shape(load: Load, shape: tuple[int, ...]) -> None:
    result = run(load(half_plus_two()), np.full(shape, 2.0, np.float32))
    assert result.shape == shape
    assert np.all(result == 3.0)


def test_ranks_that_crash_the_interpreter_do_not_reach_it(load: Load) -> None:
    servable = load(half_plus_two())
    with pytest.raises(InvalidInputError, match="input 'x' has rank 12, TensorFlow Lite takes at most 6"):
        run(servable, np.ones((1,) * 12, np.float32))


def test_rows_are_resized_and_other_sizes_are_not(load: Load, dense: bytes) -> None:
    servable = load(dense)
    rows = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    expected = tf.nn.softmax(rows @ WEIGHTS).numpy()
    np.testing.assert_allclose(run(servable, rows), expected, rtol=1e-5)
    np.testing.assert_allclose(run(servable, rows[:2]), expected[:2], rtol=1e-5)
    for wrong in (np.ones(8, np.float32), np.ones((1, 5), np.float32), np.ones((2, 2, 4), np.float32)):
        with pytest.raises(InvalidInputError, match=r"expected \[\?,4\]"):
            run(servable, wrong)
    with pytest.raises(InvalidInputError, match=r"Expects arg\[0\] to be float but complex64 is provided"):
        run(servable, np.ones((1, 4), np.complex64))


def test_a_refused_size_leaves_the_interpreter_as_it_was(load: Load) -> None:
    servable = load(
        convert(lambda x: tf.reshape(x, [1, 4]) @ WEIGHTS, spec([1, 2, 2])), options={"num_tflite_pools": 1}
    )
    assert not servable.signatures["serving_default"].batching.batchable
    one = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    for _ in range(2):
        with pytest.raises(
            InferenceError, match=r"^Failed to (allocate tensors|invoke TfLite interpreter): "
        ) as caught:
            run(servable, np.ones((2, 2, 2), np.float32))
        assert caught.value.code is Code.INTERNAL
        np.testing.assert_allclose(run(servable, one), one.reshape(1, 4) @ WEIGHTS, rtol=1e-5)


def test_an_error_in_a_run_is_internal(load: Load) -> None:
    servable = load(convert(lambda x: 10 // x, spec([None], tf.int32)), options={"num_tflite_pools": 1})
    with pytest.raises(InferenceError, match=r"^Failed to invoke TfLite interpreter: Division by 0") as caught:
        run(servable, [0])
    assert caught.value.code is Code.INTERNAL
    assert run(servable, [2, 5]).tolist() == [5, 2]


def test_an_error_that_quotes_bytes_of_the_request_is_an_invalid_argument(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    servable = load(half_plus_two(), options={"num_tflite_pools": 1})

    def quoting(self: Any, index: int, value: Any) -> None:
        b"no number: \xff".decode()

    monkeypatch.setattr(tflite._interpreter_class(), "set_tensor", quoting)
    with pytest.raises(InferenceError, match=r"^Failed to invoke TfLite interpreter: no number: \ufffd$") as caught:
        run(servable, np.ones((1, 1), np.float32))
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool", "complex64"]
)
def test_numbers_of_every_dtype_pass_through(load: Load, dtype: str) -> None:
    values = np.array([[1, 0], [1, 1]]).astype(dtype)
    result = run(load(convert(lambda x: tf.reshape(x, [-1]), spec([None, 2], dtype))), values)
    assert result.dtype == values.dtype
    assert result.tolist() == values.reshape(-1).tolist()


def test_strings_pass_through_with_every_byte(load: Load) -> None:
    servable = load(convert(lambda x: tf.reshape(x, [-1, 1]), spec([None], tf.string)))
    texts = [b"", b"a\0b\0", "ä".encode(), bytes(range(256))]
    result = run(servable, texts)
    assert result.dtype == object
    assert result.tolist() == [[text] for text in texts]


def test_a_single_string_passes_through(load: Load) -> None:
    servable = load(convert(lambda x: {"one": tf.reshape(x, [1]), "same": tf.identity(x)}, spec([], tf.string)))
    for text in (b"a", b"a\0b\0"):
        assert sorted(map(np.ndarray.tolist, run(servable, text).values()), key=str) == [[text], text]
    with pytest.raises(InvalidInputError, match="no empty string of rank 0"):
        run(servable, b"")


def test_unknown_rank_is_taken_as_a_scalar_unless_told(load: Load) -> None:
    model = convert(lambda x: tf.reduce_sum(x), spec(None))
    servable = load(model)
    assert run(servable, 2.0).tolist() == 2.0
    with pytest.raises(InvalidInputError, match=r"has shape \[3\]"):
        run(servable, [1.0, 2.0, 3.0])
    assert run(load(model, input_ranks={"serving_default_x": 1}), [1.0, 2.0, 3.0]).tolist() == 6.0


def test_outputs_that_are_not_asked_for_are_not_given(load: Load) -> None:
    servable = load(convert(lambda x: {"a": x + 1.0, "b": x * 3.0}, spec([None])))
    outputs = servable.run(
        "serving_default", {"serving_default_x": np.ones(1, np.float32)}, output_names=["PartitionedCall:1"]
    )
    assert list(outputs) == ["PartitionedCall:1"]


def test_inputs_that_a_signature_leaves_out_are_zero_and_not_the_last_requests(load: Load) -> None:
    plain = convert(lambda x, z: x + z, spec([None]), spec([None], name="z"))
    x, z, y = "serving_default_x:0", "serving_default_z:0", "PartitionedCall:0"
    definitions = {
        "both": signature_def({"x": x, "z": z}, {"y": y}),
        "one": signature_def({"x": x}, {"y": y}),
    }
    servable = load(with_signature_defs(plain, definitions), options={"num_tflite_pools": 1})
    assert run(servable, {"x": [1.0], "z": [41.0]}, "both").tolist() == [42.0]
    assert run(servable, {"x": [1.0]}, "one").tolist() == [1.0]


def test_state_of_one_request_is_not_seen_by_the_next(load: Load) -> None:
    layer = tf.keras.layers.LSTM(2)
    layer.build((1, 3, 2))
    servable = load(convert(layer, spec([1, 3, 2])), options={"num_tflite_pools": 1})
    rows = np.random.default_rng(3).normal(size=(1, 3, 2)).astype(np.float32)
    first = run(servable, rows)
    np.testing.assert_allclose(first, layer(rows), rtol=1e-4)
    assert run(servable, rows).tolist() == first.tolist()


# Interpreters.


def test_each_run_has_an_interpreter_of_its_own(load: Load, dense: bytes) -> None:
    servable = load(dense, options={"num_tflite_pools": 3})
    assert repr(servable) == "<TfliteServable serving_default, 3 idle>"
    inputs = [np.random.default_rng(i).normal(size=(1 + i % 4, 4)).astype(np.float32) for i in range(200)]
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda rows: run(servable, rows), inputs))
    for rows, output in zip(inputs, outputs, strict=True):
        np.testing.assert_allclose(output, tf.nn.softmax(rows @ WEIGHTS), rtol=1e-4)
    assert repr(servable) == "<TfliteServable serving_default, 3 idle>"


def test_there_is_an_interpreter_per_run_thread(load: Load, dense: bytes) -> None:
    assert repr(load(dense, options={"num_batch_threads": 5})).endswith(", 5 idle>")


def test_the_wait_for_an_interpreter_ends_in_time(load: Load, dense: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    servable = load(dense)
    for timeout in (0.0, -1.0):
        with pytest.raises(DeadlineExceededError):
            run(servable, np.ones((1, 4), np.float32), timeout=timeout)
    monkeypatch.setattr(servable, "_idle", [])
    with pytest.raises(DeadlineExceededError):
        run(servable, np.ones((1, 4), np.float32), timeout=0.01)


def test_a_cancelled_run_does_not_begin(load: Load, dense: bytes) -> None:
    servable = load(dense)
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(InferenceError) as caught:
        run(servable, np.ones((1, 4), np.float32), cancellation=cancellation)
    assert caught.value.code is Code.CANCELLED
    assert run(servable, np.ones((1, 4), np.float32)).shape == (1, 3)


def test_tensorflows_own_interpreter_serves_where_the_other_is_missing(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.warns(UserWarning, match="ai_edge_litert"):
        servable = load(half_plus_two(), options={"num_tflite_pools": 1})
    assert run(servable, [2.0]).tolist() == [3.0]


def test_without_any_interpreter_the_load_says_what_to_install(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setattr(tflite, "tf", object())
    with pytest.raises(LoadError, match=r"embedserve\[tflite\]") as caught:
        load(half_plus_two())
    assert caught.value.code is Code.UNIMPLEMENTED


# Which model of a version is served.


def test_the_saved_model_is_served_unless_the_other_is_preferred(load: Load, tmp_path: Path) -> None:
    path = saved_models.half_plus_two(tmp_path / "m" / "1")
    assert not isinstance(load(), TfliteServable), "there is no other"
    write(path, half_plus_two())
    assert isinstance(load(), TfliteServable)
    config = ModelConfig(name="m", base_path=path.parent)
    for preferred in (False, True):
        made = SavedModelLoader(ServableId("m", 1), path, config, RegistryOptions(prefer_tflite_model=preferred))
        servable = made.load()
        assert (servable.kind == "tflite") is preferred
        made.unload(servable)


def test_a_model_that_is_there_but_not_preferred_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "1", half_plus_two())
    made = SavedModelLoader(ServableId("m", 1), path, ModelConfig(name="m", base_path=tmp_path), RegistryOptions())
    with pytest.raises(LoadError, match=r"set prefer_tflite_model to serve its model\.tflite"):
        made.load()


def test_operations_that_python_lacks_are_left_to_the_saved_model(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = {"a": tf.io.FixedLenFeature([], tf.float32)}
    parsing = convert(lambda x: tf.io.parse_example(x, features)["a"], spec([None], tf.string), custom=True)
    with pytest.raises(LoadError, match="unresolved custom op: ParseExampleV2") as caught:
        load(parsing)
    assert caught.value.code is Code.UNIMPLEMENTED
    saved_models.half_plus_two(tmp_path / "m" / "1")
    caplog.set_level(logging.WARNING, "embedserve")
    assert not isinstance(load(), TfliteServable)
    assert "is served from its SavedModel, its model.tflite cannot be" in caplog.text


# In a registry.


def verdict(load: Load, data: bytes) -> tuple[bool, str]:
    found = load(data).signatures["serving_default"].batching
    return found.batchable, found.reason


def test_what_batches_is_found_out_as_for_any_model(load: Load, dense: bytes) -> None:
    assert verdict(load, dense) == (True, "unlike rows together equal each alone")
    assert verdict(load, convert(lambda x: tf.nn.softmax(x @ WEIGHTS), spec([1, 4])))[0], "resized"
    assert not verdict(load, convert(lambda x: x - tf.reduce_mean(x), spec([None])))[0]
    random = verdict(load, convert(lambda x: x + tf.random.uniform(tf.shape(x)), spec([None])))
    assert random == (False, "RANDOM_UNIFORM draws random numbers")


async def test_a_registry_serves_swaps_and_batches_tflite_models(tmp_path: Path, dense: bytes) -> None:
    write(tmp_path / "models" / "m" / "1", dense)
    rows = np.random.default_rng(5).normal(size=(8, 4)).astype(np.float32)
    options: dict[str, Any] = {"prefer_tflite_model": True, "settle": 0.0, "num_batch_threads": 1}
    async with ModelRegistry(tmp_path / "models", **options) as registry:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(registry.predict("m", row[None])) for row in rows]
        together = np.concatenate([task.result()["PartitionedCall"] for task in asked])
        np.testing.assert_allclose(together, tf.nn.softmax(rows @ WEIGHTS), rtol=1e-4)
        shutil.rmtree(tmp_path / "models" / "m" / "1")
        write(tmp_path / "models" / "m" / "2", half_plus_two())
        await registry.pin("m", 2)
        assert (await registry.predict("m", [2.0]))["y"].tolist() == [3.0]


def test_optimised_execution_is_refused(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "m" / "1", half_plus_two())
    config = ModelConfig(name="m", base_path=path.parent, optimize="freeze")
    made = SavedModelLoader(ServableId("m", 1), path, config, RegistryOptions(prefer_tflite_model=True))
    servable = made.load()
    assert servable.kind == "tflite"
    assert "it runs in TensorFlow Lite" in made.note
    made.unload(servable)
