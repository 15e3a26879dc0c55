"""Optimised versions answer as plain ones do, or are not served: whatever cannot be had is refused with the reason."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from embedserve.config import BatchingOptions, ModelConfig, RegistryOptions
from embedserve.errors import Code, DeadlineExceededError, InferenceError
from embedserve.registry import ModelRegistry
from embedserve.saved_model.judge import compare
from embedserve.saved_model.load.loader import SavedModelLoader
from embedserve.saved_model.optimise import folding, freezing, optimising
from embedserve.saved_model.optimise.xla import OptimisedServable
from embedserve.servable import Array, Cancellation, ServableId, Tensors
from tests.saved_model.cases import CASES, floats
from tests.saved_model.conftest import Load, ModelPath
from tests.support import saved_models

pytestmark = pytest.mark.slow

v1 = tf.compat.v1


@pytest.fixture
def optimised(model: ModelPath, request: pytest.FixtureRequest) -> Callable[..., tuple[SavedModelLoader, Any]]:
    """Load a model with `optimize`; the loader has the note."""

    def load_one(
        name: str | Path, mode: Literal["freeze", "xla"] = "freeze", **config: Any
    ) -> tuple[SavedModelLoader, Any]:
        path = name if isinstance(name, Path) else model(name)
        made = SavedModelLoader(
            ServableId("m", 1),
            path,
            ModelConfig(name="m", base_path=path.parent, optimize=mode, **config),
            RegistryOptions(),
        )
        servable = made.load()
        request.addfinalizer(lambda: made.unload(servable))
        return made, servable

    return load_one


@pytest.fixture
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of XLA are kept however long they take."""
    monkeypatch.setattr(optimising, "_HOPELESS", float("inf"))
    monkeypatch.setattr(optimising, "_NO_GAIN", float("inf"))


REFUSED = {
    "asset at run time": "signature 'serving_default' opens files in every run",
    "branches and loops": "signature 'hidden' is stateful",
}


@pytest.mark.parametrize("case", CASES)
def test_frozen_models_answer_as_plain_ones(load: Load, optimised: Any, case: str) -> None:
    name, signature_name, inputs = CASES[case]
    loader, servable = optimised(name)
    if case in REFUSED:
        assert f"cannot be had, it runs as it is: {REFUSED[case]}" in loader.note
        assert servable.kind in ("function", "session")
    else:
        assert (servable.kind, loader.note) == ("frozen", "")
    bound = servable.signatures[signature_name].bind(inputs)
    plain = load(name).run(signature_name, bound)
    for output, array in servable.run(signature_name, bound).items():
        assert compare.equal(array, plain[output])
        assert array.flags.owndata or array.dtype.hasobject


def test_no_variable_is_left(optimised: Any) -> None:
    _, servable = optimised("keras_export")
    types = {operation.type for operation in servable._session.graph.get_operations()}
    assert not types & {"VarHandleOp", "ReadVariableOp", "RestoreV2"}
    assert "Const" in types


def test_variables_that_only_the_lifted_model_has_are_frozen_too(optimised: Any, load: Load) -> None:
    _, servable = optimised("keras_saved")
    assert servable.kind == "frozen"
    x = {"x": floats(3, 6)}
    plain = load("keras_saved", servable="function").run("serving_default", x)
    assert compare.equal(servable.run("serving_default", x)["y"], plain["y"])


def test_without_grapplers_door_a_model_is_served_as_it_is(optimised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.grappler import tf_optimizer

    monkeypatch.delattr(tf_optimizer, "OptimizeGraph")
    loader, servable = optimised("dense")
    assert servable.kind in ("function", "session")
    assert "has no way to optimise a graph ahead of its use" in loader.note


class Tables(tf.Module):
    """A table restored from the checkpoint, which no init op fills."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        self.table.insert(tf.constant(["a", "b"]), tf.constant([10, 20], tf.int64))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def serve(self, words: Any) -> Any:
        return {"ids": self.table.lookup(words)}


def test_tables_keep_what_they_hold(optimised: Any, tmp_path: Path) -> None:
    module = Tables()
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), signatures=module.serve)
    _, servable = optimised(tmp_path / "m" / "1")
    assert servable.kind == "frozen"
    words = np.array([b"b", b"a", b"?"], object)
    assert servable.run("serving_default", {"words": words})["ids"].tolist() == [20, 10, -1]


def save_v1(path: Path, build: Callable[[], tuple[Any, Any, dict[str, Any]]]) -> Path:
    """A TF1 model of `build() -> inputs, outputs, feed for nothing`; variables are initialised."""
    with tf.Graph().as_default(), v1.Session() as session:
        inputs, outputs, _ = build()
        session.run(v1.global_variables_initializer())
        return saved_models.save_v1(path, session, {"serving_default": saved_models.v1_signature(inputs, outputs)})


def test_a_constant_that_a_tf1_model_feeds_stays_one_that_can_be_fed(optimised: Any, tmp_path: Path) -> None:
    def build() -> tuple[Any, Any, dict[str, Any]]:
        x = v1.placeholder(tf.float32, [None], "x")
        factor = tf.constant(3.0, name="factor")
        return {"x": x, "factor": factor}, {"y": x * factor * 2.0}, {}

    _, servable = optimised(save_v1(tmp_path / "m" / "1", build))
    assert servable.kind == "frozen"
    inputs = {"x": np.ones(2, np.float32), "factor": np.array(5, np.float32)}
    assert servable.run("serving_default", inputs)["y"].tolist() == [10, 10]


def test_an_old_depthwise_network_is_folded_and_answers_the_same(load: Load, optimised: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    def normalised(x: Any) -> Any:
        scale, offset, mean = (v1.Variable(random.normal(size=x.shape[-1]).astype(np.float32)) for _ in range(3))
        variance = v1.Variable(random.uniform(0.5, 2, x.shape[-1]).astype(np.float32))
        return v1.nn.fused_batch_norm(x, scale, offset, mean, variance, is_training=False)[0]

    def build() -> tuple[Any, Any, dict[str, Any]]:
        x = v1.placeholder(tf.float32, [None, 8, 8, 3], "x")
        y = x
        for _ in range(2):
            weights = v1.Variable(random.normal(size=(3, 3, y.shape[-1], 2)).astype(np.float32))
            y = tf.nn.relu6(normalised(tf.nn.depthwise_conv2d(y, weights, [1, 1, 1, 1], "SAME")))
            mixed = v1.Variable(random.normal(size=(1, 1, y.shape[-1], 5)).astype(np.float32))
            y = tf.nn.relu6(normalised(tf.nn.conv2d(y, mixed, 1, "SAME")))
        return {"x": x}, {"y": y}, {}

    path = save_v1(tmp_path / "m" / "1", build)
    _, servable = optimised(path)
    assert servable.kind == "frozen"
    assert not any("FusedBatchNorm" in found.type for found in servable._session.graph.get_operations())
    x = {"x": floats(3, 8, 8, 3)}
    assert compare.equal(
        servable.run("serving_default", x)["y"], load(path, servable="session").run("serving_default", x)["y"]
    )


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("counter", {}, "signature 'serving_default' is stateful: AssignAddVariableOp writes state"),
        ("tf1_counter", {}, "signature 'serving_default' is stateful: AssignAdd writes state"),
        ("random_noise", {}, "signature 'serving_default' is stateful: RandomUniform draws random numbers"),
        ("conv2d_unknown_rank", {}, "no input to check the answers of signature 'serving_default' with could be made"),
        ("dense", {"warmup": "none"}, 'with warmup="none" there is nothing to check its answers with'),
    ],
)
def test_what_cannot_be_optimised_is_served_as_it_is_and_says_why(
    optimised: Any, caplog: pytest.LogCaptureFixture, name: str, config: dict[str, Any], reason: str
) -> None:
    loader, servable = optimised(name, **config)
    assert servable.kind in ("function", "session")
    assert loader.note.startswith('optimize="freeze" cannot be had, it runs as it is: ')
    assert reason in loader.note
    assert reason in caplog.text


def test_graphs_over_two_gigabytes_are_refused_before_they_are_made(
    optimised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "MAX_GRAPH_BYTES", 2**31 - 1)
    monkeypatch.setattr(freezing, "_bytes_of", lambda variable: 2**30 + 1)
    loader, servable = optimised("dense")
    assert servable.kind in ("function", "session")
    assert "its variables would make a graph of 2.0 GB, and TensorFlow takes graphs up to 2 GB" in loader.note


def test_constants_count_as_well(optimised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "MAX_GRAPH_BYTES", 2**20)
    loader, servable = optimised("big_constant")
    assert servable.kind in ("function", "session")
    assert "would make a graph of 0.0 GB" in loader.note


@pytest.mark.parametrize(("name", "where"), [("dense", "scores"), ("integer_matmul", "scores"), ("strings", "upper")])
def test_a_wrong_answer_never_goes_live(optimised: Any, monkeypatch: pytest.MonkeyPatch, name: str, where: str) -> None:
    real = OptimisedServable.run

    def off(self: OptimisedServable, *arguments: Any, **options: Any) -> dict[str, Array]:
        outputs = real(self, *arguments, **options)
        array = outputs[where]
        outputs[where] = np.full_like(array, b"?") if array.dtype.hasobject else (array * 1.01 + 1).astype(array.dtype)
        return outputs

    monkeypatch.setattr(OptimisedServable, "run", off)
    loader, servable = optimised(name)
    assert servable.kind in ("function", "session")
    assert f"output {where!r} of signature 'serving_default' differs by " in loader.note
    assert "optimize_tolerance is 1e-05" in loader.note


def test_the_tolerance_is_an_option_and_exact_outputs_have_none(
    optimised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folding.fold_channel_scales

    def changed(graph_def: Any, kept: Any) -> Any:
        folded = real(graph_def, kept)
        for node in folded.node:
            if node.op == "Const" and node.attr["value"].tensor.ByteSize() > 40:
                array = tf.make_ndarray(node.attr["value"].tensor)
                moved = array + 1 if array.dtype == np.int32 else array * np.float32(1.001)
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(moved))
        return folded

    monkeypatch.setattr(freezing, "fold_channel_scales", changed)
    assert "differs by 1.0e-03 of its size" in optimised("dense")[0].note
    assert optimised("dense", optimize_tolerance=0.01)[1].kind == "frozen"
    assert "differs by inf of its size" in optimised("integer_matmul", optimize_tolerance=0.01)[0].note


def test_recorded_requests_are_compared_too(
    optimised: Any, model: ModelPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PredictionLog()
    log.predict_log.request.inputs["features"].CopyFrom(tf.make_tensor_proto(np.full((1, 4), 77, np.float32)))
    path = saved_models.add_warmup_requests(Path(shutil.copytree(model("dense"), tmp_path / "m" / "1")), [log])
    real = OptimisedServable.run

    def wrong_for_it(self: OptimisedServable, name: str, inputs: Tensors, *arguments: Any, **options: Any) -> Any:
        outputs = real(self, name, inputs, *arguments, **options)
        return {key: array + (inputs["features"][0, 0] == 77) for key, array in outputs.items()}

    monkeypatch.setattr(OptimisedServable, "run", wrong_for_it)
    assert "output 'scores' of signature 'serving_default' differs" in optimised(path)[0].note


def test_timeouts_and_cancellation_are_those_of_a_session(optimised: Any) -> None:
    _, servable = optimised("endless")
    assert servable.kind == "frozen"
    endless = {"steps": np.array([2**60])}
    with pytest.raises(DeadlineExceededError, match=r"^Timed out waiting for notification$"):
        servable.run("serving_default", endless, timeout=0.2)
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(InferenceError) as raised:
        servable.run("serving_default", endless, cancellation=cancellation)
    assert raised.value.code is Code.CANCELLED


def test_many_threads_and_choices_of_outputs(optimised: Any) -> None:
    _, servable = optimised("several")
    inputs = {"left": floats(4, 3), "right": np.ones((4, 3), np.int32)}
    expected = servable.run("serving_default", inputs)["row_sum"]
    wrong: list[int] = []

    def run() -> None:
        for _ in range(50):
            found = servable.run("serving_default", inputs, ("row_sum",))
            if list(found) != ["row_sum"] or not np.array_equal(found["row_sum"], expected):
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_session_runs_reach_the_signatures_tensors(optimised: Any) -> None:
    _, servable = optimised("tf1_ref_variables")
    x = floats(2, 2)
    (y,) = servable.run_graph({"x:0": x}, ["y:0"])
    assert np.allclose(y, x * np.array([2, 3], np.float32) + 1)


class Chain(tf.Module):
    """Many element-wise operations, which XLA makes one of: `x [-1, 64]` to `y` and `sum`."""

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        y = x
        for step in range(40):
            y = tf.tanh(y * 1.1) + tf.sin(y) * (0.01 * step)
        return {"y": y, "sum": tf.reduce_sum(y, axis=1), "x": x}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain") / "1"
    tf.saved_model.save(Chain(), str(path), signatures=Chain().serve)
    return path


@pytest.mark.usefixtures("always_worth_it")
class TestXla:
    def test_programs_are_made_for_the_allowed_batch_sizes_and_others_run_frozen(
        self, load: Load, optimised: Any, chain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = BatchingOptions(max_batch_size=6, allowed_batch_sizes=(2, 6))
        loader, servable = optimised(chain, "xla", batching_options=options)
        assert (servable.kind, loader.note) == ("xla", "")
        assert loader.batching[1].allowed_batch_sizes == (2, 6)
        plain, program = load(chain), servable._compiled["serving_default"]
        for rows in range(1, 8):
            x = {"x": floats(rows, 64)}
            assert (servable._find_plan("serving_default", None, x) is program) is (rows in (2, 6))
            for names in (None, ("sum",), ("x", "y")):
                found, expected = (one.run("serving_default", x, names) for one in (servable, plain))
                assert set(found) == set(expected)
                assert all(compare.equal(found[name], expected[name]) for name in found)

    def test_without_allowed_sizes_they_are_the_powers_of_two(self, optimised: Any, chain: Path) -> None:
        loader, servable = optimised(chain, "xla", batching_options=BatchingOptions(max_batch_size=6))
        assert loader.batching[1].allowed_batch_sizes == (1, 2, 4, 6)
        assert {shapes[0][0] for shapes in servable._shapes["serving_default"]} == {1, 2, 4, 6}
        loader, servable = optimised(chain, "xla", batching=False)
        assert loader.batching[1].allowed_batch_sizes == ()
        assert {shapes[0][0] for shapes in servable._shapes["serving_default"]} == {1}

    def test_batches_are_padded_to_a_size_that_has_a_program(self, chain: Path, load: Load, tmp_path: Path) -> None:
        shutil.copytree(chain, tmp_path / "m" / "1")
        model = ModelConfig(
            name="m", base_path=tmp_path / "m", optimize="xla", batching_options=BatchingOptions(max_batch_size=4)
        )
        x = floats(3, 64)
        with ModelRegistry(models=[model], settle=0.0, watch=False) as registry:
            assert registry.status()["m"][0].kind == "xla"
            found = registry.predict_sync("m", x)
            assert registry.statistics().queues["m", 1].padding_rows == 1
        assert compare.equal(found["y"], load(chain).run("serving_default", {"x": x})["y"])

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("strings", "XLA knows no strings (text, upper)"),
            ("endless", "a loop that XLA compiled could not be stopped"),
            ("positive_only", "XLA would leave out what its Assert operation"),
            ("text_cnn", "input 'tokens' is int32 [?,?] and may have any size, and each would need a program"),
        ],
    )
    def test_what_xla_cannot_do_runs_frozen_and_says_why(
        self, optimised: Any, caplog: pytest.LogCaptureFixture, name: str, reason: str
    ) -> None:
        loader, servable = optimised(name, "xla")
        assert servable.kind == "frozen"
        assert f"signature 'serving_default' runs frozen: {reason}" in loader.note
        assert reason in caplog.text
        assert loader.batching[1].allowed_batch_sizes == ()

    def test_an_operation_that_xla_lacks_runs_frozen(self, optimised: Any, tmp_path: Path) -> None:
        class Unlucky(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
            def serve(self, x: Any) -> Any:
                return {"y": x + tf.cast(tf.strings.length(tf.strings.as_string(x)), tf.float32)}

        tf.saved_model.save(Unlucky(), str(tmp_path / "m" / "1"), signatures=Unlucky().serve)
        loader, servable = optimised(tmp_path / "m" / "1", "xla", batching_options=BatchingOptions(max_batch_size=1))
        assert servable.kind == "frozen"
        assert (
            "runs frozen: InvalidArgumentError: Detected unsupported operations when trying to compile graph"
            in loader.note
        )
        assert "\n" not in loader.note
        x = np.array([[0.5, 1, 2, 30]], np.float32)
        assert servable.run("serving_default", {"x": x})["y"].shape == (1, 4)

    def test_open_sizes_are_taken_from_recorded_requests(
        self, optimised: Any, model: ModelPath, tmp_path: Path
    ) -> None:
        logs = []
        for length in (5, 9):
            log, tokens = PredictionLog(), np.arange(2 * length, dtype=np.int32).reshape(2, length)
            log.predict_log.request.inputs["tokens"].CopyFrom(tf.make_tensor_proto(tokens))
            logs.append(log)
        path = saved_models.add_warmup_requests(Path(shutil.copytree(model("text_cnn"), tmp_path / "m" / "1")), logs)
        _, servable = optimised(path, "xla", batching_options=BatchingOptions(max_batch_size=2))
        assert servable.kind == "xla"
        assert servable._shapes["serving_default"] == {((rows, length),) for rows in (1, 2) for length in (5, 9)}

    def test_a_program_is_not_trusted_where_the_plain_version_fails(self, optimised: Any, tmp_path: Path) -> None:
        class Picky(tf.Module):
            """Takes up to three rows; XLA would take any index for the last."""

            @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
            def serve(self, x: Any) -> Any:
                return {"y": x * tf.gather(tf.range(3.0), tf.range(tf.shape(x)[0]))[:, None]}

        tf.saved_model.save(Picky(), str(tmp_path / "m" / "1"), signatures=Picky().serve)
        options = BatchingOptions(max_batch_size=4)
        loader, servable = optimised(tmp_path / "m" / "1", "xla", batching=True, batching_options=options)
        assert servable.kind == "frozen"
        assert "runs frozen: InferenceError: indices[3] = 3 is not in [0, 3)" in loader.note
        with pytest.raises(InferenceError, match="is not in"):
            servable.run("serving_default", {"x": floats(4, 4)})

    def test_large_constants_are_shared_by_the_programs(self, optimised: Any, load: Load) -> None:
        _, servable = optimised("big_constant", "xla", batching_options=BatchingOptions(max_batch_size=2))
        assert servable.kind == "xla"
        (call,) = (
            found for found in servable._session.graph.get_operations() if found.type.endswith("PartitionedCall")
        )
        assert [list(tensor.shape) for tensor in call.inputs] == [[None, 1024], [1024, 1024]]
        x = {"x": floats(2, 1024)}
        expected = load("big_constant").run("serving_default", x)["y"]
        assert compare.equal(servable.run("serving_default", x)["y"], expected)

    def test_a_wrong_answer_of_a_program_never_goes_live(
        self, optimised: Any, chain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = OptimisedServable.run

        def off(self: OptimisedServable, name: str, inputs: Tensors, *arguments: Any, **options: Any) -> Any:
            outputs = real(self, name, inputs, *arguments, **options)
            compiled = self._find_plan(name, None, inputs) is self._compiled[name]
            return {key: array + np.float32(compiled) for key, array in outputs.items()}

        monkeypatch.setattr(OptimisedServable, "run", off)
        loader, servable = optimised(chain, "xla", batching_options=BatchingOptions(max_batch_size=2))
        assert servable.kind == "frozen"
        assert (
            "signature 'serving_default' runs frozen: output 'sum' of signature 'serving_default' differs"
            in loader.note
        )
        assert servable._find_plan("serving_default", None, {"x": floats(1, 64)}) is not servable._compiled


def test_programs_that_are_slower_than_the_frozen_graph_are_dropped(
    optimised: Any, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OptimisedServable.compile
    compiled: list[Any] = []

    def note(self: OptimisedServable, name: str, inputs: Tensors) -> None:
        real(self, name, inputs)
        compiled.append(len(inputs["x"]))

    monkeypatch.setattr(OptimisedServable, "compile", note)
    for factors, ratio, sizes in (((2.0,), "2.00", [1]), ((1.2, 0.9), "1.05", [1, 2]), ((0.5, 1.4), None, [1, 2])):
        compiled.clear()
        times = iter([time for factor in factors for time in (1.0, factor)])
        monkeypatch.setattr(
            optimising, "run_time", SimpleNamespace(fastest=lambda call, budget, times=times: next(times))
        )
        loader, servable = optimised(chain, "xla", batching_options=BatchingOptions(max_batch_size=2))
        assert compiled == sizes
        if ratio is None:
            assert (servable.kind, loader.note) == ("xla", "")
        else:
            assert servable.kind == "frozen"
            assert f"compiled by XLA it takes {ratio} times as long as frozen" in loader.note
            assert loader.batching[1].allowed_batch_sizes == ()


async def test_status_says_how_a_version_runs_and_what_could_not_be_had(
    model: ModelPath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("dense", "counter"):
        shutil.copytree(model(name), tmp_path / name / "1")
    caplog.set_level(logging.INFO, "embedserve")
    async with ModelRegistry(tmp_path, optimize="freeze", settle=0.0, watch=False) as registry:
        dense, counter = (registry.status()[name][0] for name in ("dense", "counter"))
        assert (dense.kind, dense.note) == ("frozen", "")
        assert counter.kind == "function"
        assert counter.note.startswith('optimize="freeze" cannot be had, it runs as it is: signature')
        assert (await registry.predict("counter", [1.0]))["y"].tolist() == [2.0]
    assert "{name: dense version: 1} runs frozen: its answers were compared" in caplog.text
