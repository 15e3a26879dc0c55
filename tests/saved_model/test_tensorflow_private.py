"""Each private way into TensorFlow gives what the public one gives, and the public one works without it."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from embedserve.saved_model import tensorflow_private
from tests.saved_model.conftest import ModelPath

pytestmark = pytest.mark.slow


def signature(model: ModelPath, name: str, signature_name: str = "serving_default") -> Any:
    loaded = tf.saved_model.load(str(model(name)))
    function = loaded.signatures[signature_name]
    function.keep = loaded  # The loaded model owns the variables.
    return function


INLINE = pytest.mark.parametrize("inline", [False, True])


@INLINE
def test_a_direct_call_gives_the_public_calls_bits(model: ModelPath, inline: bool) -> None:
    function = signature(model, "several")
    assert isinstance(tensorflow_private.function_call(function), tensorflow_private.CancellableCall)
    x = [np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), np.arange(6, dtype=np.int32).reshape(2, 3)]
    direct = tensorflow_private.CancellableCall(function, inline=inline)(x, None)
    public = tensorflow_private.PublicFunctionCall(function)(x, None)
    called = function(left=tf.constant(x[0]), right=tf.constant(x[1]))
    ours: Any
    theirs: Any
    for ours, theirs, name in zip(direct, public, sorted(called), strict=True):
        assert ours.tobytes() == theirs.tobytes() == called[name].numpy().tobytes()


@INLINE
def test_a_direct_call_passes_captured_variables_and_tables(model: ModelPath, inline: bool) -> None:
    x = [np.ones((2, 4), np.float32)]
    for name, inputs in (("dense", x), ("lookup", [np.array([b"red", b"?"], object)])):
        function = signature(model, name)
        assert function.captured_inputs
        direct: list[Any] = tensorflow_private.CancellableCall(function, inline=inline)(inputs, None)
        public: list[Any] = tensorflow_private.PublicFunctionCall(function)(inputs, None)
        assert np.array_equal(direct[0], public[0])


@INLINE
def test_a_direct_call_can_be_stopped_from_another_thread(model: ModelPath, inline: bool) -> None:
    call = tensorflow_private.CancellableCall(signature(model, "endless"), inline=inline)

    def started(stop: Any) -> None:
        threading.Thread(target=stop).start()

    with pytest.raises(tf.errors.CancelledError):
        call([np.array([2**60])], started)


def test_without_the_private_call_the_public_one_is_used(
    model: ModelPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorflow.python import pywrap_tfe

    monkeypatch.delattr(pywrap_tfe, "TFE_Py_ExecuteCancelable")
    call = tensorflow_private.function_call(signature(model, "dense"))
    assert isinstance(call, tensorflow_private.PublicFunctionCall)
    assert "cannot be cancelled" in caplog.text
    values: list[Any] = call([np.zeros((1, 4), np.float32)], None)
    assert values[0].shape == (1, 3)


@INLINE
def test_forgotten_kernels_are_made_again(model: ModelPath, inline: bool) -> None:
    call: Any = tensorflow_private.CancellableCall(signature(model, "dense"), inline=inline)
    x = [np.ones((1, 4), np.float32)]
    before = call(x, None)[0].copy()
    tensorflow_private.forget_kernels()
    assert np.array_equal(call(x, None)[0], before)


def test_forgetting_kernels_does_not_disturb_runs(model: ModelPath) -> None:
    calls: list[Any] = [
        tensorflow_private.CancellableCall(signature(model, "control_flow", "pure"), inline=i) for i in (False, True)
    ]
    x = [np.array([900, 3], np.float32)]
    expected = calls[0](x, None)[0].copy()
    done = threading.Event()
    answers: list[bool] = []

    def run(call: Any) -> None:
        answers.extend(np.array_equal(call(x, None)[0], expected) for _ in range(100))

    def forget() -> None:
        while not done.is_set():
            tensorflow_private.forget_kernels()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    forgetting = threading.Thread(target=forget)
    for thread in (forgetting, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    forgetting.join(60)
    assert answers == [True] * 200


def test_without_the_private_cache_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.eager import context

    monkeypatch.delattr(context, "context")
    tensorflow_private.forget_kernels()


class Hidden:
    """A function without its private attribute."""

    def __init__(self, function: Any) -> None:
        self.inputs = function.inputs
        self.captured_inputs = function.captured_inputs
        self.structured_input_signature = function.structured_input_signature


@pytest.mark.parametrize("name", ["several", "dense", "lookup", "tf1_ref_variables", "tf1_examples", "keras_export"])
def test_argument_names_are_found_either_way(model: ModelPath, name: str) -> None:
    function = signature(model, name)
    names = tensorflow_private.argument_names(function)
    assert names == list(function._arg_keywords)
    hidden: Any = Hidden(function)
    assert tensorflow_private.argument_names(hidden) == names


@pytest.fixture
def session(model: ModelPath) -> Any:
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session, tensorflow_private.quiet_loading():
        v1.saved_model.loader.load(session, ["serve"], str(model("tf1_ref_variables")))
        yield session


class PublicSession:
    """A session with nothing but its public methods."""

    def __init__(self, session: Any) -> None:
        self.run = session.run

        class Graph:
            pass

        self.graph = Graph()


def test_session_calls_give_what_session_run_gives(session: Any) -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    expected = session.run("y:0", {"x:0": x})
    owner: Any
    for owner in (session, PublicSession(session)):
        in_thread = tensorflow_private.session_callable(owner, ["x:0"], ["y:0"])
        in_pool = tensorflow_private.session_run(owner, ["x:0"], ["y:0"])
        for values in (in_thread(x), in_pool([x], 0), in_pool([x], 10_000)):
            found: Any = values[0]
            assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("op", "stateful", "references"),
    [
        ("MatMul", False, False),
        ("AssignAddVariableOp", True, False),
        ("ReadVariableOp", True, False),
        ("RandomUniform", True, False),
        ("AssignAdd", False, True),
        ("NoSuchOperation", True, False),
    ],
)
def test_the_registry_knows_what_an_op_does(op: str, stateful: bool, references: bool) -> None:
    assert tensorflow_private.is_stateful(op) is stateful
    assert tensorflow_private.takes_references(op) is references


def test_without_the_registry_the_models_own_list_decides(model: ModelPath, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedserve.saved_model.files.meta_graph import read_meta_graph

    stored = {op.name: op for op in read_meta_graph(model("tf1_counter"), ["serve"]).meta_info_def.stripped_op_list.op}
    monkeypatch.setattr(tensorflow_private, "_op_def", lambda op: None)
    assert tensorflow_private.takes_references("AssignAdd", stored["AssignAdd"])
    assert not tensorflow_private.is_stateful("Add", stored.get("Add") or stored["AddV2"])
    assert tensorflow_private.is_stateful("Add", None)


def test_the_process_config_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorflow_private.process_config().inter_op_parallelism_threads = 17
    assert tensorflow_private.process_config().inter_op_parallelism_threads != 17
    from tensorflow.python.eager import context

    monkeypatch.delattr(context, "context")
    assert isinstance(tensorflow_private.process_config(), tf.compat.v1.ConfigProto)


def test_loading_gives_no_advice_to_whoever_serves_a_model(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tensorflow")
    caplog.set_level(logging.WARNING)
    logger.addHandler(caplog.handler)
    try:
        with tensorflow_private.quiet_loading():
            logger.warning("load (from somewhere) is deprecated and will be removed in a future version.")
            logger.warning("something is wrong with this model")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"something is wrong with this model"}


def test_graphs_are_optimised_under_the_names_that_are_kept(model: ModelPath) -> None:
    with tf.compat.v1.Session(graph=tf.Graph()) as session, tensorflow_private.quiet_loading():
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(model("dense")))
        before = session.graph.as_graph_def()
    kept = before.SerializeToString(deterministic=True)
    inlined = tensorflow_private.optimized_graph(
        before, ["serving_default_features:0", "StatefulPartitionedCall:0"], ["function"]
    )
    assert inlined is not None
    operations = {node.name: node.op for node in inlined.node}
    assert operations["serving_default_features"] == "Placeholder"
    assert operations["StatefulPartitionedCall"] == "IdentityN"
    assert "MatMul" in operations.values()
    assert before.SerializeToString(deterministic=True) == kept


def test_without_grapplers_door_graphs_are_not_optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.grappler import tf_optimizer

    monkeypatch.delattr(tf_optimizer, "OptimizeGraph")
    assert tensorflow_private.optimized_graph(tf.compat.v1.GraphDef(), [], ["constfold"]) is None


def test_inline_calls_run_every_operation_in_the_callers_thread() -> None:
    # Runs on the event loop rest on the promise: an operation in TensorFlow's pool could wait for another model's runs.
    seen: list[int] = []

    def note(x: Any) -> Any:
        seen.append(threading.get_ident())
        return x

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def wide(x: Any) -> Any:
        branches = [tf.numpy_function(note, [x + float(i)], tf.float32) for i in range(4)]
        return tf.add_n([tf.numpy_function(note, [branch * 2.0], tf.float32) for branch in branches])

    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None], name="x")
        tf.identity(wide.python_function(x), name="y")
        session = tf.compat.v1.Session(graph=graph)
    function = tensorflow_private.function_call(wide.get_concrete_function(), inline=True)
    in_session = tensorflow_private.session_callable(session, ["x:0"], ["y:0"])
    one = np.ones(1, np.float32)
    with session:
        for _ in range(20):
            np.testing.assert_array_equal(function([one], None)[0], one * 20)
            np.testing.assert_array_equal(in_session(one)[0], one * 20)
    assert seen == [threading.get_ident()] * 320
